"""Methods of TorchCAM, on the explained layer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from thesis_lib.checks import check_settings
from thesis_lib.classifier import Classifier
from thesis_lib.peers.base import PEERS, library, library_class, peer


def torchcam(name: str, **settings: Any) -> Callable[..., Tensor]:
    """The method of TorchCAM whose class is called so, such as "LayerCAM". settings: that class's."""

    check_settings(library_class(library("torchcam.methods"), name), settings)

    @peer
    def method(clf, image, target):
        return _activation(name, clf, image, target, **settings)

    return method


def _activation(name, clf, image, target, **settings):
    extractor = library_class(library("torchcam.methods"), name)
    with extractor(clf.network, clf.layer, **settings) as cam:
        scores = clf.network(image.requires_grad_())
        return cam(target.item(), scores, normalized=False)[0].relu()


@PEERS.entry("CAM", family="class activation", source="Zhou et al., CVPR 2016")
@peer
def cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """CAM (Zhou et al., 2016): channels weighed by the linear layer behind global pooling.

    Raises ValueError for a network with more than one linear layer, whose channels have no weights.
    """
    linear = [n for n, m in clf.network.named_modules() if isinstance(m, nn.Linear)]
    if len(linear) != 1:
        raise ValueError(
            "CAM needs one linear layer behind global average pooling, as ResNets have it; this "
            f"network has {len(linear)} linear layers"
        )
    with library("torchcam.methods").CAM(clf.network, clf.layer, linear[0]) as method:
        clf.network(image)
        return method(target.item(), normalized=False)[0].relu()


@PEERS.entry("Smooth Grad-CAM++", family="class activation", source="Omeiza et al., arXiv 1908.01224, 2019")
@peer
def smooth_grad_cam_plus_plus(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Smooth Grad-CAM++ (Omeiza et al., 2019): Grad-CAM++ with derivatives averaged over noisy images."""
    return _activation("SmoothGradCAMpp", clf, image, target)


@PEERS.entry("SS-CAM", family="class activation", source="Wang et al., arXiv 2006.14255, 2020")
@peer
def ss_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """SS-CAM (Wang et al., 2020): Score-CAM averaged over noise; two samples, each a pass a channel."""
    return _activation("SSCAM", clf, image, target, num_samples=2)
