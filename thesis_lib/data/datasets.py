"""ILSVRC2012, VOC2007, COCO2014 and a folder of pictures, read from their own on-disk layouts.

A dataset has a length, `categories` (names by class index) and `ids`; `dataset[i]` is a Sample.
A picture or an annotation that cannot be read raises an OSError that names it; `evaluate` skips and
counts it. Pictures without annotations are read, and have no classes.
"""

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy.io
import torch
from torchvision.datasets import VOCDetection

from thesis_lib.data import PICTURES, is_picture
from thesis_lib.data.pictures import box_mask, open_image, read_indices, resize_mask

VOC_CATEGORIES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


@dataclass
class Sample:
    """One picture: pixels (3, H, W) float32 in [0, 1]; classes that it shows; for each of them
    `masks[c]`, (H, W) bool, the union of its boxes, and where known `pixel_masks[c]`.

    >>> sample.id, sample.classes, sample.pixels.shape
    ('ILSVRC2012_val_00000005', (4,), torch.Size([3, 224, 224]))
    """

    id: str
    pixels: torch.Tensor
    classes: tuple[int, ...] = ()
    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    pixel_masks: dict[int, torch.Tensor] = field(default_factory=dict)


def _require(path, what):
    if not Path(path).exists():
        raise FileNotFoundError(f"{what} not found: {path} is missing (see data/README.md)")
    return Path(path)


