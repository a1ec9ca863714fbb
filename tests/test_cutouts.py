"""The cut-outs: what a picture is made of, and what lies in data/cutouts."""

import csv
import itertools
from types import SimpleNamespace

import cutouts as script
import numpy as np
import pytest
import torch
from PIL import Image

import thesis_lib as tl
from thesis_lib.data import CUTOUTS, REPOSITORY, cutouts, registry
from thesis_lib.data.match import match
from thesis_lib.data.registry import open_dataset

NAMES = ("cutouts", "cutouts_scenes", "cutouts_scenes_coco", "cutouts_occurrences")
DRAWN = [(i, kind, split) for kind in cutouts.SIZES for split in cutouts.SPLITS for i in range(0, 400, 57)]


def table(name):
    with open(CUTOUTS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def datasets():
    return {name: open_dataset(name) for name in NAMES}


# ---- what a picture is made of


@pytest.mark.parametrize("index, kind, split", DRAWN)
def test_a_picture_is_its_background_and_its_things_by_their_alpha(index, kind, split):
    made = cutouts.draw(index, kind, split)
    picture = cutouts.compose(made)
    x, y, side = made.square
    square = Image.open(CUTOUTS / "backgrounds" / made.background).crop((x, y, x + side, y + side))
    expected = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), float)
    expected = expected[:, ::-1].copy() if made.mirrored else expected.copy()
    assert np.array_equal(picture.empty, expected)
    covered = np.zeros((224, 224))
    for place, mask in zip(made.places, picture.masks, strict=True):
        thing = Image.open(CUTOUTS / "things" / place.thing).resize((place.width, place.height), 3)
        for i, j in itertools.product(range(0, place.height, 3), range(0, place.width, 3)):
            *colour, alpha = thing.getpixel((place.width - 1 - j if place.mirrored else j, i))
            at, a = (place.y + i, place.x + j), alpha / 255
            assert np.abs((1 - a) * expected[at] + a * np.array(colour) - picture.pixels[at]).max() <= 0.5001
            assert mask[at] == (a > 0.5) and picture.touched[at] == (a > 0)
        covered += mask
        outside = mask.copy()
        outside[place.y : place.y + place.height, place.x : place.x + place.width] = False
        assert mask.any() and not outside.any()
    assert covered.max() == 1  # no thing covers another
    assert np.array_equal(picture.pixels[~picture.touched], picture.empty[~picture.touched])
    assert (picture.pixels != picture.empty).any(-1)[picture.masks.any(0)].mean() > 0.95


@pytest.mark.parametrize("kind", cutouts.SIZES)
def test_sizes_keep_their_limits(kind):
    sizes = {thing.file: (thing.width, thing.height) for thing in cutouts.things()}
    low, high = cutouts.SIZES[kind]
    longest = []
    for i in range(612):
        for place in cutouts.draw(i, kind).places:
            native = max(sizes[place.thing])
            longer = max(place.width, place.height)
            assert low * 224 - 1 <= longer <= min(high * 224, 2 * native)
            assert 0 <= place.x <= 224 - place.width and 0 <= place.y <= 224 - place.height
            width, height = sizes[place.thing]
            scale = longer / native  # of both sides, but for a pixel
            assert max(abs(place.width - scale * width), abs(place.height - scale * height)) < 1.1
            longest.append(longer / 224)
    assert min(longest) < low + 0.02 and max(longest) > high - 0.02  # the whole range occurs


def test_what_each_kind_shows():
    for i in range(0, 200, 3):
        shown = {kind: cutouts.compose(cutouts.draw(i, kind)).classes for kind in cutouts.SIZES}
        assert shown["singles"] == (i % 51,)
        assert len(shown["scenes"]) in (2, 3) and shown["scenes"][0] == i % 51
        assert len(set(shown["scenes"])) == len(shown["scenes"])
        assert len(shown["occurrences"]) in (2, 3) and set(shown["occurrences"]) == {i % 51}


