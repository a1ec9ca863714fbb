"""CAMERAS and MSG-CAM: features and gradients from enlarged images, fused.

Chapter 3 of the thesis, function by function. Lists hold one entry for each scale t:
features A_t and gradients G_t (N, K, h_t, w_t); keep (T, N) tells which scales count.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from thesis_lib.checks import at_the_end, checked, number, one_of, several, whole
from thesis_lib.classifier import Classes, Classifier
from thesis_lib.counts import count
from thesis_lib.kernels import (
    blur,
    group_sum,
    min_max,
    percentile_denoise,
    pixel_mean_weights,
    resize_by_matrices,
    resized_dot,
    resized_sum,
    usable,
)
from thesis_lib.methods.base import METHODS, explainer
from thesis_lib.methods.masks import mask_weights, weighted_sum

GATES = "prediction", "always"
CHUNK = 2**21  # numbers that CAMERAS holds beyond features and gradients: 8 MB in float32; off the CPU 256


def scale_sizes(size: Sequence[int], sizes: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """Equation 3-2: the sizes (H_t, W_t) of an image of size (H, W), enlarged.

    sizes: lengths of the shorter side; the aspect is kept. None: its own and 100, 200, ..., 700
    more, so 224, 324, ..., 924.

    Raises TypeError or ValueError for what is no list of whole numbers from 1 on.

    >>> scale_sizes((224, 448), [224, 324])
    [(224, 448), (324, 648)]
    """
    shorter = min(size)
    if sizes is None:
        sizes = range(shorter, shorter + 800, 100)
    lengths = several(sizes, "sizes", whole, 1)
    return [tuple(round(side * length / shorter) for side in size) for length in lengths]


def scaled_inputs(
    images: Tensor, sizes: Sequence[int] | None = None, mode: str = "bilinear"
) -> Iterator[Tensor]:
    """I_t of section 3.3.1: yields the images (N, 3, H, W) at each of `scale_sizes`.

    >>> [tuple(scaled.shape[-2:]) for scaled in scaled_inputs(images, [224, 324])]
    [(224, 224), (324, 324)]
    """
    own = tuple(images.shape[-2:])
    for size in scale_sizes(own, sizes):
        if size == own:
            yield images
        elif mode == "bicubic" and images.device.type == "cpu":
            yield resize_by_matrices(images, size, mode)
        else:
            yield F.interpolate(images, size, mode=mode)


def explain_scales(
    clf: Classifier,
    images: Tensor,
    classes: Classes = None,
    sizes: Sequence[int] | None = None,
    gate: str = "prediction",
    mode: str = "bilinear",
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Algorithm 1, lines 2 to 13: features and gradients at every scale (equation 3-1).

    Args:
        clf, images, classes: as `grad_cam`.
        sizes: as `scale_sizes`.
        gate: "prediction" keeps the scales whose predicted class is the explained one, and always
            the image itself (the first, where its own size is not among them); "always" keeps all.
        mode: how images are enlarged, as `torch.nn.functional.interpolate` has it.

    Returns:
        features (list), gradients (list), keep (T, N) bool, classes (N,).

    >>> features, gradients, keep, classes = explain_scales(clf, images, sizes=[224, 448])
    >>> [tuple(a.shape) for a in features]
    [(1, 64, 14, 14), (1, 64, 28, 28)]
    """
    one_of(gate, "gate", *GATES)
    own = tuple(images.shape[-2:])
    scales = scale_sizes(own, sizes)
    certain = scales.index(own) if own in scales else 0
    if classes is None and scales[0] != own:
        classes = clf.predict(images)  # the class is the image's own, whatever the scales
    features: list[Tensor] = []
    gradients: list[Tensor] = []
    kept: list[Tensor] = []
    with ExitStack() as stack:
        for t, scaled in enumerate(scaled_inputs(images, sizes, mode)):
            if t == 1:  # classes that do not exist are said at the first pass
                stack.enter_context(at_the_end())
            a, g, logits, explained = clf.features_and_gradients(scaled, classes)
            features.append(a)
            gradients.append(g)
            kept.append((logits.argmax(1) == explained) | (gate == "always" or t == certain))
            classes = explained
    keep = torch.stack(kept)
    count("skipped scales", (~keep).sum())
    return features, gradients, keep, explained


def mean_over_scales(maps: Iterable[Tensor], keep: Tensor, size: Sequence[int]) -> Tensor:
    """Equations 3-3 and 3-4: the mean over kept scales of phi(maps_t, size) -> (N, C, H, W).

    >>> maps = [torch.ones(1, 1, 2, 2), torch.full((1, 1, 3, 3), 3.0)]
    >>> mean_over_scales(maps, torch.tensor([[True], [True]]), (4, 4)).unique()
    tensor([2.])
    """
    return resized_sum(_weighed(maps, keep), size)


def _weighed(maps, keep):
    """Maps (N, C, h, w) of each scale, divided by the number of kept scales; 0 where a scale is not kept."""
    n, *kept = (k[:, None, None, None] for k in (keep.sum(0), *keep))
    return [torch.where(k, x / n, 0) for x, k in zip(maps, kept, strict=True)]


