"""What all metrics share: their registry, and what they are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from thesis_lib.classifier import Classifier
from thesis_lib.registry import Registry


@dataclass(frozen=True)
class Column:
    """One number of a row.

    Args:
        title: how it is called in print; "" where it is not shown by itself.
        better: +1 where more is better, -1 where less is, 0 where neither.
        tolerance: how far two measurements of one row may lie apart, on another machine, say; None
            where that says nothing.
        scale: what it is multiplied by in print: 100 for a per cent.
        optional: whether it is NaN where a mask, or another picture to compare with, is missing.
    """

    title: str = ""
    better: int = 0
    tolerance: float | None = 0.002
    scale: float = 100
    optional: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric: `function(rounds, method, maps) -> {column: a value for each round}`.

    Args:
        function: see `Rounds` for what it is given; method is the function that made the maps.
        title, chinese, source: for print.
        columns: what it returns, by name.
        explains: "predicted", the class that the network names; "annotated", each class that the picture has boxes
            for; or "masked", each that it has an exact mask for.
        neighbours: whether a row depends on the other pictures of its chunk.
    """

    function: Callable
    title: str
    columns: dict[str, Column]
    explains: str = "predicted"
    chinese: str = ""
    source: str = ""
    neighbours: bool = False

    @property
    def better(self) -> dict[str, int]:
        """{column: +1 or -1} of the columns that have a direction."""
        return {name: column.better for name, column in self.columns.items() if column.better}


class Metrics(Registry):
    """Metrics by name, see `Metric`."""

    def entry(self, title: str, **facts: Any) -> Callable:
        """Register a function as the metric of its own name, less a "_rows" at its end."""

        def register(function: Callable) -> Callable:
            name = function.__name__.removesuffix("_rows")
            self[name] = Metric(function, title, **facts)
            return function

        return register

    @property
    def columns(self) -> dict[str, Column]:
        """All columns of all metrics."""
        return {name: c for metric in self.values() for name, c in metric.columns.items()}


METRICS = Metrics("metric")


@dataclass
class Rounds:
    """N pairs of a picture and a class, which one call of a method explains.

    Args:
        classifier: whose decision is explained.
        images: (N, 3, H, W), normalised.
        classes: (N,) the explained ones.
        samples: the picture of each pair, with its annotations; one may come several times.
        predicted: (N,) the class that the network names on each picture.
        step: pixels per point of curves.
    """

    classifier: Classifier
    images: torch.Tensor
    classes: torch.Tensor
    samples: list
    predicted: torch.Tensor
    step: int = 448

    def box_masks(self) -> torch.Tensor:
        """(N, H, W) bool: the boxes of each pair's class."""
        pairs = zip(self.samples, self.classes.tolist(), strict=True)
        return torch.stack([sample.masks[c] for sample, c in pairs])

    def pixel_masks(self) -> list:
        """The exact mask (H, W) of each pair's class, None where there is none."""
        pairs = zip(self.samples, self.classes.tolist(), strict=True)
        return [sample.pixel_masks.get(c) for sample, c in pairs]
