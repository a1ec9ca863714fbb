"""Extremal perturbation, shortened: a mask of a given area that keeps the logit high, by gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thesis_lib.checks import checked, positive, several, whole
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import blur, resize
from thesis_lib.peers.base import PEERS, peer


@PEERS.entry("Extremal perturbation", family="perturbation", source="Fong et al., ICCV 2019")
@peer
@checked(areas=(several, positive, 1), steps=(whole, 1), cells=(whole, 1))
def extremal_perturbation(
    clf: Classifier,
    image: Tensor,
    target: Tensor,
    areas: Sequence[float] = (0.05, 0.15),
    steps: int = 30,
    cells: int = 14,
) -> Tensor:
    """Extremal perturbation (Fong et al., 2019), shortened: masks of given areas that keep the logit high.

    A mask is a grid of cells x cells, enlarged, over the blurred image; Adam raises the logit and
    draws the mask's sorted values to those of a mask with an area of ones, more strongly at each step
    (at the first all values are equal, and their order would mean nothing). The map is the sum over
    areas. The paper's smoothing (a maximum over Gaussians) is replaced by interpolation, its 800
    steps by `steps`.
    """
    size, blurred = image.shape[-2:], blur(image)
    pixels = size[0] * size[1]
    order = torch.arange(pixels, device=image.device)
    wanted = torch.stack([(order >= (1 - area) * pixels).to(image.dtype) for area in areas])
    grid = image.new_zeros(len(areas), 1, cells, cells).requires_grad_()
    adam = torch.optim.Adam([grid], lr=0.3)
    for step in range(steps):
        masks = resize(grid.sigmoid(), size)
        logits = clf.network(torch.lerp(blurred, image, masks))[:, target]
        misfit = (masks.flatten(1).sort(1).values - wanted).square().mean(1)
        adam.zero_grad()
        (300 * step / steps * misfit.sum() - logits.sum()).backward()
        adam.step()
    return resize(grid.detach().sigmoid(), size).sum(0)
