"""A dataset's classes and a network's outputs: each class is its own output, or a sentence says what to do.

The tables have a line for each situation: what the classes are called, what the outputs, and what is right.
"""

import functools
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from timm.data import ImageNetInfo
from torch import nn
from torchvision.models import VGG19_Weights

import thesis_lib as tl
from thesis_lib.data import CUTOUTS, cutouts
from thesis_lib.data.datasets import VOC_CATEGORIES, Folder, ImageNet, Sample
from thesis_lib.data.match import match
from thesis_lib.data.registry import _lacks_classes, open_dataset
from thesis_lib.data.subsets import Subset
from thesis_lib.metrics.base import METRICS
from thesis_lib.runs import files, record

SIZE = 32
CLASSES = (
    "aeroplane anchor apple bell bridge candle clock drum engine feather globe hammer island jar kite "
    "ladder mirror needle oar pencil"
).split()  # the first is VOC's, too
NAMES = VGG19_Weights.DEFAULT.meta["categories"]  # of ImageNet's outputs
INFO = ImageNetInfo("imagenet-1k")
WNIDS, WORDS = INFO.label_names(), [INFO.index_to_description(k) for k in range(1000)]
TEN = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]  # Imagenette's
NUMBERS = sorted(map(str, range(1000)))  # as a file system lists them: 0, 1, 10, 100, ...


class Pictures:
    """Small pictures, one of each class, the second of which shows the third class as well."""

    def __init__(self, categories, n=None, seed=0):
        self.categories = categories
        self.ids = [f"picture-{i}" for i in range(n or min(6, len(categories)))]
        self.shift = seed

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        pixels = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(100 * self.shift + i))
        classes = (1, 2) if i == 1 else (i % len(self.categories),)
        masks = {}
        for k, c in enumerate(classes):
            masks[c] = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            masks[c][8 * k : 8 * k + 12, 4 * i :] = True
        return Sample(self.ids[i], pixels, classes, masks, {c: ~mask for c, mask in masks.items()})


def classifier(outputs, activation="softmax", order=None):
    """A small network with outputs of these names, or with so many; in another order with `order`."""
    count = outputs if isinstance(outputs, int) else len(outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, count)
        )  # fmt: skip
    network[-1].weight.data *= 20
    names = None if isinstance(outputs, int) else list(outputs)
    if order is not None:
        network[-1].weight.data, network[-1].bias.data = (
            network[-1].weight.data[order], network[-1].bias.data[order],
        )  # fmt: skip
        names = [names[k] for k in order]
    return tl.Classifier(network, layer="1", categories=names, activation=activation, name="small")


def permuted(names, seed=0):
    return [names[k] for k in np.random.default_rng(seed).permutation(len(names))]


