"""The embedded benchmark: photographs of single things, cut out, on photographs of nothing in particular.

What a picture shows is known exactly: the pixels of each thing, and the picture without it. Things
are Tux Paint's stamps (GPL-2), in 51 of ImageNet's classes; backgrounds are crops of CC0 photographs in which
a real network sees nothing. `data/cutouts` holds both, and the test pictures made of them; its README names
the sources. `scripts/cutouts.py` makes that folder.

A picture is a pure function of (seed, split, kind, index): `draw` says what lies where, `compose` paints it.
"""

import csv
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from thesis_lib.data import CUTOUTS

SIZE = 224  # pixels, height and width of a picture
SPLITS = {"train": 0, "validation": 1, "test": 2}  # none shares a background with another
SIZES = {"singles": (0.2, 0.9), "scenes": (0.3, 0.55), "occurrences": (0.25, 0.5)}
"""Each kind of picture, and how long its things' longer sides may be, in sides of the picture."""
ENLARGED = 2  # times, at most: beyond it, a thing is a blur


@dataclass(frozen=True)
class Thing:
    """A cut-out: its file, class, and size in pixels."""

    file: str
    wnid: str
    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Place:
    """Where a thing lies: its file, left upper corner and size in pixels, and whether it is mirrored."""

    thing: str
    x: int
    y: int
    width: int
    height: int
    mirrored: bool


@dataclass(frozen=True)
class Composition:
    """What a picture is made of: a background's file, whether it is mirrored, which square of it is taken
    (x, y, side; pixels), and the things, whose boxes do not overlap."""

    background: str
    mirrored: bool
    square: tuple[int, int, int]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Picture:
    """A painted composition.

    Args:
        pixels: (224, 224, 3) uint8.
        empty: the same without the things; it differs from `pixels` only where `touched` is True.
        classes: the class of each thing.
        masks: (things, 224, 224) bool, the pixels that each thing covers by more than half.
        touched: (224, 224) bool, the pixels that a thing covers at all.
    """

    pixels: np.ndarray
    empty: np.ndarray
    classes: tuple[int, ...]
    masks: np.ndarray
    touched: np.ndarray


