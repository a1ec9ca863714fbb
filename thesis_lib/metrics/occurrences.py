"""Several things of one class: does a map show each of them?"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import check_maps
from thesis_lib.metrics.pointing_game import check_masks, energy_inside, pointing_game

COLUMNS = {
    "things": Column("things", tolerance=0, scale=1, optional=True),
    "least_energy": Column("energy on the thing that has least", +1, optional=True),
    "most_energy": Column("energy on the thing that has most", optional=True),
    "evenness": Column("evenness of the things", +1, tolerance=0.01, optional=True),
    "least_points": Column("points on the thing that has least", +1, tolerance=2, scale=1, optional=True),
    "most_points": Column("points on the thing that has most", tolerance=2, scale=1, optional=True),
    "found": Column("things found above half the maximum", +1, tolerance=0.01, optional=True),
    "found_by_points": Column("things found by the 100 points", +1, tolerance=0.01, optional=True),
}


def occurrences(maps: torch.Tensor, things: Sequence[torch.Tensor], points: int = 100) -> dict:
    """What each of several things of one class has of a map.

    With S the map and M_k thing k's pixels, e_k = sum(S M_k) / sum(S) is a thing's share of the energy, and p_k
    how many of the strongest points lie on it. Of two or three things least and most say (nearly) all:

    - `least_energy`, `most_energy`, `least_points`, `most_points`: the least and the greatest e_k and p_k. Only a
      map that lies on the things, and on all of them, has a high least one: one that leaves a thing out has 0, and
      one that covers everything no more than the smallest thing covers of the picture.
    - `evenness`: the map's mean on the thing where it is least, over that where it is greatest, in [0, 1]. Means and
      not sums: things differ in size, and a map that marks all of them alike has 1. So has a flat one,
      which is why it decides nothing alone.
    - `found`: the share of the things that the map touches above half its maximum, where a bump's width is usually
      read, and where figures draw the outline; `found_by_points`: of those that a strongest point lies on.

    Args:
        maps: (N, H, W), not negative; things: for each map (K, H, W) bool, K >= 2, none empty.
        points: how many of the strongest points count.

    Returns:
        {column: (N,) array}, with `things`, which is K. A map of zeros shows nothing: 0 everywhere but in
        `most_points` and `found_by_points`, which take equal values in reading order.

    Raises:
        TypeError, ValueError: as `pointing_game`; negative maps, fewer than two things, or things of another
            number of pictures.

    >>> from thesis_lib.metrics import occurrences
    >>> maps = torch.tensor([[[3.0, 0.0, 1.0, 0.0]]])
    >>> two = torch.tensor([[[True, False, False, False]], [[False, False, True, True]]])
    >>> found = occurrences(maps, [two], points=1)
    >>> [round(float(found[key][0]), 3) for key in ("least_energy", "most_energy", "evenness", "found")]
    [0.25, 0.75, 0.167, 0.5]
    """
    maps = check_maps(maps)
    if len(things) != len(maps):
        raise ValueError(f"there are {len(maps)} maps and the things of {len(things)} pictures: one each")
    rows = [_one(saliency, each, points) for saliency, each in zip(maps, things, strict=True)]
    return {key: np.array([row[key] for row in rows], float) for key in COLUMNS}


def _one(saliency, things, points):
    if len(things) < 2:
        raise ValueError(f"a picture has {len(things)} things of the class: two or more are compared")
    copies, things = check_masks(saliency.expand(len(things), *saliency.shape), things)
    energy, (hits, _) = energy_inside(copies, things), pointing_game(copies, things, points)
    means = (copies * things).sum((1, 2)) / things.sum((1, 2))
    above = (things & (saliency > saliency.max() / 2)).flatten(1).any(1)
    return {
        "things": len(things),
        "least_energy": float(energy.min()),
        "most_energy": float(energy.max()),
        "evenness": float(means.min() / means.max()) if means.max() > 0 else 0.0,
        "least_points": int(hits.min()),
        "most_points": int(hits.max()),
        "found": float(above.float().mean()),
        "found_by_points": float((hits > 0).float().mean()),
    }


@METRICS.entry(
    "several of one kind",
    chinese="同类多个物体",
    source="not in the thesis; claimed in the abstract of the ICME paper on MSG-CAM",
    explains="annotated",
    columns=COLUMNS,
)
def occurrences_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """What each of the things has of the map; NaN where the outlines of two of the class are not known."""
    pairs = zip(rounds.samples, rounds.classes.tolist(), strict=True)
    things = [sample.things.get(c, ()) for sample, c in pairs]
    things = [[mask for mask in each if mask.any()] for each in things]  # none is left of a speck
    known = [i for i, each in enumerate(things) if len(each) > 1]
    found = {key: np.full(len(things), np.nan) for key in COLUMNS}
    if known:
        some = occurrences(maps[known].cpu(), [torch.stack(things[i]) for i in known])
        for key in COLUMNS:
            found[key][known] = some[key]
    return found