SHUFFLED = permuted(NAMES)
ANIMALS = ["cat", "great white shark", "Black-and-tan hound", "caf\u00e9 owl"]
RIGHT = {  # situation: (classes, outputs, the output of each class; None: the dataset as it is)
    "the same list": (CLASSES, CLASSES, None),
    "the same list, with a name twice": (["crane", "crane", "owl"], ["crane", "crane", "owl"], None),
    "no classes": ([], CLASSES, None),
    "no classes, outputs without names": ([], 20, None),
    # by WNID
    "all class folders": (WNIDS, NAMES, None),
    "all class folders, outputs without names": (WNIDS, 1000, None),
    "ten class folders": ([WNIDS[k] for k in TEN], NAMES, TEN),
    "ten class folders, outputs without names": ([WNIDS[k] for k in TEN], 1000, TEN),
    "one class folder": ([WNIDS[134]], NAMES, [134]),
    "both cranes and both maillots": ([WNIDS[k] for k in (134, 517, 638, 639)], NAMES, [134, 517, 638, 639]),
    "WNID and name": ([f"{WNIDS[k]} {NAMES[k]}" for k in TEN], NAMES, TEN),
    "WNID-name": ([f"{WNIDS[k]}-{NAMES[k]}" for k in TEN], NAMES, TEN),
    "WNID_name": ([f"{WNIDS[k]}_{NAMES[k]}" for k in TEN], 1000, TEN),
    "outputs of all words": ([WNIDS[k] for k in TEN], WORDS, TEN),
    "outputs of the first words, crane twice": ([WNIDS[k] for k in (0, 134, 517)], [w.split(",")[0] for w in WORDS],
                                                [0, 134, 517]),
    "outputs with _": ([WNIDS[k] for k in TEN], [n.replace(" ", "_") for n in NAMES], TEN),
    "outputs that are WNIDs": ([WNIDS[k] for k in TEN], WNIDS, TEN),
    "ten outputs that are WNIDs": ([WNIDS[k] for k in TEN[:3]], [WNIDS[k] for k in TEN[::-1]], [9, 8, 7]),
    "ten outputs, WNID and name": ([WNIDS[k] for k in TEN[:3]], [f"{WNIDS[k]} {NAMES[k]}" for k in TEN[::-1]], [9, 8, 7]),
    "ten outputs of ImageNet's names": ([WNIDS[k] for k in TEN[:3]], [NAMES[k] for k in TEN[::-1]], [9, 8, 7]),
    "ImageNet's names in another order": ([WNIDS[k] for k in (134, 264, 474, 517)], SHUFFLED,
                                          [SHUFFLED.index(NAMES[k]) for k in (134, 264, 474, 517)]),
    "WNIDs of no ImageNet, outputs likewise": (["n00000002", "n00000001"], ["n00000001", "n00000002"], [1, 0]),
    # by name
    "another order": (permuted(CLASSES), CLASSES, [CLASSES.index(n) for n in permuted(CLASSES)]),
    "another order of all of ImageNet": (SHUFFLED, NAMES, [NAMES.index(n) for n in SHUFFLED]),
    "some": (CLASSES[10:], CLASSES, [*range(10, 20)]),
    "spelt otherwise": (["CAT ", "Great_White-shark", "black and tan hound", "cafe\u0301_owl"], ANIMALS, None),
    "spelt otherwise, some": (["great_white__shark", "Cat"], ANIMALS, [1, 0]),
    "numbered": ([f"{k:02d}_{n}" for k, n in enumerate(CLASSES)], CLASSES, None),
    "numbered, some": ([f"{k:02d}_{n}" for k, n in enumerate(CLASSES)][10:], CLASSES, [*range(10, 20)]),
    "numbered with dots": (["001.Cat", "003.Black-and-tan_hound"], ANIMALS, [0, 2]),
    "numbered outputs": (["Cat", "Owl"], ["0: owl", "1: cat"], [1, 0]),
    "names that begin with numbers": (["1_star", "2_star"], ["2 star", "5 star", "1 star"], [2, 0]),
    "WNID and name of outputs that have names": (["n01440764-tench"], ["owl", "tench"], [1]),
    "names on ImageNet": (["tench", "English_springer", "jay"], NAMES, [0, 217, 17]),
    "other words of ImageNet's": (["English_springer_spaniel", "white-shark"], NAMES, [217, 2]),
    "outputs in all words": (["Tinca tinca", "goldfish"], WORDS, [0, 1]),
    "numbers as names": (["10", "2", "7"], [str(k) for k in range(12)], [10, 2, 7]),
    "numbers as numbers": (["10", "2", "7"], range(12), [10, 2, 7]),
    "ImageNetV2": (NUMBERS, NAMES, [int(n) for n in NUMBERS]),
    "ImageNetV2, ImageNet's names in another order": (NUMBERS, SHUFFLED, [SHUFFLED.index(NAMES[int(n)]) for n in NUMBERS]),
    "COCO's in another order": (permuted([f"thing {k}" for k in range(80)]), [f"thing {k}" for k in range(80)],
                                np.random.default_rng(0).permutation(80).tolist()),
}  # fmt: skip
BY_POSITION = {
    "as many": (CLASSES, 20),
    "numbered with zeros": ([f"{k:02d}_{n}" for k, n in enumerate(CLASSES)], 20),
    "numbers with zeros": ([f"{k:02d}" for k in range(20)], 20),
    "numbers of one digit": ([str(k) for k in range(10)], 10),
    "WNIDs of a network of one's own": ([WNIDS[k] for k in TEN], 10),
    "COCO's 80": ([f"thing {k}" for k in range(80)], 80),
}
REFUSED = {  # situation: (classes, outputs, what the sentence says)
    "VOC on ImageNet": (VOC_CATEGORIES, NAMES, "20 of the dataset's 20 classes are none of the 1,000 outputs .*'aeroplane', 'bicycle'"),
    "a stray folder": (["00_readme", *CLASSES], CLASSES, "1 of the dataset's 21 .*'00_readme'.*keep no folder"),
    "VOC on twenty others": (VOC_CATEGORIES, CLASSES, "19 of the dataset's 20 .*categories="),
    "as many, and no name in common": (["Katze", "Hund"], ["cat", "dog"], "2 of the dataset's 2"),
    "all of ImageNet's folders on ten outputs": (WNIDS, [NAMES[k] for k in TEN], "990 of the dataset's 1,000"),
    "more classes than outputs": (CLASSES, 7, "7 outputs without names, the dataset 20 classes"),
    "fewer classes than outputs": (CLASSES[:10], 20, "20 outputs without names, the dataset 10 classes"),
    "names on 1,000 outputs without names": (["tench"], 1000, "1,000 outputs without names"),
    "a WNID that ImageNet-1k has not": ([WNIDS[0], "n00000001"], NAMES, "1 of the dataset's 2 .*'n00000001'"),
    "the same, outputs without names": ([WNIDS[0], "n00000001"], 1000, "the dataset 2 classes"),
    "Tiny ImageNet's val/images": (["images"], NAMES, "1 of the dataset's 1 .*'images'.*name the class folders by WNID"),
    "a crane, which may be two": (["tench", "crane"], NAMES, r"'crane' may be any of the outputs 134 \('crane bird'\), 517 \('crane'\)"),
    "a maillot, which may be two": (["maillot"], NAMES, "'maillot' may be any of the outputs 638"),
    "two cranes for two outputs": (["crane", "Crane"], NAMES, "'crane' may be any of the outputs 134"),
    "a cardigan, dog or knitted": (["cardigan"], NAMES, "'cardigan' may be any of the outputs 264"),
    "a WNID's word that may be two": ([WNIDS[134]], ["crane", "tench"], "1 of the dataset's 1"),
    "an output's name twice": (["cat"], ["cat", "Cat"], "'cat' may be any of the outputs 0"),
    "two classes that are one output": (["Cat", "cat"], ["cat", "dog"], r"'Cat', 'cat' are one output .* 0 \('cat'\)"),
    "two folders of one WNID": ([WNIDS[0], f"{WNIDS[0]}-tench"], NAMES, "are one output"),
    "two words of one output": (["tench", "Tinca tinca"], NAMES, "are one output"),
    "another number in front": (["10_dollar"], ["20_dollar", "50_euro"], "1 of the dataset's 1"),
    "some of ImageNetV2": (NUMBERS[:10], NAMES, "10 of the dataset's 10"),
    "numbers from 1, which are other indices": (sorted(map(str, range(1, 1001))), NAMES, "1,000 of the dataset's 1,000"),
    "numbers in front of nothing known": ([f"{k:05d}" for k in range(10)], NAMES, "10 of the dataset's 10"),
    "numbers without zeros": (sorted(map(str, range(20))), 20, "'0', '1', '10', ..., in another order than their numbers"),
    "numbered without zeros": (sorted(f"{k}_a" for k in range(12)), 12, "in another order than their numbers"),
    "ImageNetV2 on outputs without names": (NUMBERS, 1000, "in another order than their numbers"),
}  # fmt: skip


