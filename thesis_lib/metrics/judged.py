"""One map, many measures: what each says of it, so that they can be judged (see `known`).

Insertion, deletion and their difference on five canvases and, on the blurred one, at four steps; the pointing game by
one point and by a hundred; the energy on the thing; the overlap with it at the best threshold.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from kornia.filters import gaussian_blur2d

from thesis_lib.classifier import Classifier
from thesis_lib.data import cutouts
from thesis_lib.kernels import blur, joined, packed, rank_pixels
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import check_maps
from thesis_lib.metrics.pointing_game import check_masks, energy_inside, pointing_game, where_known

CANVASES = ("blurred", "black", "mean", "noise", "empty")
ORDERS = 5  # in which equal pixels are taken
COARSER = (2, 4, 8)  # times the step, on the blurred canvas


def canvases(clf: Classifier, images: torch.Tensor, samples: list) -> dict[str, torch.Tensor]:
    """What pixels are replaced by, {name: (N, 3, H, W)}: the thesis's blurred picture, black, the mean colour (zero
    after normalisation), noise of its spread, and the exactly empty picture, which only the cut-outs have.

    samples: the pictures of the images; where they are no cut-outs, "empty" is missing.
    """
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    found = {
        "blurred": blur(images),
        "black": clf.normalise(torch.zeros_like(images)),
        "mean": torch.zeros_like(images),
        "noise": noise.expand_as(images),
    }
    try:
        empties = torch.stack([cutouts.empty(sample) for sample in samples])
    except ValueError:
        return found
    return found | {"empty": clf.normalise(empties.to(images))}


def orders(maps: torch.Tensor, count: int = ORDERS, sigma: float = 16) -> torch.Tensor:
    """Ranks of the pixels, 0 for the strongest, in `count` orders that differ in equal pixels only.

    Equal pixels go in the order of a seeded random field, the same in all pictures, of patches about `sigma` pixels
    wide; with sigma 0 every pixel by itself. Most of a mask is equal, and frames in which pixels are strewn one by one
    over another canvas look like nothing that a network knows, whatever the map (column `overall_strewn`). There are
    `count` of them, so that what a measure says does not hang on one.

    maps: (N, H, W). Returns (count, N, H, W) int32.

    >>> from thesis_lib.metrics.judged import orders
    >>> found = orders(torch.tensor([[[1.0, 0.0, 0.0]]]), 20, sigma=0)
    >>> found[:, 0, 0, 0].unique().tolist(), found[:, 0, 0, 1].unique().tolist()
    ([0], [1, 2])
    """
    n, height, width = maps.shape
    field = torch.randn(count, 1, height, width, generator=torch.Generator().manual_seed(0))
    if sigma:
        side = 2 * min(round(3 * sigma), (min(height, width) - 1) // 2) + 1
        field = gaussian_blur2d(field, (side, side), (float(sigma),) * 2)
    found = []
    for taken in field.flatten(1).argsort(1).to(maps.device):
        ranks = torch.empty(n, height * width, dtype=torch.int32, device=maps.device)
        ranks[:, taken] = rank_pixels(maps.flatten(1)[:, None, taken]).int()
        found.append(ranks.view(n, height, width))
    return torch.stack(found)


@torch.no_grad()
def curves(
    clf: Classifier,
    images: torch.Tensor,
    canvas: torch.Tensor,
    ranks: torch.Tensor,
    classes: torch.Tensor,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Insertion and deletion curves (N, T) on any canvas, in several orders of the pixels by turns.

    As `insertion_deletion`, but that point t takes order t modulo their number. Each point is an unbiased value of
    the curve averaged over all orders, and so is the area, at the passes of a single order.

    images, canvas: (N, 3, H, W). ranks: (orders, N, H, W), see `orders`. classes: (N,). step: pixels a point.
    """
    n, _, height, width = images.shape
    counts = torch.arange(0, height * width + step, step, device=images.device).clamp_(max=height * width)
    ends = [clf.scores(x, classes, "probability")[:, None] for x in (canvas, images)]
    inner = counts[1:-1].int()
    turn = torch.arange(1, len(inner) + 1, device=images.device) % len(ranks)
    inner, turn = inner.repeat(2), turn.repeat(2)
    deleting = torch.arange(len(inner), device=images.device) >= len(inner) // 2

    def frames(image, first, last):
        strong = ranks[turn[first:last], image] < inner[first:last, None, None]
        shown = (strong ^ deleting[first:last, None, None]).unsqueeze(1)
        return torch.where(shown, images[image], canvas[image])

    scores = []
    owners = classes.repeat_interleave(len(inner)).split(clf.batch)
    with clf.compiled(n * len(inner), (height, width)):
        for part, owner in zip(packed([len(inner)] * n, clf.batch), owners, strict=True):
            scores.append(clf.scores(joined([frames(*some) for some in part]), owner, "probability"))
    inserted, deleted = torch.cat(scores).view(n, 2, -1).unbind(1)
    return torch.cat([ends[0], inserted, ends[1]], 1), torch.cat([ends[1], deleted, ends[0]], 1)


