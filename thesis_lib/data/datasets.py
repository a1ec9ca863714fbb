"""ILSVRC2012, VOC2007, COCO2014, photographs in a table and a folder of pictures, read from their own layouts.

A dataset has a length, `categories` (names by class index) and `ids`; `dataset[i]` is a Sample.
A picture or an annotation that cannot be read raises an OSError that names it; `evaluate` skips and
counts it. Pictures without annotations are read, and have no classes.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
import scipy.io
import torch

from thesis_lib.data import PICTURES, is_picture
from thesis_lib.data.pictures import box_mask, open_image, pictures_below, read_indices, resize_mask

VOC_CATEGORIES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


@dataclass
class Sample:
    """One picture: pixels (3, H, W) float32 in [0, 1]; classes that it shows; for each of them
    `masks[c]`, (H, W) bool, the union of its boxes, and where known `pixel_masks[c]`, the union of its
    things' outlines, and `things[c]`, (K, H, W) bool, each of them by itself.

    >>> sample.id, sample.classes, sample.pixels.shape
    ('ILSVRC2012_val_00000005', (4,), torch.Size([3, 224, 224]))
    """

    id: str
    pixels: torch.Tensor
    classes: tuple[int, ...] = ()
    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    pixel_masks: dict[int, torch.Tensor] = field(default_factory=dict)
    things: dict[int, torch.Tensor] = field(default_factory=dict)


def _require(path, what):
    if not Path(path).exists():
        raise FileNotFoundError(f"{what} not found: {path} is missing (see data/README.md)")
    return Path(path)


def _ids(names):
    """An id for each picture, of its path below the dataset's folder: its name; where two have one
    name, all with their folders; where two differ in their endings only, with these."""
    names = [PurePosixPath(name) for name in names]
    for said in (lambda n: n.stem, lambda n: n.with_suffix("").as_posix(), str):
        if len(set(ids := list(map(said, names)))) == len(names):
            break
    return ids


def _refuse_twice(values, what):
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(
            f"{what} {twice[0]!r} is there twice: rows could not be told apart; rename or remove one"
        )


class ImageNet:
    """ILSVRC2012 validation in either of its usual layouts.

    One folder a class: `root/val/<wnid>/*.JPEG`, in further folders, too. Flat, as the archive
    unpacks: `root/val/*.JPEG`, with the development kit's `meta.mat` and
    `ILSVRC2012_validation_ground_truth.txt` in `root/ILSVRC2012_devkit_t12/data`. Class indices
    count the sorted WNIDs, as torchvision's do: the kit's, where it is there, else those of the
    folders in which there is a picture. `root/masks`, where it is there, holds pixel masks as PNG.

    Ids are the pictures' names; where two class folders have one of the same name, folder/name.

    Raises:
        FileNotFoundError: no pictures, or a flat folder without the development kit.
        ValueError: a damaged kit.

    >>> from thesis_lib.data import CUTOUTS
    >>> benchmark = ImageNet(CUTOUTS / "ILSVRC2012")  # the embedded one has this layout
    >>> len(benchmark), benchmark.categories[4]
    (204, 'n01843383')
    """

    def __init__(self, root: str | Path, size: int = 224):
        self.root, self.size = Path(root), size
        folder = _require(self.root / "val", "ILSVRC2012")
        paths = pictures_below(folder)
        if not paths:
            raise FileNotFoundError(f"no picture under {folder} (see data/README.md)")
        places = {path: path.relative_to(folder) for path in paths}
        kit = self.root / "ILSVRC2012_devkit_t12/data"
        if kit.is_dir() or any(path.parent == folder for path in paths):
            self.categories, truth = _read_devkit(kit)
        else:
            self.categories, truth = sorted({place.parts[0] for place in places.values()}), {}
        index = {wnid: label for label, wnid in enumerate(self.categories)}
        paths.sort(key=lambda path: path.name)
        self.items = [(places[p], truth.get(p.stem, index.get(places[p].parts[0]))) for p in paths]
        self.ids = _ids(place.as_posix() for place, _ in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Sample:
        place, label = self.items[i]
        if label is None:
            raise OSError(
                f"{place.name} has no class: ILSVRC2012_validation_ground_truth.txt has no line for "
                f"it, and its folder, {(Path('val') / place).parts[-2]}, is none of the kit's WNIDs"
            )
        sample = Sample(self.ids[i], open_image(self.root / "val" / place, self.size), (label,))
        mask = (self.root / "masks" / place).with_suffix(".png")
        if mask.exists():
            sample.pixel_masks[label] = resize_mask(read_indices(mask) > 0, self.size)
        return sample


def _read_devkit(folder):
    """The WNIDs in the order of the class indices, and the class index of each picture by its
    name: the file of the ground truth has one ILSVRC2012_ID a line, line 1 for picture 1."""
    meta = _require(folder / "meta.mat", "ILSVRC2012's development kit")
    truth = _require(folder / "ILSVRC2012_validation_ground_truth.txt", "the classes of val/")
    try:
        synsets = np.atleast_1d(scipy.io.loadmat(meta, squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"] == 0]
        wnids = dict(zip(leaves["ILSVRC2012_ID"].astype(int), leaves["WNID"], strict=True))
        categories = sorted(map(str, wnids.values()))
        labels = [categories.index(wnids[int(line)]) for line in truth.read_text().split()]
    except Exception as error:  # scipy's reader raises many kinds of it on broken files
        raise ValueError(
            f"{meta.name} or {truth.name} in {folder} is damaged ({type(error).__name__}: {error}): "
            "unpack ILSVRC2012_devkit_t12.tar.gz again"
        ) from error
    return categories, {f"ILSVRC2012_val_{n:08d}": label for n, label in enumerate(labels, 1)}


class VOC2007:
    """VOC2007, `root/VOCdevkit/VOC2007`; split: "test" or "trainval". Other tools' files in its layout
    are read as well: pictures with another ending than .jpg, names of elements in capitals or with a
    namespace, lines "000001 -1" in the list.

    As in TorchRay, a picture's classes are those with an object that is not difficult, and the
    difficult objects of such a class count with the others.

    Raises:
        FileNotFoundError: no list of the pictures.
        ValueError: the list is empty, or names a picture twice.

    >>> from thesis_lib.data.cutouts import categories
    >>> from thesis_lib.data import CUTOUTS
    >>> scenes = VOC2007(CUTOUTS, categories=categories())  # the embedded ones have this layout
    >>> scenes[0].classes == tuple(scenes[0].masks)
    True
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 224,
        categories: Iterable[str] = VOC_CATEGORIES,
        split: str = "test",
    ):
        self.folder, self.size, self.categories = Path(root, "VOCdevkit/VOC2007"), size, list(categories)
        file = _require(self.folder / f"ImageSets/Main/{split}.txt", f"VOC2007 {split}")
        lines = (line.strip() for line in file.read_text("utf-8-sig").split("\n"))
        self.ids = [self._name(line) for line in lines if line]
        if not self.ids:
            raise ValueError(f"{file} names no picture: it has one a line, such as 000001")
        _refuse_twice(self.ids, f"in {file}, the picture")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        name = self.ids[i]
        width, height, objects = self._read_annotation(self.folder / f"Annotations/{name}.xml")
        pixels = open_image(self._path(name), self.size, (width, height))
        boxes: dict[int, list] = {}
        for label, box, _ in objects:
            boxes.setdefault(label, []).append(box)
        easy = {label for label, _, difficult in objects if not difficult}
        masks = {c: box_mask(boxes[c], width, height, self.size) for c in sorted(easy)}
        sample = Sample(name, pixels, tuple(masks), masks)
        segmentation = self.folder / f"SegmentationClass/{name}.png"
        if segmentation.exists():
            values = read_indices(segmentation)
            if values.shape != (height, width):
                raise OSError(
                    f"SegmentationClass/{name}.png is not of the size {width} x {height} of its picture"
                )
            sample.pixel_masks = {c: resize_mask(values == c + 1, self.size) for c in masks}
        return sample

    def _name(self, line):
        """A picture's name from a line of a list: in the list of one class, a number behind it says
        whether the picture shows it; some tools write the file's ending."""
        line = line[: -len(Path(line).suffix)] if is_picture(Path(line).name) else line
        flagged = re.fullmatch(r"(.+?)\s+(-1|0|1)", line)
        return flagged[1] if flagged and not self._path(line).exists() else line

    def _path(self, name):
        """A picture's file: .jpg, or another ending that is there."""
        usual = self.folder / f"JPEGImages/{name}.jpg"
        endings = (e for ending in sorted(PICTURES) for e in (ending, ending.upper()))
        others = (usual.with_name(usual.name.removesuffix(".jpg") + ending) for ending in endings)
        return usual if usual.exists() else next((path for path in others if path.exists()), usual)

    def _read_annotation(self, path):
        """Width, height and (class index, box, whether difficult) of each object."""
        try:
            content = ElementTree.parse(path).getroot()
            for element in content.iter():  # XML of some tools has a namespace, or <Difficult>
                element.tag = element.tag.rpartition("}")[2].lower()
            width, height = (_whole(_text(content, f"size/{side}"), side) for side in ("width", "height"))
            objects = []
            for item in content.findall("object"):
                if (category := _text(item, "name")) not in self.categories:
                    raise ValueError(f"category {category} is unknown")
                if len(item.findall("bndbox")) > 1:
                    raise ValueError(
                        f"an object ({category}) has more than one bndbox: make it several objects"
                    )
                corners = (_number(_text(item, f"bndbox/{k}"), k) for k in ("xmin", "ymin", "xmax", "ymax"))
                x0, y0, x1, y1 = corners
                box = (x0 - 1, y0 - 1, x1, y1)  # VOC counts from 1, both ends inclusive
                _refuse_negative(box[2] - box[0], box[3] - box[1], f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g})")
                objects.append((self.categories.index(category), box, _difficult(item)))
        except (LookupError, OSError, SyntaxError, TypeError, ValueError) as error:
            raise OSError(f"annotation {Path(path).name} cannot be used: {error}") from error
        return width, height, objects