@pytest.mark.parametrize("classes, outputs, right", RIGHT.values(), ids=RIGHT)
def test_a_class_is_its_output(classes, outputs, right):
    dataset = Pictures(list(classes), n=4)
    clf = classifier(outputs if isinstance(outputs, int) else list(outputs))
    with warnings.catch_warnings(), tl.counting() as counts:
        warnings.simplefilter("error")
        found = match(dataset, clf)
    assert counts["forward images"] == (isinstance(outputs, int) and len(classes) > 0)
    if right is None:
        assert found is dataset
        return
    assert found.outputs == list(right) and found.classes == dict(zip(classes, right, strict=True))
    assert len(found) == 4 and found.ids == dataset.ids
    assert match(found, clf) is found
    if len(classes) < 3:
        return
    for i in range(4):
        old, new = dataset[i], found[i]
        assert new.id == old.id and torch.equal(new.pixels, old.pixels)
        assert new.classes == tuple(right[c] for c in old.classes)
        for name in ("masks", "pixel_masks"):
            a, b = getattr(old, name), getattr(new, name)
            assert list(b) == [right[c] for c in a]
            assert all(torch.equal(mask, b[right[c]]) for c, mask in a.items())
    assert dataset[1].classes == (1, 2)  # as it was


@pytest.mark.parametrize("classes, outputs", BY_POSITION.values(), ids=BY_POSITION)
def test_without_names_the_position_counts_and_is_said(classes, outputs):
    dataset = Pictures(list(classes))
    with pytest.warns(UserWarning, match="outputs have no names: the first is taken for") as said:
        assert match(dataset, classifier(outputs)) is dataset
    assert len(said) == 1


