"""Which pictures a page takes: some to make choices on, which no table uses, and some to look at."""

from collections.abc import Iterable
from typing import Any

from thesis_lib.data.registry import open_dataset
from thesis_lib.data.subsets import Subset


def validation(name: str, root: str = "", count: int = 16) -> Subset:
    """Pictures to choose settings on: the last `count` of a dataset (name and root as `open_dataset`
    takes them); tables take the first.

    >>> len(validation("cutouts", count=2))
    2
    """
    dataset = open_dataset(name, root)
    return Subset(dataset, list(dataset.ids)[-count:])


def examples(dataset: Any, positions: Iterable[int]) -> dict[int, Any]:
    """Pictures to look at, {position: Sample}: those at `positions`.

    In the place of one that is not there, or cannot be read, comes the next that can (after the
    last, the first), no picture twice. So there are fewer only if the dataset has no more.

    Raises OSError if no picture can be read.

    >>> list(examples(open_dataset("cutouts"), [3, 3, 8]))
    [3, 4, 8]
    """
    found: dict[int, Any] = {}
    broken: dict[int, OSError] = {}
    for wanted in positions:
        for step in range(len(dataset)):
            position = (wanted + step) % len(dataset)
            if position in found or position in broken:
                continue
            try:
                found[position] = dataset[position]
                break
            except OSError as error:
                broken[position] = error
    if not found:
        raise OSError(f"none of {len(dataset)} pictures can be read: {next(iter(broken.values()), '')}")
    return found
