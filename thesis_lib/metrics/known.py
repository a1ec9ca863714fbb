"""Maps whose order is known: the exact mask of a thing, and ever worse maps made of it.

A measure of maps is worth what it does with maps of which one knows which is better. `CHAINS` has the orders; within
a chain each map is better than the next. Maps of different chains are not compared.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from thesis_lib.metrics.base import Rounds

# Written down before anything was measured: the best first. A yardstick's name is that of the method.
CHAINS = {
    "moved": ("exact", "moved by 8", "moved by 16", "moved by 32"),
    "blurred": ("exact", "blurred by 4", "blurred by 8", "blurred by 16"),
    "coarser": ("exact", "box", "centre"),
    "elsewhere": ("exact", "other thing", "complement"),
}


def of_truth(function: Callable) -> Callable:
    """A function `(mask, others, **settings) -> map` of one thing's pixels as what stands in a method's place.

    What it returns is called with settings and gives `maps(rounds) -> (N, H, W)`, which `measure` gives the truth
    instead of a network. mask: (H, W) bool, the thing's pixels; others: those of the picture's other classes.
    """

    @functools.wraps(function)
    def chosen(**settings):
        def maps(rounds: Rounds) -> Tensor:
            found = [
                function(
                    sample.pixel_masks[c],
                    [mask for k, mask in sample.pixel_masks.items() if k != c and mask.any()],
                    **settings,
                ).float()
                for sample, c in zip(rounds.samples, rounds.classes.tolist(), strict=True)
            ]
            return torch.stack(found).to(rounds.images.device)

        maps.of_truth = True
        return maps

    return chosen


@of_truth
def exact(mask: Tensor, others: list) -> Tensor:
    """The thing's own pixels."""
    return mask


@of_truth
def moved(mask: Tensor, others: list, pixels: int = 8) -> Tensor:
    """The mask so many pixels aside, to where there is more room; what leaves the picture is lost."""
    columns = mask.any(0).nonzero()
    right = mask.shape[1] - 1 - int(columns.max()) >= int(columns.min())
    found = torch.zeros_like(mask)
    if right:
        found[:, pixels:] = mask[:, :-pixels]
    else:
        found[:, :-pixels] = mask[:, pixels:]
    return found


@of_truth
def blurred(mask: Tensor, others: list, sigma: int = 4) -> Tensor:
    """The mask under a Gaussian of so many pixels, less sure at the outline."""
    side = 2 * min(3 * sigma, (min(mask.shape) - 1) // 2) + 1
    return gaussian_blur2d(mask[None, None].float(), (side, side), (float(sigma),) * 2)[0, 0]


@of_truth
def box(mask: Tensor, others: list) -> Tensor:
    """The smallest box around the mask."""
    rows, columns = mask.any(1), mask.any(0)
    top, bottom = rows.nonzero()[[0, -1], 0]
    left, right = columns.nonzero()[[0, -1], 0]
    found = torch.zeros_like(mask)
    found[top : bottom + 1, left : right + 1] = True
    return found


@of_truth
def other_thing(mask: Tensor, others: list) -> Tensor:
    """The pixels of another class of the picture, the first; flat where there is none."""
    return others[0] & ~mask if others else torch.zeros_like(mask)


@of_truth
def complement(mask: Tensor, others: list) -> Tensor:
    """All but the thing."""
    return ~mask


def known_maps(chains: Iterable[str] = tuple(CHAINS)) -> dict[str, Callable]:
    """{name: map} of all maps in some chains but the picture's centre, which METHODS has.

    >>> from thesis_lib.metrics.known import known_maps
    >>> list(known_maps(["moved"]))
    ['exact', 'moved by 8', 'moved by 16', 'moved by 32']
    """
    made = {
        "exact": exact(),
        **{f"moved by {d}": moved(pixels=d) for d in (8, 16, 32)},
        **{f"blurred by {s}": blurred(sigma=s) for s in (4, 8, 16)},
        "box": box(),
        "other thing": other_thing(),
        "complement": complement(),
    }
    wanted = {name for chain in chains for name in CHAINS[chain]}
    return {name: maps for name, maps in made.items() if name in wanted}
