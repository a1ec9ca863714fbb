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
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: str | Path, title: str, ids: Sequence[str], total: int, seed: int) -> None:
    """An index list of a dataset of `total` pictures."""
    comment = f"# {' '.join(title.split())}, {len(ids):,} of {total:,} pictures, drawn with seed {seed}"
    # Quoted here: csv.writer leaves a carriage return bare before Python 3.13.
    fields = ('"' + i.replace('"', '""') + '"' if not i or re.search(r'[,"\r\n]', i) else i for i in ids)
    data = "".join(f"{line}\n" for line in [comment, "id", *fields]).encode()  # fails before it overwrites
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(path: str | Path) -> tuple[list[str], int | None]:
    """The ids of an index list and its seed, None where its comment gives none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no column id, no ids, one twice, fewer than its comment says, or a line
            that is not one of a CSV file with these columns.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no index list at {path}: see python -m thesis_lib.data.draw -h")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Excel begins it with a byte-order mark
        # Above the first other line: an id, too, may begin with #.
        comment, rest = re.fullmatch(r"((?:#[^\r\n]*|[\r\n])*)(.*)", text, re.S).groups()
        rows = csv.DictReader(io.StringIO(rest, newline=""), strict=True)
        if "id" not in (rows.fieldnames or ()):
            raise ValueError(
                f"it has no column id, but {', '.join(map(repr, rows.fieldnames or ['nothing']))}"
            )
        ids = [row["id"] for row in map(_whole, rows)]
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f"{path.name} is no index list ({error}): save it as CSV in UTF-8 with commas, a line `id`, "
            "then an id a line, in quotes if it has a comma or a quote in it"
        ) from error
    sizes = re.findall(r"([\d,]+) of [\d,]+ pictures", comment)  # the last: a title may say one, too
    if not ids or (sizes and int(sizes[-1].replace(",", "")) != len(ids)):
        raise ValueError(f"{path.name} is cut off: {len(ids):,} ids, its comment is {comment.strip()!r}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path.name} names a picture twice")
    seeds = re.findall(r"seed (-?\d+)", comment)
    return ids, int(seeds[-1]) if seeds else None


def _whole(row):
    """A row with as many fields as the header has."""
    if None in row or None in row.values():
        raise ValueError(f"the line of {row['id']!r} has more or fewer fields than the first")
    return row


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
