"""How fine a map is: what chapter 4 claims and the thesis does not measure.

A sharper picture of the same blob has no more in it. So: does the map follow the object's outline
(`boundary_distance`), and which detail does it hold at all (`effective_resolution`)?
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.fft import dctn
from scipy.ndimage import binary_erosion, distance_transform_edt

from thesis_lib.checks import positive
from thesis_lib.kernels import rank_pixels
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import check_maps
from thesis_lib.metrics.pointing_game import check_masks, energy_inside, where_known


@METRICS.entry(
    "fineness",
    chinese="精细程度",
    source="not in the thesis",
    columns={
        "pixel_energy": Column("energy in the object", +1, optional=True),
        "boundary_distance": Column(
            "distance of the outlines, pixels", -1, tolerance=0.2, scale=1, optional=True
        ),
        "effective_resolution": Column("effective resolution", 0, tolerance=0.5, scale=1),
    },
)
def fineness_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """Whether the map follows the object's outline, and how much detail it holds."""
    masks = rounds.pixel_masks()
    return {
        "pixel_energy": where_known(energy_inside, maps, masks),
        "boundary_distance": where_known(boundary_distance, maps, masks),
        "effective_resolution": effective_resolution(maps),
    }


def boundary_distance(maps: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """Mean distance in pixels between the outline of a map and that of its object: (N,) array.

    A map's outline is that of its strongest pixels, as many as the object has. The distance to the
    nearest pixel of the other outline is averaged over both outlines. Lower is better.

    Args:
        maps: (N, H, W), finite. Equal values are taken in reading order.
        masks: (N, H, W) bool, the objects' pixels, none empty.

    Raises:
        ValueError: as `pointing_game`.

    >>> from thesis_lib.metrics import boundary_distance
    >>> masks = torch.zeros(1, 9, 9, dtype=torch.bool)
    >>> masks[0, 2:5, 2:5] = True
    >>> moved = masks.roll(2, dims=2)  # two pixels to the right
    >>> float(boundary_distance(masks.float(), masks)[0]), bool(boundary_distance(moved.float(), masks) > 0)
    (0.0, True)
    """
    maps, masks = check_masks(maps, masks)
    areas = masks.flatten(1).sum(1, keepdim=True)
    chosen = (rank_pixels(maps) < areas).view(masks.shape)
    pairs = zip(chosen.cpu().numpy(), masks.cpu().numpy(), strict=True)
    return np.array([_outline_distance(_outline(a), _outline(b)) for a, b in pairs])


def _outline(mask):
    """Pixels of the mask with a neighbour outside it; what lies beyond the image is outside."""
    return mask & ~binary_erosion(mask)


def _outline_distance(a, b):
    there, back = distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]
    return np.concatenate([there, back]).mean()


def effective_resolution(maps: torch.Tensor, share: float = 0.95) -> np.ndarray:
    """The frequency below which `share` of a map's variation lies, in cycles per side: (N,) array.

    Energy of the cosine transform (which, unlike Fourier's, sees no jump from one border to the
    other) without its mean, summed by distance from frequency zero. Flat maps have 0. It says how
    much detail a map holds, not whether the detail is right: noise and grids count as well.

    maps: (N, H, W), finite. share: above 0, up to 1. Anything else is a TypeError or a ValueError.

    >>> from thesis_lib.metrics import effective_resolution
    >>> coarse = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    >>> fine = torch.rand(1, 1, 56, 56, generator=torch.Generator().manual_seed(0))
    >>> low, high = (effective_resolution(kernels.resize(x, (56, 56))[:, 0]) for x in (coarse, fine))
    >>> bool(low < high)
    True
    """
    share = positive(share, "share", 1)
    maps = check_maps(maps).cpu().double().numpy()
    height, width = maps.shape[-2:]
    energy = dctn(maps, axes=(1, 2), norm="ortho") ** 2
    energy[:, 0, 0] = 0
    radius = np.hypot(*np.ogrid[:height, :width]) / 2  # k half-waves are k / 2 cycles
    order = radius.ravel().argsort(kind="stable")
    summed = energy.reshape(len(maps), -1)[:, order].cumsum(1)
    reached = (summed >= share * summed[:, -1:]).argmax(1)
    return np.where(summed[:, -1] > 0, radius.ravel()[order][reached], 0)
