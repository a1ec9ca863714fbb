"""Relevance by positive weights, which no library has: excitation backpropagation and Relevance-CAM."""

import copy
import functools

import torch
from torch import Tensor, nn

from thesis_lib.classifier import Classifier
from thesis_lib.peers.base import PEERS, lend, peer


def _excite(network):
    """Let relevance run backwards as excitation backpropagation has it, by changing gradients only.

    A layer y = W a + b hands the probability P of its outputs on by its positive weights:
    P(a_j) = a_j sum_i w+_ij P(y_i) / z_i with z = W+ a. With P = value x gradient this is what
    autograd computes once the layer returns y z / z', z' being z without a gradient: y still.
    """
    for layer in [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
        positive = copy.deepcopy(layer)
        positive.weight.clamp_(min=0)
        positive.bias = None
        layer.register_forward_hook(functools.partial(_by_positive_weights, positive))


def _by_positive_weights(positive, layer, args, output):
    if torch.is_grad_enabled():  # that is, behind the explained layer
        z = positive(*args)
        tiny = torch.finfo(z.dtype).tiny
        return output.detach() * torch.where(z > 0, z / z.detach().clamp(min=tiny), 1)


@PEERS.entry("Excitation backpropagation", family="backpropagation", source="Zhang et al., IJCV 2018")
@peer
def excitation_backprop(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Excitation backpropagation (Zhang et al., 2018) down to the explained layer, without contrast.

    The layer's features must not be negative. Without biases the map's sum is that of the output.
    """
    lent = lend(clf)
    _excite(lent.network)
    features, gradients, _, _ = lent.features_and_gradients(image, target)
    return (features * gradients).sum(1)


@PEERS.entry("Relevance-CAM", family="class activation", source="Lee et al., CVPR 2021")
@peer
def relevance_cam(clf: Classifier, image: Tensor, target: Tensor) -> Tensor:
    """Relevance-CAM (Lee et al., 2021): channels weighed by their relevance at the explained layer.

    Relevance runs back from 1 at the class and -1 / (C - 1) at each other one, by positive weights
    (alpha 1, beta 0), as excitation backpropagation has it; map = ReLU(sum_k R_k A_k), R_k the mean.
    """
    lent = lend(clf)
    _excite(lent.network)
    lent.network.register_forward_hook(_contrast)
    features, gradients, _, _ = lent.features_and_gradients(image, target)
    weights = (features * gradients).mean((-2, -1), keepdim=True)
    return (weights * features).sum(1).relu()


def _contrast(network, args, logits):
    """Logits (1, C) whose gradients start at 1 (over the logit) for a class, -1 / (C - 1) for others."""
    if torch.is_grad_enabled():
        ones = torch.where(logits == 0, 0, logits / logits.detach())
        others = max(ones.shape[1] - 1, 1)  # one output has none
        return ones - (ones.sum(1, keepdim=True) - ones) / others
