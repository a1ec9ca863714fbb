"""RISE, whose own code is no library: random masks, weighed by what the network sees through them."""

import torch
from torch import Tensor

from thesis_lib.checks import checked, positive, whole
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import masked_scores, resize
from thesis_lib.peers.base import PEERS, peer, probability


@PEERS.entry("RISE", family="perturbation", source="Petsiuk et al., BMVC 2018")
@peer
@checked(samples=(whole, 1), cells=(whole, 1), share=(positive, 1))
def rise(
    clf: Classifier, image: Tensor, target: Tensor, samples: int = 150, cells: int = 7, share: float = 0.5
) -> Tensor:
    """RISE (Petsiuk et al., 2018): the mean of random masks, weighed by the probability seen through each.

    samples: masks, 4,000 to 8,000 in the paper. cells: a mask is a grid of cells x cells, each
    shown with probability `share`, enlarged and shifted by up to one cell.
    """
    height, width = image.shape[-2:]
    cell = -(-height // cells), -(-width // cells)
    grids = (torch.rand(samples, 1, cells + 1, cells + 1) < share).to(image.dtype)
    big = resize(grids, [(cells + 1) * pixels for pixels in cell])
    shifts = [torch.randint(pixels, (samples,)).tolist() for pixels in cell]
    masks = torch.stack([
        big[i, 0, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(*shifts, strict=True))
    ]).to(image.device)  # fmt: skip
    score = probability(clf, target)
    weights = masked_scores(
        lambda inputs, owners: score(inputs), image, torch.zeros_like(image), masks[None],
        lambda mask: mask, clf.batch,
    )  # fmt: skip
    return torch.einsum("nb,bhw->nhw", weights, masks) / (samples * share)