def test_a_class_is_shown_small_and_large():
    sizes = [max(p.width, p.height) for k in range(4) for p in cutouts.draw(8 + 51 * k).places]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]


def test_a_picture_is_a_function_of_its_name():
    one = cutouts.draw(3, "scenes", "test")
    assert one == cutouts.draw(3, "scenes", "test")
    others = [
        (3, "scenes", "test", 1),
        (3, "scenes", "train"),
        (3, "scenes", "validation"),
        (54, "scenes", "test"),
    ]
    assert all(one.places != cutouts.draw(*other).places for other in others)


def test_training_and_test_share_no_composition_and_no_pixel_of_a_background():
    drawn = {
        split: [cutouts.draw(i, kind, split) for kind in cutouts.SIZES for i in range(150)]
        for split in cutouts.SPLITS
    }
    for a, b in itertools.combinations(cutouts.SPLITS, 2):
        assert not {made.places for made in drawn[a]} & {made.places for made in drawn[b]}
        assert not {made.background for made in drawn[a]} & {made.background for made in drawn[b]}
    rows = table("backgrounds.csv")
    for a, b in itertools.combinations(rows, 2):
        if a["split"] != b["split"] and a["photograph"] == b["photograph"]:
            apart = (
                int(one[k]) + int(one["side"]) <= int(other[k])
                for one, other in ((a, b), (b, a)) for k in ("x", "y")
            )  # fmt: skip
            assert any(apart), (a["file"], b["file"])


def test_training_arrays():
    pixels, labels = cutouts.training_arrays(5, "scenes", "validation", progress=False)
    for i in range(5):
        picture = cutouts.compose(cutouts.draw(i, "scenes", "validation"))
        assert np.array_equal(pixels[i].transpose(1, 2, 0), picture.pixels)
        assert set(np.flatnonzero(labels[i])) == set(picture.classes)


# ---- what lies in data/cutouts


