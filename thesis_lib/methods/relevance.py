"""Layer-wise relevance propagation through an opened ViT: the rules of Chefer et al., CVPR 2021.

As their official code, with alpha = 1. All sums are over one image's tokens alone, so that a map
does not depend on the other images of its batch. Shapes as in `open_vit`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thesis_lib.methods.open_vit import Trace


@torch.no_grad()
def attention_relevance(trace: Trace) -> list[Tensor]:
    """Relevance (N, M, L, L) of every block's attention, first block first.

    The rules are the official code's, with alpha = 1: linear layers pass relevance on in proportion
    to positive contributions, products to both factors half and half, sums to their terms as
    `_split`; norms, softmax and activations let it through.

    >>> from thesis_lib.methods.open_vit import open_vit
    >>> relevances = attention_relevance(open_vit(vit, images))
    >>> len(relevances), relevances[0].shape
    (6, torch.Size([1, 4, 197, 197]))
    """
    relevance = F.one_hot(trace.classes, trace.logits.shape[1]).to(trace.logits)
    given = [*trace.inputs, trace.logits]
    for layer, x, output in reversed(list(zip(trace.layers, given, given[1:], strict=False))):
        if isinstance(layer, nn.Linear):
            relevance = _linear(relevance, x, (layer.weight, layer.bias), output)
    r = torch.zeros_like(trace.states[-1].middle)
    r[:, 0] = relevance
    found = []
    steps = zip(trace.blocks, trace.states, strict=True)
    for number, (block, s) in reversed(list(enumerate(steps))):
        skipped, branch = _split(r, s.middle, s.mlp)
        branch = _linear(branch, s.hidden, block.down, s.mlp)
        branch = _linear(branch, s.normed2, block.up, s.raised)
        skipped, branch = _split(skipped + branch, s.x, s.attended)
        branch = _linear(branch, s.mixed, block.projection, s.attended)
        branch = branch.unflatten(2, (block.heads, -1)).transpose(1, 2)
        to_attention, to_v = _product(branch, s.attention, s.v)
        found.append(to_attention)
        if number:  # nobody asks what the first block was given
            to_q, to_k = _product(to_attention, s.q, s.k.mT)
            to_qkv = torch.stack([to_q, to_k.mT, to_v], 1)  # (N, 3, M, L, E / M)
            to_qkv = to_qkv.permute(0, 3, 1, 2, 4).flatten(2)
            r = skipped + _linear(to_qkv, s.normed, block.qkv, s.qkv)
    return found[::-1]


def _share(relevance, total):
    """relevance / total, 0 where there is nothing to share; the offset is the official one."""
    return (relevance / (total + 1e-9)).masked_fill_(total == 0, 0)


def _linear(relevance, x, linear, output):
    """In proportion to x_j w_ij where that is positive; the bias takes nothing.

    What of a number is positive is half of it and its size together. So the positive parts add up
    to half of sum_j x_j w_ij, which the forward pass has left, and sum_j |x_j| |w_ij|.
    """
    weight, bias = linear
    size, sizes = x.abs(), weight.abs()
    whole = size @ sizes.mT
    positive = (whole + output - (0 if bias is None else bias)) / 2
    positive = positive.masked_fill_(positive < 8 * torch.finfo(x.dtype).eps * whole, 0)  # rounding
    share = _share(relevance, positive) / 2
    return (x * (share @ weight)).addcmul_(size, share @ sizes)


def _product(relevance, a, b):
    """To the factors of a @ b, half each."""
    share, half = _share(relevance, a @ b), b / 2  # b is the smaller one
    return (share @ half.mT).mul_(a), (a.mT @ share).mul_(half)


def _split(relevance, a, b):
    """To the terms of a + b, so that all of an image's relevance is kept.

    Signs may make either term's relevance huge: the sums, by absolute value, are then scaled to
    share the image's whole relevance.
    """
    share = _share(relevance, a + b)
    terms = a * share, b * share
    sums = [t.sum((1, 2), keepdim=True) for t in terms]
    whole, total = relevance.sum((1, 2), keepdim=True), sum(s.abs() for s in sums)
    return tuple(t * _share(_share(s.abs(), total) * whole, s) for t, s in zip(terms, sums, strict=True))