def _rows(name):
    with open(CUTOUTS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def things() -> tuple[Thing, ...]:
    """All cut-outs, in the order of their classes.

    >>> things()[0]
    Thing(file='rooster.webp', wnid='n01514668', name='cock', width=134, height=158)
    """
    return tuple(
        Thing(row["file"], row["wnid"], row["name"], int(row["width"]), int(row["height"]))
        for row in _rows("things.csv")
    )


@functools.cache
def classes() -> dict[str, str]:
    """{WNID: name} by class index, which is ImageNet's order.

    >>> len(classes()), list(classes().values())[:3]
    (51, ['cock', 'hen', 'magpie'])
    """
    return {thing.wnid: thing.name for thing in things()}


def categories() -> list[str]:
    """WNID and name by class index, as the datasets call their classes: fits ImageNet's outputs as well as a
    network's whose outputs have the names.

    >>> categories()[4]
    'n01843383-toucan'
    """
    return [f"{wnid}-{name}" for wnid, name in classes().items()]


@functools.cache
def backgrounds(split: str) -> tuple[str, ...]:
    """The files of a split's backgrounds, "train", "validation" or "test".

    >>> set(backgrounds("train")) & set(backgrounds("test"))
    set()
    """
    return tuple(row["file"] for row in _rows("backgrounds.csv") if row["split"] == split)


def draw(index: int, kind: str = "singles", split: str = "train", seed: int = 0) -> Composition:
    """What lies where in a picture.

    - "singles": one thing, of class index % 51, a fifth to nine tenths of the picture long;
    - "scenes": two or three things of different classes, the first of class index % 51;
    - "occurrences": two or three things of class index % 51.

    None is enlarged beyond twice its size. Training takes any square of a background from half its side on,
    the other splits the whole of it.

    >>> composition = draw(3, "occurrences")
    >>> len(composition.places), composition == draw(3, "occurrences")
    (3, True)
    """
    rng = np.random.default_rng([seed, SPLITS[split], list(SIZES).index(kind), index])
    files = backgrounds(split)
    background = files[rng.integers(len(files))]
    side = int(rng.integers(SIZE // 2, SIZE + 1)) if split == "train" else SIZE
    x, y = (int(value) for value in rng.integers(SIZE - side + 1, size=2))
    mirrored = bool(rng.integers(2))
    count, first = len(classes()), index % len(classes())
    wanted = [first]
    if kind != "singles":
        wanted *= int(rng.integers(2, 4))
    if kind == "scenes":
        others = np.delete(np.arange(count), first)
        wanted[1:] = rng.choice(others, len(wanted) - 1, replace=False).tolist()
    # A class's pictures go through four ranges of size in turn, so that few of them show all.
    part = (index // count % 4, 4) if kind == "singles" else (0, 1)
    places: list[Place] = []
    while len(places) < len(wanted):  # a crowded picture is begun again
        place = _place(rng, wanted[len(places)], SIZES[kind], part)
        places = [] if any(_overlap(place, other) for other in places) else [*places, place]
    return Composition(background, mirrored, (x, y, side), tuple(places))


def _place(rng, label, sizes, part):
    """A thing of a class at random: which, how large, where, mirrored or not. part: (k, n), the k-th of n
    equal ranges of its sizes."""
    wnid = list(classes())[label]
    having = [thing for thing in things() if thing.wnid == wnid]
    thing = having[rng.integers(len(having))]
    longer = max(thing.width, thing.height)
    low, high = (min(size * SIZE, ENLARGED * longer) for size in sizes)
    scale = (low + (high - low) * (part[0] + rng.random()) / part[1]) / longer
    width, height = max(1, int(thing.width * scale)), max(1, int(thing.height * scale))
    x, y = int(rng.integers(SIZE - width + 1)), int(rng.integers(SIZE - height + 1))
    return Place(thing.file, x, y, width, height, bool(rng.integers(2)))


def _overlap(a, b):
    """Whether two boxes have a pixel in common."""
    return abs(2 * (a.x - b.x) + a.width - b.width) < a.width + b.width and (
        abs(2 * (a.y - b.y) + a.height - b.height) < a.height + b.height
    )


@functools.cache
def _read(folder, file):
    with Image.open(CUTOUTS / folder / file) as image:
        image.load()
    return image


def compose(composition: Composition) -> Picture:
    """The picture of a composition: each thing over the background by its alpha, rounded.

    >>> picture = compose(draw(5))
    >>> picture.pixels.shape, picture.masks.shape, picture.classes
    ((224, 224, 3), (1, 224, 224), (5,))
    >>> bool((picture.pixels == picture.empty)[~picture.touched].all())
    True
    """
    x, y, side = composition.square
    square = _read("backgrounds", composition.background).crop((x, y, x + side, y + side))
    empty = np.array(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    empty = np.ascontiguousarray(empty[:, ::-1]) if composition.mirrored else empty
    pixels, touched = empty.copy(), np.zeros((SIZE, SIZE), bool)
    masks = np.zeros((len(composition.places), SIZE, SIZE), bool)
    for place, mask in zip(composition.places, masks, strict=True):
        # Pillow weighs colours by alpha when it resizes, so that none of the hidden ones shows at the edge
        cut = _read("things", place.thing).resize((place.width, place.height), Image.Resampling.BICUBIC)
        values = np.array(cut)[:, ::-1] if place.mirrored else np.array(cut)
        box = slice(place.y, place.y + place.height), slice(place.x, place.x + place.width)
        alpha = values[..., 3:] / 255
        pixels[box] = np.rint((1 - alpha) * empty[box] + alpha * values[..., :3])
        mask[box], touched[box] = alpha[..., 0] > 0.5, touched[box] | (alpha[..., 0] > 0)
    index, wnids = list(classes()), {thing.file: thing.wnid for thing in things()}
    labels = tuple(index.index(wnids[place.thing]) for place in composition.places)
    return Picture(pixels, empty, labels, masks, touched)


def training_arrays(
    count: int, kind: str = "singles", split: str = "train", seed: int = 0, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures in memory: pixels (count, 3, 224, 224) uint8 and which classes each shows, (count, 51)
    bool.

    >>> pixels, labels = training_arrays(4, "scenes", progress=False)
    >>> pixels.shape, labels.shape, labels[0].sum() in (2, 3)
    ((4, 3, 224, 224), (4, 51), True)
    """
    pixels = np.empty((count, 3, SIZE, SIZE), np.uint8)
    labels = np.zeros((count, len(classes())), bool)
    for i in tqdm(range(count), "drawing pictures", disable=not progress):
        picture = compose(draw(i, kind, split, seed))
        pixels[i] = picture.pixels.transpose(2, 0, 1)
        labels[i, list(picture.classes)] = True
    return pixels, labels


@functools.cache
def committed() -> dict[str, Composition]:
    """{id: what the picture is made of} of every test picture in `data/cutouts`, of all four datasets.

    >>> [place.thing for place in committed()["ILSVRC2012_val_00000001"].places]
    ['rooster.webp']
    """
    made: dict[str, Composition] = {}
    for row in _rows("placements.csv"):
        x, y, width, height = (int(row[side]) for side in ("x", "y", "width", "height"))
        place = Place(row["thing"], x, y, width, height, row["thing_mirrored"] == "1")
        before = made[row["id"]].places if row["id"] in made else ()
        mirrored = row["background_mirrored"] == "1"
        made[row["id"]] = Composition(row["background"], mirrored, (0, 0, SIZE), (*before, place))
    return made


def empty(sample: Any) -> torch.Tensor:
    """A test picture without its things: (3, 224, 224) float32 in [0, 1].

    Where no thing is, it is the picture, to the bit; where one is, the background.

    Args:
        sample: a Sample of one of the cut-outs' datasets, at 224 pixels.

    Raises:
        ValueError: no picture of the cut-outs, or another size.

    >>> single = tl.open_dataset("cutouts")[0]
    >>> changed = (empty(single) != single.pixels).any(0)
    >>> bool(changed[single.pixel_masks[0]].float().mean() > 0.9)
    True
    """
    made = committed().get(sample.id)
    if made is None or sample.pixels.shape != (3, SIZE, SIZE):
        raise ValueError(
            f"{sample.id}, {tuple(sample.pixels.shape)}, is no test picture of the cut-outs at {SIZE} pixels"
        )
    picture = compose(made)
    background = torch.from_numpy(picture.empty).permute(2, 0, 1).float() / 255
    return torch.where(torch.from_numpy(picture.touched), background, sample.pixels)