@pytest.mark.parametrize("classes, outputs, sentence", REFUSED.values(), ids=REFUSED)
def test_a_class_without_an_output_is_refused_before_anything_is_computed(
    tmp_path, classes, outputs, sentence
):
    dataset, clf = Pictures(list(classes), n=1), classifier(outputs)
    with tl.counting() as counts, pytest.raises(ValueError, match=sentence) as error:
        tl.evaluate(dataset, clf, ["grad_cam"], tmp_path / "out", step=100, progress=False)
    assert counts["forward images"] == isinstance(outputs, int)  # one pass counts outputs without names
    assert not (tmp_path / "out").exists()
    assert "categories=" in str(error.value) and "\n" not in str(error.value)


def test_outputs_are_counted_on_a_picture_that_can_be_read():
    class Broken(Pictures):
        bad = 0, 1

        def __getitem__(self, i):
            if i in self.bad:
                raise OSError("cut off")
            return super().__getitem__(i)

    dataset = Broken(["a", "b", "c"])
    with pytest.raises(ValueError, match="4 outputs without names"):
        match(dataset, classifier(4))
    dataset.bad = range(3)
    assert match(dataset, classifier(4)) is dataset  # nothing will be measured


# Names of another number than outputs


@pytest.mark.parametrize("names", [19, 21, 1000])
@pytest.mark.parametrize("classes", [[], CLASSES])
def test_names_of_another_number_than_the_outputs_are_refused(tmp_path, names, classes):
    clf = classifier(20)
    clf.categories = [*CLASSES, *(f"more {k}" for k in range(1000))][:names]
    dataset = Pictures(CLASSES[: min(names, 20)])
    dataset.categories = dataset.categories if classes else []
    with pytest.raises(ValueError, match=f"20 outputs and {names:,} names for them.*categories="):
        tl.evaluate(dataset, clf, ["grad_cam"], tmp_path, step=100, progress=False)
    assert not list(tmp_path.iterdir())


# What evaluate measures


def rows_of(dataset, clf, out, metrics, **settings):
    settings = {"step": 200, "progress": False, "chunk": 4} | settings
    return tl.evaluate(dataset, clf, ["grad_cam", "centre"], out, metrics=metrics, **settings)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("what", ["outputs", "classes", "some outputs more", "subset"])
