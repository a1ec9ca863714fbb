"""Transformer attribution, gradient times attention and rollout, one image at a time.

Written from the formulae, without thesis_lib: relevance goes through z = f(x) as
R_in = x * d(sum z * R / z)/dx, which autograd works out; every product, sum and projection of a
block is a function of its own. For torchvision's VisionTransformer and timm's ViT; in float64, on a
copy, unless another dtype is asked for: that of the network then, as it is, for benchmarks.
"""

import contextlib
import copy

import torch
import torch.nn.functional as F


def safe(r, z):
    """R / z as the official code has it: 1e-9 beside z, and 0 where z is."""
    return torch.where(z == 0, torch.zeros_like(z), r / (z + 1e-9))


def through(f, r, *inputs):
    """x * dz/dx^T (R / z) for each x of z = f(*inputs)."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        z = f(*leaves)
        gradients = torch.autograd.grad(z, leaves, safe(r, z.detach()))
    return [x.detach() * g for x, g in zip(leaves, gradients, strict=True)]


def linear(r, x, weight):
    """alpha = 1, beta = 0: from z+ = x+ W+ + x- W-, whose both parts take relevance."""
    (above, below) = through(
        lambda p, n: p @ weight.clamp(min=0).T + n @ weight.clamp(max=0).T,
        r, x.clamp(min=0), x.clamp(max=0),
    )  # fmt: skip
    return above + below


def add(r, a, b):
    ra, rb = through(lambda p, q: p + q, r, a, b)
    sa, sb = ra.sum(), rb.sum()
    fa = safe(safe(sa.abs(), sa.abs() + sb.abs()) * r.sum(), sa)
    fb = safe(safe(sb.abs(), sa.abs() + sb.abs()) * r.sum(), sb)
    return ra * fa, rb * fb


def blocks_of(network):
    """(norm1, qkv weight, bias, heads, projection, norm2, up, activation, down) of each block."""

    def scaled(module, scale):
        gamma = getattr(scale, "gamma", torch.ones(()).to(module.weight))
        return torch.diag(gamma.expand(len(module.weight))) @ module.weight, module.bias * gamma

    if hasattr(network, "encoder"):
        for b in network.encoder.layers:
            a, m = b.self_attention, b.mlp
            yield (
                b.ln_1, a.in_proj_weight, a.in_proj_bias, a.num_heads, scaled(a.out_proj, None),
                b.ln_2, m[0], m[1], scaled(m[3], None),
            )  # fmt: skip
    else:
        for b in network.blocks:
            a, m = b.attn, b.mlp
            yield (
                b.norm1, a.qkv.weight, a.qkv.bias, a.num_heads, scaled(a.proj, b.ls1),
                b.norm2, m.fc1, m.act, scaled(m.fc2, b.ls2),
            )  # fmt: skip


class Stop(Exception):
    pass


def analyse(network, x, c, dtype=torch.float64, linear=linear):
    """Attentions, their gradients and their relevances of one image, and what goes between blocks.

    Returns lists, block by block, of (M, L, L), and the relevance that entered each block.
    """
    if exact := dtype == torch.float64:
        network = copy.deepcopy(network).double().eval().requires_grad_(False)
    modern = hasattr(network, "encoder")
    first = (network.encoder.layers if modern else network.blocks)[0]
    kept = []

    def keep(module, args):
        kept.append(args[0])
        if not exact:  # the rest would be for the check below alone
            raise Stop

    with first.register_forward_pre_hook(keep), torch.no_grad(), contextlib.suppress(Stop):
        expected = network(x.to(dtype))[0]
    tokens = kept[0][0].clone().requires_grad_()
    length = len(tokens)
    steps = []
    with torch.enable_grad():
        t = tokens
        for norm1, w, b, heads, projection, norm2, up, activation, down in blocks_of(network):
            normed = norm1(t)
            qkv = normed @ w.T + b
            width = qkv.shape[1] // 3
            parts = [qkv[:, i * width : (i + 1) * width] for i in range(3)]
            d = width // heads
            q, k, v = (torch.stack([part[:, h * d : (h + 1) * d] for h in range(heads)]) for part in parts)
            a = torch.stack([((q[h] @ k[h].T) / d**0.5).softmax(-1) for h in range(heads)])
            mixed = torch.cat([a[h] @ v[h] for h in range(heads)], 1)
            attended = mixed @ projection[0].T + projection[1]
            middle = t + attended
            normed2 = norm2(middle)
            hidden = activation(normed2 @ up.weight.T + up.bias)
            mlp = hidden @ down[0].T + down[1]
            steps.append((t, normed, w, q, k, v, a, mixed, projection[0], attended, middle, normed2,
                          up.weight, hidden, down[0], mlp))  # fmt: skip
            t = middle + mlp
        y = (network.encoder.ln if modern else network.norm)(t)[0]
        head = network.heads if modern else network.head
        head = list(head) if isinstance(head, torch.nn.Sequential) else [head]
        inputs = []
        for layer in head:
            inputs.append(y)
            y = layer(y)
        if exact:
            torch.testing.assert_close(y, expected)
        gradients = torch.autograd.grad(y[c], [step[6] for step in steps])
    r = torch.zeros_like(y)
    r[c] = 1
    for layer, given in reversed(list(zip(head, inputs, strict=True))):
        if hasattr(layer, "weight"):
            r = linear(r, given.detach(), layer.weight)
    entering = torch.zeros_like(t)
    entering[0] = r
    relevances, entered, values = [], [], []
    for step in reversed(steps):
        (t, normed, w, q, k, v, a, mixed, wp, attended, middle, normed2, wu, hidden, wd, mlp) = (
            part.detach() for part in step
        )
        entered.append(entering)
        skipped, branch = add(entering, middle, mlp)
        branch = linear(linear(branch, hidden, wd), normed2, wu)
        skipped, branch = add(skipped + branch, t, attended)
        branch = linear(branch, mixed, wp)
        d = branch.shape[1] // len(a)
        each = torch.stack([branch[:, h * d : (h + 1) * d] for h in range(len(a))])
        ra, rv = through(lambda p, q: torch.einsum("hij,hjd->hid", p, q), each, a, v)
        ra, rv = ra / 2, rv / 2
        relevances.append(ra)
        values.append(rv)
        rq, rk = through(lambda p, q: torch.einsum("hid,hjd->hij", p, q), ra, q, k)
        merged = [part.movedim(0, 1).reshape(length, -1) for part in (rq / 2, rk / 2, rv)]
        entering = skipped + linear(torch.cat(merged, 1), normed, w)
    attentions = [step[6].detach() for step in steps]
    return attentions, gradients, relevances[::-1], entered[::-1], values[::-1]


def row(steps, size):
    """CLS row of the product, later block first, up-sampled to the image."""
    identity = torch.eye(len(steps[0])).to(steps[0])
    product = identity
    for step in steps:
        product = (identity + step) @ product
    side = int((len(product) - 1) ** 0.5)
    first = len(product) - side * side
    cam = product[0, first:].reshape(1, 1, side, side)
    cam = F.interpolate(cam, size, mode="bilinear", align_corners=False)[0, 0]
    return (cam - cam.min()) / (cam.max() - cam.min())


def mean_of_positive(products):
    return sum(head.clamp(min=0) for head in products) / len(products)


def transformer_attribution(network, x, c, start_layer=0, **how):
    _, g, r, _, _ = analyse(network, x, c, **how)
    steps = [mean_of_positive(gb * rb) for gb, rb in zip(g, r, strict=True)]
    return row(steps[start_layer:], x.shape[-2:])


def gradient_attention(network, x, c):
    a, g, *_ = analyse(network, x, c)
    return row([mean_of_positive(gb * ab) for gb, ab in zip(g, a, strict=True)], x.shape[-2:])


def attention_rollout(network, x, c):
    a, *_ = analyse(network, x, c)
    return row([sum(ab) / len(ab) for ab in a], x.shape[-2:])


METHODS = dict(
    transformer_attribution=transformer_attribution, gradient_attention=gradient_attention,
    attention_rollout=attention_rollout,
)  # fmt: skip


def maps(name, network, images, classes, **settings):
    pairs = zip(images.split(1), map(int, classes), strict=True)
    return torch.stack([METHODS[name](network, x, c, **settings) for x, c in pairs])
