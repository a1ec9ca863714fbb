"""Score-CAM and Group-CAM: feature maps as masks on the image, weighed by what F then sees."""

import torch
from torch import Tensor

from thesis_lib.checks import checked, number, one_of, whole
from thesis_lib.classifier import Classes, Classifier, resolve_classes
from thesis_lib.counts import count
from thesis_lib.kernels import (
    blur,
    group_sum,
    masked_scores,
    min_max,
    percentile_denoise,
    resize,
    usable,
)
from thesis_lib.methods.base import METHODS, explainer


def mask_weights(
    clf: Classifier,
    images: Tensor,
    blurred: Tensor,
    masks: Tensor,
    alive: Tensor,
    classes: Tensor,
    score: str,
) -> Tensor:
    """Equations 3-10 and 3-11: alpha_r = F_c(I_r) - F_c(I'_0) -> (N, B); 0 where not alive.

    I_r shows image I_0 (N, 3, H, W) through mask r of masks (N, B, H, W) in [0, 1] and blurred
    I'_0 elsewhere. alive (N, B) bool: masks worth a forward pass (`kernels.usable`).

    >>> nothing, alive = torch.zeros(1, 1, 224, 224), torch.ones(1, 1, dtype=torch.bool)
    >>> blurred, classes = kernels.blur(images), clf.predict(images)
    >>> mask_weights(clf, images, blurred, nothing, alive, classes, "logit").abs() < 1e-4
    tensor([[True]])
    """
    with clf.compiled(alive.numel(), images.shape[-2:]):
        seen = masked_scores(
            lambda inputs, owners: clf.scores(inputs, classes[owners], score),
            images, blurred, masks, lambda mask: mask, clf.batch, alive,
        )  # fmt: skip
    gain = seen - clf.scores(blurred, classes, score)[:, None]
    failed = alive & ~gain.isfinite()
    count("nan groups", failed.sum())
    return torch.where(alive & ~failed, gain, 0)


def weighted_sum(weights: Tensor, masks: Tensor, alive: Tensor) -> Tensor:
    """Sum over r of weights (N, B) times masks (N, B, H, W) that are alive (N, B) -> (N, H, W).

    >>> masks, alive = torch.ones(1, 2, 1, 1), torch.tensor([[True, False]])
    >>> weighted_sum(torch.tensor([[2.0, 5.0]]), masks, alive).tolist()
    [[[2.0]]]
    """
    return torch.einsum("nb,nbhw->nhw", weights, torch.where(alive[..., None, None], masks, 0))


@METHODS.entry("Score-CAM", colour="#E69F00", line=(0, (5, 1)), source="Wang et al., CVPR workshops 2020")
@explainer()
def score_cam(
    clf: Classifier, images: Tensor, classes: Classes = None, *, batch: int | None = None
) -> Tensor:
    """Score-CAM (Wang et al., 2020), as its official code: one forward pass for each channel.

    Masks are the up-sampled channels, min-maxed, over black (the mean colour); weights w_k are
    the class's probabilities; map = ReLU(sum_k w_k phi(A_k)). Channels that are flat or not
    finite are skipped and counted as groups. phi is linear, so the sum comes before it.

    images, classes, batch, result: as `grad_cam`.

    >>> with tl.counting() as counts:
    ...     maps = tl.METHODS["score_cam"](clf, images)
    >>> counts["forward images"] + counts["flat groups"]  # once bare, then the layer's 64 channels
    65
    """
    features, logits = clf.features(images)
    explained = resolve_classes(clf.targets(classes, len(images)), logits)
    alive = usable(features)
    size = images.shape[-2:]
    with clf.compiled(alive.numel(), size):
        weights = masked_scores(
            lambda inputs, owners: clf.scores(inputs, explained[owners], "probability"),
            images, torch.zeros_like(images), features,
            lambda mask: min_max(resize(mask, size)), clf.batch, alive,
        )  # fmt: skip
    return resize(weighted_sum(weights, features, alive)[:, None], size)[:, 0].relu()


@METHODS.entry(
    "Group-CAM", colour="#CC79A7", line=(0, (3, 1, 1, 1)), source="Zhang et al., arXiv 2103.13859, 2021"
)
@explainer(share=4)
@checked(groups=(whole, 1), theta=(number, 0, 100), score=(one_of, "logit", "probability"))
def group_cam(
    clf: Classifier,
    images: Tensor,
    classes: Classes = None,
    *,
    groups: int = 32,
    theta: float = 70,
    score: str = "probability",
    batch: int | None = None,
) -> Tensor:
    """Group-CAM (Zhang et al., 2021), the version its authors published with the paper.

    Channels times their mean gradients are summed in `groups` of neighbours; ReLU; each group is
    denoised at the layer's resolution (strictly above its theta-th percentile), up-sampled and
    min-maxed to M'_r; alpha_r = F_c(image seen through M'_r) - F_c(blurred image);
    map = ReLU(sum_r alpha_r M'_r). Flat and NaN groups are skipped and counted.

    Args:
        clf, images, classes, batch: as `grad_cam`, and the result.
        groups: B, the number of masks; with more than the layer has channels, those without one are flat.
        theta: percentile, 0 to 100.
        score: F_c is the "probability" (the authors) or the "logit".

    >>> with tl.counting() as counts:
    ...     maps = tl.METHODS["group_cam"](clf, images, groups=8)
    >>> counts["forward images"] + counts["flat groups"]  # bare, 8 masks, blurred
    10
    """
    blurred = blur(images)  # first: it refuses small images
    features, gradients, _, classes = clf.features_and_gradients(images, classes)
    masks = group_sum(features, gradients.mean((-2, -1)), groups).relu()
    masks = resize(percentile_denoise(masks, theta), images.shape[-2:])
    alive = usable(masks)
    masks = min_max(masks)
    weights = mask_weights(clf, images, blurred, masks, alive, classes, score)
    return weighted_sum(weights, masks, alive).relu()
