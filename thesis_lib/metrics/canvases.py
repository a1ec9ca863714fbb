"""Deletion on other canvases: what a pixel that is gone is replaced with moves the score."""

from collections.abc import Callable
from typing import Any

import torch

from thesis_lib.checks import whole
from thesis_lib.classifier import Classifier, refuse_nan, resolve_classes
from thesis_lib.kernels import blur, joined, packed, rank_pixels
from thesis_lib.layers import runs_undisturbed
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import check_maps

# images (N, 3, H, W), normalised -> the same. Zero is what is left where a normalised picture is multiplied by
# a mask: the mean colour of the network's training pictures.
CANVASES: dict[str, Callable] = {"blurred": blur, "mean": torch.zeros_like}


@runs_undisturbed
@torch.no_grad()
def deletion_onto(
    clf: Classifier,
    images: torch.Tensor,
    maps: Any,
    canvas: torch.Tensor,
    classes: Any = None,
    step: int = 448,
) -> torch.Tensor:
    """Area under the deletion curve (N,) where deleted pixels show a canvas of one's own.

    As `insertion_deletion` has it otherwise: `step` more of the strongest pixels at each point, equal ones in
    reading order, probability of the class, trapezoid rule over the true fractions.

    Args:
        images, maps, classes, step: as `insertion_deletion` takes them.
        canvas: (N, 3, H, W) or one for all, (1, 3, H, W), normalised.

    Raises:
        TypeError, ValueError, IndexError: as `insertion_deletion`; a canvas of another size, or with NaN.

    >>> from thesis_lib.metrics import deletion_onto
    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> onto_blur = deletion_onto(clf, images, maps, kernels.blur(images), step=6272)
    >>> onto_blur.allclose(tl.insertion_deletion(clf, images, maps, step=6272).deletion_auc, atol=1e-5)
    True
    """
    images, canvas = clf.prepare(images), clf.prepare(canvas)
    n, _, height, width = images.shape
    maps = check_maps(maps, (n, height, width)).to(clf.device)
    step = whole(step, "step")
    if not 1 <= step < height * width:
        raise ValueError(f"step must lie in 1..{height * width - 1} (pixels), not {step}")
    if canvas.shape[1:] != images.shape[1:] or len(canvas) not in (1, n):
        raise ValueError(
            f"a canvas is as large as the images, {tuple(images.shape)}, not {tuple(canvas.shape)}"
        )
    refuse_nan(images)
    refuse_nan(canvas)
    canvas = canvas.expand(images.shape)
    classes = resolve_classes(clf.targets(classes, n), clf.logits(images))
    counts = torch.arange(0, height * width + step, step, device=clf.device).clamp_(max=height * width)
    ranks = rank_pixels(maps).int().view(n, 1, height, width)
    gone = counts.int().view(
        -1, 1, 1, 1
    )  # one job for each point, the intact picture and the canvas among them
    scores: list[torch.Tensor] = []
    owners = classes.repeat_interleave(len(counts)).split(clf.batch)
    with clf.compiled(n * len(counts), (height, width)):
        for part, owner in zip(packed([len(counts)] * n, clf.batch), owners, strict=True):
            frames = [
                torch.where(ranks[i] < gone[first:last], canvas[i], images[i]) for i, first, last in part
            ]
            scores.append(clf.scores(joined(frames), owner, "probability"))
    curves = torch.cat(scores).view(n, -1)
    return torch.trapezoid(curves, counts.to(curves.dtype) / (height * width))


@METRICS.entry(
    "canvases",
    chinese="画布",
    source="deletion as in thesis 3.4.4, and as others play it",
    columns={f"deletion_{name}": Column(f"deletion, {name} canvas", -1) for name in CANVASES},
)
def canvases_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """Areas under the deletion curves on each of the `CANVASES`."""
    return {
        f"deletion_{name}": deletion_onto(
            rounds.classifier, rounds.images, maps, fill(rounds.images), rounds.classes, rounds.step
        )
        .cpu()
        .numpy()
        for name, fill in CANVASES.items()
    }
