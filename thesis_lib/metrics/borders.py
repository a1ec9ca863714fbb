"""Sharp borders: does the edge of a mask move the network's answer, and does the canvas matter?

The thesis (3.3.3, 3.4.4) says that where a mask cuts a picture out sharply the edge acts on the network like an
attack, and that a blurred picture behind it avoids that. A mask hides something as well, so one with an edge is
compared with one that hides as much of the same place without: feathered.
"""

from collections.abc import Callable
from typing import Any

import torch
from kornia.filters import gaussian_blur2d

from thesis_lib.checks import positive
from thesis_lib.classifier import Classifier, refuse_nan
from thesis_lib.kernels import rank_pixels
from thesis_lib.layers import runs_undisturbed
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.canvases import CANVASES
from thesis_lib.metrics.insertion_deletion import check_maps

SHARE, FEATHER = 0.3, 8.0


@runs_undisturbed
@torch.no_grad()
def borders(
    clf: Classifier, images: torch.Tensor, maps: Any, share: float = SHARE, feather: float = FEATHER
) -> dict[str, torch.Tensor]:
    """How far the network's answer moves when the weakest part of a picture is covered, with an edge and without.

    With M a map's weakest pixels, 1 there and 0 elsewhere, and C a canvas, the network is shown
    (1 - M) I + M C, and the same with M blurred, which covers as much and has no edge. What moves is
    the total variation between its probabilities and those of the intact picture, half the sum over classes of
    ``|p - q|``, in [0, 1]. The strongest pixels, and with them the class, stay as they are.

    Args:
        clf: a Classifier whose probabilities add up to 1.
        images: (N, 3, H, W), normalised, above 25 pixels a side; maps: (N, H, W), of which the order counts.
        share: of the pixels that are covered, in (0, 1).
        feather: standard deviation in pixels of the blur that takes the edge away.

    Returns:
        {"moved_CANVAS_hard", "moved_CANVAS_soft", and "border_CANVAS", their difference: (N,)} for each of
        `canvases.CANVASES`.

    Raises:
        TypeError, ValueError: as `insertion_deletion`; a share or a feather out of range.

    >>> from thesis_lib.metrics import borders
    >>> moved = borders(clf, images, tl.METHODS["grad_cam"](clf, images))
    >>> list(moved)[:3], bool((moved["moved_mean_hard"] <= 1).all())
    (['moved_blurred_hard', 'moved_blurred_soft', 'border_blurred'], True)
    """
    images = clf.prepare(images)
    n, _, height, width = images.shape
    maps = check_maps(maps, (n, height, width)).to(clf.device)
    share, feather = positive(share, "share", 1), positive(feather, "feather")
    refuse_nan(images)
    kept = round((1 - share) * height * width)
    hard = (rank_pixels(maps) >= kept).view(n, 1, height, width).to(images.dtype)
    side = 2 * int(3 * feather) + 1
    if side // 2 >= min(height, width):
        raise ValueError(f"a feather of {feather:g} pixels is too wide for images of {height} x {width}")
    soft = gaussian_blur2d(hard, (side, side), (feather, feather), border_type="reflect")
    intact = clf.probabilities(images)
    found = {}
    for name, fill in CANVASES.items():
        canvas = fill(images)
        for edge, mask in (("hard", hard), ("soft", soft)):
            seen = clf.probabilities((1 - mask) * images + mask * canvas)
            found[f"moved_{name}_{edge}"] = (seen - intact).abs().sum(1) / 2
        found[f"border_{name}"] = found[f"moved_{name}_hard"] - found[f"moved_{name}_soft"]
    return found


@METRICS.entry(
    "sharp borders",
    chinese="锐利边界",
    source="claimed in thesis 3.3.3 and 3.4.4",
    columns={
        f"{what}_{name}{edge}": Column(f"{title}, {name} canvas")
        for name in CANVASES
        for what, edge, title in (
            ("moved", "_hard", "moved with an edge"),
            ("moved", "_soft", "moved without an edge"),
            ("border", "", "moved by the edge"),
        )
    },
)
def sharp_borders_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """How far an edge around the map's weakest pixels moves the answer, on each of the canvases."""
    found = borders(rounds.classifier, rounds.images, maps)
    return {name: values.cpu().numpy() for name, values in found.items()}
