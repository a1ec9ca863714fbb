"""What all methods share: their registry, and batches of images in, finished maps out."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from thesis_lib.classifier import refuse_nan
from thesis_lib.counts import count
from thesis_lib.kernels import min_max, resize
from thesis_lib.layers import undisturbed
from thesis_lib.registry import Registry


class Methods(Registry):
    """Methods by name; each carries what is known of it as attributes, see `entry`."""

    def entry(
        self,
        title: str,
        *,
        chinese: str = "",
        family: str = "convolutional",
        colour: str = "#888888",
        line: Any = "-",
        source: str = "",
        thesis: bool = True,
    ) -> Callable:
        """Register a method under its function's name. Nothing said here changes a map.

        Args:
            title, chinese: how it is called in print; "" where the thesis has no Chinese name.
            family: "convolutional", "transformer", or "yardstick", which needs no network.
            colour, line: through the whole book; a line style as matplotlib has it.
            source: who proposed it, and where.
            thesis: whether the thesis compares it.
        """

        def register(method: Callable) -> Callable:
            facts = {
                "title": title, "chinese": chinese, "family": family, "colour": colour,
                "line": line, "source": source, "thesis": thesis,
            }  # fmt: skip
            for key, value in facts.items():
                setattr(method, key, value)
            self[method.__name__] = method
            return method

        return register

    def of(self, family: str) -> list[str]:
        """Names of the thesis's methods of one family, in its order."""
        return [n for n, method in self.items() if method.family == family and method.thesis]

    @property
    def convolutional(self) -> list[str]:
        """Names of the thesis's seven for convolutional networks, in its order.

        >>> tl.METHODS.convolutional[0], tl.METHODS.convolutional[-1]
        ('grad_cam', 'msg_cam')
        """
        return self.of("convolutional")


METHODS = Methods("method")


def explainer(share: int = 1) -> Callable:
    """Make a method of a function that explains one batch of images.

    The function, `(clf, images, classes or None, **settings)`, returns raw maps (n, h, w);
    the method takes any number of images and returns maps (N, H, W) in [0, 1], float32 (float64
    for a float64 network). A map that is flat or not finite becomes zero and is counted. The
    function runs without a graph, and with the network in eval mode and autocast off.

    share: on the CPU the batches are 1/share of the classifier's, where less at once stays in its caches. A GPU
    is to be filled.

    >>> @explainer()
    ... def brightest(clf, images, classes=None, *, batch=None):
    ...     return clf.denormalise(images).mean(1)
    >>> maps = brightest(clf, images)
    >>> maps.shape, float(maps.max())
    (torch.Size([1, 224, 224]), 1.0)
    """

    def decorate(function):
        @functools.wraps(function)
        def method(clf, images, classes=None, *, batch=None, **settings):
            clf = clf if batch is None else clf.with_batch(batch)
            images = clf.prepare(images)
            classes = clf.targets(classes, len(images))
            refuse_nan(images)
            n = clf.full_batch(images.shape[-2:])
            if images.device.type == "cpu":
                n = max(1, n // share)
            parts = images.split(n)
            targets = [None] * len(parts) if classes is None else classes.split(n)
            with undisturbed(clf.network), torch.no_grad():
                raw = [function(clf, p, t, **settings) for p, t in zip(parts, targets, strict=True)]
                maps = min_max(resize(torch.cat(raw)[:, None], images.shape[-2:]))[:, 0]
            count("flat maps", (maps.amax((1, 2)) == 0).sum())
            return maps

        return method

    return decorate