def _text(element, path):
    if (text := element.findtext(path)) is None:
        raise ValueError(f"<{path}> is missing")
    return text.strip()


def _difficult(item):
    """Tools that do not ask write nothing, or 0. Unspecified, which some write, is refused with all
    other words: it decides whether the picture has a class, and nobody has said so."""
    said = (item.findtext("difficult") or "").strip().lower()
    if said not in ("", "0", "false", "1", "true"):
        raise ValueError(f"difficult is {said!r}: write 1 for an object to leave out, else 0")
    return said in ("1", "true")


def _number(value, what):
    """A finite number, of text or JSON."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}, not a number")
    return number


def _whole(value, what):
    """A side of a picture in pixels."""
    try:
        number = int(float(value))
    except (OverflowError, TypeError, ValueError):
        number = 0
    if number < 1 or number != float(value):
        raise ValueError(f"{what} is {value!r}: write the picture's {what} in pixels")
    return number


def _refuse_negative(width, height, box):
    """A box of no area covers nothing; one whose sides are negative has its corners exchanged, or a
    width for a corner, and would cover nothing although it means something."""
    if width < 0 or height < 0:
        raise ValueError(f"the box {box} ends before it begins: write the lesser corner first")


class COCO2014:
    """COCO 2014, `root/{split}2014/*.jpg` and `root/annotations/instances_{split}2014.json`; split:
    "val" or "train". Crowds count as any other object. Ids that are texts ("42") mean the same number;
    annotations of pictures that are not listed are left out.

    Ids of the pictures are their names; where two folders have one of the same name, folder/name.

    Raises:
        FileNotFoundError: no annotations.
        ValueError: the file is damaged, lists no picture, an id or a name twice, or its annotations
            belong to none of its pictures.

    >>> from thesis_lib.data import CUTOUTS
    >>> scenes = COCO2014(CUTOUTS / "coco")  # the embedded ones have this layout
    >>> scenes.categories[:2]
    ['n01514668-cock', 'n01514859-hen']
    """

    def __init__(self, root: str | Path, size: int = 224, split: str = "val"):
        self.root, self.size, self.split = Path(root), size, split
        file = _require(self.root / f"annotations/instances_{split}2014.json", f"COCO2014 {split}")
        try:
            self._index(json.loads(file.read_bytes()))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            lacks = f"an entry lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{file.name} cannot be used: {lacks}") from error

    def _index(self, content):
        """Pictures and categories in the order of their ids, and the annotations of each picture."""
        images, categories = content["images"], content["categories"]
        for entries, what in ((images, "the id of two images,"), (categories, "the id of two categories,")):
            entries.sort(key=lambda entry: (len(_key(entry["id"])), _key(entry["id"])))  # 9 before 10
            _refuse_twice([_key(entry["id"]) for entry in entries], what)
        self.categories = [category["name"] for category in categories]
        _refuse_twice(self.categories, "the category")
        self.index = {_key(category["id"]): k for k, category in enumerate(categories)}
        # Windows' paths; addresses, of which the last part is the file
        names = [image["file_name"].replace("\\", "/") for image in images]
        self.files = [name.rpartition("/")[2] if "://" in name else name for name in names]
        self.ids, self.images = _ids(self.files), images
        _refuse_twice(self.ids, "the picture")
        if not images:
            raise ValueError("it lists no picture")
        self.annotations = {_key(image["id"]): [] for image in images}
        every = content.get("annotations", [])
        for item in every:
            self.annotations.get(_key(item["image_id"]), []).append(item)
        if every and not any(self.annotations.values()):
            raise ValueError("no image_id of its annotations is the id of one of its images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        image, path = self.images[i], self.root / f"{self.split}2014" / self.files[i]
        boxes: dict[int, list] = {}
        covers: dict[int, list[np.ndarray]] = {}
        what, unknown = "size", set()
        try:
            width, height = (_whole(image.get(side), side) for side in ("width", "height"))
            for item in self.annotations[_key(image["id"])]:
                what = f"annotation {item.get('id')}"
                category = item.get("category_id")
                if (label := self.index.get(_key(category))) is None:
                    raise ValueError(f"category {category} is unknown")
                if len(box := item.get("bbox") or ()) != 4:
                    raise ValueError(f"bbox is {item.get('bbox')}, not x, y, width, height")
                x, y, w, h = (_number(value, "bbox") for value in box)
                _refuse_negative(w, h, f"[{x:g}, {y:g}, {w:g}, {h:g}]")
                boxes.setdefault(label, []).append((x, y, x + w, y + h))
                if item.get("segmentation"):
                    covers.setdefault(label, []).append(_outline(item["segmentation"], width, height))
                else:
                    unknown.add(label)  # a box without an outline
        except Exception as error:  # pycocotools raises bare Exceptions
            raise OSError(f"{what} of {path.name} cannot be used: {error}") from error
        pixels = open_image(path, self.size, (width, height))
        masks = {c: box_mask(boxes[c], width, height, self.size) for c in sorted(boxes)}
        known = [c for c in masks if c not in unknown]
        exact = {c: resize_mask(np.any(covers[c], 0), self.size) for c in known}
        things = {c: torch.stack([resize_mask(cover, self.size) for cover in covers[c]]) for c in known}
        return Sample(self.ids[i], pixels, tuple(masks), masks, exact, things)


def _key(number):
    """An id as text: 42, 42.0 (a table had gaps) and "42" are one."""
    return str(int(number) if isinstance(number, float) and number.is_integer() else number)


def _outline(segmentation, width, height):
    """The pixels (H, W) of an object: polygons [[x, y, ...], ...], or run lengths down the columns,
    outside and inside in turn, as a list or as COCO's text."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("outlines of COCO2014 need pycocotools: pip install pycocotools") from error

    if isinstance(segmentation, list):
        polygons = [[_number(value, "a corner") for value in polygon] for polygon in segmentation]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise ValueError(
                "a polygon has three corners or more, two numbers each: [[x, y, x, y, x, y, ...]]"
            )
        # pycocotools walks along every edge, and takes the memory for it.
        if any(abs(value) > 10 * max(width, height) for polygon in polygons for value in polygon):
            raise ValueError("a corner of its polygon lies far outside the picture")
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))) > 0
    runs = segmentation["counts"]
    runs = np.array(_runs(runs) if isinstance(runs, str) else runs, int)
    # pycocotools would fill what is missing with whatever memory holds.
    if segmentation["size"] != [height, width] or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its run lengths do not make up {height} x {width}, the picture's height and width")
    return np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(width, height).T