@pytest.mark.parametrize("metric", [name for name in METRICS if name != "sanity"])
def test_another_order_changes_the_index_and_no_number(tmp_path, metric, what, activation):
    """Outputs in another order with their names, or classes: the same rows, but for the class's index."""
    names, order = ["ant", "bee", "cow", "dog"], [2, 0, 3, 1]
    plain, clf = Pictures(names), classifier(names, activation)
    expected = rows_of(plain, clf, tmp_path, (metric,))
    if what == "classes":

        class Turned(Pictures):
            def __getitem__(self, i):
                sample = super().__getitem__(i)
                sample.classes = tuple(order.index(c) for c in sample.classes)
                for masks in ("masks", "pixel_masks"):
                    setattr(sample, masks, {order.index(c): m for c, m in getattr(sample, masks).items()})
                return sample

        dataset = Turned([names[k] for k in order], n=4)
        place = dict(enumerate(range(4)))
    elif what == "some outputs more":
        dataset, clf = Pictures(names[:3], n=4), classifier(names, activation)
        expected = expected[expected["id"] != "picture-3"]
        dataset.ids = dataset.ids[:3]
        place = dict(enumerate(range(4)))
    else:
        dataset, clf = plain, classifier(names, activation, order)
        place = {k: order.index(k) for k in range(4)}
        if what == "subset":
            dataset = Subset(plain, plain.ids[::-1])
            ids = pd.CategoricalIndex(expected["id"], categories=plain.ids[::-1], ordered=True)
            expected = expected.assign(id=ids).sort_values("id", kind="stable").astype({"id": str})
    found = rows_of(dataset, clf, tmp_path, (metric,))
    assert found.attrs["run"] != expected.attrs.get("run")
    keys = ["id", "class", "method"]
    a = expected.assign(**{"class": expected["class"].map(place)}).set_index(keys).sort_index()
    b = found.set_index(keys).sort_index()
    columns = [c for c in a if c not in ("spent", "passes", "area")]
    pd.testing.assert_frame_equal(a[columns], b[columns], rtol=1e-4, atol=1e-5)
    assert set(a["correct"]) == {True, False} or metric != "insertion_deletion"


def test_correct_and_first_choice_are_of_the_right_output(tmp_path):
    """Computed here by name, picture by picture."""
    names = ["ant", "bee", "cow", "dog"]
    dataset, clf = Pictures(names), classifier(["zebra", *names[::-1]])
    rows = rows_of(dataset, clf, tmp_path, ("pointing_game", "insertion_deletion"))
    for _, row in rows.iterrows():
        sample = dataset[dataset.ids.index(row["id"])]
        probabilities = clf.probabilities(clf.normalise(sample.pixels[None]))[0]
        name = clf.categories[row["class"]]
        assert name in [names[c] for c in sample.classes] and row["correct"]
        assert row["first_choice"] == (name == clf.categories[int(probabilities.argmax())])
        assert row["probability"] == pytest.approx(float(probabilities[row["class"]]), abs=1e-5)
        assert row["boxes"] == pytest.approx(float(sample.masks[names.index(name)].float().mean()))
    predicted = rows_of(dataset, clf, tmp_path, ("insertion_deletion",)).drop_duplicates("id").set_index("id")
    for i, name in enumerate(dataset.ids):
        images = clf.normalise(dataset[i].pixels[None])
        shown = [names[c] for c in dataset[i].classes]
        assert predicted.loc[name, "correct"] == (clf.categories[int(clf.predict(images))] in shown)


@pytest.mark.parametrize("called", ["by WNID", "by number"])
@pytest.mark.parametrize("case", ["stray", "half", "renamed"])
def test_class_folders_of_which_some_are_missing_or_none(tmp_path, case, called):
    """A stray folder, half of them: the accuracy is that of the same pictures by their folders' classes."""
    clf, classes = tl.load_classifier("vgg19_cutouts", device="cpu"), {}
    if called == "by number":  # the network's outputs have the names alone, the folders "04_toucan"
        clf.categories = list(cutouts.classes().values())
    for k, (wnid, name) in enumerate(cutouts.classes().items()):
        if case == "half" and k < 25:
            continue
        number = "" if case == "renamed" else f"{k:02d}_"
        wording = f"-{name.upper()}" if case == "renamed" else ""
        folder = number + name.upper() if called == "by number" else wnid + wording
        shutil.copytree(CUTOUTS / "ILSVRC2012/val" / wnid, tmp_path / "val" / folder)
        classes[folder] = k
    if case == "stray":
        (tmp_path / "val/00_readme").mkdir()
    dataset = ImageNet(tmp_path)
    rows = tl.evaluate(dataset, clf, ["grad_cam"], tmp_path / "out", limit=6, step=25088, progress=False)
    truth = []
    for path, _ in dataset.items[:6]:
        index = dataset.ids.index(path.stem)
        predicted = int(clf.predict(clf.normalise(dataset[index].pixels[None])))
        truth.append(predicted == classes[path.parent.name])
    assert rows["correct"].tolist() == truth and np.mean(truth) > 0.6
    if case == "stray":
        assert rows["correct"].mean() == pytest.approx(5 / 6)  # as without it


