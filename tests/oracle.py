"""Chapter 3 transcribed literally: one image, one channel, one mask at a time, at full resolution.

Slow on purpose, and written without thesis_lib: what the methods are compared with. Every
function takes `forward`, a network with its explained layer (`Forward`), and one image x
(1, 3, H, W), and returns a map (H, W) in [0, 1]. Run it in float64 to have no rounding to speak of.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F


class Forward:
    """F: network and layer; a copy in eval mode that is differentiated as a whole."""

    def __init__(self, network, layer, dtype=torch.float64, activation="softmax", device="cpu"):
        self.network = copy.deepcopy(network).to(device, dtype).eval().requires_grad_(True)
        self.layer, self.dtype, self.activation = layer, dtype, activation

    def __call__(self, x):
        """Logits (C,)."""
        with torch.no_grad():
            return self.network(x)[0]

    def probabilities(self, x):
        logits = self(x)
        return logits.softmax(0) if self.activation == "softmax" else logits.sigmoid()

    def score(self, x, c, kind):
        return (self(x) if kind == "logit" else self.probabilities(x))[c].item()

    def features_and_gradients(self, x, c):
        """Equation 3-1: A and G (K, h, w) by back-propagation through the whole network."""
        kept = {}

        def keep(module, args, output):
            # A copy of its own, so that an in-place layer behind does not overwrite it.
            kept["features"] = output.clone()
            kept["features"].retain_grad()
            return kept["features"].clone()

        with self.network.get_submodule(self.layer).register_forward_hook(keep), torch.enable_grad():
            self.network(x.clone().requires_grad_(True))[0, c].backward()
        features = kept["features"]
        return features.detach()[0], features.grad[0]


def phi(channel, size):
    """Bilinear interpolation of one channel (h, w)."""
    return F.interpolate(channel[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def blurred(x, kernel_size=51, sigma=50.0):
    """The whole kernel_size x kernel_size kernel at once, over the reflected image."""
    t = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    kernel = torch.exp(-(t[:, None] ** 2 + t[None, :] ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x.dtype)
    padded = F.pad(x, [kernel_size // 2] * 4, mode="reflect")
    return torch.cat([F.conv2d(padded[:, [k]], kernel[None, None]) for k in range(x.shape[1])], 1)


def rounding(mask):
    """Differences below this are rounding errors (pixels that are equal by construction)."""
    return 64 * torch.finfo(mask.dtype).eps * mask.abs().max().item()


def flat(mask):
    return not mask.isfinite().all() or (mask.max() - mask.min()).item() <= rounding(mask)


def denoise(mask, theta):
    """Equation 3-8."""
    p = np.percentile(mask.numpy(), theta)
    return torch.where(mask > p + rounding(mask), mask, torch.zeros_like(mask))


def normalise(mask):
    """Equation 3-9."""
    return (mask - mask.min()) / (mask.max() - mask.min())


def finish(cam):
    return torch.zeros_like(cam) if flat(cam) else normalise(cam)


def relu(x):
    return x.clamp(min=0)


def groups_of(channels, b):
    """Neighbouring channels in b groups."""
    return [members for members in np.array_split(np.arange(channels), b) if len(members)]


def grad_cam(forward, x, c):
    a, g = forward.features_and_gradients(x, c)
    cam = sum(g[k].mean() * a[k] for k in range(len(a)))
    return finish(phi(relu(cam), x.shape[-2:]))


def grad_cam_plus_plus(forward, x, c):
    """The paper's equation 19, with Y = exp(S): every derivative written out."""
    a, g = forward.features_and_gradients(x, c)
    y = torch.exp(forward(x)[c])
    cam = torch.zeros_like(a[0])
    for k in range(len(a)):
        first, second, third = y * g[k], y * g[k] ** 2, y * g[k] ** 3
        denominator = 2 * second + a[k].sum() * third
        alpha = torch.where(denominator == 0, 0, second / denominator)
        cam += (alpha * relu(first)).sum() * a[k]
    return finish(phi(relu(cam), x.shape[-2:]))


def xgrad_cam(forward, x, c):
    a, g = forward.features_and_gradients(x, c)
    cam = sum((g[k] * a[k]).sum() / (a[k].sum() + 1e-6) * a[k] for k in range(len(a)))
    return finish(phi(relu(cam), x.shape[-2:]))


def score_cam(forward, x, c):
    a, _ = forward.features_and_gradients(x, c)
    cam = torch.zeros(x.shape[-2:], dtype=x.dtype)
    for channel in a:
        mask = phi(channel, x.shape[-2:])
        if flat(mask):
            continue
        cam += forward.score(x * normalise(mask), c, "probability") * mask
    return finish(relu(cam))


