"""Makes data/cutouts: the things, the backgrounds, and the test pictures made of them.

    python scripts/cutouts.py      # all of it, in some minutes

Things come from Debian's package tuxpaint-stamps-default, backgrounds from scikit-image's wheel.
data/cutouts/README.md says what was changed.
"""

import argparse
import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageOps

import thesis_lib as tl
from thesis_lib.data import CUTOUTS, layouts
from thesis_lib.data import cutouts as benchmark
from thesis_lib.data.layouts import save_indices, save_jpeg

STAMPS = Path("/usr/share/tuxpaint/stamps")
LONGEST = 202  # pixels: nine tenths of a picture, which no thing exceeds
CERTAIN = 0.2  # a background is refused in which EfficientNet-Lite0 gives a class this probability

# The stamps that EfficientNet-Lite0 names rightly on at least half of eight compositions, and their classes.
# Left out: those under 75 pixels long, which would stay small, and two that the package's own change log has under
# another licence than GPL-2 (Brown_slug.png, Strawberry2.png).
CLASSES = {
    "animals/birds/chicken_profile.png": 8, "animals/birds/crowned_crane.png": 134,
    "animals/birds/duck.png": 97, "animals/birds/hen.png": 8, "animals/birds/magpie.png": 18,
    "animals/birds/penguin.png": 145, "animals/birds/pink_flamingo.png": 130,
    "animals/birds/rainbow-lorikeet.png": 90, "animals/birds/rooster.png": 7, "animals/birds/tucan.png": 96,
    "animals/mammals/apes/gorilla.png": 366, "animals/mammals/bears/european-bear.png": 294,
    "animals/mammals/bears/toys/edward_bear.png": 850, "animals/mammals/cats/tiger_sumatran.png": 292,
    "animals/mammals/dogs/dingo.png": 273, "animals/mammals/echidna.png": 102,
    "animals/mammals/elephant.png": 386, "animals/mammals/equines/zebra.png": 340,
    "animals/mammals/pig_golden.png": 341, "animals/mammals/rodents/squirrel.png": 335,
    "animals/mammals/wildboar.png": 342, "animals/marsupials/wombat.png": 106,
    "clothes/hats/sombrero.png": 808,
    "food/fruit/cherimoya.png": 956, "food/fruit/lemon.png": 951,
    "food/fruit/orange_seville.png": 950, "food/fruit/pineapple.png": 953,
    "food/vegetables/broccoli.png": 937, "food/vegetables/corn.png": 998,
    "hobbies/binoculars.png": 447, "hobbies/camera_35mm.png": 759,
    "hobbies/music/string/guitar_electric_bass.png": 546, "hobbies/music/string/violin.png": 889,
    "household/dishes/mug.png": 504, "household/dishes/pitcher_small.png": 725,
    "household/dishes/teapot.png": 849, "household/garbagecan.png": 412, "household/toilet.png": 861,
    "household/wheelie_bin.png": 412, "medical/bandage_adhesive.png": 419, "medical/syringe.png": 845,
    "military/paratrooper.png": 701, "military/vehicles/f22_raptor.png": 895,
    "plants/flowers/yellow-flower.png": 985, "plants/mushrooms/cep.png": 997,
    "plants/mushrooms/cep-1.png": 997, "plants/mushrooms/cep-2.png": 997,
    "seasonal/halloween/jackolantern_mean.png": 607,
    "sports/basketball.png": 430, "sports/soccer.png": 805, "sports/tennis_ball.png": 852,
    "sports/tennis_racket.png": 752, "town/uk_post_box.png": 637, "vehicles/cycle/pink_tricycle.png": 870,
    "vehicles/flight/balloon360.png": 417,
}  # fmt: skip
# Whom the package's change log names for a stamp, where it leaves no doubt which stamp it means.
AUTHORS = {
    "Albert Cahalan": "balloon360 paratrooper soccer toilet",
    "Albert Cahalan, from US Drug Enforcement Administration": "syringe",
    "Bill Kendrick": "pink_flamingo tiger_sumatran",
    "Caroline Ford": "mug pig_golden uk_post_box wheelie_bin",
    "Caroline Ford, from Wikipedia": "basketball guitar_electric_bass tennis_ball tennis_racket violin",
    "Chris Goerner, Australian stamps collection": "dingo echidna lemon magpie rainbow-lorikeet",
    "Coco Ranch Farmers Market": "garbagecan teapot",
    "Jim Trice": "edward_bear",
    "Mike Fitzpatrick": "pineapple",
    "Pere Pujal i Carabantes": "cep cep-1 cep-2 european-bear",
    "Stas Zytkiewicz (Childsplay), adapted by Pere Pujal i Carabantes": (
        "duck elephant gorilla penguin squirrel tucan wildboar wombat zebra"
    ),
    "Steve Karg": "broccoli corn",
    "U.S. Air Force, TSgt Ben Bloker; prepared by Steve Karg": "f22_raptor",
}
# File in scikit-image's wheel: what skimage.data says of it, and what a grey one is coloured with, from black to
# white.
PHOTOGRAPHS = {
    "brick.png": ("CC0Textures (Bricks25)", "CC0", [("#241812", "#f0d6c4"), ("#1a1a1e", "#dfe2e8")]),
    "clock_motion.png": (
        "Stefan van der Walt",
        "public domain",
        [("#1b2a38", "#e6eef2"), ("#3a2c1c", "#f6ead2")],
    ),
    "grass.png": ("linolafett", "CC0", [("#0c1c08", "#d4e6a8"), ("#241c0c", "#f0e2b4")]),
    "gravel.png": ("CC0Textures (Gravel04)", "CC0", [("#1c1a18", "#ece6dc"), ("#141a22", "#d8e2ec")]),
    "retina.jpg": ("Mikael Häggström", "CC0", []),
}
SIDES = (96, 192)  # pixels, of a crop: enlarged, it is as soft as what lies behind a thing
QUALITY = 80  # of all JPEGs: encoded twice with the same tables, what no thing touches stays as it is
CROPS = {"train": 10, "validation": 4, "test": 8}  # of each photograph


