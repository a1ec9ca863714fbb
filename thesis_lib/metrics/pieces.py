"""Measures that take some pieces of a picture away at once, and look at what the score does.

Insertion and deletion go on until nothing is left. These take a little, which leaves a picture more like those that a
network knows: a cell (`single_deletion`), squares (`infidelity`), strewn blocks (`f_fidelity`). The first and the last
are from papers that fine-tune the network on pictures with pieces missing (`thesis_lib.training.pieces` does so); all
take any classifier, and tell nothing of whether it was.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from thesis_lib.checks import positive, whole
from thesis_lib.classifier import Classifier, refuse_nan, resolve_classes
from thesis_lib.layers import runs_undisturbed
from thesis_lib.metrics.insertion_deletion import check_maps
from thesis_lib.metrics.judged import orders

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def ready(
    clf: Classifier, images: torch.Tensor, maps: Any, classes: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, maps and classes, checked and on the network's device; classes None: the predicted ones."""
    images = clf.prepare(images)
    n, _, height, width = images.shape
    maps = check_maps(maps, (n, height, width)).to(clf.device)
    refuse_nan(images)
    return images, maps, resolve_classes(clf.targets(classes, n), clf.logits(images))


def scores_without(
    clf: Classifier,
    images: torch.Tensor,
    classes: torch.Tensor,
    gone: Sequence[torch.Tensor],
    score: str = "probability",
) -> torch.Tensor:
    """Scores (N, M) of each image without M sets of pixels, which are the mean colour, zero after normalisation.

    images: (N, 3, H, W). classes: (N,). gone: for each image (M, H, W) bool.
    """
    found = []
    with clf.compiled(len(images) * len(gone[0]), images.shape[-2:]):
        for image, target, masks in zip(images, classes, gone, strict=True):
            parts = masks.unsqueeze(1).split(clf.batch)
            some = [clf.scores(image * ~part, target.expand(len(part)), score) for part in parts]
            found.append(torch.cat(some))
    return torch.stack(found)


