"""A Vision Transformer taken apart: its forward pass in the open, so that its attention can be seen.

For torchvision's VisionTransformer and timm's ViT and DeiT. N images; L tokens, the first of which
is the class's; E features; M heads of E / M features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thesis_lib.classifier import Classes, Classifier, resolve_classes
from thesis_lib.layers import undisturbed


class Block(NamedTuple):
    """One Transformer block, whichever library wrote it; linear layers as (weight, bias)."""

    norm1: nn.Module
    qkv: tuple
    heads: int
    projection: tuple
    norm2: nn.Module
    up: tuple
    activation: nn.Module
    down: tuple


class State(NamedTuple):
    """What one block computed for N images."""

    x: Tensor  # (N, L, E) what it was given
    normed: Tensor
    qkv: Tensor  # (N, L, 3 E)
    q: Tensor  # (N, M, L, E / M); k and v alike
    k: Tensor
    v: Tensor
    attention: Tensor  # (N, M, L, L), rows add up to 1
    mixed: Tensor  # (N, L, E) attention times v, heads side by side
    attended: Tensor  # (N, L, E) the attention branch
    middle: Tensor  # (N, L, E) x + attended
    normed2: Tensor
    raised: Tensor  # (N, L, MLP width) before the activation
    hidden: Tensor  # (N, L, MLP width)
    mlp: Tensor  # (N, L, E) the MLP branch


class Trace(NamedTuple):
    """A forward pass in the open, with a graph that starts at the tokens."""

    blocks: list
    states: list
    layers: list  # of the head
    inputs: list  # (N, E) of each of them
    logits: Tensor
    classes: Tensor


def open_vit(clf: Classifier, images: Tensor, classes: Classes = None) -> Trace:
    """The forward pass of a ViT, block by block in the open, with a graph that starts at its tokens.

    One pass, whatever the classifier's batch, in eval mode: the graph of all images is kept.

    What is opened has to be the network. So the network runs as well, in every call, its blocks on
    the first image of each of its passes only, and both must give the same logits: one that does
    more than its parts say (a hook, LoRA, tokens that are pooled) is refused, whenever it changed.

    Args:
        clf: a Classifier of such a network.
        images: (N, 3, H, W), normalised.
        classes: None (the predicted ones), one index, or (N,) indices.

    Raises:
        ValueError: a network that is no plain ViT, or in bfloat16; logits that are not finite.
        IndexError: a class out of range.

    >>> opened = open_vit(vit, images)
    >>> len(opened.states), opened.states[0].attention.shape
    (6, torch.Size([1, 4, 197, 197]))
    """
    network = clf.network
    if any(p.is_floating_point() and p.dtype != clf.dtype for p in network.parameters()):
        raise ValueError("relevance needs more digits than bfloat16 has: use network.float()")
    with undisturbed(network), torch.inference_mode(False):
        blocks, norm, layers, first = _read(network)
        tokens = []

        def keep(module, args):
            tokens.append(args[0].clone())  # of all images
            return args[0][:1]

        with first.register_forward_pre_hook(keep):
            expected = torch.cat([logits for _, logits in clf.passes(images)])
        with torch.enable_grad():
            x = torch.cat(tokens).requires_grad_()
            states = []
            for block in blocks:
                states.append(_run(block, x))
                x = states[-1].middle + states[-1].mlp
            inputs = [norm(x)[:, 0]]
            for layer in layers:
                inputs.append(layer(inputs[-1]))
            logits = inputs.pop()
    if not logits.isfinite().all():
        raise ValueError("the network's logits are not finite: check the images and weights")
    classes = resolve_classes(clf.targets(classes, len(logits)), logits.detach())
    firsts = logits.detach()[:: len(tokens[0])]
    # Rounding is 1e-6 of the largest logit in float32; a head less in one of six blocks 1e-2.
    if not torch.allclose(firsts, expected, rtol=0, atol=2e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{type(network).__name__} is not a plain ViT that reads its class from the first "
            "token: its attention cannot be explained here"
        )
    return Trace(blocks, states, layers, inputs, logits, classes)


def attention_gradients(trace: Trace) -> list[Tensor]:
    """dF_c/dA_b of every block, F_c the logit: (N, M, L, L) each.

    >>> gradients = attention_gradients(open_vit(vit, images))
    >>> len(gradients), gradients[0].shape
    (6, torch.Size([1, 4, 197, 197]))
    """
    with torch.inference_mode(False):
        chosen = F.one_hot(trace.classes, trace.logits.shape[1]).to(trace.logits)
        attentions = [state.attention for state in trace.states]
        return list(torch.autograd.grad(trace.logits, attentions, chosen))


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
    return State(x, normed, qkv, q, k, v, attention, mixed, attended, middle, normed2, raised, hidden, mlp)


def _read(network):
    """The blocks of a torchvision or timm ViT, its last norm, its head's layers, and its first block.

    It may be in a wrapper: what that adds shows in the logits.
    """
    inside = (m for m in network.modules() if hasattr(m, "blocks") or hasattr(m, "encoder"))
    network = next(inside, network)
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
    head = list(head) if isinstance(head, nn.Sequential) else [head]
    return blocks, norm, head, layers[0]


def _from_torchvision(layer):
    a, m = layer.self_attention, layer.mlp
    return Block(
        layer.ln_1, (a.in_proj_weight, a.in_proj_bias), a.num_heads, _pair(a.out_proj),
        layer.ln_2, _pair(m[0]), m[1], _pair(m[3]),
    )  # fmt: skip


def _from_timm(layer):
    a, m = layer.attn, layer.mlp
    return Block(
        layer.norm1, _pair(a.qkv), a.num_heads, _pair(a.proj, layer.ls1),
        layer.norm2, _pair(m.fc1), m.act, _pair(m.fc2, layer.ls2),
    )  # fmt: skip


def _pair(linear, scale=None):
    """Weight and bias; a layer scale behind them is part of them."""
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return linear.weight, linear.bias
    return linear.weight * gamma[:, None], linear.bias * gamma
