"""Methods of pytorch-grad-cam, on the explained layer."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

from torch import Tensor

from thesis_lib.checks import check_settings
from thesis_lib.classifier import Classifier
from thesis_lib.peers.base import PEERS, library, library_class, peer


def pytorch_grad_cam(name: str, **settings: Any) -> Callable[..., Tensor]:
    """The method of pytorch-grad-cam whose class is called so, such as "HiResCAM". settings: that class's."""

    check_settings(library_class(library("pytorch_grad_cam"), name), settings)

    @peer
    def method(clf, image, target):
        return _activation(name, clf, image, target, **settings)

    return method


def _activation(name, clf, image, target, **settings):
    method = library_class(library("pytorch_grad_cam"), name)
    wanted = library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    layer = clf.network.get_submodule(clf.layer)
    # Its progress bars go to stderr, and cannot be switched off.
    with contextlib.redirect_stderr(io.StringIO()):
        cam = method(clf.network, [layer], **settings)
        try:  # its own `with` swallows an IndexError: a class that is not there would have no map and no word
            return cam(image.requires_grad_(), [wanted(target.item())])
        finally:
            cam.activations_and_grads.release()


@PEERS.entry("Ablation-CAM", family="class activation", source="Desai & Ramaswamy, WACV 2020")
@peer
def ablation_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Ablation-CAM (Desai & Ramaswamy, 2020): a channel weighs as much as the score falls without it."""
    return _activation("AblationCAM", clf, image, target)
