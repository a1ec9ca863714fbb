"""Networks by name: the two embedded ones, and every classifier that torchvision has."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from torch import nn
from torchvision.models.vgg import make_layers

from thesis_lib.classifier import Classifier

WEIGHTS = Path(__file__).parents[2] / "data" / "weights"
VGG19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


def vgg19_glyphs(classes=20, batch_norm=False, hidden=128):
    """VGG19 with every convolution at one eighth of its width and small hidden layers.

    Without batch norm its layers carry VGG19's own names, from `features.0` to `features.36` and
    `classifier.0` to `classifier.6`; a 224 pixel image gives 64 features of 14x14 at `features.35`.
    """
    widths = [v if v == "M" else v // 8 for v in VGG19]
    classifier = nn.Sequential(
        nn.Linear(64 * 7 * 7, hidden), nn.ReLU(True), nn.Dropout(0.2),
        nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(0.2),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    network = nn.Sequential(
        OrderedDict(
            features=make_layers(widths, batch_norm), avgpool=nn.AdaptiveAvgPool2d(7),
            flatten=nn.Flatten(), classifier=classifier,
        )  # fmt: skip
    )
    network.hidden = hidden
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network