def best_iou(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The overlap, intersection over union, of a map above its best threshold with the mask: (N,) in [0, 1].

    maps: (N, H, W), finite. masks: (N, H, W) bool, none empty. Every value of the map is tried as the threshold.

    >>> from thesis_lib.metrics.judged import best_iou
    >>> best_iou(torch.tensor([[[0.9, 0.8, 0.1]]]), torch.tensor([[[True, False, False]]])).tolist()
    [1.0]
    """
    maps, masks = check_masks(maps, masks)
    values, order = maps.flatten(1).sort(1, descending=True)
    inside = masks.flatten(1).gather(1, order).cumsum(1)
    outside = torch.arange(1, values.shape[1] + 1, device=values.device) - inside
    iou = inside / (masks.flatten(1).sum(1, keepdim=True) + outside)
    last = torch.cat([values[:, 1:] < values[:, :-1], values.new_ones(len(values), 1).bool()], 1)
    return (iou * last).amax(1)


def share_of_points(maps: torch.Tensor, masks: torch.Tensor, points: int) -> torch.Tensor:
    """The share of a map's strongest points on the thing, the mean over `orders` of equal pixels: (N,) in [0, 1].

    maps: (N, H, W), finite. masks: (N, H, W) bool, none empty. points: 1 to H W.

    >>> from thesis_lib.metrics.judged import share_of_points
    >>> share_of_points(torch.eye(2)[None], torch.eye(2)[None] > 0, 3).tolist()
    [0.6666666666666666]
    """
    hits = [pointing_game(-order.double(), masks, points)[0].double() / points for order in orders(maps)]
    return torch.stack(hits).mean(0)


def _columns():
    """The measures: an area each for insertion, deletion and over-all on each canvas, then the others."""
    found = {}
    for canvas in CANVASES:
        said = {"optional": canvas == "empty", "tolerance": 0.005}
        found[f"insertion_{canvas}"] = Column(f"insertion ({canvas})", +1, **said)
        found[f"deletion_{canvas}"] = Column(f"deletion ({canvas})", -1, **said)
        found[f"overall_{canvas}"] = Column(f"over-all ({canvas})", +1, **said)
    for times in COARSER:
        found[f"overall_blurred_{times}"] = Column(
            f"over-all (blurred, {times} times the step)", +1, tolerance=0.005
        )
    return found | {
        "overall_strewn": Column("over-all (blurred, equal pixels strewn)", +1, tolerance=0.005),
        "points_1": Column("strongest point on the thing", +1, tolerance=0.2, optional=True),
        "points_100": Column("100 points on the thing", +1, tolerance=0.02, optional=True),
        "energy_exact": Column("energy on the thing", +1, optional=True),
        "iou": Column("overlap at the best threshold", +1, tolerance=0.005, optional=True),
    }


@METRICS.entry(
    "measures of a map",
    chinese="显著图的各项指标",
    source="not in the thesis",
    explains="masked",
    columns=_columns(),
)
def judged_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """What every measure says of the map. The canvases but the blurred are taken at four times the step."""
    clf, images, classes = rounds.classifier, rounds.images, rounds.classes
    maps = check_maps(maps)
    ranks, pixels = orders(maps), maps[0].numel()
    found: dict[str, np.ndarray] = {}
    coarse = min(4 * rounds.step, pixels // 2)

    def areas(pair, step, every=1):
        """Insertion, deletion and their difference, from each `every`th point."""
        points = [*range(0, pair[0].shape[1] - 1, every), pair[0].shape[1] - 1]
        at = (torch.tensor(points) * step).clamp(max=pixels).double() / pixels
        inside, outside = (torch.trapezoid(c[:, points].double().cpu(), at).numpy() for c in pair)
        return inside, outside, inside - outside

    shown = canvases(clf, images, rounds.samples)
    for name in CANVASES:
        columns = [f"{what}_{name}" for what in ("insertion", "deletion", "overall")]
        if name not in shown:
            found |= dict.fromkeys(columns, np.full(len(maps), np.nan))
            continue
        step = rounds.step if name == "blurred" else coarse
        pair = curves(clf, images, shown[name], ranks, classes, step)
        found |= zip(columns, areas(pair, step), strict=True)
        if name == "blurred":
            found |= {f"overall_blurred_{times}": areas(pair, step, times)[-1] for times in COARSER}
    strewn = curves(clf, images, shown["blurred"], orders(maps, sigma=0), classes, coarse)
    found["overall_strewn"] = areas(strewn, coarse)[-1]
    masks = rounds.pixel_masks()
    for points in (1, 100):
        found[f"points_{points}"] = where_known(partial(share_of_points, points=points), maps, masks)
    found["energy_exact"] = where_known(energy_inside, maps, masks)
    found["iou"] = where_known(best_iou, maps, masks)
    return {column: found[column] for column in METRICS["judged"].columns}
