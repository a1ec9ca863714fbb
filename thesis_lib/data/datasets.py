"""ILSVRC2012, VOC2007, COCO2014 and a folder of pictures, read from their own on-disk layouts.

A dataset has a length, `categories` (names by class index) and `ids`; `dataset[i]` is a Sample.
A picture or an annotation that cannot be read raises an OSError that names it; `evaluate` skips and
counts it. Pictures without annotations are read, and have no classes.
"""

import contextlib
import functools
import io
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy.io
import torch
from PIL import Image, ImageOps
from torchvision.datasets import VOCDetection
from torchvision.transforms.functional import pil_to_tensor

from thesis_lib.data import DOWNLOADS, PICTURES, REPOSITORY, is_picture

GLYPHS = REPOSITORY / "data" / "glyphs"
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
    classes: tuple = ()
    masks: dict = field(default_factory=dict)
    pixel_masks: dict = field(default_factory=dict)


def read_picture(source, annotated=None):
    """Any picture that Pillow reads, whole, as a Pillow image of 8 bits: "RGB", or "RGBA" where it
    has transparent parts.

    A note in the file that it is to be turned (EXIF) is followed, unless the picture as stored has
    the width and height that it was `annotated` at: then the boxes belong to it as stored.

    Raises OSError, with the file's name: no picture, cut off, too large.

    >>> read_picture(GLYPHS / "ILSVRC2012/val/04_telephone/ILSVRC2012_val_00000005.JPEG").size
    (224, 224)
    """
    try:
        with Image.open(source) as image:
            image.load()
            picture = image if image.size == annotated else ImageOps.exif_transpose(image)
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # Pillow's readers raise many kinds of it on broken files
        raise OSError(f"{Path(source).name} is not a readable picture: {error}") from error


def open_image(source, size, annotated=None):
    """Pixels (3, size, size) float32 in [0, 1] of any picture that Pillow reads, in RGB, resized
    without keeping its shape (thesis 3.4.2).

    Turned as `read_picture` has it. What is transparent has the colour that is stored there.

    Raises OSError, with the file's name: as `read_picture`, or of another size than it was
    annotated at.

    >>> open_image(GLYPHS / "ILSVRC2012/val/04_telephone/ILSVRC2012_val_00000005.JPEG", 112).shape
    torch.Size([3, 112, 112])
    """
    picture = read_picture(source, annotated).convert("RGB")
    if annotated and picture.size != annotated:
        raise OSError(
            f"{Path(source).name} has {picture.width} x {picture.height} pixels, "
            f"but was annotated at {annotated[0]} x {annotated[1]}"
        )
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return pil_to_tensor(resized).float() / 255


def _resize_mask(mask, size):
    image = Image.fromarray(np.asarray(mask, np.uint8))
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.NEAREST)) > 0)


