"""Explanations of Vision Transformers by their attention (Chefer et al., CVPR 2021, and relatives).

For torchvision's VisionTransformer and timm's ViT and DeiT. L tokens, the first of which is the
class's; E features; M heads of E / M features. All sums are over one image's tokens alone, so that
a map does not depend on the other images of its batch.
"""

import contextlib
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.classifier import resolve_classes, token_grid
from thesis_lib.methods.base import METHODS, explainer


class _Block(NamedTuple):
    """One Transformer block, whichever library wrote it; linear layers as (weight, bias)."""

    norm1: nn.Module
    qkv: tuple
    heads: int
    projection: tuple
    norm2: nn.Module
    up: tuple
    activation: nn.Module
    down: tuple


class _State(NamedTuple):
    """What one block computed for N images."""

    x: torch.Tensor  # (N, L, E) what it was given
    normed: torch.Tensor
    qkv: torch.Tensor  # (N, L, 3 E)
    q: torch.Tensor  # (N, M, L, E / M); k and v alike
    k: torch.Tensor
    v: torch.Tensor
    attention: torch.Tensor  # (N, M, L, L), rows add up to 1
    mixed: torch.Tensor  # (N, L, E) attention times v, heads side by side
    attended: torch.Tensor  # (N, L, E) the attention branch
    middle: torch.Tensor  # (N, L, E) x + attended
    normed2: torch.Tensor
    raised: torch.Tensor  # (N, L, MLP width) before the activation
    hidden: torch.Tensor  # (N, L, MLP width)
    mlp: torch.Tensor  # (N, L, E) the MLP branch


_plain = weakref.WeakSet()  # networks that were seen to be plain ViTs


class _Tokens(Exception):
    """Ends a forward pass of which only the tokens were wanted."""


class _Trace(NamedTuple):
    """A forward pass in the open, with a graph that starts at the tokens."""

    blocks: list
    states: list
    layers: list  # of the head
    inputs: list  # (N, E) of each of them
    logits: torch.Tensor
    classes: torch.Tensor


@METHODS.entry(
    "Transformer attribution",
    family="transformer",
    colour="#882255",
    line="-",
    source="Chefer et al., CVPR 2021",
)
@explainer(share=4)  # measured: its many matrices L x L are faster in a CPU's cache
def transformer_attribution(clf, images, classes=None, *, start_layer=0, batch=None):
    """Transformer attribution (Chefer et al., CVPR 2021).

    Relevance R starts as 1 at the class's logit and runs back to the attention matrices A_b by
    layer-wise relevance propagation; A'_b = I + mean over heads of max(0, dF_c/dA_b * R_b); the map
    is the class token's row of A'_B ... A'_1. As in the official code, rows are not normalised;
    unlike there, relevance is kept image by image.

    Args:
        clf, images, classes, batch: as `grad_cam`, and the result; maps at the resolution of the
            tokens, up-sampled.
        start_layer: the first block in the product: 0 as in the authors' examples, 1 as in their
            evaluation.

    Raises:
        ValueError: a network that is no plain ViT; a block that does not exist; or as `grad_cam`.

    >>> maps = tl.METHODS["transformer_attribution"](vit, images)
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    """
    trace = _trace(clf, images, classes)
    if not 0 <= start_layer < len(trace.blocks):
        raise ValueError(f"start_layer is 0 to {len(trace.blocks) - 1}, not {start_layer}")
    trace = trace._replace(blocks=trace.blocks[start_layer:], states=trace.states[start_layer:])
    relevances = attention_relevance(trace)
    steps = [_positive(g * r) for g, r in zip(_gradients(trace), relevances, strict=True)]
    return _class_row(steps, images)


@METHODS.entry(
    "Gradient × attention",
    family="transformer",
    colour="#117733",
    line="--",
    source="Chefer et al., ICCV 2021",
)
@explainer()
def gradient_attention(clf, images, classes=None, *, batch=None):
    """Transformer attribution with A itself for its relevance: max(0, dF_c/dA * A).

    The rule for self-attention of "Generic attention-model explainability" (Chefer et al., ICCV
    2021): no relevance propagation, so a fraction of the cost.

    images, classes, batch, result: as `transformer_attribution`.

    >>> tl.METHODS["gradient_attention"](vit, images).shape
    torch.Size([1, 224, 224])
    """
    trace = _trace(clf, images, classes)
    attentions = [state.attention.detach() for state in trace.states]
    steps = [_positive(g * a) for g, a in zip(_gradients(trace), attentions, strict=True)]
    return _class_row(steps, images)


@METHODS.entry(
    "Attention rollout", family="transformer", colour="#999933", line=":", source="Abnar & Zuidema, ACL 2020"
)
@explainer()
def attention_rollout(clf, images, classes=None, *, batch=None):
    """Attention rollout (Abnar & Zuidema, ACL 2020): the product of (I + mean over heads of A) / 2.

    It does not look at the class: all classes of an image have the same map. (The halves are left
    out: min-max removes them.)

    images, classes, batch, result: as `transformer_attribution`.

    >>> rollout = tl.METHODS["attention_rollout"]
    >>> bool((rollout(vit, images, 3) == rollout(vit, images, 7)).all())
    True
    """
    states = _trace(clf, images, classes).states
    return _class_row([state.attention.detach().mean(1) for state in states], images)