def _runs(text):
    """Run lengths from COCO's text: five bits a letter, the least first, a sixth where more follow;
    from the fourth on, each is the difference to the one before the last."""
    runs, value, shift = [], 0, 0
    for letter in text.encode():
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


class Photographs:
    """Photographs with one class of ImageNet each, as a table says; `rows` are its lines, with the author
    and the address of each.

    The table is `root/photographs.csv`, with columns id and class (from 0), or one that the NIPS 2017
    competition published, with ImageId and TrueLabel (from 1). The pictures are in `root/images`, or where
    there is no such folder beside the table: id.png, id.jpg, or of another ending. `categories` are
    the WNIDs of all 1,000 classes, so that a class is its index in ImageNet, and any network of ImageNet's
    1,000 classes fits, whatever the order of its outputs.

    Args:
        root: the folder of the table.
        size: pixels a side of the pictures that it gives.
        tables: names of the table; the first that is there is read.

    Raises:
        FileNotFoundError: no table, or none of its pictures.
        ValueError: the table is damaged, lacks a column, lists no picture or one twice, or has a class that
            ImageNet has not.

    >>> from thesis_lib.data import PHOTOGRAPHS
    >>> photographs = Photographs(PHOTOGRAPHS)  # the embedded ones
    >>> len(photographs), photographs[0].classes, photographs.categories[305]
    (858, (388,), 'n02172182')
    >>> photographs.rows[0]["name"], photographs.rows[0]["author"]
    ('giant panda', 'mrho101')
    """

    def __init__(self, root: str | Path, size: int = 224, tables: Iterable[str] = ("photographs.csv",)):
        from timm.data import ImageNetInfo

        self.size, self.categories = size, ImageNetInfo("imagenet-1k").label_names()
        files = [Path(root, name) for name in tables]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            names = " or ".join(file.name for file in files)
            raise FileNotFoundError(
                f"the table of the photographs not found: there is no {names} in {root} (see data/README.md)"
            )
        try:
            self.rows, self.ids, self.labels = _read_table(file, len(self.categories))
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{file.name} in {root} cannot be used: {error}") from error
        folder = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
        # PNG, which is what was published, comes last and wins.
        files = sorted(folder.iterdir(), key=lambda path: (path.suffix.lower() == ".png", path.name))
        there = {path.stem: path for path in files if is_picture(path.name)}
        self.paths = [there.get(name, folder / f"{name}.png") for name in self.ids]
        if there.keys().isdisjoint(self.ids):
            raise FileNotFoundError(
                f"none of the {len(self.ids):,} pictures of {file.name} is in {folder}, first "
                f"{self.ids[0]}.png or {self.ids[0]}.jpg (see data/README.md)"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        return Sample(self.ids[i], open_image(self.paths[i], self.size), (self.labels[i],))


def _read_table(file, classes):
    """The lines of a table of photographs as dicts, the ids, and the class indices from 0."""
    table = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
    columns = table.fieldnames or []
    name, column, first = ("ImageId", "TrueLabel", 1) if "ImageId" in columns else ("id", "class", 0)
    if lacking := [c for c in (name, column) if c not in columns]:
        raise ValueError(
            f"it has no column {' or '.join(lacking)}, but {', '.join(columns[:4]) or 'no line at all'}"
        )
    rows = list(table)
    labels = []
    for row in rows:
        if None in row or None in row.values() or not row[name]:
            raise ValueError(f"the line of {row[name] or 'no picture'!r} is not whole")
        if not (row[column].isdecimal() and first <= int(row[column]) < first + classes):
            last = first + classes - 1
            raise ValueError(
                f"{column} of {row[name]} is {row[column]!r}: the classes are {first} to {last:,}"
            )
        labels.append(int(row[column]) - first)
    if not rows:
        raise ValueError("it lists no picture")
    ids = [row[name] for row in rows]
    _refuse_twice(ids, "the picture")
    return rows, ids, labels


class Folder:
    """Any pictures under a folder, without labels, as `pictures_below` finds them; ids are their paths
    in it, with their endings where two differ in nothing else.

    >>> from thesis_lib.data import CUTOUTS
    >>> Folder(CUTOUTS / "ILSVRC2012/val/n01843383").ids[0]
    'ILSVRC2012_val_00000005'
    """

    def __init__(self, root: str | Path, size: int = 224):
        self.size = size
        self.categories: list[str] = []
        folder = _require(root, "the folder of pictures")
        self.paths = pictures_below(folder)
        if not self.paths:
            raise FileNotFoundError(f"no picture ({', '.join(sorted(PICTURES))}) under {folder}")
        names = [p.relative_to(folder) for p in self.paths]
        self.ids = [name.with_suffix("").as_posix() for name in names]
        if len(set(self.ids)) < len(names):  # a.jpg and a.png
            self.ids = [name.as_posix() for name in names]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Sample:
        return Sample(self.ids[i], open_image(self.paths[i], self.size))