def write_table(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_things(folder: Path, stamps: Path = STAMPS) -> None:
    """things/*.webp and things.csv: each stamp cropped to what can be seen of it, and no longer than LONGEST."""
    from timm.data import ImageNetInfo
    from torchvision.models import VGG19_Weights

    wnids, names = ImageNetInfo("imagenet-1k").label_names(), VGG19_Weights.DEFAULT.meta["categories"]
    authors = {stem: author for author, stems in AUTHORS.items() for stem in stems.split()}
    shutil.rmtree(folder / "things", ignore_errors=True)
    (folder / "things").mkdir(parents=True)
    rows = []
    for source, index in sorted(CLASSES.items(), key=lambda item: (item[1], item[0])):
        image = Image.open(stamps / source).convert("RGBA")
        thing = image.crop(image.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox())
        thing.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        file = f"{Path(source).stem}.webp"
        thing.save(folder / "things" / file, lossless=True, quality=100, method=6)
        rows.append({
            "file": file, "class": index, "wnid": wnids[index], "name": names[index],
            "width": thing.width, "height": thing.height, "stamp": source,
            "stamp_width": image.width, "stamp_height": image.height,
            "author": authors.get(Path(source).stem, ""),
        })  # fmt: skip
    write_table(folder / "things.csv", rows)


def region(split: str, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a photograph that is a split's own: left, upper, right, lower."""
    return {
        "train": (0, 0, width // 2, height),
        "validation": (width // 2, 0, width, height // 2),
        "test": (width // 2, height // 2, width, height),
    }[split]


@torch.inference_mode()
def write_backgrounds(folder: Path, seed: int = 0) -> None:
    """backgrounds/*.jpg and backgrounds.csv: square crops in which EfficientNet-Lite0 sees nothing, grey
    photographs in a colour."""
    network = tl.load_classifier("efficientnet_lite0", device="cpu")
    shutil.rmtree(folder / "backgrounds", ignore_errors=True)
    (folder / "backgrounds").mkdir(parents=True)
    rows = []
    for number, (name, (author, licence, colours)) in enumerate(PHOTOGRAPHS.items()):
        photograph = Image.open(Path(skimage.__file__).parent / "data" / name)
        for k, (split, count) in enumerate(CROPS.items()):
            rng = np.random.default_rng([seed, number, k])
            left, upper, right, lower = region(split, *photograph.size)
            taken = 0
            while taken < count:
                side = int(rng.integers(SIDES[0], min(SIDES[1], right - left, lower - upper) + 1))
                x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(upper, lower - side + 1))
                crop = photograph.crop((x, y, x + side, y + side))
                crop = crop.resize((benchmark.SIZE,) * 2, Image.Resampling.BICUBIC)
                if crop.mode == "L":
                    crop = ImageOps.colorize(crop, *colours[taken % len(colours)])
                pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255
                if pixels.std() < 0.02:
                    continue  # a piece of black
                probability = float(network.probabilities(network.normalise(pixels)).max())
                if probability >= CERTAIN:
                    continue
                taken += 1
                file = f"{split}_{Path(name).stem}_{taken}.jpg"
                crop.save(folder / "backgrounds" / file, quality=QUALITY, optimize=True, progressive=True)
                rows.append({
                    "file": file, "split": split, "photograph": name, "author": author, "licence": licence,
                    "x": x, "y": y, "side": side, "probability": f"{probability:.3f}",
                })  # fmt: skip
    write_table(folder / "backgrounds.csv", rows)


def write_singles(folder: Path, count: int) -> dict:
    """Single things as ILSVRC2012's validation set with a folder a class, their pixel masks in `masks/`.
    Returns {id: composition}, as the others do."""
    made = {}
    for i in range(count):
        name, composition = f"ILSVRC2012_val_{i + 1:08d}", benchmark.draw(i, "singles", "test")
        picture = benchmark.compose(composition)
        wnid = list(benchmark.classes())[picture.classes[0]]
        save_jpeg(picture.pixels, folder / f"ILSVRC2012/val/{wnid}/{name}.JPEG", QUALITY)
        save_indices(picture.masks[0], folder / f"ILSVRC2012/masks/{wnid}/{name}.png")
        made[name] = composition
    return made


def pictures(made: dict[int, benchmark.Composition]) -> Iterator[tuple]:
    """The pictures of {number: composition}, as `layouts` takes them."""
    for number, composition in made.items():
        picture = benchmark.compose(composition)
        yield number, picture.pixels, picture.classes, picture.masks


def write_voc(folder: Path, count: int) -> dict:
    """Scenes in VOC2007's layout."""
    made = {i + 1: benchmark.draw(i, "scenes", "test") for i in range(count)}
    layouts.write_voc(folder, pictures(made), benchmark.categories(), QUALITY)
    return {f"{number:06d}": composition for number, composition in made.items()}


def write_coco(root: Path, count: int, kind: str, first: int) -> dict:
    """Pictures in the layout of COCO 2014's validation set. `first` is the number of the first, and keeps
    scenes apart from those of `write_voc`."""
    made = {number: benchmark.draw(number, kind, "test") for number in range(first, first + count)}
    layouts.write_coco(root, pictures(made), benchmark.categories(), QUALITY)
    return {f"COCO_val2014_{number:012d}": composition for number, composition in made.items()}


def write_pictures(
    folder: Path, singles: int = 204, voc: int = 102, coco: int = 34, occurrences: int = 51
) -> None:
    """The test pictures in the three layouts, and placements.csv, what each is made of."""
    for name in ("ILSVRC2012", "VOCdevkit", "coco", "occurrences"):
        shutil.rmtree(folder / name, ignore_errors=True)
    made = {
        **write_singles(folder, singles),
        **write_voc(folder, voc),
        **write_coco(folder / "coco", coco, "scenes", 1001),
        **write_coco(folder / "occurrences", occurrences, "occurrences", 2001),
    }
    write_table(folder / "placements.csv", [
        {
            "id": name, "background": composition.background,
            "background_mirrored": int(composition.mirrored), "thing": place.thing, "x": place.x,
            "y": place.y, "width": place.width, "height": place.height,
            "thing_mirrored": int(place.mirrored),
        }
        for name, composition in made.items() for place in composition.places
    ])  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="the package's folder of stamps")
    write_things(CUTOUTS, parser.parse_args().stamps)
    write_backgrounds(CUTOUTS)
    write_pictures(CUTOUTS)