def _positive(products):
    """Mean over heads of what is positive: (N, M, L, L) -> (N, L, L); works in place."""
    return products.relu_().mean(1)


def _class_row(steps, images):
    """The class token's row of (I + step_B) ... (I + step_1), as a map (N, h, w) of the tokens."""
    row = torch.zeros_like(steps[0][:, 0])
    row[:, 0] = 1
    for step in reversed(steps):
        row = row + (row[:, None] @ step)[:, 0]
    first, grid = token_grid(row.shape[1], images.shape[-2:])
    return row[:, first:].unflatten(1, grid)


def _gradients(trace):
    """dF_c/dA_b of every block, F_c the logit: (N, M, L, L) each."""
    with torch.inference_mode(False):
        chosen = F.one_hot(trace.classes, trace.logits.shape[1]).to(trace.logits)
        return torch.autograd.grad(trace.logits, [s.attention for s in trace.states], chosen)


def _trace(clf, images, classes):
    network = clf.network
    if any(p.is_floating_point() and p.dtype != clf.dtype for p in network.parameters()):
        raise ValueError("relevance needs more digits than bfloat16 has: use network.float()")
    with torch.inference_mode(False):
        blocks, norm, head, first = _read(network)
    tokens, expected = [], None

    def keep(module, args):
        tokens.append(args[0].clone())
        if network in _plain:
            raise _Tokens
        return args[0][:1]  # the blocks run on one image only, for the check below

    with first.register_forward_pre_hook(keep), torch.no_grad():
        for part in clf._passes(images):
            with contextlib.suppress(_Tokens):
                expected = clf._forward(part)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.cat(tokens).requires_grad_()
        states = []
        for block in blocks:
            states.append(_run(block, x))
            x = states[-1].middle + states[-1].mlp
        inputs = [norm(x)[:, 0]]
        layers = list(head) if isinstance(head, nn.Sequential) else [head]
        for layer in layers:
            inputs.append(layer(inputs[-1]))
        logits = inputs.pop()
        if not logits.isfinite().all():
            raise ValueError("the network's logits are not finite: check the images and weights")
        classes = resolve_classes(classes, logits.detach())
    if network not in _plain:  # what is not a plain ViT shows here, whatever it is called
        ours, theirs = logits[[-len(part)]], expected[:1]
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            raise ValueError(
                f"{type(network).__name__} is not a plain ViT that reads its class from the first "
                "token: its attention cannot be explained here"
            )
        _plain.add(network)
    return _Trace(blocks, states, layers, inputs, logits, classes)


def _run(block, x):
    """One block in the open, so that its attention can be seen."""
    normed = block.norm1(x)
    qkv = F.linear(normed, *block.qkv)
    q, k, v = qkv.unflatten(2, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    attended = F.linear(mixed, *block.projection)
    middle = x + attended
    normed2 = block.norm2(middle)
    raised = F.linear(normed2, *block.up)
    hidden = block.activation(raised)
    mlp = F.linear(hidden, *block.down)
    return _State(x, normed, qkv, q, k, v, attention, mixed, attended, middle, normed2, raised, hidden, mlp)


@torch.no_grad()
def attention_relevance(trace):
    """Relevance (N, M, L, L) of every block's attention, first block first.

    The rules are the official code's, with alpha = 1: linear layers pass relevance on in proportion
    to positive contributions, products to both factors half and half, sums to their terms as
    `_split`; norms, softmax and activations let it through.
    """
    relevance = F.one_hot(trace.classes, trace.logits.shape[1]).to(trace.logits)
    given = [*trace.inputs, trace.logits]
    for layer, x, output in reversed(list(zip(trace.layers, given, given[1:], strict=False))):
        if isinstance(layer, nn.Linear):
            relevance = _linear(relevance, x, _pair(layer), output)
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


def _read(network):
    """The blocks of a torchvision or timm ViT, its last norm, its head, and its first block."""
    try:
        if hasattr(network, "encoder"):  # torchvision
            layers, norm, head = network.encoder.layers, network.encoder.ln, network.heads
            blocks = [_from_torchvision(layer) for layer in layers]
        else:
            layers, norm, head = network.blocks, network.norm, network.head
            blocks = [_from_timm(layer) for layer in layers]
    except AttributeError as error:
        raise ValueError(
            "attention is explained in torchvision's VisionTransformer and in timm's ViT and DeiT, "
            f"not in {type(network).__name__} ({error})"
        ) from error
    return blocks, norm, head, layers[0]


def _from_torchvision(layer):
    a, m = layer.self_attention, layer.mlp
    return _Block(
        layer.ln_1, (a.in_proj_weight, a.in_proj_bias), a.num_heads, _pair(a.out_proj),
        layer.ln_2, _pair(m[0]), m[1], _pair(m[3]),
    )  # fmt: skip


def _from_timm(layer):
    a, m = layer.attn, layer.mlp
    return _Block(
        layer.norm1, _pair(a.qkv), a.num_heads, _pair(a.proj, layer.ls1),
        layer.norm2, _pair(m.fc1), m.act, _pair(m.fc2, layer.ls2),
    )  # fmt: skip


def _pair(linear, scale=None):
    """Weight and bias; a layer scale behind them is part of them."""
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return linear.weight, linear.bias
    return linear.weight * gamma[:, None], linear.bias * gamma