def fused_weights(gradients: Iterable[Tensor], keep: Tensor, size: Sequence[int]) -> Tensor:
    """Equations 3-4 and 3-5: W (N, K), the pixel means of the fused gradients.

    Exactly `mean_over_scales(gradients, keep, size).mean((-2, -1))`, without up-sampling.

    >>> gradients, keep = [torch.rand(1, 5, 2, 2), torch.rand(1, 5, 3, 3)], torch.ones(2, 1).bool()
    >>> literal = mean_over_scales(gradients, keep, (8, 8)).mean((-2, -1))
    >>> fused_weights(gradients, keep, (8, 8)).allclose(literal)
    True
    """
    total: Tensor | int = 0
    for g, kept in zip(gradients, keep, strict=True):
        rows, columns = (v.to(g) for v in pixel_mean_weights(g.shape[-2:], size))
        mean = torch.einsum("nkhw,h,w->nk", g, rows, columns)
        total += torch.where(kept[:, None], mean, 0)
    return total / keep.sum(0)[:, None]


def group_masks(
    features: Iterable[Tensor], weights: Tensor, keep: Tensor, groups: int, size: Sequence[int]
) -> Tensor:
    """Equations 3-3, 3-6 and 3-7: masks M_r = ReLU(sum of W_k A_k in group r) -> (N, B, H, W).

    phi is linear: channels are weighed and summed at the layer's resolution, so that `groups`
    maps are up-sampled instead of K.

    >>> features, weights = [torch.rand(1, 6, 2, 2)], torch.rand(1, 6)
    >>> group_masks(features, weights, torch.ones(1, 1).bool(), 3, (8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    sums = (group_sum(a, weights, groups) for a in features)
    return mean_over_scales(sums, keep, size).relu()


@METHODS.entry("CAMERAS", colour="#555555", line=(0, (1, 1)), source="Jalwana et al., CVPR 2021")
@explainer(share=4)
@checked(sizes=(several, whole, 1), gate=(one_of, *GATES))
def cameras(
    clf: Classifier,
    images: Tensor,
    classes: Classes = None,
    *,
    sizes: Sequence[int] | None = None,
    gate: str = "prediction",
    batch: int | None = None,
) -> Tensor:
    """CAMERAS (Jalwana et al., 2021): map = ReLU(sum_k mean_t phi(A_t) * mean_t phi(G_t)).

    Images are enlarged bicubically, as in its official code. The product of two means does not
    commute with phi: pixels go through in tiles of bounded memory.

    Args:
        clf, images, classes, batch: as `grad_cam`, and the result.
        sizes: as `scale_sizes`.
        gate: as `explain_scales`.

    >>> tl.METHODS["cameras"](clf, images, sizes=[224, 324]).shape
    torch.Size([1, 224, 224])
    """
    features, gradients, keep, _ = explain_scales(clf, images, classes, sizes, gate, "bicubic")
    room = CHUNK if images.device.type == "cpu" else 32 * CHUNK
    fused = resized_dot(_weighed(features, keep), _weighed(gradients, keep), images.shape[-2:], room)
    return fused.relu()


@METHODS.entry(
    "MSG-CAM",
    chinese="基于输入图片多尺寸放大的显著图解释方法",
    colour="#D55E00",
    line="-",
    source="the thesis, chapter 3; Xiang et al., ICME 2023",
)
@explainer(share=4)
@checked(
    groups=(whole, 1),
    theta=(number, 0, 100),
    score=(one_of, "logit", "probability"),
    sizes=(several, whole, 1),
    gate=(one_of, *GATES),
    fuse=(one_of, "denoised", "normalised"),
)
def msg_cam(
    clf: Classifier,
    images: Tensor,
    classes: Classes = None,
    *,
    groups: int = 32,
    theta: float = 70,
    score: str = "logit",
    sizes: Sequence[int] | None = None,
    gate: str = "prediction",
    fuse: str = "denoised",
    batch: int | None = None,
) -> Tensor:
    """MSG-CAM, Algorithm 1 of the thesis: Group-CAM masks from images at several scales.

    Flat and NaN groups are skipped and counted.

    Args:
        clf, images, classes, batch: as `grad_cam`, and the result.
        groups: B, the number of masks; as `group_cam`.
        theta: percentile of equation 3-8, at full resolution.
        score: F_c of equation 3-11 is the "logit" (section 3.3.1) or the "probability".
        sizes: as `scale_sizes`, equation 3-2.
        gate: as `explain_scales`, line 6.
        fuse: equation 3-12 sums M_r, "denoised", or M'_r, "normalised".

    >>> maps = tl.METHODS["msg_cam"](clf, images, sizes=[224, 324])
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    """
    size, blurred = images.shape[-2:], blur(images)  # first: it refuses small images
    features, gradients, keep, classes = explain_scales(clf, images, classes, sizes, gate)
    weights = fused_weights(gradients, keep, size)
    masks = group_masks(features, weights, keep, groups, size)
    masks = percentile_denoise(masks, theta)
    alive = usable(masks)
    shown = min_max(masks)  # M'_r, equation 3-9
    alpha = mask_weights(clf, images, blurred, shown, alive, classes, score)
    return weighted_sum(alpha, masks if fuse == "denoised" else shown, alive).relu()
