"""Tiny ILSVRC2012, VOC2007 and COCO2014, in the real ones' layouts, with the faults of real files.

    tree = trees.voc(tmp_path)
    dataset = datasets.VOC2007(tree.root)  # dataset.ids == tree.ids

Every object is a bright rectangle, as large as its box, on a dark ground: whatever a file is like,
pixels inside a mask are brighter than those outside, or the mask does not fit the picture.
"""

import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy.io
from PIL import Image

WIDTH, HEIGHT = 96, 64  # of a picture
BOXES = {"left": (8, 12, 40, 44), "right": (56, 20, 88, 60)}  # x0, y0, x1, y1; 0-based, exclusive

# WNIDs in the order of ILSVRC2012_ID, which is not their sorted order, and one inner node
SYNSETS = [
    ("n02119789", "kit fox, Vulpes macrotis"),
    ("n02100735", "English setter"),
    ("n02110185", "Siberian husky"),
]
INNER = ("n02083346", "canine, canid")
COCO_CATEGORIES = {1: "person", 2: "bicycle", 3: "car", 17: "cat", 18: "dog", 44: "bottle", 90: "toothbrush"}  # fmt: skip


@dataclass
class Tree:
    """What was written. `root` is what the dataset's reader takes."""

    root: Path
    ids: list = field(default_factory=list)  # all that the dataset must list, in its order
    classes: dict = field(default_factory=dict)  # id: class indices, of pictures that can be read
    skipped: dict = field(default_factory=dict)  # id: words in the OSError of a picture that cannot
    unlabelled: list = field(default_factory=list)  # ids that can be read and have no class
    empty: list = field(default_factory=list)  # (id, class) whose boxes cover no pixel


def picture(boxes=(), seed=0, size=(WIDTH, HEIGHT)):
    """Dark noise with a bright rectangle at each box, in RGB."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = (250, 230, 200)
    return Image.fromarray(pixels)


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image, **options):
    """A JPEG stored on its side, with the EXIF note that a viewer should turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif, **options)