def _box_mask(boxes, width, height, size):
    """Union of boxes (x0, y0, x1, y1; pixels, 0-based, the far edge exclusive) on a size x size
    grid: a pixel belongs to a box that holds its centre. A box of no area holds none."""
    x = (torch.arange(size) + 0.5) * width / size
    y = (torch.arange(size) + 0.5) * height / size
    mask = torch.zeros(size, size, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
    return mask


def _require(path, what):
    if not Path(path).exists():
        raise FileNotFoundError(f"{what} not found: {path} is missing (see data/README.md)")
    return Path(path)


def _read_indices(path):
    """The values of a palette or grey PNG, (H, W)."""
    try:
        with Image.open(path) as image:
            return np.array(image)
    except Exception as error:
        raise OSError(f"{path.name} is not a readable mask: {error}") from error


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

    >>> benchmark = ImageNet(GLYPHS / "ILSVRC2012")  # the embedded one has this layout
    >>> len(benchmark), benchmark.categories[4]
    (320, '04_telephone')
    """

    def __init__(self, root, size=224):
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

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        path, label = self.items[i]
        if label is None:
            raise OSError(
                f"{path.name} has no class: ILSVRC2012_validation_ground_truth.txt has no line for "
                f"it, and its folder, {path.parent.name}, is none of the kit's WNIDs"
            )
        sample = Sample(path.stem, open_image(path, self.size), (label,))
        mask = self.root / "masks" / path.parent.name / f"{path.stem}.png"
        if mask.exists():
            sample.pixel_masks[label] = _resize_mask(_read_indices(mask) > 0, self.size)
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
    >>> scenes = VOC2007(GLYPHS, categories=CLASSES)  # the embedded ones have this layout
    >>> scenes[0].classes == tuple(scenes[0].masks)
    True
    """

    def __init__(self, root, size=224, categories=VOC_CATEGORIES, split="test"):
        self.root, self.size, self.categories = Path(root), size, list(categories)
        _require(self.root / f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt", f"VOC2007 {split}")
        self.voc = VOCDetection(self.root, year="2007", image_set=split)
        self.ids = [Path(path).stem for path in self.voc.images]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        name = self.ids[i]
        width, height, objects = self._read_annotation(self.voc.annotations[i])
        pixels = open_image(self.voc.images[i], self.size, (width, height))
        boxes = {}
        for label, box, _ in objects:
            boxes.setdefault(label, []).append(box)
        easy = {label for label, _, difficult in objects if not difficult}
        masks = {c: _box_mask(boxes[c], width, height, self.size) for c in sorted(easy)}
        sample = Sample(name, pixels, tuple(masks), masks)
        segmentation = self.root / f"VOCdevkit/VOC2007/SegmentationClass/{name}.png"
        if segmentation.exists():
            values = _read_indices(segmentation)
            sample.pixel_masks = {c: _resize_mask(values == c + 1, self.size) for c in masks}
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

    >>> scenes = COCO2014(GLYPHS / "coco")  # the embedded ones have this layout
    >>> scenes.categories[:2]
    ['aeroplane', 'anchor']
    """

    def __init__(self, root, size=224, split="val"):
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

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.coco.imgs[self.images[i]]
        width, height = image["width"], image["height"]
        path = self.root / f"{self.split}2014" / image["file_name"]
        pixels = open_image(path, self.size, (width, height))
        nothing = np.zeros((height, width), bool)
        boxes, covers, unknown = {}, {}, set()
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
        masks = {c: _box_mask(boxes[c], width, height, self.size) for c in sorted(boxes)}
        exact = {c: _resize_mask(covers[c], self.size) for c in masks if c not in unknown}
        return Sample(self.ids[i], pixels, tuple(masks), masks, exact)


class Folder:
    """Any pictures under a folder, without labels.

    >>> Folder(GLYPHS / "ILSVRC2012/val/04_telephone").ids[0]
    'ILSVRC2012_val_00000005'
    """

    def __init__(self, root, size=224):
        self.size, self.categories = size, []
        root = _require(root, "the folder of pictures")
        self.paths = sorted(path for path in root.rglob("*") if is_picture(path.name))
        if not self.paths:
            raise FileNotFoundError(f"no picture ({', '.join(sorted(PICTURES))}) under {root}")
        names = [p.relative_to(root) for p in self.paths]
        self.ids = [name.with_suffix("").as_posix() for name in names]
        if len(set(self.ids)) < len(names):  # a.jpg and a.png
            self.ids = [name.as_posix() for name in names]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return Sample(self.ids[i], open_image(self.paths[i], self.size))


def glyphs(part="singles", root=GLYPHS):
    """The embedded benchmark's test split: "singles" (ILSVRC2012 layout), "scenes" (VOC2007) or
    "scenes_coco" (COCO2014). Synthetic pictures; see `thesis_lib.data.glyphs`.

    >>> glyphs("singles").categories[:3]
    ['aeroplane', 'anchor', 'umbrella']
    """
    from thesis_lib.data.glyphs import CLASSES

    root = Path(root)
    if part == "singles":
        dataset = ImageNet(root / "ILSVRC2012")
    elif part == "scenes":
        dataset = VOC2007(root, categories=CLASSES)
    elif part == "scenes_coco":
        dataset = COCO2014(root / "coco")
    else:
        raise ValueError(f'part is "singles", "scenes" or "scenes_coco", not {part!r}')
    dataset.categories = list(CLASSES)
    return dataset


EMBEDDED = {
    "glyphs": "singles", "glyphs_scenes": "scenes", "glyphs_scenes_coco": "scenes_coco",
}  # fmt: skip
REAL = {  # name: reader, and the folder under data/downloads where it is looked for
    "imagenet": (ImageNet, "ILSVRC2012"),
    "voc2007": (VOC2007, "VOC2007"),
    "voc2007_trainval": (functools.partial(VOC2007, split="trainval"), "VOC2007"),
    "coco2014": (COCO2014, "COCO2014"),
    "coco2014_train": (functools.partial(COCO2014, split="train"), "COCO2014"),
}


def from_repository(path):
    """An absolute path as it is; a relative one counted from the repository's root, because
    notebooks are executed in folders of their own."""
    return REPOSITORY / Path(path).expanduser()


def open_dataset(name, root="", subset=""):
    """A dataset by name, for parameter files.

    Args:
        name: "glyphs", "glyphs_scenes", "glyphs_scenes_coco" (embedded, `root` unused), "imagenet",
            "voc2007", "voc2007_trainval", "coco2014", "coco2014_train", or "folder".
        root: the folder that data/README.md describes, relative to the repository's root, or
            absolute; empty for data/downloads/ILSVRC2012, VOC2007 or COCO2014.
        subset: an index list (see `thesis_lib.data.subsets`), relative likewise: the dataset has
            its pictures only, in its order. Empty for all pictures.

    Raises:
        ValueError: unknown name; "folder" without a root; a damaged index list, or one of another
            dataset.
        FileNotFoundError: the dataset or the index list is not there.

    >>> len(open_dataset("glyphs")), len(open_dataset("glyphs_scenes"))
    (320, 256)
    """
    if name in EMBEDDED:
        dataset = glyphs(EMBEDDED[name])
    elif name in REAL:
        reader, folder = REAL[name]
        dataset = reader(from_repository(root) if root else DOWNLOADS / folder)
    elif name != "folder":
        raise ValueError(f"no dataset is called {name!r}: {', '.join([*EMBEDDED, *REAL])}, folder")
    elif not root:
        raise ValueError("folder needs root, the folder of pictures")
    else:
        dataset = Folder(from_repository(root))
    if not subset:
        return dataset
    from thesis_lib.data.subsets import Subset  # which imports this module

    return Subset(dataset, from_repository(subset))
