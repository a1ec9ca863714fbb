"""When do two measurements of the same rows agree? Within the metrics' tolerances, or where rounding decides."""

import copy
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from thesis_lib.metrics import METRICS

NOISE, SEEDS = 1e-6, 3  # of pixels: the standard deviation, and how often rows are shaken
ROW = ["id", "class", "method"]


def disagreements(
    old: pd.DataFrame, new: pd.DataFrame, metrics: Iterable[str], share: float = 1
) -> pd.DataFrame:
    """Where two measurements of the same rows lie further apart than the metrics tolerate, or a share of it.

    Returns one row for each (id, class, method, column): recorded, measured, difference. A row that
    one of both lacks has a difference of infinity.
    """
    a, b = (rows.set_index(ROW) for rows in (old, new))
    found = [(*where, "row", np.nan, np.nan, np.inf) for where in a.index.symmetric_difference(b.index)]
    both = a.index.intersection(b.index)
    for metric in metrics:
        for name, column in METRICS[metric].columns.items():
            if column.tolerance is None:
                continue
            for where in both:
                x, y = (np.asarray(rows.loc[where, name], float) for rows in (a, b))
                gap = difference(x, y)
                if gap > share * column.tolerance + (0.005 if x.ndim else 0):  # see record.write
                    found.append((*where, name, float(x.mean()), float(y.mean()), gap))
    return pd.DataFrame(found, columns=[*ROW, "column", "recorded", "measured", "difference"])


def difference(x: np.ndarray, y: np.ndarray) -> float:
    """Absolute difference, of curves its mean over their points: where a curve is steep, one point may jump by a
    tie alone, which moves no area. Two NaN are equal, one is not."""
    if x.shape != y.shape or (np.isnan(x) != np.isnan(y)).any():
        return np.inf
    return float(np.nan_to_num(np.abs(x - y)).mean())


def on_an_edge(
    again: Callable[[int], pd.DataFrame], new: pd.DataFrame, wrong: pd.DataFrame, metrics: Iterable[str]
) -> bool:
    """Whether rows are as far from themselves, to a factor of 5, when their pictures are shaken or other kernels sum.

    Some rows hang on a gate, a percentile, a tie, or a quotient whose denominator nearly vanishes (relevance in a
    Transformer). There another machine's rounding falls on the other side.

    Args:
        again: seed -> the rows measured once more, of `shaken` pictures.
        new: measured without noise; wrong: `disagreements` of what was recorded and these.
        metrics: names.
    """

    def furthest(found):
        tolerance = found["column"].map(lambda name: getattr(METRICS.columns.get(name), "tolerance", 1))
        return (found["difference"] / tolerance).max()

    # No more of them than it takes: some rows take a minute. What moves by less than the tolerance has moved, too.
    others = [*(partial(again, seed) for seed in range(SEEDS)), partial(_otherwise, again)]
    return any(furthest(wrong) <= 5 * furthest(disagreements(new, other(), metrics, 0.1)) for other in others)


def _otherwise(again):
    """The rows by PyTorch's own kernels and another number of threads: sums in another order, as elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it speaks of GPUs
            with torch.backends.mkldnn.flags(enabled=False):
                return again(None)
    finally:
        torch.set_num_threads(threads)


def shaken(sample: Any, seed: int | None) -> Any:
    """The Sample with noise of a millionth on its pixels, about what rounding does on the way to the logits;
    seed None: as it is."""
    if seed is None:
        return sample
    found = copy.copy(sample)
    noise = torch.randn(sample.pixels.shape, generator=torch.Generator().manual_seed(seed))
    found.pixels = sample.pixels + NOISE * noise
    return found
