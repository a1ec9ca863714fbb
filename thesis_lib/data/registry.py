"""Datasets by name: for each its reader, its folder, and what must be on the disk.

The readers are imported when a dataset is opened: this table is read where PyTorch is missing, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thesis_lib.data import CUTOUTS, DOWNLOADS, PHOTOGRAPHS, from_repository, is_picture, missing
from thesis_lib.data.match import WNID
from thesis_lib.data.subsets import Subset, read
from thesis_lib.registry import Registry


@dataclass(frozen=True)
class Dataset:
    """What there is to know of a dataset.

    Args:
        title: how it is called in print.
        reader: folder -> dataset.
        folder: where it is looked for; None where only the caller knows.
        size: how many pictures it has; None for any number.
        pictures: their folder, in `folder`.
        needs: what else must be there, in `folder`, "a|b" where either will do; lines of a ".txt" among
            them name the pictures.
        embedded: whether it comes with this repository.
        source: where to get it, or how it was made.
        licence: of its pictures, where they come with this repository.
        fault: folder -> what to do about it where its files are all there and cannot be used, or "".
    """

    title: str
    reader: Callable[[Path], Any]
    folder: Path | None = None
    size: int | None = None
    pictures: str = ""
    needs: tuple[str, ...] = ()
    embedded: bool = False
    source: str = ""
    licence: str = ""
    fault: Callable[[Path], str] | None = None


DATASETS = Registry("dataset")
PUBLISHED = ("images.csv", "dev_dataset.csv")  # the NIPS 2017 competition's table, at Kaggle and CleverHans


def _voc(split):
    return f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt", "VOCdevkit/VOC2007/Annotations"


def _reader(name, **settings):
    """A class of datasets.py."""

    def read(folder):
        from thesis_lib.data import datasets

        return getattr(datasets, name)(folder, **settings)

    return read


def _cutouts(name):
    """A reader whose classes are called by WNID and name, "n01843383-toucan": any network's outputs fit them,
    whether they are ImageNet's or called by the names."""

    def read(folder):
        from thesis_lib.data.cutouts import categories

        if name == "VOC2007":
            return _reader(name, categories=categories())(folder)
        dataset = _reader(name)(folder)
        called = {category[:9]: category for category in categories()}
        dataset.categories = [called.get(category, category) for category in dataset.categories]
        return dataset

    return read


def _lacks_classes(folder):
    """A tree of ILSVRC2012 whose pictures cannot be told apart: neither a kit nor class folders by WNID."""
    kit = folder / "ILSVRC2012_devkit_t12/data"
    if all((kit / f).exists() for f in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")):
        return ""
    places = (path for path in (folder / "val").iterdir() if path.is_dir())
    places = (path for path in places if path.name[0] != "." and path.name != "__MACOSX")
    found = [path.name for path in places if any(is_picture(file.name) for file in path.rglob("*"))]
    if found and all(map(WNID.match, found)):
        return ""
    return (
        f"val/ has {len(found):,} class folders{' of other names than WNIDs' if found else ''}: "
        "unpack ILSVRC2012_devkit_t12.tar.gz beside it, or name them n01440764 and so on"
    )


DATASETS["photographs"] = Dataset(
    "photographs of 399 ImageNet classes", _reader("Photographs"), PHOTOGRAPHS, 858, "", ("photographs.csv",),
    embedded=True, source="NIPS 2017 competition's development set, scripts/photographs.py", licence="CC BY 2.0",
)  # fmt: skip
DATASETS["nips17"] = Dataset(
    "NIPS 2017 development set", _reader("Photographs", tables=PUBLISHED), DOWNLOADS / "nips17", 1_000, "",
    ("|".join(PUBLISHED),),
    source="https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set",
)  # fmt: skip
_MADE = "stamps of Tux Paint (GPL-2) on CC0 photographs, scripts/cutouts.py"
_COCO = ("annotations/instances_val2014.json",)
DATASETS["cutouts"] = Dataset(
    "single cut-out things", _cutouts("ImageNet"), CUTOUTS / "ILSVRC2012", 204, "val",
    embedded=True, source=_MADE, licence="GPL-2",
)  # fmt: skip
DATASETS["cutouts_scenes"] = Dataset(
    "scenes of cut-out things, VOC2007's layout", _cutouts("VOC2007"), CUTOUTS, 102,
    "VOCdevkit/VOC2007/JPEGImages", _voc("test"), embedded=True, source=_MADE, licence="GPL-2",
)  # fmt: skip
DATASETS["cutouts_scenes_coco"] = Dataset(
    "scenes of cut-out things, COCO2014's layout", _cutouts("COCO2014"), CUTOUTS / "coco", 34, "val2014",
    _COCO, embedded=True, source=_MADE, licence="GPL-2",
)  # fmt: skip
DATASETS["cutouts_occurrences"] = Dataset(
    "the same thing two or three times, COCO2014's layout", _cutouts("COCO2014"), CUTOUTS / "occurrences", 51,
    "val2014", _COCO, embedded=True, source=_MADE, licence="GPL-2",
)  # fmt: skip
DATASETS["imagenet"] = Dataset(
    "ILSVRC2012 validation", _reader("ImageNet"), DOWNLOADS / "ILSVRC2012", 50_000, "val",
    source="https://image-net.org", fault=_lacks_classes,
)  # fmt: skip
for _name, _split, _size in (("voc2007", "test", 4_952), ("voc2007_trainval", "trainval", 5_011)):
    DATASETS[_name] = Dataset(
        f"VOC2007 {_split}", _reader("VOC2007", split=_split), DOWNLOADS / "VOC2007", _size,
        "VOCdevkit/VOC2007/JPEGImages", _voc(_split),
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
    )  # fmt: skip
for _name, _split, _title, _size in (
    ("coco2014", "val", "validation", 40_504), ("coco2014_train", "train", "training", 82_783),
):  # fmt: skip
    DATASETS[_name] = Dataset(
        f"COCO 2014 {_title}", _reader("COCO2014", split=_split), DOWNLOADS / "COCO2014", _size,
        f"{_split}2014", (f"annotations/instances_{_split}2014.json",),
        source="https://cocodataset.org",
    )  # fmt: skip
DATASETS["folder"] = Dataset("a folder of pictures", _reader("Folder"))


def open_dataset(name: str, root: str | Path = "", subset: str | Path = "") -> Any:
    """A dataset by name, for parameter files.

    Args:
        name: a key of DATASETS, such as "photographs" or "imagenet"; `list(DATASETS)` has them all.
        root: the folder that data/README.md describes, relative to the repository's root, or
            absolute; empty for the dataset's own, data/downloads/ILSVRC2012 for instance.
        subset: an index list (see `thesis_lib.data.subsets`), relative likewise: the dataset has
            its pictures only, in its order. Empty for all pictures.

    Raises:
        ValueError: unknown name; "folder" without a root; a damaged index list, or one of another dataset.
        FileNotFoundError: the dataset or the index list is not there.

    >>> len(tl.open_dataset("photographs")), len(tl.open_dataset("cutouts_scenes"))
    (858, 102)
    """
    entry = DATASETS[name]
    folder = from_repository(root) if root else entry.folder
    if folder is None:
        raise ValueError(f"{name} needs root, the folder of pictures")
    if entry.embedded and not root and not folder.is_dir():
        raise FileNotFoundError(missing(f"the dataset {name}"))
    dataset = entry.reader(folder)
    dataset.name = name
    if not subset:
        return dataset
    ids, seed = read(from_repository(subset))
    return Subset(dataset, ids, seed, Path(subset).name)
