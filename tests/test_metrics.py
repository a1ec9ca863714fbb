"""What every entry of METRICS must do, for one picture and several, for a CNN and a ViT."""

import dataclasses

import networks
import numpy as np
import pytest
import torch
from test_runs import Pictures, classifier, run
from torch import nn

import thesis_lib as tl
from thesis_lib.classifier import Classifier
from thesis_lib.data.datasets import Sample
from thesis_lib.methods.base import explainer
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.measure import measure

SIZE = 32


def cnn():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
    return Classifier(nn.Sequential(*layers), layer="1", name="small")


NETWORKS = {"CNN": (cnn, "grad_cam"), "ViT": (lambda: Classifier(networks.vit()), "gradient_attention")}


def picture(i, known=True):
    """Two classes, left and right; their pixels are known in pictures of even number."""
    pixels = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i))
    left = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    left[4:20, : 16 - i] = True
    masks = {0: left, 2: ~left}
    return Sample(f"picture-{i}", pixels, (0, 2), masks, dict(masks) if known and i % 2 == 0 else {})


def rounds(clf, method, pictures, known=True, classes=(0, 2)):
    """What `measure` would give a metric: each picture with its classes."""
    samples = [picture(i, known) for i in range(pictures) for _ in classes]
    images = clf.prepare(clf.normalise(torch.stack([sample.pixels for sample in samples])))
    classes = torch.tensor([*classes] * pictures)
    maps = tl.METHODS[method](clf, images, classes)
    return Rounds(clf, images, classes, samples, clf.predict(images), step=200), tl.METHODS[method], maps


@pytest.fixture(params=NETWORKS)
def clf_and_method(request):
    maker, method = NETWORKS[request.param]
    return maker(), method


every_metric = pytest.mark.parametrize("name", list(METRICS))


@every_metric
def test_an_entry_says_what_it_is(name):
    entry = METRICS[name]
    assert entry.title and entry.source and entry.explains in ("predicted", "annotated", "masked")
    assert entry.columns and entry.function.__doc__
    for column in entry.columns.values():
        assert column.better in (-1, 0, 1) and column.scale > 0
        assert column.tolerance is None or column.tolerance >= 0
    assert entry.better == {n: c.better for n, c in entry.columns.items() if c.better}
    assert not any(c.better and not c.title for c in entry.columns.values())  # tables show what is better


@every_metric
@pytest.mark.parametrize("pictures", [1, 3])
def test_columns_and_values(name, pictures, clf_and_method):
    clf, method = clf_and_method
    given, explain, maps = rounds(clf, method, pictures)
    before = maps.clone()
    columns = METRICS[name].function(given, explain, maps)
    assert list(columns) == list(METRICS[name].columns)
    for column, values in columns.items():
        assert len(values) == 2 * pictures, column
        numbers = np.stack([np.asarray(value) for value in values])
        assert numbers.dtype.kind in "biuf", f"{column} holds {numbers.dtype}"
        assert not np.isinf(numbers.astype(float)).any(), column
        if not METRICS[name].columns[column].optional:
            assert not np.isnan(numbers.astype(float)).any(), column
    assert maps.equal(before)


@every_metric
def test_what_is_unknown_is_not_a_number(name):
    """Without a mask, or another picture to compare with, a column is NaN, never None or left out."""
    given, explain, maps = rounds(cnn(), "grad_cam", 1, known=False)
    for column, values in METRICS[name].function(given, explain, maps).items():
        numbers = np.stack([np.asarray(value) for value in values])
        assert numbers.dtype.kind in "biuf", column
        if METRICS[name].columns[column].optional:
            assert np.isnan(numbers).all(), column


@every_metric
def test_a_row_depends_on_its_picture_alone(name):
    """Unless the entry says that it compares neighbours; a second measurement is within the tolerance."""
    clf = cnn()
    together = METRICS[name].function(*rounds(clf, "grad_cam", 3, classes=[0]))
    alone = METRICS[name].function(*rounds(clf, "grad_cam", 1, classes=[0]))
    differ = set()
    for column, facts in METRICS[name].columns.items():
        for a, b in zip(together[column][:1], alone[column], strict=True):
            close = np.allclose(
                np.asarray(a, float),
                np.asarray(b, float),
                rtol=0,
                atol=facts.tolerance or 1e-6,
                equal_nan=True,
            )
            differ |= set() if close else {column}
    differ = {column for column in differ if METRICS[name].columns[column].tolerance is not None}
    assert bool(differ) == METRICS[name].neighbours, differ


@every_metric
def test_flat_maps_have_numbers(name):
    given, explain, maps = rounds(cnn(), "grad_cam", 2)

    def flat(clf, images, classes=None):
        return torch.zeros(len(images), SIZE, SIZE)

    for column, values in METRICS[name].function(given, flat, maps * 0).items():
        numbers = np.stack([np.asarray(value, float) for value in values])
        assert not np.isinf(numbers).any(), column


@every_metric
def test_measure_has_its_columns(name):
    rows, left_out = measure([picture(0), picture(2)], cnn(), {"m": tl.METHODS["grad_cam"]}, [name], 200)
    expected = 2 if METRICS[name].explains == "predicted" else 4
    assert len(rows) == expected and not left_out
    assert {"id", "class", "method", "probability", "correct", *METRICS[name].columns} <= set(rows)


@explainer()
def brightest(clf, images, classes=None, *, batch=None):
    return clf.denormalise(images).mean(1)


def test_a_metric_that_is_registered_is_measured(tmp_path, monkeypatch):
    """One entry, and `measure` and `tl.evaluate` have it; of two that explain, the annotated class decides."""
    registered = dict(METRICS)

    @METRICS.entry(
        "brightness of the map",
        source="this test",
        columns={"brightness": Column("brightness", +1), "number": Column(tolerance=None)},
    )
    def brightness_rows(rounds, method, maps):
        """The map's mean, and the class's index."""
        return {"brightness": maps.mean((1, 2)).cpu().numpy(), "number": rounds.classes.cpu().numpy()}

    try:
        assert METRICS.columns["brightness"].better == +1
        rows = run(tmp_path, methods={"mine": brightest}, metrics=["brightness"])
        assert len(rows) == 7 and (rows["number"] == rows["class"]).all()
        clf, sample = classifier(), Pictures()[3]
        images = clf.normalise(sample.pixels[None])
        expected = float(brightest(clf, images).mean())
        assert rows.set_index("id").loc["picture-3", "brightness"] == pytest.approx(expected, abs=1e-6)
        both = run(tmp_path, methods={"mine": brightest}, metrics=["brightness", "pointing_game"])
        assert len(both) == 14 and {"brightness", "hits"} <= set(both)
        changed = dataclasses.replace(METRICS["brightness"], explains="annotated")
        monkeypatch.setitem(METRICS, "brightness", changed)
        again = run(tmp_path, methods={"mine": brightest}, metrics=["brightness"])
        assert len(again) == 14 and len(list(tmp_path.iterdir())) == 3
        monkeypatch.undo()
    finally:
        METRICS.pop("brightness")
    assert dict(METRICS) == registered
