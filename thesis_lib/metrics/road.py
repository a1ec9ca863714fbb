"""ROAD: pixels are removed without leaving a hole (Rong et al., arXiv 2202.00449, ICML 2022).

A canvas shows the network where something was cut out, which may say as much as what is left. ROAD replaces each
removed pixel by a mean of its neighbours and a little noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu

from thesis_lib.checks import number
from thesis_lib.classifier import Classifier
from thesis_lib.layers import runs_undisturbed
from thesis_lib.metrics.judged import orders
from thesis_lib.metrics.pieces import ready

PERCENTILES = (20, 40, 60, 80)
NOISE = 0.01  # its standard deviation, in normalised pixels
SIDE, CORNER = 1 / 6, 1 / 12  # what a neighbour weighs


def linear_imputation(image: torch.Tensor, missing: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """One picture (C, H, W) whose missing pixels are the weighted means of their neighbours, missing ones too.

    A sparse system, an equation for each missing pixel p: x_p times the sum of w_pq is the sum of w_pq x_q, over the
    up to eight neighbours q within the picture; w is 1/6 beside p, above it and below it, and 1/12 at a corner.

    Args:
        image: (C, H, W). missing: (H, W) bool, not all of them.
        noise: the standard deviation of what is added to the missing pixels, the same in all pictures.

    Raises:
        ValueError: every pixel is missing: there is nothing to make them of.

    >>> from thesis_lib.metrics import linear_imputation
    >>> ramp = torch.arange(5.0).expand(1, 5, 5)
    >>> missing = torch.zeros(5, 5, dtype=torch.bool)
    >>> missing[1:4, 1:4] = True
    >>> linear_imputation(ramp, missing).allclose(ramp)
    True
    """
    gone = missing.cpu().numpy()
    if gone.all():
        raise ValueError("every pixel is missing: there is nothing to make them of")
    height, width = gone.shape
    holes = np.flatnonzero(gone)
    if not len(holes):
        return image.clone()
    unknown = np.full(height * width, -1)
    unknown[holes] = np.arange(len(holes))
    pixels = image.flatten(1).T.double().cpu().numpy()
    y, x = np.divmod(holes, width)
    total, known = np.zeros(len(holes)), np.zeros((len(holes), len(image)))
    rows, columns, weights = [], [], []
    for dy, dx in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
        weight = CORNER if dy and dx else SIDE
        inside = np.flatnonzero((y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width))
        total[inside] += weight
        neighbour = holes[inside] + dy * width + dx
        other = unknown[neighbour]
        known[inside[other < 0]] += weight * pixels[neighbour[other < 0]]
        rows.append(inside[other >= 0])
        columns.append(other[other >= 0])
        weights.append(np.full((other >= 0).sum(), -weight))
    each = np.arange(len(holes))
    entries = (
        np.concatenate([*weights, total]),
        (np.concatenate([*rows, each]), np.concatenate([*columns, each])),
    )
    system = coo_matrix(entries, shape=(len(holes),) * 2).tocsc()
    # The system is symmetric, and its diagonal is as large as the rest of a row, or larger.
    solved = splu(
        system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True}
    ).solve(known)
    found = image.flatten(1).clone()
    at = torch.from_numpy(holes).to(image.device)
    found[:, at] = torch.from_numpy(solved.T).to(image)
    if noise:
        field = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(image)
        found[:, at] += noise * field[:, at]
    return found.view_as(image)


@runs_undisturbed
@torch.no_grad()
def road(
    clf: Classifier,
    images: torch.Tensor,
    maps: Any,
    classes: Any = None,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = NOISE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability of the class where the weakest, and where the strongest, pixels are imputed: (N,) each, in [0, 1].

    The mean over the percentiles p: the strongest pixels are those not below the map's percentile p, the weakest are as
    many. pytorch-grad-cam's `ROADCombined` is half of the first less the second, here in two to read apart. Equal pixels
    go as in `metrics.judged.orders`, each percentile in another of its orders: with a threshold instead, all of a map
    of two values would be removed. A picture takes two passes a percentile, and as many sparse systems (0.1 s each at
    224 pixels).

    Args:
        clf, images, maps, classes: as `insertion_deletion` takes them.
        percentiles: above 0, below 100. noise: see `linear_imputation`.

    Raises:
        TypeError, ValueError, IndexError: as `insertion_deletion`; a percentile out of range.

    >>> from thesis_lib.metrics import road
    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> least, most = road(clf, images, maps, percentiles=[80])
    >>> bool(least > most)
    True
    """
    images, maps, classes = ready(clf, images, maps, classes)
    for percentile in percentiles:
        if not 0 < number(percentile, "percentile") < 100:
            raise ValueError(f"a percentile lies above 0 and below 100, not at {percentile}")
    pixels = maps[0].numel()
    counts = [pixels - int(np.ceil((pixels - 1) * percentile / 100)) for percentile in percentiles]
    found = []
    for image, ranks, target in zip(images, orders(maps).unbind(1), classes, strict=True):
        turns = [ranks[k % len(ranks)] for k in range(len(counts))]
        holes = [rank >= pixels - count for rank, count in zip(turns, counts, strict=True)]
        holes += [rank < count for rank, count in zip(turns, counts, strict=True)]
        frames = torch.stack([linear_imputation(image, gone, noise) for gone in holes])
        found.append(clf.scores(frames, target.expand(len(frames)), "probability").view(2, -1).mean(1))
    least, most = torch.stack(found, 1)
    return least, most
