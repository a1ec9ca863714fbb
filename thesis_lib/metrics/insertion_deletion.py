"""Insertion and deletion curves (thesis 3.4.4; Petsiuk et al., "RISE", BMVC 2018)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from thesis_lib.checks import whole
from thesis_lib.classifier import Classifier, refuse_nan, resolve_classes
from thesis_lib.counts import count
from thesis_lib.kernels import blur, joined, packed, rank_pixels
from thesis_lib.layers import runs_undisturbed
from thesis_lib.metrics.base import METRICS, Column, Rounds


class InsertionDeletion(NamedTuple):
    """Curves and areas of N images at T points, in [0, 1] (`overall` in [-1, 1])."""

    fractions: torch.Tensor  #: (T,) share of pixels replaced, from 0 in steps of step / (H W) to 1
    insertion: torch.Tensor  #: (N, T) probability of the class; its end is the intact image
    deletion: torch.Tensor  #: (N, T) probability of the class; its start is the intact image
    insertion_auc: torch.Tensor  #: (N,) higher is better
    deletion_auc: torch.Tensor  #: (N,) lower is better
    overall: torch.Tensor  #: (N,) insertion_auc - deletion_auc
    classes: torch.Tensor  #: (N,) whose probability was followed
    tied: torch.Tensor  #: (N,) pixels that share their value, which the map does not rank


@runs_undisturbed
@torch.no_grad()
def insertion_deletion(
    clf: Classifier, images: torch.Tensor, maps: Any, classes: Any = None, step: int = 448
) -> InsertionDeletion:
    """Insert a map's strongest pixels first into a blurred image, and delete them from the image.

    Both experiments replace `step` more pixels at each point and share the blurred image (51 x 51,
    sigma 50, see `thesis_lib.kernels.blur`) as their canvas: insertion starts there, deletion
    ends there. 448 pixels are two rows, or 0.89 %, of a 224 x 224 image, which gives 113 points.
    Pixels go strongest first; equal ones in reading order, and `tied` says how many there are. The
    area is the trapezoid rule over the true fractions, so `step` need not divide the number of
    pixels. As both curves share their end points, an image costs 2 T - 2 forward passes.

    Args:
        clf: a Classifier.
        images: (N, 3, H, W), normalised, both sides above 25 pixels.
        maps: (N, H, W), finite, of any range; only their order counts.
        classes: whose probability to follow: an int or (N,); None for the class that is predicted
            on the intact image.
        step: pixels per point, 1 to H W - 1.

    Returns:
        InsertionDeletion

    Raises:
        TypeError, ValueError: for maps of another size than the images or holding NaN, images that are
            small or hold NaN, and a step that is out of range or no whole number; before the first pass.
        IndexError: for a class out of range.

    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> result = tl.insertion_deletion(clf, images, maps, step=6272)
    >>> result.fractions.tolist()
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    >>> result.insertion_auc > result.deletion_auc
    tensor([True])
    """
    images = clf.prepare(images)
    n, _, height, width = images.shape
    maps = check_maps(maps, (n, height, width)).to(clf.device)
    step = whole(step, "step")
    if not 1 <= step < height * width:
        raise ValueError(f"step must lie in 1..{height * width - 1} (pixels), not {step}")
    classes = clf.targets(classes, n)
    refuse_nan(images)
    blurred = blur(images)  # before the first pass: it refuses small images
    counts = torch.arange(0, height * width + step, step, device=clf.device)
    counts = counts.clamp_(max=height * width)  # (T,) pixels replaced so far

    probabilities = clf.probabilities(images)
    classes = resolve_classes(classes, probabilities)
    intact = probabilities.gather(1, classes.unsqueeze(1))
    canvas = clf.scores(blurred, classes, "probability").unsqueeze(1)
    ranks = rank_pixels(maps).int().view(n, height, width)

    # Every frame between the end points is one job: (image, insertion or deletion, point). Frames
    # are composed batch by batch, so that the batches are full and no other frame is in memory.
    inner = counts[1:-1].int().repeat(2).view(-1, 1, 1, 1)
    deleting = torch.arange(len(inner), device=clf.device).view(-1, 1, 1, 1) >= len(inner) // 2

    def frames(image, first, last):
        strong = ranks[image] < inner[first:last]
        return torch.where(strong ^ deleting[first:last], images[image], blurred[image])

    scores: list[torch.Tensor] = []
    owners = classes.repeat_interleave(len(inner)).split(clf.batch)
    with clf.compiled(n * len(inner), (height, width)):
        for part, owner in zip(packed([len(inner)] * n, clf.batch), owners, strict=True):
            batch = joined([frames(*some) for some in part])
            scores.append(clf.scores(batch, owner, "probability"))
    inserted, deleted = torch.cat(scores).view(n, 2, -1).unbind(1)

    insertion = torch.cat([canvas, inserted, intact], 1)
    deletion = torch.cat([intact, deleted, canvas], 1)
    fractions = counts.to(insertion.dtype) / (height * width)
    tied = tied_pixels(maps)
    count("tied pixels", tied.sum())
    inside, outside = (torch.trapezoid(curve, fractions) for curve in (insertion, deletion))
    return InsertionDeletion(fractions, insertion, deletion, inside, outside, inside - outside, classes, tied)


@METRICS.entry(
    "insertion and deletion",
    chinese="插入和删除实验",
    source="Petsiuk et al., BMVC 2018; thesis 3.4.4",
    columns={
        "insertion": Column(),
        "deletion": Column(),
        "insertion_auc": Column("insertion", +1),
        "deletion_auc": Column("deletion", -1),
        "overall": Column("over-all", +1),
        "tied": Column("tied pixels", tolerance=None, scale=1),
    },
)
def insertion_deletion_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """The curves, their areas, and how many pixels the map does not rank."""
    r = insertion_deletion(rounds.classifier, rounds.images, maps, rounds.classes, rounds.step)
    curves = {key: list(getattr(r, key).cpu().numpy()) for key in ("insertion", "deletion")}
    names = ("insertion_auc", "deletion_auc", "overall", "tied")
    return curves | {key: getattr(r, key).cpu().numpy() for key in names}


def tied_pixels(maps: torch.Tensor) -> torch.Tensor:
    """Pixels of each map (N, H, W) that share their value with at least one other: (N,) int."""
    values = maps.flatten(1).sort(1).values
    equal = values[:, 1:] == values[:, :-1]
    no = equal.new_zeros(len(equal), 1)
    return (torch.cat([equal, no], 1) | torch.cat([no, equal], 1)).sum(1)


def check_maps(maps: Any, shape: tuple | None = None) -> torch.Tensor:
    """The maps as a tensor, or a TypeError or ValueError that says what is wrong with them.

    shape: theirs, (N, H, W); None: any. Half precision becomes float32, as sums need its range.
    """
    maps = as_tensor(maps, "maps")
    if maps.ndim != 3 or maps.numel() == 0 or (shape is not None and maps.shape != shape):
        wanted = "(N, H, W), none of them 0" if shape is None else f"{tuple(shape)} (N, H, W)"
        raise ValueError(f"maps must be {wanted}, not {tuple(maps.shape)}")
    bad = ~maps.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"the maps of images {bad.nonzero().flatten().tolist()} hold NaN or inf")
    return maps.float() if maps.is_floating_point() and maps.dtype.itemsize < 4 else maps


def as_tensor(values: Any, name: str) -> torch.Tensor:
    """A tensor, an array or nested lists of numbers as a tensor without a graph."""
    try:
        # PyTorch takes no array whose steps are negative, such as one that was flipped.
        tensor = torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} are a tensor or an array of numbers, not {type(values).__name__}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} are real numbers, not {tensor.dtype}")
    return tensor.detach()
