"""Maps that look at no network: what a method has to beat."""

from typing import Any

import torch

from thesis_lib.classifier import Classifier
from thesis_lib.methods.base import METHODS, explainer


@METHODS.entry("random", family="yardstick", colour="#BBBBBB", line=":", source="chance", thesis=False)
@explainer()
def random(
    clf: Classifier, images: torch.Tensor, classes: Any = None, *, batch: int | None = None
) -> torch.Tensor:
    """Every pixel a random number, the same ones for every picture, on every device.

    images, classes, batch, result: as `grad_cam`.

    >>> tl.METHODS["random"](clf, images).shape
    torch.Size([1, 224, 224])
    """
    noise = torch.rand(images.shape[-2:], generator=torch.Generator().manual_seed(0))
    return noise.to(images).expand(len(images), -1, -1)


@METHODS.entry("centre", family="yardstick", colour="#888888", line="--", source="habit", thesis=False)
@explainer()
def centre(
    clf: Classifier, images: torch.Tensor, classes: Any = None, *, batch: int | None = None
) -> torch.Tensor:
    """A Gaussian in the middle of the picture, a quarter of the sides wide: where photographers aim.

    images, classes, batch, result: as `grad_cam`.

    >>> bool(tl.METHODS["centre"](clf, images)[0, 112, 112] > 0.99)
    True
    """
    y, x = (torch.linspace(-2, 2, side, dtype=torch.float64) for side in images.shape[-2:])
    return torch.exp(-(y[:, None] ** 2 + x**2) / 2).to(images).expand(len(images), -1, -1)
