"""The embedded benchmark: synthetic pictures of 20 pictographs over crops of free photographs.

Every picture is a pure function of (seed, split, index). Pictographs come from DejaVu Sans, which
matplotlib carries; photographs come from scikit-image, and only those in the public domain or under
CC0 are used (data/README.md lists them). Boxes and pixel masks are known by construction.

    python -m thesis_lib.data.glyphs data/glyphs      # writes the committed test split again
"""

import argparse
import functools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

CLASSES = {
    "aeroplane": "\u2708", "anchor": "\u2693", "umbrella": "\u2602", "scissors": "\u2702",
    "telephone": "\u260e", "knight": "\u265e", "queen": "\u265b", "scales": "\u2696",
    "gear": "\u2699", "envelope": "\u2709", "pencil": "\u270f", "flag": "\u2691",
    "star": "\u2605", "heart": "\u2665", "clover": "\u2663", "flower": "\u273f",
    "notes": "\u266b", "skull": "\u2620", "recycling": "\u267b", "atom": "\u269b",
}  # fmt: skip
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field",
    "rocket",
)  # fmt: skip
SIZE = 224  # pixels, height and width
SPLITS = {"train": 0, "validation": 1, "test": 2}


@functools.cache
def _photograph(name):
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


@functools.cache
def _font(size):
    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _background(rng, split):
    """A square crop. Training sees left halves of the photographs, the other splits right halves,
    so that no test background has been seen."""
    photo = _photograph(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))])
    half, height = photo.width // 2, photo.height
    side = rng.integers(112, min(half, height) + 1)
    x = rng.integers(half - side + 1) + (0 if split == "train" else photo.width - half)
    y = rng.integers(height - side + 1)
    crop = photo.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    canvas = np.asarray(crop, np.float32) / 255 * rng.uniform(0.7, 1.15)
    return canvas[:, ::-1] if rng.random() < 0.5 else canvas


def _pictograph(rng, character, largest=140):
    """Coverage of one turned pictograph in [0, 1], cropped to its extent."""
    size = int(rng.integers(56, largest + 1))  # pixels
    sheet = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(sheet).text((size, size), character, 255, _font(size), anchor="mm")
    sheet = sheet.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC)
    return np.asarray(sheet.crop(sheet.getbbox()), np.float32) / 255


def _tint(rng, patch):
    """A colour that stands out from the patch in brightness, so that the object can be seen."""
    luma = np.array([0.299, 0.587, 0.114])
    for _ in range(50):
        colour = rng.uniform(0, 1, 3)
        if abs(colour @ luma - patch.mean((0, 1)) @ luma) > 0.3:
            break
    return colour.astype(np.float32)


def draw(
    seed: int, split: str, index: int, objects: int = 1
) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
    """One picture.

    Args:
        seed, split, index: name the picture; split is "train", "validation" or "test".
        objects: the largest number of pictographs. 1 gives exactly one, of class index % 20;
            more gives one to `objects`, of random classes, whose boxes do not overlap.

    Returns:
        pixels (224, 224, 3) uint8; classes, a list of int; masks, a list of (224, 224) bool,
        one for each object: the pixels that the pictograph covers by more than half.
    """
    rng = np.random.default_rng([seed, SPLITS[split], objects, index])
    canvas = _background(rng, split).copy()
    names = list(CLASSES)
    if objects == 1:
        wanted = [index % len(names)]
    else:
        wanted = rng.integers(len(names), size=rng.integers(1, objects + 1)).tolist()
    # Single training objects grow larger than test ones: a network that is to be shown enlarged
    # pictures must know large objects, as ImageNet networks do.
    largest = 190 if split == "train" and objects == 1 else 140
    taken = np.zeros((SIZE, SIZE), bool)
    classes, masks = [], []
    for label in wanted:
        for _ in range(100):  # a place that is free; a crowded picture may lose an object
            glyph = _pictograph(rng, CLASSES[names[label]], largest)
            h, w = glyph.shape
            y, x = rng.integers(SIZE - h + 1), rng.integers(SIZE - w + 1)
            box = slice(y, y + h), slice(x, x + w)
            if not taken[box].any():
                break
        else:
            continue
        taken[box] = True
        opacity = rng.uniform(0.7, 1.0) * glyph[..., None]
        canvas[box] = (1 - opacity) * canvas[box] + opacity * _tint(rng, canvas[box])
        mask = np.zeros((SIZE, SIZE), bool)
        mask[box] = glyph > 0.5
        classes.append(label)
        masks.append(mask)
    canvas += rng.normal(0, 0.02, canvas.shape)  # sensor noise
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), classes, masks