def test_a_real_network_of_imagenet(tmp_path):
    """Its labels are looked up by WNID, names and all; VOC's twenty are refused without a pass."""
    tree = trees.imagenet(tmp_path / "tree", 3, ugly=False)
    clf = tl.load_classifier("squeezenet1_1", weights="random", device="cpu")
    dataset = match(ImageNet(tree.root), clf)
    words = dict(trees.SYNSETS)
    for i, (path, _) in enumerate(ImageNet(tree.root).items):
        (k,) = dataset[i].classes
        assert clf.categories[k] in words[path.parent.name] and dataset.categories[k] == clf.categories[k]
    voc = open_dataset("voc2007", trees.voc(tmp_path / "voc", 2, ugly=False).root)
    with (
        tl.counting() as counts,
        pytest.raises(ValueError, match="20 of the dataset's 20 classes.*'aeroplane'"),
    ):
        tl.evaluate(voc, clf, ["grad_cam"], tmp_path / "out", metrics="pointing_game", progress=False)
    assert counts["forward images"] == 0
    folder = Folder(tree.root)
    assert match(folder, clf) is folder


@pytest.mark.parametrize("name, network", [("cutouts_scenes", "vgg19_cutouts_scenes"), ("cutouts_scenes_coco", "vit_cutouts_scenes"),
                                           ("cutouts_occurrences", "vgg19_cutouts"), ("cutouts", "vgg19_cutouts"),
                                           ("cutouts", "vit_cutouts")])  # fmt: skip
def test_what_belongs_together_stays_as_it_is(name, network):
    """No run's key changes where the classes are the outputs."""
    dataset = open_dataset(name)
    assert match(dataset, tl.load_classifier(network, device="cpu")) is dataset


def test_the_plans_tables_are_measured_as_before():
    pairs = {(p.dataset, p.network): p for p in record.PLAN}
    for part in pairs.values():
        data = part.data()
        assert match(data, tl.load_classifier(part.network, device="cpu")) is data


# What names a run


def test_another_mapping_is_another_run_and_none_is_none(tmp_path):
    names = ["ant", "bee", "cow", "dog"]
    dataset, plain = Pictures(names), classifier(names)

    def run(clf, data=dataset, **settings):
        rows = rows_of(data, clf, tmp_path, ("insertion_deletion",), **settings)
        return Path(rows.attrs["run"]), rows

    turned = tl.Classifier(plain.network, layer="1", categories=names[::-1], name="small")
    (one, first), (other, second) = run(plain), run(turned)
    assert not other.name.startswith(one.name)
    assert first["correct"].tolist() != second["correct"].tolist()
    settings = {k: files.manifest(run)["settings"]["dataset"] for k, run in (("one", one), ("other", other))}
    assert settings["other"]["classes"] == {"ant": 3, "bee": 2, "cow": 1, "dog": 0}
    assert "classes" not in settings["one"] and settings["other"]["name"] == "Pictures"
    assert json.dumps(settings)
    # Goes on where it stopped, and a subset of the dataset is named and mapped likewise.
    (other / "chunk-000000.parquet").unlink()
    again, rows = run(turned)
    assert again == other
    pd.testing.assert_frame_equal(rows, second)
    part, some = run(turned, Subset(dataset, dataset.ids[:2], seed=3))
    assert some["correct"].tolist() == second["correct"].tolist()[: len(some)]
    assert files.manifest(part)["seed"] == 3


