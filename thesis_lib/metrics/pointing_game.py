"""The pointing game (thesis 3.4.5, equation 3-13; Zhang et al., excitation backprop, IJCV 2018)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import conv2d

from thesis_lib.checks import number, whole
from thesis_lib.kernels import rank_pixels
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import as_tensor, check_maps


def pointing_game(
    maps: torch.Tensor, masks: torch.Tensor, points: int = 100, tolerance: float = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of a map's strongest points fall on the object.

    `points=100` is the thesis's game; `points=1, tolerance=15` is the usual one (a single
    maximum that may miss the object by less than 15 pixels).

    Args:
        maps: (N, H, W), finite. Equal values are taken in reading order.
        masks: (N, H, W) bool, the class's boxes or pixels, none empty.
        points: how many of the strongest points count, 1 to H W.
        tolerance: pixels by which the masks grow: a point hits if its squared distance to the mask
            is below tolerance ** 2, strictly, as TorchRay has it. 0 is the mask itself.

    Returns:
        hits, misses: (N,) int; they add up to `points`.

    Raises:
        TypeError, ValueError: for maps and masks that differ in size, NaN, an empty mask, points or
            tolerance out of range or no numbers.

    >>> maps = torch.tensor([[[0.9, 0.8], [0.1, 0.0]]])
    >>> masks = torch.tensor([[[True, False], [True, False]]])
    >>> tl.pointing_game(maps, masks, points=2)
    (tensor([1]), tensor([1]))
    """
    maps, masks = check_masks(maps, masks)
    pixels = masks[0].numel()
    points = whole(points, "points")
    if not 1 <= points <= pixels:
        raise ValueError(f"points must lie in 1..{pixels}, not {points}")
    chosen = rank_pixels(maps) < points
    hits = (chosen & grow(masks, tolerance).flatten(1)).sum(1)
    return hits, points - hits


@METRICS.entry(
    "pointing game",
    chinese="定点游戏",
    source="Zhang et al., IJCV 2018; thesis 3.4.5",
    explains="annotated",
    columns={
        "first_choice": Column(tolerance=None),
        "boxes": Column("share of the picture in the boxes"),
        "near_boxes": Column("share of the picture within 15 pixels of them"),
        "hits": Column("hits of 100 points", +1, tolerance=2, scale=1),
        "misses": Column("misses of 100 points", -1, tolerance=2, scale=1),
        "argmax_hit": Column("strongest point, 15 pixels tolerance", +1, tolerance=0),
        "energy": Column("energy in the boxes", +1),
        "pixel_energy": Column("energy in the object", +1, optional=True),
    },
)
def pointing_game_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """Hits of the 100 strongest points and of the strongest one, energy inside boxes and object."""
    masks = rounds.box_masks()
    hits, misses = pointing_game(maps, masks)
    return {
        "first_choice": (rounds.classes == rounds.predicted).cpu().numpy(),
        "boxes": masks.float().mean((1, 2)).cpu().numpy(),
        "near_boxes": grow(masks, 15).float().mean((1, 2)).cpu().numpy(),
        "hits": hits.cpu().numpy(),
        "misses": misses.cpu().numpy(),
        "argmax_hit": pointing_game(maps, masks, points=1, tolerance=15)[0].cpu().numpy(),
        "energy": energy_inside(maps, masks).cpu().numpy(),
        "pixel_energy": where_known(energy_inside, maps, rounds.pixel_masks()),
    }


def where_known(measure: Callable, maps: torch.Tensor, masks: list) -> np.ndarray:
    """measure(maps, masks) -> (N,) array, NaN where the mask is None or empty."""
    known = [i for i, mask in enumerate(masks) if mask is not None and mask.any()]
    values = np.full(len(masks), np.nan)
    if known:
        values[known] = measure(maps[known].cpu(), torch.stack([masks[i] for i in known]))
    return values


def grow(masks: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Masks (N, H, W) bool with every pixel whose distance to them is below `tolerance`.

    Tolerance 15 turns a single pixel into a disk of 697.

    >>> masks = torch.zeros(1, 40, 40, dtype=torch.bool)
    >>> masks[0, 20, 20] = True
    >>> int(grow(masks, 15).sum())
    697
    """
    tolerance = number(tolerance, "tolerance", 0)
    if tolerance == 0:
        return masks
    # The largest whole distance below the tolerance; beyond the image there is nothing.
    radius = min(math.ceil(tolerance) - 1, max(masks.shape[-2:]))
    distance = torch.arange(-radius, radius + 1, device=masks.device)
    disk = (distance[:, None] ** 2 + distance**2 < tolerance**2).float()
    # A count of mask pixels under the disk. It is whole, but a GPU may compute it in a way that is
    # not exact: one half tells none from some.
    covered = conv2d(masks[:, None].float(), disk[None, None], padding=radius)
    return covered[:, 0] > 0.5


def energy_inside(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of the sum of each map that lies inside its mask: (N,) in [0, 1].

    Args:
        maps: (N, H, W), not negative. A map of zeros has nothing inside: 0.
        masks: (N, H, W) bool, none empty.

    Raises:
        ValueError: as `pointing_game`, and for negative maps.

    >>> from thesis_lib.metrics import energy_inside
    >>> maps = torch.tensor([[[3.0, 1.0]]])
    >>> energy_inside(maps, torch.tensor([[[True, False]]])).tolist()
    [0.75]
    """
    maps, masks = check_masks(maps, masks)
    if (maps < 0).any():
        raise ValueError("maps must not be negative: an energy share has no meaning otherwise")
    total = maps.sum((1, 2))
    inside = (maps * masks).sum((1, 2))
    return torch.where(total > 0, inside / total, 0)


def mean_over_classes(hits: Any, misses: Any, classes: Any) -> float:
    """Equation 3-13 per class, hits / (hits + misses), then the mean over the classes there are.

    All three are (N,): tensors, arrays, columns or lists. Returns a float in [0, 1].

    >>> from thesis_lib.metrics import mean_over_classes
    >>> mean_over_classes(hits=[100, 50, 0], misses=[0, 50, 100], classes=[1, 1, 2])  # 75 % and 0 %
    0.375
    """
    columns = {"hits": hits, "misses": misses, "class": classes}
    table = pd.DataFrame({k: x.tolist() if hasattr(x, "tolist") else x for k, x in columns.items()})
    points = table["hits"] + table["misses"]
    if not len(table) or not ((table["hits"] >= 0) & (table["misses"] >= 0) & (points > 0)).all():
        raise ValueError(
            "hits and misses are numbers from 0 on, a point at least in each pair; leave out others"
        )
    sums = table.groupby("class").sum()
    return float((sums["hits"] / (sums["hits"] + sums["misses"])).mean())


def check_masks(maps: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors on one device, or a TypeError or ValueError that says what is wrong with them."""
    masks = as_tensor(masks, "masks")
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(
            f"masks must be (N, H, W) bool, such as `pixels > 0`, not {tuple(masks.shape)} {masks.dtype}"
        )
    maps = check_maps(maps, masks.shape)
    empty = ~masks.flatten(1).any(1)
    if empty.any():
        raise ValueError(f"masks {empty.nonzero().flatten().tolist()} are empty; leave them out")
    return maps, masks.to(maps.device)