def training_arrays(
    count: int, seed: int = 0, split: str = "train", objects: int = 1, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures in memory: pixels (count, 3, 224, 224) uint8 and which classes each holds,
    (count, 20) bool."""
    pixels = np.empty((count, 3, SIZE, SIZE), np.uint8)
    labels = np.zeros((count, len(CLASSES)), bool)
    for i in tqdm(range(count), "drawing pictures", disable=not progress):
        picture, classes, _ = draw(seed, split, i, objects)
        pixels[i] = picture.transpose(2, 0, 1)
        labels[i, classes] = True
    return pixels, labels


def _box(mask):
    """xmin, ymin, xmax, ymax of a mask, 0-based, inclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _save_jpeg(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=85)


def _save_indexed(values, path):
    """A palette PNG, as VOC stores its segmentations: the value of a pixel is its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values, "P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path, optimize=True)


def write_imagenet(root: Path, count: int, seed: int = 0, split: str = "test") -> None:
    """Single-object pictures as ILSVRC2012's validation set with one folder a class (numbered, so
    that sorted folders are class indices), and their pixel masks beside them in `masks/`."""
    for i in range(count):
        pixels, (label,), (mask,) = draw(seed, split, i)
        name = f"{label:02d}_{list(CLASSES)[label]}/ILSVRC2012_val_{i + 1:08d}"
        _save_jpeg(pixels, root / "ILSVRC2012/val" / f"{name}.JPEG")
        _save_indexed(mask.astype(np.uint8), root / "ILSVRC2012/masks" / f"{name}.png")


def write_voc(root: Path, count: int, seed: int = 0, split: str = "test") -> None:
    """Scenes in the layout of VOC2007: JPEGImages, Annotations, ImageSets, Segmentation*."""
    folder, names = root / "VOCdevkit/VOC2007", []
    for i in range(count):
        pixels, classes, masks = draw(seed, split, i, objects=3)
        names.append(f"{i + 1:06d}")
        _save_jpeg(pixels, folder / f"JPEGImages/{names[-1]}.jpg")
        by_object, by_class = np.zeros((2, SIZE, SIZE), np.uint8)
        xml = ElementTree.Element("annotation")
        ElementTree.SubElement(xml, "filename").text = f"{names[-1]}.jpg"
        size = ElementTree.SubElement(xml, "size")
        for key, value in (("width", SIZE), ("height", SIZE), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        for number, (label, mask) in enumerate(zip(classes, masks, strict=True), 1):
            by_object[mask], by_class[mask] = number, label + 1
            item = ElementTree.SubElement(xml, "object")
            ElementTree.SubElement(item, "name").text = list(CLASSES)[label]
            ElementTree.SubElement(item, "difficult").text = "0"
            box = ElementTree.SubElement(item, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), _box(mask), strict=True):
                ElementTree.SubElement(box, key).text = str(value + 1)  # VOC counts from 1
        ElementTree.indent(xml)
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(xml).write(folder / f"Annotations/{names[-1]}.xml")
        _save_indexed(by_object, folder / f"SegmentationObject/{names[-1]}.png")
        _save_indexed(by_class, folder / f"SegmentationClass/{names[-1]}.png")
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names) + "\n")


def write_coco(root: Path, count: int, seed: int = 0, split: str = "test", first: int = 100_000) -> None:
    """Scenes in the layout of COCO 2014's validation set, masks as run lengths. `first` keeps
    them apart from the scenes of `write_voc`."""
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(count):
        pixels, classes, masks = draw(seed, split, first + i, objects=3)
        file = f"COCO_val2014_{i + 1:012d}.jpg"
        _save_jpeg(pixels, root / "coco/val2014" / file)
        images.append({"id": i + 1, "file_name": file, "width": SIZE, "height": SIZE})
        for label, mask in zip(classes, masks, strict=True):
            flat = mask.ravel(order="F")  # COCO runs down the columns, starting with a 0-run
            changes = np.flatnonzero(np.diff(flat)) + 1
            runs = np.diff([0, *changes, flat.size]).tolist()
            x0, y0, x1, y1 = _box(mask)
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], "area": int(mask.sum()), "iscrowd": 0,
                "segmentation": {"size": [SIZE, SIZE], "counts": [0, *runs] if flat[0] else runs},
            })  # fmt: skip
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco/annotations").mkdir(parents=True, exist_ok=True)
    (root / "coco/annotations/instances_val2014.json").write_text(json.dumps(content))


def write(
    root: str | Path,
    singles: int = 320,
    voc: int = 256,
    coco: int = 128,
    seed: int = 0,
    split: str = "test",
) -> None:
    """The whole benchmark in the three layouts, under `root`."""
    root = Path(root)
    write_imagenet(root, singles, seed, split)
    write_voc(root, voc, seed, split)
    write_coco(root, coco, seed, split)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="test")
    arguments = parser.parse_args()
    write(arguments.root, seed=arguments.seed, split=arguments.split)
