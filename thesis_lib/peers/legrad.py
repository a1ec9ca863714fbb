"""LeGrad, for Vision Transformers: how much each block's attention would raise the class."""

import torch
from torch import Tensor

from thesis_lib.classifier import Classifier
from thesis_lib.layers import token_grid
from thesis_lib.methods.open_vit import _read, open_vit
from thesis_lib.peers.base import PEERS, peer


@PEERS.entry("LeGrad", family="transformer", source="Bousselham et al., ICCV 2025", thesis=False)
@peer
def legrad(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """LeGrad (Bousselham et al., 2025): mean over blocks, heads and queries of max(0, ds_b / dA_b).

    A_b is block b's attention, queries x keys; s_b is what the network's last norm and head give the class when
    they read the mean of the tokens that leave block b, as the authors' code has it. Attention itself does not
    enter, and all blocks count. TorchCAM's, which knows torchvision's networks alone, is the same.

    Raises ValueError for a network that is no plain ViT.
    """
    trace = open_vit(clf, image, target)
    _, norm, layers, _ = _read(clf.network)
    maps = []
    for state in trace.states:
        x = norm((state.middle + state.mlp).mean(1))
        for layer in layers:
            x = layer(x)
        (slopes,) = torch.autograd.grad(x[:, target].sum(), state.attention, retain_graph=True)
        maps.append(slopes.relu().mean((1, 2)))
    first, grid = token_grid(maps[0].shape[1], image.shape[-2:])
    return torch.stack(maps).mean(0)[:, first:].unflatten(1, grid)