def bomb():
    """A PNG of few bytes that says that it is 60,000 pixels wide and high."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def readable(image):
    """Files that look unusual and can be read: name, bytes."""
    deep = np.array(image.convert("L"), np.uint16) * 257
    return {
        "cmyk": encode(image.convert("CMYK")),
        "grey": encode(image.convert("L")),
        "png": encode(image, "PNG"),
        "palette": encode(image.convert("P"), "PNG"),
        "alpha": encode(image.convert("RGBA"), "PNG"),
        "deep": encode(Image.fromarray(deep), "PNG"),
        "turned": turned(image),
    }


def unreadable(image):
    """Files that are no pictures, whatever their names say: name, bytes."""
    whole = encode(image)
    return {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "bomb": bomb(),
    }


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def imagenet(folder, pictures=6, flat=False, ugly=True):
    """ILSVRC2012 validation: `val/<wnid>/*.JPEG`, or flat `val/*.JPEG` with the devkit."""
    tree = Tree(Path(folder))
    index = {wnid: k for k, wnid in enumerate(sorted(wnid for wnid, _ in SYNSETS))}
    image = picture([BOXES["left"]])
    files = [encode(picture([BOXES["left"]], seed)) for seed in range(pictures)]
    good, bad = (readable(image), unreadable(image)) if ugly else ({}, {})
    truth = []
    for number, data in enumerate([*files, *good.values(), *bad.values()], 1):
        truth.append((number * 2) % 3)  # neither sorted nor constant
        wnid = SYNSETS[truth[-1]][0]
        name = f"ILSVRC2012_val_{number:08d}"
        _write(tree.root / "val" / ("" if flat else wnid) / f"{name}.JPEG", data)
        tree.ids.append(name)
        if number <= pictures + len(good):
            tree.classes[name] = (index[wnid],)
        else:
            tree.skipped[name] = "not a readable picture"
    if ugly:
        inside = tree.root / "val" / ("" if flat else SYNSETS[0][0])
        for name in (".DS_Store", "Thumbs.db", "notes.txt", "._ILSVRC2012_val_00000001.JPEG"):
            _write(inside / name, b"no picture")
    if flat:
        if ugly:
            name = "ILSVRC2012_val_00099999"
            _write(tree.root / f"val/{name}.JPEG", files[0])
            tree.ids.append(name)
            tree.skipped[name] = "ILSVRC2012_validation_ground_truth.txt"
        _write_devkit(tree.root, truth)
    return tree


def _write_devkit(root, truth):
    """meta.mat and the ground truth as ILSVRC2012_devkit_t12 has them."""
    names = [
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
        "wordnet_height", "num_train_images",
    ]  # fmt: skip
    synsets = np.empty((len(SYNSETS) + 1, 1), [(name, object) for name in names])
    none = np.zeros((1, 0))
    for k, (wnid, words) in enumerate(SYNSETS):
        synsets[k, 0] = (float(k + 1), wnid, words, "a gloss", 0.0, none, 0.0, 1300.0)
    children = np.arange(1.0, len(SYNSETS) + 1)
    synsets[-1, 0] = (len(SYNSETS) + 1.0, *INNER, "a gloss", float(len(SYNSETS)), children, 1.0, 0.0)  # fmt: skip
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{k + 1}\n" for k in truth)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def voc(folder, pictures=6, split="test", ugly=True):
    """VOC2007 under `folder`/VOCdevkit/VOC2007; both splits go into the same folders."""
    tree = Tree(Path(folder))
    base = tree.root / "VOCdevkit/VOC2007"
    first = {"test": 1, "trainval": 5001}[split]
    left, right = BOXES["left"], BOXES["right"]
    cat, dog, person = 7, 11, 14  # indices among VOC's twenty

    def add(objects, classes=None, reason=None, data=None, size=(WIDTH, HEIGHT), xml=None):
        """objects: (name, box, difficult). classes: what a reader should find. data: False for none."""
        number = first + len(tree.ids)
        name = f"{number:06d}"
        tree.ids.append(name)
        if data is None:
            data = encode(picture([box for _, box, _ in objects], number, size))
        if data is not False:
            _write(base / f"JPEGImages/{name}.jpg", data)
        if xml is None:
            xml = _voc_xml(name, objects, size)
        if xml:
            _write(base / f"Annotations/{name}.xml", xml)
        if reason:
            tree.skipped[name] = reason
        elif classes:
            tree.classes[name] = classes
        else:
            tree.classes[name] = ()
            tree.unlabelled.append(name)
        return name

    for k in range(pictures):
        objects = [("dog", left, 0), ("person", right, 0), ("cat", right, 1)]  # the cat is difficult
        name = add(objects[k % 2 :], (person,) if k % 2 else (dog, person))
        if k == 0:
            _write_segmentation(base / f"SegmentationClass/{name}.png", {dog + 1: left, person + 1: right})  # fmt: skip
    if ugly:
        one = [("dog", left, 0)]
        add([])
        add([("dog", left, 1)])  # difficult objects only
        add([("dog", left, 0), ("dog", right, 1)], (dog,))  # difficult ones count beside an easy one
        add([("dog", (70, 30, 200, 90), 0), ("dog", (-30, -20, 30, 20), 0)], (dog,))
        for box in ((20, 20, 20, 50), (300, 20, 340, 50)):  # no area, outside
            name = add([("dog", left, 0), ("cat", box, 0)], (cat, dog))
            tree.empty.append((name, cat))
        add([("dog", left, 0), ("cat", (50, 40, 30, 20), 0)], reason="ends before it begins")
        add(one, reason="unicorn", xml=_voc_xml("x", [("unicorn", left, 0)], (WIDTH, HEIGHT)))
        whole = _voc_xml("x", one, (WIDTH, HEIGHT))
        add(one, reason="annotation", xml=whole[: len(whole) // 2])
        add(one, reason="annotation", xml=whole.replace(b"<xmin>9</xmin>", b""))
        add(one, reason="annotation", xml=whole.replace(b">96<", b">?<"))
        add(one, reason="annotation", xml=b"")
        add(one, reason="96 x 64", size=(WIDTH, HEIGHT), data=encode(picture([left], size=(64, 48))))
        add(one, reason="not a readable picture", data=False)
        image = picture([left])
        for data in readable(image).values():
            add(one, (dog,), data=data)
        for data in unreadable(image).values():
            add(one, reason="not a readable picture", data=data)
        exif = Image.Exif()
        exif[0x0112] = 6  # annotated as it is stored: its viewer did not know EXIF
        add(one, (dog,), data=encode(image, exif=exif))
    _write(base / f"ImageSets/Main/{split}.txt", "".join(f"{i}\n" for i in tree.ids).encode())
    lines = "".join(f"{i} -1\n" for i in tree.ids)
    _write(base / f"ImageSets/Main/dog_{split}.txt", lines.encode())
    return tree


def _voc_xml(name, objects, size):
    def add(parent, tag, text=None):
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    def add_box(parent, box):
        corners = (box[0] + 1, box[1] + 1, box[2], box[3])  # VOC counts from 1, both ends inclusive
        node = add(parent, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            add(node, tag, value)

    xml = ElementTree.Element("annotation")
    add(xml, "folder", "VOC2007")
    add(xml, "filename", f"{name}.jpg")
    add(add(xml, "source"), "database", "The VOC2007 Database")
    node = add(xml, "size")
    for tag, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        add(node, tag, value)
    add(xml, "segmented", 0)
    for category, box, difficult in objects:
        item = add(xml, "object")
        add(item, "name", category)
        add(item, "pose", "Unspecified")
        add(item, "truncated", 0)
        add(item, "difficult", difficult)
        add_box(item, box)
        if category == "person":  # some have parts, with names and boxes of their own
            part = add(item, "part")
            add(part, "name", "head")
            add_box(part, (box[0], box[1], box[0] + 8, box[1] + 8))
    return ElementTree.tostring(xml)


def _write_segmentation(path, boxes):
    """A palette PNG: the value is the class's number, 255 along the borders."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, (x0, y0, x1, y1) in boxes.items():
        values[y0:y1, x0:x1] = 255
        values[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = value
    image = Image.fromarray(values, "P")
    image.putpalette(bytes(range(256)) * 3)
    _write(path, encode(image, "PNG"))


def coco(folder, pictures=6, split="val", ugly=True):
    """COCO 2014: `{split}2014/*.jpg` and `annotations/instances_{split}2014.json`."""
    tree = Tree(Path(folder))
    left, right = BOXES["left"], BOXES["right"]
    person, cat, dog, bottle = (sorted(COCO_CATEGORIES).index(k) for k in (1, 17, 18, 44))
    images, annotations = [], []

    def add(objects, classes=None, reason=None, data=None, size=(WIDTH, HEIGHT), **changes):
        """objects: (category id, box). changes: fields of the first annotation that differ."""
        number = 42 + 31 * len(tree.ids)
        name = f"COCO_{split}2014_{number:012d}"
        tree.ids.append(name)
        if data is None:
            data = encode(picture([box for _, box in objects], number, size))
        if data is not False:
            _write(tree.root / f"{split}2014/{name}.jpg", data)
        images.append({
            "id": number, "file_name": f"{name}.jpg", "width": size[0], "height": size[1],
            "license": 3, "date_captured": "2013-11-14 11:18:45",
        })  # fmt: skip
        for category, (x0, y0, x1, y1) in objects:
            width, height = x1 - x0, y1 - y0
            annotations.append({
                "id": 900 + len(annotations), "image_id": number, "category_id": category,
                "bbox": [float(x0), float(y0), float(width), float(height)], "iscrowd": 0,
                "area": float(width * height),
                "segmentation": [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]],
            })  # fmt: skip
        if changes:
            annotations[-len(objects)] |= changes
        if reason:
            tree.skipped[name] = reason
        elif classes:
            tree.classes[name] = classes
        else:
            tree.classes[name] = ()
            tree.unlabelled.append(name)
        return name

    for k in range(pictures):
        objects = [(18, left), (1, right)]
        add(objects[k % 2 :], (person,) if k % 2 else (person, dog))
    if ugly:
        one = [(18, left)]
        add([])
        add([(18, (70, 30, 200, 90)), (18, (-30, -20, 30, 20))], (dog,))
        for box in ((20, 20, 20, 50), (300, 20, 340, 50)):  # no area, outside
            name = add([(18, left), (17, box)], (cat, dog))
            tree.empty.append((name, cat))
        x0, y0, x1, y1 = left
        runs = [x0 * HEIGHT + y0]  # down the columns, without and with the object in turn
        for _ in range(x0, x1):
            runs += [y1 - y0, HEIGHT - (y1 - y0)]
        runs[-1] = WIDTH * HEIGHT - sum(runs[:-1])
        crowd = {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}}
        add(one, (dog,), **crowd)
        add([(44, left)], (bottle,), segmentation=[])  # a box without an outline
        add(one, reason="category 12", category_id=12)  # numbers between COCO's 80 are unused
        add(one, reason="annotation 9", bbox=[1.0, 2.0])
        add(one, reason="annotation 9", segmentation=[[1.0, 2.0]])
        add(one, reason="annotation 9", segmentation={"size": [9, 9], "counts": [0, 81]})
        add(one, reason="96 x 64", data=encode(picture([left], size=(64, 48))))
        add(one, reason="not a readable picture", data=False)
        image = picture([left])
        for data in readable(image).values():
            add(one, (dog,), data=data)
        for data in unreadable(image).values():
            add(one, reason="not a readable picture", data=data)
        exif = Image.Exif()
        exif[0x0112] = 6  # annotated as it is stored: its viewer did not know EXIF
        add(one, (dog,), data=encode(image, exif=exif))
    categories = [{"id": k, "name": name, "supercategory": "thing"} for k, name in COCO_CATEGORIES.items()]
    content = {
        "info": {"description": "COCO 2014 Dataset"}, "licenses": [],
        "images": images[::-1], "annotations": annotations[::-1], "categories": categories[::-1],
    }  # fmt: skip
    file = tree.root / f"annotations/instances_{split}2014.json"
    _write(file, json.dumps(content).encode())
    return tree