def group_cam(forward, x, c, groups=32, theta=70, score="probability"):
    a, g = forward.features_and_gradients(x, c)
    weighed = torch.stack([g[k].mean() * a[k] for k in range(len(a))])
    base = blurred(x)
    cam = torch.zeros(x.shape[-2:], dtype=x.dtype)
    for members in groups_of(len(a), groups):
        mask = relu(sum(weighed[k] for k in members))
        if flat(mask):
            continue
        mask = phi(denoise(mask, theta), x.shape[-2:])
        if flat(mask):
            continue
        mask = normalise(mask)
        seen = x * mask + base * (1 - mask)
        cam += (forward.score(seen, c, score) - forward.score(base, c, score)) * mask
    return finish(relu(cam))


def scales(x, sizes):
    """Equation 3-2, for the shorter side; sizes None: zeta_max / N = 800 / 8."""
    h, w = x.shape[-2:]
    shorter = min(h, w)
    if sizes is None:
        sizes = [shorter + 800 // 8 * (t - 1) for t in range(1, 9)]
    return [(round(h * s / shorter), round(w * s / shorter)) for s in sizes]


def kept_scales(forward, x, c, sizes, gate, mode):
    """Algorithm 1, lines 2 to 13: [(A_t up-sampled, G_t up-sampled)] of the scales that count."""
    kept = []
    for t, size in enumerate(scales(x, sizes)):
        scaled = x if t == 0 else F.interpolate(x, size, mode=mode, align_corners=False)
        if t == 0 or gate == "always" or forward(scaled).argmax().item() == c:
            a, g = forward.features_and_gradients(scaled, c)
            kept.append([torch.stack([phi(k, x.shape[-2:]) for k in maps]) for maps in (a, g)])
    return kept


def cameras(forward, x, c, sizes=None, gate="prediction"):
    kept = kept_scales(forward, x, c, sizes, gate, "bicubic")
    a = sum(a for a, _ in kept) / len(kept)
    g = sum(g for _, g in kept) / len(kept)
    return finish(relu((a * g).sum(0)))


def msg_cam(
    forward, x, c, groups=32, theta=70, score="logit", sizes=None, gate="prediction",
    fuse="denoised",
):  # fmt: skip
    kept = kept_scales(forward, x, c, sizes, gate, "bilinear")
    a = sum(a for a, _ in kept) / len(kept)  # 3-3
    g = sum(g for _, g in kept) / len(kept)  # 3-4
    w = [g[k].mean() for k in range(len(g))]  # 3-5
    m = [a[k] * w[k] for k in range(len(a))]  # 3-6
    base = blurred(x)
    cam = torch.zeros(x.shape[-2:], dtype=x.dtype)
    for members in groups_of(len(m), groups):
        mask = relu(sum(m[k] for k in members))  # 3-7
        if flat(mask):
            continue
        mask = denoise(mask, theta)  # 3-8
        if flat(mask):
            continue
        shown = normalise(mask)  # 3-9
        seen = x * shown + base * (1 - shown)  # 3-10
        alpha = forward.score(seen, c, score) - forward.score(base, c, score)  # 3-11
        cam += alpha * (mask if fuse == "denoised" else shown)
    return finish(relu(cam))  # 3-12


METHODS = dict(
    grad_cam=grad_cam, grad_cam_plus_plus=grad_cam_plus_plus, xgrad_cam=xgrad_cam,
    score_cam=score_cam, group_cam=group_cam, cameras=cameras, msg_cam=msg_cam,
)  # fmt: skip


def maps(forward, name, images, classes, **settings):
    """The maps (N, H, W) of a method for images (N, 3, H, W), one by one."""
    pairs = zip(images.to("cpu", forward.dtype).split(1), map(int, classes), strict=True)
    return torch.stack([METHODS[name](forward, x, c, **settings) for x, c in pairs])


def relative_error(ours, literal, spared=0):
    """Largest difference of each map relative to its largest value; 0 where both are zero.

    spared: how many pixels to leave out, the worst. In float32 a pixel at its mask's percentile
    may go either way, and equation 3-8 makes that a jump: MSG-CAM spares one for each mask (some
    7 % of masks at 224 x 224 have one, in any float32 arithmetic). float64 spares none.
    """
    difference = (ours.cpu().double() - literal.double()).abs().flatten(1).sort().values
    largest = literal.double().abs().amax((1, 2))
    return difference[:, -1 - spared] / largest.clamp(min=1e-300)
