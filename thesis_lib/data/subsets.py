"""Index lists: which pictures of a dataset a run used, in which order, drawn with which seed.

An index list is a CSV file: a comment that names dataset, size and seed, then a column `id`.

    # ILSVRC2012 validation, 2,000 of 50,000 pictures, drawn with seed 0
    id
    ILSVRC2012_val_00034511
    ...

`python -m thesis_lib.data.draw imagenet 2000 --seed 0 --out data/subsets/imagenet_2000.csv`
draws one, and `open_dataset(name, root, subset=file)` reads it.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: str | Path, title: str, ids: Sequence[str], total: int, seed: int) -> None:
    """An index list of a dataset of `total` pictures."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(f"# {title}, {len(ids):,} of {total:,} pictures, drawn with seed {seed}\n")
        csv.writer(file, lineterminator="\n").writerows([["id"], *([name] for name in ids)])


def read(path: str | Path) -> tuple[list[str], int | None]:
    """The ids of an index list and its seed, None where its comment gives none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column id, no ids, one twice, or fewer than its comment says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no index list at {path}: see python -m thesis_lib.data.draw -h")
    lines = path.read_text("utf-8").splitlines()
    comment = " ".join(line for line in lines if line.startswith("#"))
    rows = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    if "id" not in (rows.fieldnames or ()):
        raise ValueError(f"{path.name} is no index list: it has no column id")
    ids = [row["id"] for row in rows]
    size = re.search(r"([\d,]+) of [\d,]+ pictures", comment)
    if not ids or (size and int(size[1].replace(",", "")) != len(ids)):
        raise ValueError(f"{path.name} is cut off: {len(ids):,} ids, its comment is {comment!r}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path.name} names a picture twice")
    seed = re.search(r"seed (\d+)", comment)
    return ids, int(seed[1]) if seed else None


class Subset:
    """Some pictures of a dataset, by their ids, in that order; `seed` is that of their draw."""

    def __init__(self, dataset: Any, ids: Sequence[str], seed: int | None = None, source: str = "the list"):
        self.dataset, self.categories = dataset, dataset.categories
        self.ids, self.seed = ids, seed
        positions = {name: i for i, name in enumerate(dataset.ids)}
        lacking = [name for name in self.ids if name not in positions]
        if lacking:
            raise ValueError(
                f"the dataset lacks {len(lacking):,} of the {len(self.ids):,} pictures of "
                f"{source}, first {lacking[0]}"
            )
        self.positions = [positions[name] for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[self.positions[i]]