def test_on_a_cluster_as_here(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
    names = ["ant", "bee", "cow", "dog"]
    dataset, clf = Pictures(names), classifier(["zebra", *names[::-1]])
    here = rows_of(dataset, clf, tmp_path / "here", ("pointing_game",))
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, processes=False) as cluster:
        there = rows_of(
            dataset,
            clf,
            tmp_path / "there",
            ("pointing_game",),
            engine="dask",
            scheduler=cluster.scheduler_address,
        )
    pd.testing.assert_frame_equal(here, there)
    assert Path(here.attrs["run"]).name == Path(there.attrs["run"]).name


def test_a_mapped_dataset_travels():
    dataset = match(Pictures(["bee", "ant"]), classifier(["ant", "bee", "cow"]))
    again = pickle.loads(pickle.dumps(dataset))
    assert again[0].classes == dataset[0].classes == (1,) and again.ids == dataset.ids


# Said before the first pass


CALLS = {  # situation: (what is changed, error, what the sentence says)
    "step of nothing": ({"step": 0}, ValueError, "step is a whole number, 1 or more, not 0"),
    "step below": ({"step": -448}, ValueError, "step is a whole number"),
    "step in part": ({"step": 44.8}, TypeError, "step is a whole number"),
    "step as text": ({"step": "448"}, TypeError, "not '448'"),
    "step of the whole picture": ({"step": SIZE * SIZE}, ValueError, "step is 1,024 pixels, and a picture has 1,024"),
    "step beyond": ({"step": 5000, "metrics": ("pointing_game", "insertion_deletion")}, ValueError, "step is 5,000 pixels"),
    "limit of nothing": ({"limit": 0}, ValueError, "limit is a whole number, 1 or more, not 0"),
    "limit below": ({"limit": -3}, ValueError, "limit is a whole number"),
    "limit in part": ({"limit": 1.5}, TypeError, "limit is a whole number"),
    "chunk of nothing": ({"chunk": 0}, ValueError, "chunk is a whole number, 1 or more, not 0"),
    "chunk below": ({"chunk": -1}, ValueError, "chunk is a whole number"),
    "no such metric": ({"metrics": "insertion"}, ValueError, "metrics must be among"),
    "no metric": ({"metrics": ()}, ValueError, "metrics must be among"),
    "no such method": ({"methods": ["gradcam"]}, ValueError, "no method is called 'gradcam'; did you mean 'grad_cam'"),
    "no method": ({"methods": []}, ValueError, "there is no method to measure"),
    "no method by name": ({"methods": {}}, ValueError, "there is no method to measure"),
    "a method that is a name": ({"methods": {"mine": "grad_cam"}}, TypeError, "'mine' is no function but 'grad_cam'"),
    "a method that is none": ({"methods": {"mine": None}}, TypeError, "'mine' is no function but None"),
    "a method that is a map": ({"methods": {"mine": torch.zeros(2)}}, TypeError, "'mine' is no function"),
    "a setting out of range": ({"methods": {"mine": functools.partial(tl.METHODS["group_cam"], theta=170)}}, ValueError, "theta"),
    "a setting that is none": ({"methods": {"mine": functools.partial(tl.METHODS["group_cam"], group=3)}}, TypeError, "no setting 'group'"),
    "no such engine": ({"engine": "ray"}, ValueError, 'engine must be "local" or "dask"'),
    "a scheduler for the local engine": ({"scheduler": "tcp://host:1"}, ValueError, 'is for engine="dask"'),
    "a scheduler that is none": ({"engine": "dask", "scheduler": 5}, TypeError, "(?i)scheduler"),
    "another device": ({"device": "cuda"}, ValueError, "load it there"),
    "no such dataset": ({"dataset": "cutout"}, ValueError, "no dataset is called 'cutout'"),
    "a list for a dataset": ({"dataset": [1, 2]}, TypeError, "list is no dataset"),
    "a folder for a dataset": ({"dataset": Path("pictures")}, TypeError, "is no dataset: give a name"),
    "a network for a classifier": ({"clf": nn.Conv2d(3, 1, 1)}, TypeError, r"Conv2d is no classifier: give tl.Classifier\(network\)"),
    "out in a file": ({"out": Path(__file__) / "runs"}, OSError, "no run can be written to out"),
    "out that is a file": ({"out": Path(__file__)}, OSError, "no run can be written to out"),
    "out where nothing can be": ({"out": "/proc/runs"}, OSError, "no run can be written to out"),
}  # fmt: skip


