"""The window enhancer of chapter 4, and SESS, its nearest published relative.

Both take a method and return a method: windows of the image are explained, and their maps fused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from thesis_lib.checks import at_the_end, check_settings, number, one_of, several, whole
from thesis_lib.classifier import Classifier, resolve_classes
from thesis_lib.counts import count
from thesis_lib.kernels import (
    fuse_windows,
    interpolation,
    low_pass,
    resize,
    take_windows,
    window_corners,
)
from thesis_lib.methods.base import METHODS, explainer
from thesis_lib.methods.multiscale import scale_sizes


def enhance(
    method: str | Callable,
    window: int | Sequence[int] = 160,
    stride: int | Sequence[int] = 32,
    cutoff: float | None = 28,
    *,
    lowpass: str = "ideal",
    cover: str = "sum",
    weight: str = "probability",
    skip: float = 0.0,
    **settings: Any,
) -> Callable:
    """A method that explains windows of the image and fuses their maps: equations 4-1 to 4-11.

    Windows p_k of the image I_0 are enlarged to its size (P_k), explained (S_k) and reduced again
    (s_k); alpha_k = F_c(P_k) is their weight and S_0 the map of the whole image. Then
    S'_c = sum_k (alpha_k s_k + S_0 on window k), low-passed (S''_c) and min-maxed. Classes are
    those of the whole image.

    Windows of all images share passes. An image in work holds its P windows' maps: 4 P h w bytes.

    Args:
        method: a key of `METHODS` or a method; an enhanced one is refused.
        window, stride: pixels, one number or (vertical, horizontal). The last window ends at the
            border.
        cutoff: D_0 in cycles per image side, see `kernels.low_pass`; None for no filter.
        lowpass: "ideal" (equation 4-10) or "gaussian".
        cover: "sum", equation 4-8 as it stands, where a pixel counts as often as windows cover it;
            or "mean" over the windows that cover it.
        weight: alpha is the class's "probability" (section 4.3.2) or its "logit".
        skip: windows whose probability of the class is below it are not explained, and add only
            S_0; counted as "skipped windows".
        settings: the method's own.

    Returns:
        a method, `(clf, images, classes=None, *, batch=None) -> maps`, which are (N, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: a setting, of this or of the method, that it does not have or that is out of
            range; an enhanced method; and, when it is called, before the first pass, a window or a cutoff
            that does not fit the image, or windows with gaps between them for the mean.

    >>> enhanced = tl.enhance("grad_cam", window=112, stride=56)
    >>> with tl.counting() as counts:
    ...     maps = enhanced(clf, images)
    >>> counts["forward images"]  # the class, the whole map; 9 windows, scored and explained
    20
    """
    base = _bare(method, "enhanced")
    check_settings(base, settings)
    part, step = _pair(window, "window"), _pair(stride, "stride")
    cutoff = cutoff if cutoff is None else number(cutoff, "cutoff")
    one_of(lowpass, "the low-pass", "ideal", "gaussian")
    one_of(cover, "cover", "sum", "mean")
    one_of(weight, "weight", "probability", "logit")
    skip = number(skip, "skip", 0, 1)

    @explainer()
    def enhanced(clf, images, classes=None, *, batch=None):
        size = images.shape[-2:]
        corners = window_corners(size, part, step)
        covered = fuse_windows(images.new_ones(1, len(corners), *part), corners, size)
        if cover == "mean" and not covered.all():
            raise ValueError(
                f"a stride of {step[0]} x {step[1]} leaves gaps between windows of {part[0]} x {part[1]} "
                'pixels, which have no mean: make it smaller, or cover="sum"'
            )
        if cutoff is not None:  # on nothing, to refuse a cutoff that does not fit before the first pass
            low_pass(covered * 0, cutoff, lowpass)
        classes = clf.predict(images) if classes is None else classes
        whole = base(clf, images, classes, **settings)
        alpha = score_windows(clf, images, classes, corners, part, weight)
        probability = alpha
        if skip and weight == "logit":
            probability = score_windows(clf, images, classes, corners, part, "probability")
        likely = probability >= skip if skip else torch.ones_like(alpha, dtype=torch.bool)
        count("skipped windows", (~likely).sum())
        maps = explain_windows(clf, base, images, classes, corners, part, likely, settings)
        total = fuse_windows(alpha[..., None, None] * maps, corners, size)
        total = total + covered * whole if cover == "sum" else total / covered + whole
        return total if cutoff is None else low_pass(total, cutoff, lowpass)

    enhanced.windowed = True
    return enhanced


def sess(
    method: str | Callable, sizes: Sequence[int] | None = None, prefilter: float = 0.0, **settings: Any
) -> Callable:
    """Saliency enhancing with scaling and sliding (SESS; Tursun et al., ECCV 2022).

    The image is enlarged to several sizes and each is cut into windows of the image's own size.
    Their maps, times the probability of the class, are reduced to their places, averaged where they
    are positive, and blurred (11 x 11, sigma 5), as in the official code.

    Args:
        method: a key of `METHODS` or a method.
        sizes: lengths of the shorter side, none below the image's; None: its own and 64, 128, ...,
            704 pixels more, which cuts a square image of 224 pixels into 122 windows.
        prefilter: the share of windows, the least probable ones, that are not explained.
        settings: the method's own, except CAMERAS's and MSG-CAM's `sizes`, as SESS has its own:
            `functools.partial(tl.METHODS["msg_cam"], sizes=[224, 324])`.

    Returns:
        a method, as `enhance`.

    Raises:
        TypeError, ValueError: a setting, of this or of the method, that it does not have or that is out of
            range; an enhanced method; and, when it is called, sizes below the image's.

    >>> tl.sess("grad_cam", sizes=[224, 288], prefilter=0.5)(clf, images).shape
    torch.Size([1, 224, 224])
    """
    base = _bare(method, "given to SESS")
    check_settings(base, settings)
    sizes = sizes if sizes is None else several(sizes, "SESS enlarges: sizes", whole, 1)
    prefilter = number(prefilter, "prefilter")
    if not 0 <= prefilter < 1:
        raise ValueError(f"prefilter is a share of windows, 0 to below 1, not {prefilter}")

    @explainer()
    def enhanced(clf, images, classes=None, *, batch=None):
        size = tuple(images.shape[-2:])
        shorter = min(size)
        lengths = range(shorter, shorter + 12 * 64, 64) if sizes is None else sizes
        if min(lengths) < shorter:
            raise ValueError(f"SESS enlarges: sizes must be {shorter} pixels or more, not {sizes}")
        classes = clf.predict(images) if classes is None else classes
        scales = scale_sizes(size, lengths)
        corners = [window_corners(s, size, size) for s in scales]
        enlarged = [resize(images, s) for s in scales]
        scores = [
            score_windows(clf, x, classes, c, size, "probability", size)
            for x, c in zip(enlarged, corners, strict=True)
        ]
        weights = torch.cat(scores, 1)
        order = weights.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        likely = order >= int(weights.shape[1] * prefilter)
        count("skipped windows", (~likely).sum())
        total = positive = torch.zeros_like(images[:, 0])
        parts = [likely.split([len(c) for c in corners], 1), scores, enlarged, corners, scales]
        for alive, weight, x, places, s in zip(*parts, strict=True):
            maps = explain_windows(clf, base, x, classes, places, size, alive, settings, size)
            maps = maps * weight[..., None, None]
            rows, columns = (interpolation(b, a).mT.to(maps) for b, a in zip(s, size, strict=True))
            for k, (top, left) in enumerate(places.tolist()):
                # The window on an empty canvas, reduced to the image: two sparse matrices.
                down, across = rows[top : top + size[0]], columns[left : left + size[1]]
                placed = down.mT @ maps[:, k] @ across
                # Not 0 itself: where a map is smallest, rounding decides on which side of it.
                above = placed > 64 * torch.finfo(placed.dtype).eps * weight[:, k, None, None]
                total, positive = total + placed, positive + above
        mean = total / positive.clamp(min=1)
        return gaussian_blur2d(mean[:, None], (11, 11), (5.0, 5.0), border_type="reflect")[:, 0]

    enhanced.windowed = True
    return enhanced


def score_windows(
    clf: Classifier,
    images: Tensor,
    classes: Tensor,
    corners: Tensor,
    window: Sequence[int],
    score: str,
    size: Sequence[int] | None = None,
) -> Tensor:
    """Equation 4-6: alpha (N, P), the "probability" or "logit" of the class in each window.

    size: what windows are enlarged to; None: the images' own, as in equation 4-3.
    """
    size, corners = size or images.shape[-2:], corners.to(images.device)
    jobs = torch.arange(len(images) * len(corners), device=images.device)
    scores: list[Tensor] = []
    with clf.compiled(len(jobs), size):
        for job in jobs.split(clf.batch):
            owner, place = job // len(corners), job % len(corners)
            inputs = _enlarged(images, owner, corners[place], window, size)
            logits = torch.cat([logits for _, logits in clf.passes(inputs)])
            if not scores:  # a GPU stops for good where outputs are indexed beyond the last
                resolve_classes(classes, logits)
            scores.append(clf.score_of(logits, classes[owner], score))
    return torch.cat(scores).view(len(images), -1)


def explain_windows(
    clf: Classifier,
    base: Callable,
    images: Tensor,
    classes: Tensor,
    corners: Tensor,
    window: Sequence[int],
    alive: Tensor,
    settings: dict[str, Any],
    size: Sequence[int] | None = None,
) -> Tensor:
    """Equations 4-3, 4-5 and 4-7: maps s (N, P, h, w) of the windows that are alive (N, P)."""
    owners, places = alive.nonzero(as_tuple=True)  # image by image
    maps = images.new_zeros(*alive.shape, *window)
    if not len(owners):  # `split` would give one empty pass
        return maps
    corners = corners.to(images.device)
    with at_the_end():
        for owner, place in zip(owners.split(clf.batch), places.split(clf.batch), strict=True):
            inputs = _enlarged(images, owner, corners[place], window, size)
            explained = base(clf, inputs, classes[owner], **settings)
            maps[owner, place] = resize(explained[:, None], window)[:, 0]
    return maps


def _enlarged(images, owners, corners, window, size):
    """Equations 4-1 and 4-3: P_k, as large as the images, or of another size."""
    return resize(take_windows(images, owners, corners, window), size or images.shape[-2:])


def _bare(method, how):
    """The method, by name or itself; one that is windowed already is refused."""
    base = METHODS[method] if isinstance(method, str) else method
    if not callable(base):
        raise TypeError(f"a method is a name in METHODS or a function, not {method!r}")
    inner = base
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    if getattr(inner, "windowed", False):
        raise ValueError(f"a method that explains windows already cannot be {how} again")
    return base


def _pair(value, name):
    """One number of pixels for both directions, or (vertical, horizontal)."""
    if not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0 or isinstance(value, str):
        value = value, value
    if len(value) != 2:
        raise ValueError(f"{name} is a whole number of pixels, or two of them, not {value!r}")
    return tuple(whole(side, name) for side in value)
