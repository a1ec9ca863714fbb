"""Grad-CAM and its relatives by other libraries, for whole batches: what ours are compared with."""

import torch

from thesis_lib.kernels import resize


def pytorch_grad_cam(name, clf, images, classes):
    """The method whose class in pytorch-grad-cam is called so: maps (N, H, W), in [0, 1]."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = clf.network.get_submodule(clf.layer)
    with getattr(pytorch_grad_cam, name)(clf.network, [layer]) as cam:
        return torch.from_numpy(cam(images, [ClassifierOutputTarget(c) for c in classes]))


def torchcam(name, clf, images, classes):
    """The method whose class in torch-cam is called so: maps (N, H, W), up-sampled as ours are."""
    import torchcam.methods

    layer = clf.network.get_submodule(clf.layer)
    with getattr(torchcam.methods, name)(clf.network, layer) as cam:
        (small,) = cam(classes, clf.network(images), normalized=False)
    return resize(small.detach().relu()[:, None], images.shape[-2:])[:, 0]


def captum_grad_cam(clf, images, classes):
    """Captum's Grad-CAM: maps (N, H, W), up-sampled as ours are."""
    from captum.attr import LayerGradCam

    cam = LayerGradCam(clf.network, clf.network.get_submodule(clf.layer))
    small = cam.attribute(images, target=classes, relu_attributions=True)
    return resize(small.detach(), images.shape[-2:])[:, 0]
