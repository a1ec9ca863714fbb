"""Small networks of several families with random weights, for 32 to 64 pixel images."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer


def _head(channels, classes=7):
    """Pooled to 2 x 2 rather than 1 x 1, so that gradients differ within a feature map."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 16), nn.ReLU(True),
        nn.Dropout(0.5), nn.Linear(16, classes),
    )  # fmt: skip


class Plain(nn.Sequential):
    """As VGG: in-place ReLUs; K = 13 is a prime."""

    layer = "features.7"

    def __init__(self):
        super().__init__(
            OrderedDict(
                features=nn.Sequential(
                    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
                    nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
                    nn.Conv2d(12, 13, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
                ),
                head=_head(13),
            )
        )  # fmt: skip


class Residual(nn.Module):
    """As ResNet: one ReLU module used twice, a sum in place."""

    layer = "block"

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(True)

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            y += x
            return self.relu(y)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 5, stride=4, padding=2)
        self.block = Residual.Block(12)
        self.head = _head(12)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


class Inverted(nn.Module):
    """As MobileNet: expanded, depthwise, squeezed and excited; K = 14."""

    layer = "last.2"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(6, 18, 1), nn.BatchNorm2d(18), nn.ReLU6(True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(18, 18, 3, stride=2, padding=1, groups=18), nn.BatchNorm2d(18),
            nn.Hardswish(True),
        )  # fmt: skip
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(18, 18, 1), nn.Sigmoid())
        self.last = nn.Sequential(nn.Conv2d(18, 14, 1), nn.BatchNorm2d(14), nn.SiLU(True))
        self.head = _head(14)

    def forward(self, x):
        x = self.depthwise(self.expand(self.stem(x)))
        return self.head(self.last(x * self.excite(x)))


class Dense(nn.Module):
    """As DenseNet: concatenations, and a functional in-place ReLU right behind the layer."""

    layer = "norm"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.grow = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(2))
        self.norm = nn.BatchNorm2d(16)
        self.head = _head(16)

    def forward(self, x):
        x = self.stem(x)
        for conv in self.grow:
            x = torch.cat([x, conv(F.relu(x))], 1)
        return self.head(F.relu(self.norm(x), inplace=True))


class Viewed(nn.Module):
    """Wants its pixels in plain order, as `view` does."""

    layer = "conv"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 5, stride=4, padding=2)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.head = nn.Linear(90, 7)

    def forward(self, x):
        return self.head(self.pool(self.conv(x).relu()).view(len(x), -1))


class NanChannel(Plain):
    """Channel 3 of the explained layer is NaN, and nothing behind it sees that."""

    def __init__(self):
        super().__init__()
        self.features[7] = nn.Sequential(nn.ReLU(), _Spoil())
        self.features[8] = nn.Sequential(_Mend(), nn.MaxPool2d(2))


class _Spoil(nn.Module):
    def forward(self, x):
        return x.index_fill(1, torch.tensor(3), float("nan"))


class _Mend(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :3], x[:, 4:], x[:, :1]], 1)


FAMILIES = [Plain, Residual, Inverted, Dense]


def vit(seed=0, size=32, depth=2, **settings):
    """torchvision's VisionTransformer: 4 x 4 tokens of 8 pixels, 2 heads, 16 wide, 7 classes.

    Every weight is random, norms and biases too, and attention is far from even.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = VisionTransformer(size, 8, depth, 2, 16, 24, num_classes=7, **settings)
        return liven_tokens(network)


def liven_tokens(network):
    """In place: random weights for a Transformer that make its tokens differ."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            scale = name.endswith(("weight", "gamma"))
            nn.init.uniform_(parameter, 0.5 if scale else -0.3, 1.5 if scale else 0.3)
    return network.eval()


def random_network(family, seed=0, **settings):
    """A network with lively random weights: He initialisation, batch norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return liven(family(**settings))


def liven(network, size=64):
    """In place: statistics of random images for the batch norms, logits of size 1 to 10."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        network.train()(images(16, size, size))
    return network.eval()


def images(n, h=48, w=48, seed=0, dtype=torch.float32):
    """Smooth random images (N, 3, h, w), about normalised."""
    noise = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (h, w), mode="bicubic") * 1.5
    grain = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(seed + 1))
    return (smooth + 0.3 * grain).to(dtype)
