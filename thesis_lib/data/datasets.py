"""ILSVRC2012, VOC2007, COCO2014 and a folder of pictures, read from their own on-disk layouts.

A dataset has a length, `categories` (names by class index) and `ids`; `dataset[i]` is a Sample.
A picture that cannot be read raises an OSError that names it; `evaluate` skips and counts it.
"""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets import VOCDetection
from torchvision.transforms.functional import pil_to_tensor

GLYPHS = Path(__file__).parents[2] / "data" / "glyphs"
VOC_CATEGORIES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


@dataclass
class Sample:
    """One picture: pixels (3, H, W) float32 in [0, 1]; classes that it shows; for each of them
    `masks[c]`, (H, W) bool, the union of its boxes, and where known `pixel_masks[c]`."""

    id: str
    pixels: torch.Tensor
    classes: tuple = ()
    masks: dict = field(default_factory=dict)
    pixel_masks: dict = field(default_factory=dict)


def open_image(source, size):
    """Pixels (3, size, size) float32 in [0, 1] of any picture that Pillow reads, in RGB, resized
    without keeping its shape (thesis 3.4.2), and its width and height before."""
    try:
        with Image.open(source) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{Path(source).name} is not a readable picture: {error}") from error
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return pil_to_tensor(resized).float() / 255, picture.size


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


class ImageNet:
    """ILSVRC2012 validation, one folder a class under `root`/val, folders sorted into class
    indices as torchvision does. `root`/masks, where it is there, holds pixel masks as PNG."""

    def __init__(self, root, size=224):
        self.root, self.size = Path(root), size
        folder = _require(self.root / "val", "ILSVRC2012")
        self.categories = sorted(p.name for p in folder.iterdir() if p.is_dir())
        self.items = [
            (path, label)
            for label, name in enumerate(self.categories)
            for path in sorted((folder / name).iterdir())
        ]
        self.items.sort(key=lambda item: item[0].name)
        self.ids = [path.stem for path, _ in self.items]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        path, label = self.items[i]
        sample = Sample(path.stem, open_image(path, self.size)[0], (label,))
        mask = self.root / "masks" / path.parent.name / f"{path.stem}.png"
        if mask.exists():
            with Image.open(mask) as image:
                sample.pixel_masks[label] = _resize_mask(np.array(image) > 0, self.size)
        return sample


class VOC2007:
    """VOC2007 test, `root`/VOCdevkit/VOC2007, through torchvision. As in TorchRay, a class whose
    objects are all marked difficult is left out, and difficult boxes count otherwise."""

    def __init__(self, root, size=224, categories=VOC_CATEGORIES):
        self.root, self.size, self.categories = Path(root), size, list(categories)
        _require(self.root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt", "VOC2007")
        self.voc = VOCDetection(self.root, year="2007", image_set="test")
        self.ids = [Path(path).stem for path in self.voc.images]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        pixels, (width, height) = open_image(self.voc.images[i], self.size)
        root = ElementTree.parse(self.voc.annotations[i]).getroot()
        boxes, easy = {}, set()
        for item in self.voc.parse_voc_xml(root)["annotation"].get("object", []):
            label, box = self.categories.index(item["name"]), item["bndbox"]
            x0, y0, x1, y1 = (float(box[k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            boxes.setdefault(label, []).append((x0 - 1, y0 - 1, x1, y1))  # from 1, inclusive
            if item.get("difficult", "0") == "0":
                easy.add(label)
        masks = {c: _box_mask(boxes[c], width, height, self.size) for c in sorted(easy)}
        sample = Sample(self.ids[i], pixels, tuple(masks), masks)
        segmentation = self.root / f"VOCdevkit/VOC2007/SegmentationClass/{sample.id}.png"
        if segmentation.exists():
            with Image.open(segmentation) as image:
                values = np.array(image)
            sample.pixel_masks = {c: _resize_mask(values == c + 1, self.size) for c in masks}
        return sample


class COCO2014:
    """COCO 2014 validation, `root`/val2014 and `root`/annotations/instances_val2014.json, through
    pycocotools. Pictures without an annotation are left out."""

    def __init__(self, root, size=224):
        from pycocotools.coco import COCO

        self.root, self.size = Path(root), size
        file = _require(self.root / "annotations/instances_val2014.json", "COCO2014")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self.coco = COCO(str(file))
        known = sorted(self.coco.cats)
        self.index = {category: k for k, category in enumerate(known)}
        self.categories = [self.coco.cats[category]["name"] for category in known]
        self.images = [i for i in sorted(self.coco.imgs) if self.coco.getAnnIds(i)]
        self.ids = [Path(self.coco.imgs[i]["file_name"]).stem for i in self.images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        name = self.coco.imgs[self.images[i]]["file_name"]
        pixels, (width, height) = open_image(self.root / "val2014" / name, self.size)
        boxes, covers = {}, {}
        for item in self.coco.loadAnns(self.coco.getAnnIds(self.images[i])):
            label = self.index[item["category_id"]]
            x, y, w, h = item["bbox"]
            boxes.setdefault(label, []).append((x, y, x + w, y + h))
            cover = self.coco.annToMask(item)
            covers[label] = covers.get(label, 0) | cover
        masks = {c: _box_mask(boxes[c], width, height, self.size) for c in sorted(boxes)}
        exact = {c: _resize_mask(covers[c], self.size) for c in masks}
        return Sample(self.ids[i], pixels, tuple(masks), masks, exact)


class Folder:
    """Any pictures under a folder, without labels."""

    def __init__(self, root, size=224):
        self.size, self.categories = size, []
        kinds = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
        root = _require(root, "the folder of pictures")
        self.paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in kinds)
        if not self.paths:
            raise FileNotFoundError(f"no picture ({', '.join(sorted(kinds))}) under {root}")
        self.ids = [str(p.relative_to(root).with_suffix("")) for p in self.paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return Sample(self.ids[i], open_image(self.paths[i], self.size)[0])


def glyphs(part="singles", root=GLYPHS):
    """The embedded benchmark's test split: "singles" (ILSVRC2012 layout), "scenes" (VOC2007) or
    "scenes_coco" (COCO2014). Synthetic pictures; see `thesis_lib.data.glyphs`."""
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


def open_dataset(name, root=""):
    """A dataset by name, for parameter files: "glyphs", "glyphs_scenes", "glyphs_scenes_coco"
    (embedded, `root` unused), "imagenet", "voc2007", "coco2014" or "folder" under `root`."""
    embedded = {
        "glyphs": "singles", "glyphs_scenes": "scenes", "glyphs_scenes_coco": "scenes_coco",
    }  # fmt: skip
    readers = {"imagenet": ImageNet, "voc2007": VOC2007, "coco2014": COCO2014, "folder": Folder}
    if name in embedded:
        return glyphs(embedded[name])
    if name not in readers:
        raise ValueError(f"no dataset is called {name!r}: {', '.join([*embedded, *readers])}")
    if not root:
        raise ValueError(f"{name} needs root, the folder it was unpacked to (see data/README.md)")
    return readers[name](root)