class ImageNet:
    """ILSVRC2012 validation in either of its usual layouts.

    One folder a class: `root/val/<wnid>/*.JPEG`. Flat, as the archive unpacks: `root/val/*.JPEG`,
    with the development kit's `meta.mat` and `ILSVRC2012_validation_ground_truth.txt` in
    `root/ILSVRC2012_devkit_t12/data`. Class indices count the sorted WNIDs, as torchvision's
    do: the kit's, where it is there, else the folders'. `root/masks`, where it is there, holds
    pixel masks as PNG.

    Raises:
        FileNotFoundError: no pictures, or a flat folder without the development kit.
        ValueError: a damaged kit.

    >>> from thesis_lib.data import GLYPHS
    >>> benchmark = ImageNet(GLYPHS / "ILSVRC2012")  # the embedded one has this layout
    >>> len(benchmark), benchmark.categories[4]
    (320, '04_telephone')
    """

    def __init__(self, root: str | Path, size: int = 224):
        self.root, self.size = Path(root), size
        folder = _require(self.root / "val", "ILSVRC2012")
        paths = sorted(p for p in [*folder.glob("*"), *folder.glob("*/*")] if is_picture(p.name))
        if not paths:
            raise FileNotFoundError(f"no picture under {folder} (see data/README.md)")
        kit = self.root / "ILSVRC2012_devkit_t12/data"
        if kit.is_dir() or any(path.parent == folder for path in paths):
            self.categories, truth = _read_devkit(kit)
        else:
            folders = (p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
            self.categories, truth = sorted(folders), {}
        index = {wnid: label for label, wnid in enumerate(self.categories)}
        self.items = [(path, truth.get(path.stem, index.get(path.parent.name))) for path in paths]
        self.items.sort(key=lambda item: item[0].name)
        self.ids = [path.stem for path, _ in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Sample:
        path, label = self.items[i]
        if label is None:
            raise OSError(
                f"{path.name} has no class: ILSVRC2012_validation_ground_truth.txt has no line for "
                f"it, and its folder, {path.parent.name}, is none of the kit's WNIDs"
            )
        sample = Sample(path.stem, open_image(path, self.size), (label,))
        mask = self.root / "masks" / path.parent.name / f"{path.stem}.png"
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
    """VOC2007, `root/VOCdevkit/VOC2007`, through torchvision; split: "test" or "trainval".

    As in TorchRay, a picture's classes are those with an object that is not difficult, and the
    difficult objects of such a class count with the others.

    >>> from thesis_lib.data.glyphs import CLASSES
    >>> from thesis_lib.data import GLYPHS
    >>> scenes = VOC2007(GLYPHS, categories=CLASSES)  # the embedded ones have this layout
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
        self.root, self.size, self.categories = Path(root), size, list(categories)
        _require(self.root / f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt", f"VOC2007 {split}")
        self.voc = VOCDetection(self.root, year="2007", image_set=split)
        self.ids = [Path(path).stem for path in self.voc.images]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        name = self.ids[i]
        width, height, objects = self._read_annotation(self.voc.annotations[i])
        pixels = open_image(self.voc.images[i], self.size, (width, height))
        boxes: dict[int, list] = {}
        for label, box, _ in objects:
            boxes.setdefault(label, []).append(box)
        easy = {label for label, _, difficult in objects if not difficult}
        masks = {c: box_mask(boxes[c], width, height, self.size) for c in sorted(easy)}
        sample = Sample(name, pixels, tuple(masks), masks)
        segmentation = self.root / f"VOCdevkit/VOC2007/SegmentationClass/{name}.png"
        if segmentation.exists():
            values = read_indices(segmentation)
            sample.pixel_masks = {c: resize_mask(values == c + 1, self.size) for c in masks}
        return sample

    def _read_annotation(self, path):
        """Width, height and (class index, box, whether difficult) of each object."""
        try:
            content = ElementTree.parse(path).getroot()
            width, height = (int(content.findtext(f"size/{side}")) for side in ("width", "height"))
            objects = []
            for item in content.findall("object"):
                corners = (item.findtext(f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
                x0, y0, x1, y1 = map(float, corners)
                box = (x0 - 1, y0 - 1, x1, y1)  # VOC counts from 1, both ends inclusive
                if (category := item.findtext("name")) not in self.categories:
                    raise ValueError(f"category {category} is unknown")
                difficult = item.findtext("difficult", "0") != "0"
                objects.append((self.categories.index(category), box, difficult))
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            raise OSError(f"annotation {Path(path).name} cannot be used: {error}") from error
        return width, height, objects


class COCO2014:
    """COCO 2014, `root/{split}2014/*.jpg` and `root/annotations/instances_{split}2014.json`,
    through pycocotools; split: "val" or "train". Crowds count as any other object.

    >>> from thesis_lib.data import GLYPHS
    >>> scenes = COCO2014(GLYPHS / "coco")  # the embedded ones have this layout
    >>> scenes.categories[:2]
    ['aeroplane', 'anchor']
    """

    def __init__(self, root: str | Path, size: int = 224, split: str = "val"):
        from pycocotools.coco import COCO

        self.root, self.size, self.split = Path(root), size, split
        file = _require(self.root / f"annotations/instances_{split}2014.json", f"COCO2014 {split}")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self.coco = COCO(str(file))
        known = sorted(self.coco.cats)
        self.index = {category: k for k, category in enumerate(known)}
        self.categories = [self.coco.cats[category]["name"] for category in known]
        self.images = sorted(self.coco.imgs)
        self.ids = [Path(self.coco.imgs[i]["file_name"]).stem for i in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        image = self.coco.imgs[self.images[i]]
        width, height = image["width"], image["height"]
        path = self.root / f"{self.split}2014" / image["file_name"]
        pixels = open_image(path, self.size, (width, height))
        nothing = np.zeros((height, width), bool)
        boxes: dict[int, list] = {}
        covers: dict[int, np.ndarray] = {}
        unknown = set()
        for item in self.coco.imgToAnns.get(self.images[i], ()):
            try:
                if item["category_id"] not in self.index:
                    raise ValueError(f"category {item['category_id']} is unknown")
                label = self.index[item["category_id"]]
                x, y, w, h = item["bbox"]
                boxes.setdefault(label, []).append((x, y, x + w, y + h))
                if item.get("segmentation"):
                    covers[label] = covers.get(label, nothing) | self.coco.annToMask(item)
                else:
                    unknown.add(label)  # a box without an outline
            except Exception as error:  # pycocotools raises bare Exceptions
                raise OSError(
                    f"annotation {item.get('id')} of {path.name} cannot be used: {error}"
                ) from error
        masks = {c: box_mask(boxes[c], width, height, self.size) for c in sorted(boxes)}
        exact = {c: resize_mask(covers[c], self.size) for c in masks if c not in unknown}
        return Sample(self.ids[i], pixels, tuple(masks), masks, exact)


class Folder:
    """Any pictures under a folder, without labels.

    >>> from thesis_lib.data import GLYPHS
    >>> Folder(GLYPHS / "ILSVRC2012/val/04_telephone").ids[0]
    'ILSVRC2012_val_00000005'
    """

    def __init__(self, root: str | Path, size: int = 224):
        self.size = size
        self.categories: list[str] = []
        folder = _require(root, "the folder of pictures")
        self.paths = sorted(path for path in folder.rglob("*") if is_picture(path.name))
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
