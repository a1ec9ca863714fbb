"""SIGCAM, which no library has: a class activation map whose mask is then optimised by integrated gradients."""

import torch
from torch import Tensor

from thesis_lib.checks import checked, whole
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import blur, min_max, resize
from thesis_lib.peers.base import PEERS, peer, probability

SPARSE, SMOOTH = 1, 20  # weights of the two terms that keep a mask small and even, as in the authors' code
NOISE = 0.25  # standard deviation of the noise, over the range of the masked picture
ENOUGH, SHORTER = 1e-4, 0.2  # Armijo's condition, and how much shorter the next try is
LONGEST, SHORTEST = 200.0, 1e-5  # steps that are tried


@PEERS.entry("SIGCAM", family="class activation", source="Zhang et al., AAAI 2021")
@peer
@checked(steps=(whole, 1), samples=(whole, 1), cells=(whole, 1))
def sig_cam(
    clf: Classifier, image: Tensor, target: Tensor, steps: int = 4, samples: int = 10, cells: int = 28
) -> Tensor:
    """SIGCAM (Zhang et al., 2021), shortened: a map of weighed channels, optimised as a mask that deletes the class.

    1. L = ReLU(sum_k w_k A_k), w_k = mean of (G_k A_k): the features weigh their own gradients.
    2. The mask M, a grid of cells x cells, enlarged, starts as 1 - L and mixes the picture with its blurred copy,
       x M + x' (1 - M). It is to lower f(M) = p_c(x M + x' (1 - M)) + mean|1 - M| + 20 TV(M), TV the mean squared
       difference of neighbours down and across. A step goes against the gradient of f in which that of p_c is
       integrated: the mean over s = 1, ..., `samples` of p_c's at the mask M s / `samples`, with noise on the
       picture. Its length is 200, or a fifth, a 25th, ... of it, the first that lowers f by 1e-4 of the step times
       the squared gradient. M stays in [0, 1].
    3. The map is 1 - M.

    steps: of the mask; 10 in the authors' code, 20 samples each. That code has the second stage; the first is read
    from the paper's words, which leave room, as they do for the sign with which L enters.
    """
    features, gradients, _, _ = clf.features_and_gradients(image, target)
    weights = (gradients * features).mean((-2, -1))
    start = torch.einsum("nk,nkhw->nhw", weights, features).relu()[:, None]
    mask = 1 - min_max(resize(start, (cells, cells)))
    blurred, score = blur(image), probability(clf, target)
    shares = torch.arange(1, samples + 1).to(image) / samples

    def mixed(mask):
        return torch.lerp(blurred, image, resize(mask, image.shape[-2:]))

    def kept_small(mask):
        down, across = mask.diff(dim=-2), mask.diff(dim=-1)
        # A single cell has no neighbours.
        uneven = sum(d.square().mean() for d in (down, across) if d.numel())
        return SPARSE * (1 - mask).abs().mean() + SMOOTH * uneven

    def loss(mask):
        return float(kept_small(mask) + score(mixed(mask)).sum())

    for _ in range(steps):
        leaf = mask.clone().requires_grad_()
        with torch.no_grad():
            masked = mixed(mask)
            noise = (
                NOISE / float(masked.max() - masked.min()) * torch.randn(samples, *image.shape[1:]).to(image)
            )
        path = (
            torch.lerp(blurred, image, shares[:, None, None, None] * resize(leaf, image.shape[-2:])) + noise
        )
        total = kept_small(leaf)
        for part in path.split(clf.batch):
            total = total + clf.network(part).softmax(1)[:, target].sum() / samples
        (slope,) = torch.autograd.grad(total, leaf)
        before, length = loss(mask), LONGEST
        while (
            loss((mask - length * slope).clamp(0, 1)) > before - ENOUGH * length * float(slope.square().sum())
            and length >= SHORTEST
        ):
            length *= SHORTER
        mask = (mask - length * slope).clamp(0, 1)
    return 1 - mask[:, 0]