@pytest.mark.parametrize("change, kind, sentence", CALLS.values(), ids=CALLS)
def test_what_is_wrong_with_a_call_is_said_before_the_first_pass(tmp_path, change, kind, sentence):
    names = ["ant", "bee", "cow", "dog"]
    call = {
        "dataset": Pictures(names),
        "clf": classifier(names),
        "methods": ["grad_cam"],
        "out": tmp_path / "out",
    }
    call |= {"step": 200, "progress": False} | change
    if call.get("engine") == "dask":
        pytest.importorskip("distributed", reason="needs the extra `cluster`")
    with tl.counting() as counts, pytest.raises(kind, match=sentence) as error:
        tl.evaluate(call.pop("dataset"), call.pop("clf"), call.pop("methods"), **call)
    assert counts["forward images"] == 0 and "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_nobody_at_the_schedulers_address(tmp_path):
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    import dask

    names = ["ant", "bee"]
    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}), tl.counting() as counts:
        with pytest.raises(OSError, match="127.0.0.1:1"):
            tl.evaluate(
                Pictures(names), classifier(names), ["grad_cam"], tmp_path, step=200, progress=False,
                engine="dask", scheduler="tcp://127.0.0.1:1",
            )  # fmt: skip
    assert counts["forward images"] == 0 and not list(tmp_path.iterdir())


def test_a_finished_run_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    names = ["ant", "bee"]

    def run():
        return rows_of(Pictures(names), classifier(names), tmp_path, ("insertion_deletion",))

    first = run()

    def full(*arguments, **settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    pd.testing.assert_frame_equal(run(), first)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32])
def test_whole_numbers_of_any_kind_are_one_run(tmp_path, kind):
    names = ["ant", "bee"]
    settings = {"step": kind(200), "chunk": kind(2), "limit": kind(1)}
    rows = rows_of(Pictures(names), classifier(names), tmp_path, "insertion_deletion", **settings)
    plain = rows_of(
        Pictures(names), classifier(names), tmp_path, "insertion_deletion", step=200, chunk=2, limit=1
    )
    assert rows.attrs["run"] == plain.attrs["run"]


def test_one_method_by_name(tmp_path):
    names = ["ant", "bee"]
    rows = tl.evaluate(Pictures(names), classifier(names), "grad_cam", tmp_path, step=200, progress=False)
    assert rows["method"].unique().tolist() == ["grad_cam"]


# What the doctor says of class folders


@pytest.mark.parametrize(
    "folders, kit, fault",
    [
        (WNIDS[:10], False, ""),
        (WNIDS, False, ""),
        ([f"{WNIDS[0]}-tench"], False, ""),
        (["tench", "goldfish"], False, "2 class folders of other names than WNIDs"),
        ([*WNIDS[:3], "images"], False, "4 class folders of other names"),
        (["images"], True, ""),
        ([], False, "0 class folders"),
    ],
)
def test_class_folders_that_are_wnids_are_no_fault(tmp_path, folders, kit, fault):
    (tmp_path / "val/00_readme").mkdir(parents=True)
    (tmp_path / "val/.hidden").mkdir()
    for name in folders:
        (tmp_path / "val" / name).mkdir()
        (tmp_path / "val" / name / "1.JPEG").touch()
    if kit:
        (tmp_path / "ILSVRC2012_devkit_t12/data").mkdir(parents=True)
        for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
            (tmp_path / "ILSVRC2012_devkit_t12/data" / name).touch()
    found = _lacks_classes(tmp_path)
    assert fault in found and bool(found) == bool(fault)
