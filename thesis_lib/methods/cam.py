"""Grad-CAM, Grad-CAM++ and XGrad-CAM: channels weighed by their gradients, one forward pass.

All three sum the weighed channels, apply ReLU, up-sample and min-max; only the weights differ.
Shapes: features A and gradients G (N, K, h, w), maps (N, H, W).
"""

import torch
from torch import Tensor

from thesis_lib.classifier import Classes, Classifier
from thesis_lib.methods.base import METHODS, explainer


def _combine(weights, features):
    return torch.einsum("nk,nkhw->nhw", weights, features).relu()


@METHODS.entry("Grad-CAM", colour="#56B4E9", line="--", source="Selvaraju et al., ICCV 2017")
@explainer()
def grad_cam(clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): w_k = mean of G_k; map = ReLU(sum_k w_k A_k).

    Args:
        clf: a Classifier.
        images: (N, 3, H, W), normalised.
        classes: None (the predicted ones), one index, or (N,) indices.
        batch: images in a forward pass, None for the classifier's.

    Returns:
        (N, H, W) in [0, 1], float32; a flat map is zero, and counted (`counting`).

    Raises:
        ValueError: images that are no float tensor of that shape, logits that are not finite, a
            network or layer that cannot be explained so.
        IndexError: a class out of range.

    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    >>> other = tl.METHODS["grad_cam"](clf, images, classes=7)  # the same picture, another class
    >>> bool((maps - other).abs().max() > 0.1)
    True
    """
    features, gradients, _, _ = clf.features_and_gradients(images, classes)
    return _combine(gradients.mean((-2, -1)), features)


@METHODS.entry("Grad-CAM++", colour="#0072B2", line="-.", source="Chattopadhay et al., WACV 2018")
@explainer()
def grad_cam_plus_plus(
    clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None
) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., 2018), the paper's equation 19.

    With Y = exp(S), S the logit: alpha = Y'' / (2 Y'' + sum(A) Y''') and
    w_k = sum over pixels of alpha ReLU(Y'). The derivatives of Y are exp(S) times g, g^2 and g^3,
    so alpha = 1 / (2 + sum(A) g), and what is left of exp(S) is one factor for the whole map,
    which min-max removes: it is never computed and cannot overflow. Where g is 0 nothing is added.

    images, classes, batch, result: as `grad_cam`.

    >>> tl.METHODS["grad_cam_plus_plus"](clf, images).shape
    torch.Size([1, 224, 224])
    """
    features, gradients, _, _ = clf.features_and_gradients(images, classes)
    denominator = 2 + features.sum((-2, -1), keepdim=True) * gradients
    terms = gradients.relu() / denominator
    weights = torch.where(denominator == 0, 0, terms).sum((-2, -1))
    return _combine(weights, features)


@METHODS.entry("XGrad-CAM", colour="#009E73", line=":", source="Fu et al., BMVC 2020")
@explainer()
def xgrad_cam(
    clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None
) -> Tensor:
    """XGrad-CAM (Fu et al., 2020): w_k = sum(G_k A_k) / (sum(A_k) + 1e-6), as its official code.

    images, classes, batch, result: as `grad_cam`.

    >>> tl.METHODS["xgrad_cam"](clf, images).shape
    torch.Size([1, 224, 224])
    """
    features, gradients, _, _ = clf.features_and_gradients(images, classes)
    mass = features.sum((-2, -1)) + 1e-6  # the official guard against channels that are all zero
    return _combine((features * gradients).sum((-2, -1)) / mass, features)
