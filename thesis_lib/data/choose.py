"""Which pictures a page takes: some to make choices on, which no table uses, and some to look at."""

import tempfile
from pathlib import Path

from thesis_lib.data import glyphs
from thesis_lib.data.datasets import ImageNet
from thesis_lib.data.registry import open_dataset


class Last:
    """The last pictures of a dataset."""

    def __init__(self, dataset, count):
        self.dataset, self.categories = dataset, dataset.categories
        self.first = max(0, len(dataset) - count)
        self.ids = list(dataset.ids)[self.first :]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.dataset[self.first + i]


def validation(name, root="", count=16, seed=0):
    """Pictures to choose settings on: `count` of them, not those of the tables.

    For "glyphs" its validation split, drawn from the seed, written the way the test split is, JPEG
    included, and removed again with the dataset. For another dataset (name and root as
    `open_dataset` takes them) its last pictures; tables take the first.

    >>> len(validation("glyphs", count=2))
    2
    """
    if name != "glyphs":
        return Last(open_dataset(name, root), count)
    folder = tempfile.TemporaryDirectory()
    glyphs.write_imagenet(Path(folder.name), count, seed, "validation")
    dataset = ImageNet(Path(folder.name) / "ILSVRC2012")
    dataset.folder = folder
    return dataset


def examples(dataset, positions):
    """Pictures to look at, {position: Sample}: those at `positions`.

    In the place of one that is not there, or cannot be read, comes the next that can (after the
    last, the first), no picture twice. So there are fewer only if the dataset has no more.

    Raises OSError if no picture can be read.

    >>> list(examples(open_dataset("glyphs"), [3, 3, 8]))
    [3, 4, 8]
    """
    found, broken = {}, {}
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