def cells(height: int, width: int, grid: int) -> torch.Tensor:
    """A picture's grid of cells, row by row: (grid^2, H, W) bool.

    >>> from thesis_lib.metrics.pieces import cells
    >>> cells(4, 4, 2).sum((1, 2)).tolist()
    [4, 4, 4, 4]
    """
    row, column = (torch.arange(side) * grid // side for side in (height, width))
    return (row[:, None] * grid + column) == torch.arange(grid**2)[:, None, None]


@runs_undisturbed
@torch.no_grad()
def single_deletion(
    clf: Classifier, images: torch.Tensor, maps: Any, classes: Any = None, grid: int = 4
) -> torch.Tensor:
    """Does the map rank the cells of a grid by what the logit loses with each? (N,) float64 in [-1, 1].

    Spearman's correlation between the map's sums over the cells and the drops of the class's logit when one cell alone
    is the mean colour. A map, or a network, that makes no difference between cells has 0. On a network that was
    fine-tuned with one cell missing it is IDSDS, the in-domain single-deletion score (Hesse et al., arXiv 2407.11910,
    NeurIPS 2024); on another the single-deletion score. A picture takes grid^2 + 1 passes.

    Args:
        clf, images, maps, classes: as `insertion_deletion` takes them.
        grid: cells a side, 2 to the picture's smaller side.

    Raises:
        TypeError, ValueError, IndexError: as `insertion_deletion`; a grid out of range.

    >>> from thesis_lib.metrics import single_deletion
    >>> bool(single_deletion(clf, images, tl.METHODS["grad_cam"](clf, images)) > 0)
    True
    """
    images, maps, classes = ready(clf, images, maps, classes)
    height, width = maps.shape[1:]
    grid = whole(grid, "grid", 2, min(height, width))
    some = cells(height, width, grid).to(images.device)
    scores = scores_without(clf, images, classes, [some] * len(images), "logit")
    drops = (clf.scores(images, classes)[:, None] - scores).double().cpu()
    sums = (maps.double().flatten(1) @ some.flatten(1).double().T).cpu()
    return torch.tensor([_rank_correlation(*pair) for pair in zip(sums.numpy(), drops.numpy(), strict=True)])


def _rank_correlation(a, b):
    """Spearman's; 0 where one side is constant."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def squares(height: int, width: int, count: int) -> torch.Tensor:
    """Random squares within a picture, the same ones in every call: (count, H, W) bool.

    Their sides go from an eighth to a half of the picture's smaller side.

    >>> from thesis_lib.metrics.pieces import squares
    >>> bool((squares(32, 32, 50).flatten(1).sum(1).sqrt() <= 16).all())
    True
    """
    random = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    small = min(height, width)
    least = max(1, small // 8)
    sides = least + (random[:, 0] * (small // 2 - least + 1)).long()
    tops, lefts = ((random[:, k] * (n - sides + 1)).long() for k, n in ((1, height), (2, width)))

    def between(first, size):
        at = torch.arange(size)
        return (at >= first[:, None]) & (at < (first + sides)[:, None])

    return between(tops, height)[:, :, None] & between(lefts, width)[:, None]


@runs_undisturbed
@torch.no_grad()
def infidelity(
    clf: Classifier, images: torch.Tensor, maps: Any, classes: Any = None, count: int = 64
) -> torch.Tensor:
    """How badly the map foretells what the probability loses with a square of the picture: (N,) float64, 0 at best.

    The mean over the squares I of (beta I^T Phi - (f(x) - f(x without I)))^2, with Phi the map and I one on the square
    (Yeh et al., arXiv 1901.09392, NeurIPS 2019, definition 2.1). beta is the factor that makes it least, so that a
    map's scale does not count; captum's `infidelity(normalize=True)` has the same. A flat map has the mean of the
    squared losses. Maps of one picture compare; those of two do not. A picture takes count + 1 passes.

    Args:
        clf, images, maps, classes: as `insertion_deletion` takes them.
        count: how many `squares`.

    Raises:
        TypeError, ValueError, IndexError: as `insertion_deletion`; a count below 1.

    >>> from thesis_lib.metrics import infidelity
    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> bool(infidelity(clf, images, maps) < infidelity(clf, images, maps.flip(-1)))
    True
    """
    images, maps, classes = ready(clf, images, maps, classes)
    count = whole(count, "count", 1)
    height, width = maps.shape[1:]
    some = squares(height, width, count).to(images.device)
    scores = scores_without(clf, images, classes, [some] * len(images))
    lost = (clf.scores(images, classes, "probability")[:, None] - scores).double()
    foretold = maps.double().flatten(1) @ some.flatten(1).double().T
    square = (foretold**2).sum(1, keepdim=True)
    beta = torch.where(square > 0, (foretold * lost).sum(1, keepdim=True) / square.clamp(min=1e-300), 0)
    return ((beta * foretold - lost) ** 2).mean(1).cpu()


@runs_undisturbed
@torch.no_grad()
def f_fidelity(
    clf: Classifier,
    images: torch.Tensor,
    maps: Any,
    classes: Any = None,
    shares: Sequence[float] = SHARES,
    samples: int = 10,
    alpha: float = 0.5,
    beta: float = 0.1,
    side: int = 7,
) -> tuple[torch.Tensor, torch.Tensor]:
    """FFid+ and FFid-: what the probability loses without some of the strongest, and some of the weakest, pixels.

    (N,) each, in [-1, 1]. For each share s, each block of side x side pixels goes with probability min(alpha, beta / s),
    but only its pixels among the strongest s of all, or the weakest; so that no more than beta of the picture is
    missing on average, whatever the size of the explanation (Zheng et al., arXiv 2410.02970, ICLR 2025). The mean over
    samples and shares. Higher FFid+ and lower FFid- are better. The blocks are the same in every call; equal pixels
    go as in `metrics.judged.orders`, each sample in another of its orders. The paper removes single pixels of pictures
    of 32 x 32, of which blocks of 7 are what is left at 224, counts right answers where this takes the probability, and
    asks a network that was fine-tuned with pixels missing; on another the measure is what the paper calls a robust
    fidelity, bounded by beta. A picture takes 2 x shares x samples + 1 passes.

    Args:
        clf, images, maps, classes: as `insertion_deletion` takes them.
        shares: of pixels, above 0, up to 1.
        samples: of blocks, 1 or more. alpha, beta: above 0, up to 1. side: of a block, in pixels.

    Raises:
        TypeError, ValueError, IndexError: as `insertion_deletion`; a setting out of range.

    >>> from thesis_lib.metrics import f_fidelity
    >>> plus, minus = f_fidelity(clf, images, tl.METHODS["grad_cam"](clf, images), samples=4)
    >>> bool(plus > minus)
    True
    """
    images, maps, classes = ready(clf, images, maps, classes)
    alpha, beta = positive(alpha, "alpha", 1), positive(beta, "beta", 1)
    samples, side = whole(samples, "samples", 1), whole(side, "side", 1)
    height, width = maps.shape[1:]
    pixels = height * width
    counts = [round(positive(share, "share", 1) * pixels) for share in shares]
    drawn = blocks(height, width, samples, side).to(images.device)
    gone = []
    for ranks in orders(maps).unbind(1):
        turns = ranks[torch.arange(samples) % len(ranks)]
        chosen = [(drawn < min(alpha, beta / share), k) for share, k in zip(shares, counts, strict=True)]
        strongest = [out & (turns < k) for out, k in chosen]
        weakest = [out & (turns >= pixels - k) for out, k in chosen]
        gone.append(torch.cat([*strongest, *weakest]))
    whole_one = clf.scores(images, classes, "probability")
    scores = scores_without(clf, images, classes, gone).view(len(images), 2, -1).mean(2)
    plus, minus = (whole_one[:, None] - scores).unbind(1)
    return plus, minus


def blocks(height: int, width: int, count: int, side: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), one for each block of side x side pixels, the same in every call: (count, H, W).

    >>> from thesis_lib.metrics.pieces import blocks
    >>> blocks(4, 6, 1, side=2).unique().numel()
    6
    """
    size = -(-height // side), -(-width // side)
    drawn = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))
    return drawn.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
