"""Saliency methods: functions (classifier, images, classes, **settings) -> maps (N, H, W)."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from thesis_lib.methods.base import METHODS

__all__ = ["METHODS", "enhance", "sess", "variants"]

# Each file registers its methods; this is the thesis's order.
for _file in ("cam", "masks", "multiscale", "attention", "yardsticks"):
    importlib.import_module(f"thesis_lib.methods.{_file}")

from thesis_lib.methods.window import enhance, sess  # noqa: E402  (which imports some of them)


def variants(
    names: Sequence[str],
    window: int | Sequence[int],
    stride: int | Sequence[int],
    cutoff: float | None,
    sess_sizes: Sequence[int],
    settings: dict[str, dict[str, Any]],
) -> dict[str, Callable]:
    """Each base method bare, enhanced by windows in two ways, and under SESS, as chapter 4 compares them.

    Args:
        names: keys of METHODS.
        window, stride, cutoff: as `enhance` takes them.
        sess_sizes: the sizes of `sess`.
        settings: {name: its own settings}, used in all four alike.

    Returns:
        a dict of methods for `evaluate`, whose keys are such as "grad_cam", "grad_cam enhanced" (equation
        4-8's sum over windows), "grad_cam mean" (the mean over covering windows) and "grad_cam SESS";
        `report.variants_table` compares rows by these names.

    >>> list(variants(["grad_cam"], 160, 32, 28, [224, 288], {}))
    ['grad_cam', 'grad_cam enhanced', 'grad_cam mean', 'grad_cam SESS']
    """
    methods: dict[str, Callable] = {}
    for name in names:
        bare = partial(METHODS[name], **settings.get(name, {}))
        methods[name] = bare
        methods[f"{name} enhanced"] = enhance(bare, window, stride, cutoff)
        methods[f"{name} mean"] = enhance(bare, window, stride, cutoff, cover="mean")
        methods[f"{name} SESS"] = sess(bare, sess_sizes)
    return methods
