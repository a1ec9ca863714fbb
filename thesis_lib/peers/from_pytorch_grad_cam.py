"""Methods of pytorch-grad-cam, on the explained layer."""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thesis_lib.checks import check_settings, checked, whole
from thesis_lib.classifier import Classifier
from thesis_lib.layers import layout
from thesis_lib.peers.base import PEERS, library, library_class, peer


def pytorch_grad_cam(name: str, **settings: Any) -> Callable[..., Tensor]:
    """The method of pytorch-grad-cam whose class is called so, such as "HiResCAM". settings: that class's.

    It explains the class's logit at the explained layer: what needs another target or more layers, as FinerCAM and
    RefineCAM do, is a method of its own below.
    """

    check_settings(library_class(library("pytorch_grad_cam"), name), settings)

    @peer
    def method(clf, image, target):
        return _activation(name, clf, image, target, **settings)

    return method


def _activation(name, clf, image, target, layers=None, given=None, **settings):
    """The map of one class.

    layers: their names, None for the explained one. given: what the method is called with besides the image, None
    for the class's logit as its target.
    """
    method = library_class(library("pytorch_grad_cam"), name)
    given = {"targets": [_target("ClassifierOutputTarget", target)]} if given is None else given
    modules = [clf.network.get_submodule(layer) for layer in layers or [clf.layer]]
    passed = []

    def see(network, images):
        passed.append(images[0].shape)

    def refuse(module, images, output):  # the library would take anything for maps
        if (kind := layout(output.shape, passed[-1])) != "channels first":
            raise ValueError(
                f"pytorch-grad-cam reads maps with their channels first; {clf.layer!r} gives {kind}"
            )

    with contextlib.ExitStack() as stack:
        stack.enter_context(clf.network.register_forward_pre_hook(see))
        for module in modules:
            stack.enter_context(module.register_forward_hook(refuse))
        # Its progress bars go to stderr, and cannot be switched off.
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        cam = method(clf.network, modules, **settings)
        try:  # its own `with` swallows an IndexError: a class that is not there would have no map and no word
            return cam(image.requires_grad_(), **given)
        finally:
            for part in (cam, getattr(cam, "base_cam", None), *getattr(cam, "base_cam_per_layer", ())):
                if hasattr(part, "activations_and_grads"):
                    part.activations_and_grads.release()


def _target(kind, target):
    return library_class(library("pytorch_grad_cam.utils.model_targets"), kind)(target.item())


@PEERS.entry("Ablation-CAM", family="class activation", source="Desai & Ramaswamy, WACV 2020")
@peer
def ablation_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Ablation-CAM (Desai & Ramaswamy, 2020): a channel weighs as much as the score falls without it."""
    return _activation("AblationCAM", clf, image, target)


@PEERS.entry(
    "HiResCAM", family="class activation", source="Draelos & Carin, arXiv 2011.08891, 2020", thesis=False
)
@peer
def hires_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """HiResCAM (Draelos & Carin, 2020): ReLU(sum_k G_k A_k), gradients G not averaged over the layer's places.

    Behind global pooling and one linear layer G_k is the same everywhere, and this is Grad-CAM.
    """
    return _activation("HiResCAM", clf, image, target)


@PEERS.entry("Layer-CAM", family="class activation", source="Jiang et al., IEEE TIP 2021", thesis=False)
@peer
def layer_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Layer-CAM (Jiang et al., 2021): ReLU(sum_k ReLU(G_k) A_k), at the explained layer alone.

    The paper joins several layers, because its weights, one for each place, also serve earlier ones.
    """
    return _activation("LayerCAM", clf, image, target)


@PEERS.entry("SESS", family="class activation", source="Tursun et al., ECCV 2022", thesis=False)
@peer
@checked(scales=(whole, 1))
def sess(clf: Classifier, image: Tensor, target: Tensor, scales: int = 4) -> Tensor:
    """SESS (Tursun et al., 2022) of Grad-CAM: maps of windows of the enlarged image, put back and averaged.

    `thesis_lib.sess` is our own, for any method. scales: sizes, each 2 / 7 of the image's larger than the one before:
    224, 288, ...; the paper takes 12.
    """

    def differentiable(network, images):  # the library makes windows of its own, from a copy without a graph
        return (images[0].requires_grad_(torch.is_grad_enabled()),)

    with clf.network.register_forward_pre_hook(differentiable):
        return _activation("SESS", clf, image, target, num_scales=scales, batch_size=clf.batch)


@PEERS.entry("ShapleyCAM", family="class activation", source="Cai, arXiv 2501.06261, 2025", thesis=False)
@peer
def shapley_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """ShapleyCAM (Cai, 2025): w_k = mean of (G - H A / 2)_k, the Shapley value of a channel to second order.

    G and H are gradient and Hessian, with respect to the features, of the paper's score: the class's logit plus the
    logarithm of its probability.
    """
    return _activation(
        "ShapleyCAM", clf, image, target, given={"targets": [_target("ClassifierOutputReST", target)]}
    )


@PEERS.entry("Finer-CAM", family="class activation", source="Zhang et al., CVPR 2025", thesis=False)
@peer
def finer_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Finer-CAM (Zhang et al., 2025): Grad-CAM of what sets the class apart from the three nearest to it.

    The score is the mean of F_c - F_d over the classes d whose logits are nearest, weighed by their
    probabilities, as the library has it. TorchCAM's is F_c - 0.6 times the plain mean of F_d.
    """
    return _activation("FinerCAM", clf, image, target, given={"target_idx": target.item()})


@PEERS.entry("RefineCAM", family="class activation", source="Domeniconi et al., ICPR 2026", thesis=False)
@peer
def refine_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """RefineCAM (Domeniconi et al., 2026): the product of Grad-CAM++'s maps at layers of several sizes.

    Layers: the explained one and the last of the two next larger sizes, if the network has them.
    """
    return _activation("RefineCAM", clf, image, target, layers=_of_three_sizes(clf, image))


def _of_three_sizes(clf, image):
    """Names of layers: the last one of each of the three smallest sizes, up to the explained one, which ends them."""
    calls = []

    def note(name):
        def hook(module, args, output):
            if torch.is_tensor(output) and output.ndim == 4:
                calls.append((name, tuple(output.shape[-2:])))

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in clf.network.named_modules() if n]
    try:
        with torch.no_grad():
            clf.network(image)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in calls]
    if clf.layer not in names:  # no maps: refused where it is read
        return [clf.layer]
    end = names.index(clf.layer)
    explained = calls[end][1]
    # A module that runs twice would be two layers to the library.
    last = {
        size: name
        for name, size in calls[:end]
        if names.count(name) == 1 and math.prod(size) > math.prod(explained)
    }
    larger = sorted(last, key=math.prod)[:2]
    return [*(last[size] for size in reversed(larger)), clf.layer]