def test_its_size_and_its_licence():
    files = [path for path in CUTOUTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert "Version 2, June 1991" in (CUTOUTS / "COPYING").read_text("utf-8")
    for path in (CUTOUTS / "README.md", REPOSITORY / "data/README.md", REPOSITORY / "LICENSE"):
        text = " ".join(path.read_text("utf-8").split())
        assert "version 2" in text and "cutouts" in text


@pytest.mark.parametrize("folder, key", [("things", "file"), ("backgrounds", "file")])
def test_tables_name_the_files_that_are_there(folder, key):
    rows = table(f"{folder}.csv")
    assert sorted(row[key] for row in rows) == sorted(path.name for path in (CUTOUTS / folder).iterdir())
    for row in rows:
        image = Image.open(CUTOUTS / folder / row["file"])
        assert image.size == (int(row.get("width", 224)), int(row.get("height", 224)))
        assert image.mode == ("RGBA" if folder == "things" else "RGB")
        assert float(row.get("probability", 0)) < 0.2 and row.get("licence") in (None, "CC0", "public domain")


def test_classes_are_imagenets_own():
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    rows = table("things.csv")
    assert [wnids[int(row["class"])] for row in rows] == [row["wnid"] for row in rows]
    assert list(cutouts.classes()) == sorted(cutouts.classes()) and len(cutouts.classes()) == 51
    assert len(set(cutouts.classes().values())) == 51


@pytest.mark.parametrize("name", NAMES)
def test_the_readers_read_what_was_drawn(name, datasets):
    dataset, sizes = datasets[name], []
    assert len(dataset) == registry.DATASETS[name].size
    assert dataset.categories == cutouts.categories()
    for i in range(len(dataset)):
        sample = dataset[i]
        picture = cutouts.compose(cutouts.committed()[sample.id])
        assert set(sample.classes) == set(picture.classes)
        drawn = torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255
        assert (sample.pixels - drawn).abs().mean() < 0.02  # JPEG
        for c in sample.classes:
            of_class = picture.masks[np.array(picture.classes) == c].any(0)
            assert np.array_equal(sample.pixel_masks[c].numpy(), of_class)
            if name != "cutouts":
                assert not (of_class & ~sample.masks[c].numpy()).any()
                sizes.append(float(sample.masks[c].float().mean()))
    assert all(0 < size < 0.8 for size in sizes)


def test_every_test_picture_has_its_placement(datasets):
    ids = [name for dataset in datasets.values() for name in dataset.ids]
    assert len(set(ids)) == len(ids) and set(ids) == set(cutouts.committed())
    used = {made.background for made in cutouts.committed().values()}
    assert used <= set(cutouts.backgrounds("test"))
    assert set(datasets["cutouts_scenes"].ids).isdisjoint(datasets["cutouts_scenes_coco"].ids)
    scenes = [cutouts.committed()[name].places for k in (1, 2) for name in datasets[NAMES[k]].ids]
    assert len(set(scenes)) == len(scenes)


def test_committed_is_what_the_script_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(script.benchmark, "committed", None)  # nothing of it may be used
    script.write_pictures(tmp_path, singles=4, voc=3, coco=2, occurrences=2)
    ours = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    for path in ours:
        if path.suffix in (".png", ".xml"):
            one, two = ((root / path).read_bytes() for root in (tmp_path, CUTOUTS))
            same = one == two if path.suffix == ".xml" else None
            assert same or np.array_equal(
                *(np.array(Image.open(root / path)) for root in (tmp_path, CUTOUTS))
            )
        elif path.suffix in (".jpg", ".JPEG"):
            one, two = (np.asarray(Image.open(root / path), float) for root in (tmp_path, CUTOUTS))
            assert np.abs(one - two).max() < 8 and np.abs(one - two).mean() < 1  # another libjpeg
    written = (tmp_path / "placements.csv").read_text().splitlines()
    assert set(written) <= set((CUTOUTS / "placements.csv").read_text().splitlines()) and len(ours) == 28


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_picture_is_the_picture_where_no_thing_is(name, datasets):
    sample = datasets[name][7]
    picture = cutouts.compose(cutouts.committed()[sample.id])
    touched = torch.from_numpy(picture.touched)
    empty = cutouts.empty(sample)
    assert torch.equal(empty[:, ~touched], sample.pixels[:, ~touched])
    background = torch.from_numpy(picture.empty).permute(2, 0, 1) / 255
    assert torch.equal(empty[:, touched], background[:, touched])
    assert (empty - background).abs().mean() < 0.01  # JPEG
    with pytest.raises(ValueError, match="no test picture"):
        cutouts.empty(SimpleNamespace(id="another", pixels=sample.pixels))
    with pytest.raises(ValueError, match="at 224 pixels"):
        cutouts.empty(SimpleNamespace(id=sample.id, pixels=sample.pixels[:, ::2, ::2]))


@pytest.mark.parametrize("name", NAMES)
def test_they_fit_imagenets_outputs_and_a_network_of_their_own(name, datasets):
    from timm.data import ImageNetInfo
    from torchvision.models import VGG19_Weights

    network, words = torch.nn.Conv2d(3, 3, 1), list(cutouts.classes().values())
    order = {wnid: k for k, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    right = [order[wnid] for wnid in cutouts.classes()]
    sample = datasets[name][3]
    for outputs, expected in (
        (VGG19_Weights.DEFAULT.meta["categories"], right),
        (list(order), right),
        (words, list(range(51))),
        (words[::-1], list(range(51))[::-1]),
        (cutouts.categories(), list(range(51))),
    ):
        clf = tl.Classifier(torch.nn.Sequential(network), layer="0", name="any", categories=outputs)
        found = match(datasets[name], clf)[3]
        assert found.classes == tuple(expected[c] for c in sample.classes)
        assert found.pixel_masks.keys() == set(found.classes)
