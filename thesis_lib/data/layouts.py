"""Pictures whose masks are known, written in the layouts of VOC2007 and COCO 2014.

A picture is (number, pixels, classes, masks): its number in the dataset, (H, W, 3) uint8, the class of each
thing, and (H, W) bool for each.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image


def save_jpeg(pixels: np.ndarray, path: Path, quality: int) -> None:
    """A JPEG of pixels (H, W, 3) uint8, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=quality, optimize=True, progressive=True)


def save_indices(values: np.ndarray, path: Path) -> None:
    """A palette PNG, as VOC stores its segmentations: the value of a pixel is its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    image.putpalette(palette[: int(values.max()) + 1].tobytes())  # of colours as many as there are
    image.save(path, optimize=True)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of a mask, 0-based, inclusive.

    >>> import numpy as np
    >>> from thesis_lib.data.layouts import box_of
    >>> box_of(np.eye(3, dtype=bool))
    (0, 0, 2, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def write_voc(root: Path, pictures: Iterable[tuple], categories: Sequence[str], quality: int) -> None:
    """VOC2007's test set under root/VOCdevkit: JPEGImages, Annotations, ImageSets, Segmentation*."""
    folder, names = root / "VOCdevkit/VOC2007", []
    for i, pixels, classes, masks in pictures:
        name = f"{i:06d}"
        names.append(name)
        save_jpeg(pixels, folder / f"JPEGImages/{name}.jpg", quality)
        height, width = pixels.shape[:2]
        by_object, by_class = np.zeros((2, height, width), np.uint8)
        xml = ElementTree.Element("annotation")
        ElementTree.SubElement(xml, "filename").text = f"{name}.jpg"
        size = ElementTree.SubElement(xml, "size")
        for key, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        for number, (label, mask) in enumerate(zip(classes, masks, strict=True), 1):
            by_object[mask], by_class[mask] = number, label + 1
            item = ElementTree.SubElement(xml, "object")
            ElementTree.SubElement(item, "name").text = categories[label]
            ElementTree.SubElement(item, "difficult").text = "0"
            box = ElementTree.SubElement(item, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box_of(mask), strict=True):
                ElementTree.SubElement(box, key).text = str(value + 1)  # VOC counts from 1
        ElementTree.indent(xml)
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(xml).write(folder / f"Annotations/{name}.xml")
        save_indices(by_object, folder / f"SegmentationObject/{name}.png")
        save_indices(by_class, folder / f"SegmentationClass/{name}.png")
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{name}\n" for name in names))


def write_coco(root: Path, pictures: Iterable[tuple], categories: Sequence[str], quality: int) -> None:
    """COCO 2014's validation set in root, masks as run lengths."""
    images: list[dict] = []
    annotations: list[dict] = []
    for i, pixels, classes, masks in pictures:
        file, (height, width) = f"COCO_val2014_{i:012d}.jpg", pixels.shape[:2]
        save_jpeg(pixels, root / "val2014" / file, quality)
        images.append({"id": i, "file_name": file, "width": width, "height": height})
        for label, mask in zip(classes, masks, strict=True):
            flat = mask.ravel(order="F")  # COCO runs down the columns, starting with a 0-run
            changes = np.flatnonzero(np.diff(flat)) + 1
            runs = np.diff([0, *changes, flat.size]).tolist()
            x0, y0, x1, y1 = box_of(mask)
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], "area": int(mask.sum()), "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": [0, *runs] if flat[0] else runs},
            })  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(categories)],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations/instances_val2014.json").write_text(json.dumps(content, separators=(",", ":")))
