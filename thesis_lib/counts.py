"""What was spent and left out: forward passes, flat maps, skipped groups.

The file is not called counting.py, because a module of that name would hide `tl.counting`, the function.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

# Values may be tensors until a block ends.
_counters: ContextVar[tuple[dict[str, Any], ...]] = ContextVar("counters", default=())


@contextmanager
def counting() -> Iterator[Counter]:
    """Count what happens inside: forward passes, flat maps, skipped groups and scales.

    Yields a `collections.Counter`. Names: "forward images", "forward pixels", "flat maps", "flat groups",
    "nan groups", "skipped scales", "skipped windows", "tied pixels". Device counts become numbers at the end of
    the block (no synchronisation before), so read it after the block. Blocks may be nested.

    >>> with tl.counting() as counts:
    ...     maps = tl.METHODS["grad_cam"](clf, images)
    >>> counts["forward images"]
    1
    """
    counts: Counter = Counter()
    token = _counters.set(_counters.get() + (counts,))
    try:
        yield counts
    finally:
        _counters.reset(token)
        for name, n in counts.items():
            counts[name] = int(n)


def count(name: str, n: int | Tensor) -> None:
    """Add n (a number or a 0-d tensor) to every `counting()` block that is open.

    >>> from thesis_lib.counts import count
    >>> with tl.counting() as counts:
    ...     count("flat maps", torch.tensor(2))
    >>> counts["flat maps"]
    2
    """
    for counts in _counters.get():
        counts[name] = counts[name] + n
