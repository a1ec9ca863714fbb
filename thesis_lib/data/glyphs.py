"""The embedded benchmark: synthetic pictures of 20 pictographs over crops of free photographs.

Every picture is a pure function of (seed, split, index). Pictographs come from DejaVu Sans, which
matplotlib carries; photographs come from scikit-image, and only those in the public domain or under
CC0 are used (data/README.md lists them). Boxes and pixel masks are known by construction.

    python -m thesis_lib.data.glyphs data/glyphs      # writes the committed test split again
"""

import argparse
import functools
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from thesis_lib.data import layouts
from thesis_lib.data.layouts import save_indices, save_jpeg

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
QUALITY = 85  # of the JPEGs
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


def write_imagenet(root: Path, count: int, seed: int = 0, split: str = "test") -> None:
    """Single-object pictures as ILSVRC2012's validation set with one folder a class (numbered, so
    that sorted folders are class indices), and their pixel masks beside them in `masks/`."""
    for i in range(count):
        pixels, (label,), (mask,) = draw(seed, split, i)
        name = f"{label:02d}_{list(CLASSES)[label]}/ILSVRC2012_val_{i + 1:08d}"
        save_jpeg(pixels, root / "ILSVRC2012/val" / f"{name}.JPEG", QUALITY)
        save_indices(mask, root / "ILSVRC2012/masks" / f"{name}.png")


def write_voc(root: Path, count: int, seed: int = 0, split: str = "test") -> None:
    """Scenes in the layout of VOC2007."""
    pictures = ((i + 1, *draw(seed, split, i, objects=3)) for i in range(count))
    layouts.write_voc(root, pictures, list(CLASSES), QUALITY)


def write_coco(root: Path, count: int, seed: int = 0, split: str = "test", first: int = 100_000) -> None:
    """Scenes in the layout of COCO 2014's validation set. `first` keeps them apart from those of `write_voc`."""
    pictures = ((i + 1, *draw(seed, split, first + i, objects=3)) for i in range(count))
    layouts.write_coco(root / "coco", pictures, list(CLASSES), QUALITY)


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
