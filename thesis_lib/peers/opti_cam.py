"""Opti-CAM, which no library has: the channels' weights are optimised for each picture, by gradient."""

import torch
from torch import Tensor

from thesis_lib.checks import checked, whole
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import min_max, resize
from thesis_lib.peers.base import PEERS, peer


@PEERS.entry("Opti-CAM", family="class activation", source="Zhang et al., CVIU 2024", thesis=False)
@peer
@checked(steps=(whole, 1))
def opti_cam(clf: Classifier, image: Tensor, target: Tensor, steps: int = 50) -> Tensor:
    """Opti-CAM (Zhang et al., 2024): the weights of the channels with which the masked picture keeps its class best.

    S(u) = sum_k softmax(u)_k A_k; u starts at 0, all channels alike, and Adam (rate 0.1) raises the logit of the
    picture times S(u), enlarged and stretched to [0, 1]. The map is S(u).

    steps: of Adam; 50 as in the authors' example, each a pass forward and one backward; their code's default is 100.
    As everywhere here, what a mask hides is the mean colour; in their code it is black.
    """
    features, _ = clf.features(image)
    u = features.new_zeros(features.shape[1]).requires_grad_()
    adam = torch.optim.Adam([u], lr=0.1)
    for _ in range(steps):
        mask = min_max(resize(_combined(u, features), image.shape[-2:]))
        adam.zero_grad()
        (-clf.network(image * mask)[0, target]).sum().backward()
        adam.step()
    return _combined(u.detach(), features)[:, 0]


def _combined(u, features):
    """S(u): (1, 1, h, w)."""
    return torch.einsum("k,nkhw->nhw", u.softmax(0), features)[:, None]
