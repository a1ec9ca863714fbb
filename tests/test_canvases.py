"""Deletion onto other canvases, against the library's own on its canvas and against the loop read aloud."""

import pytest
import torch
from test_insertion_deletion import Share, classifier, data

from thesis_lib.classifier import Classifier
from thesis_lib.counts import counting
from thesis_lib.kernels import blur
from thesis_lib.metrics import METRICS, deletion_onto, insertion_deletion
from thesis_lib.metrics.base import Rounds
from thesis_lib.metrics.canvases import CANVASES


@torch.no_grad()
def literal(clf, image, saliency, canvas, target, step):
    """One frame at a time: the strongest pixels of the picture are the canvas's."""
    height, width = saliency.shape
    order = sorted(range(height * width), key=lambda p: -float(saliency.flatten()[p]))
    area, before = 0.0, None
    done = 0
    while True:
        frame = image.clone()
        for p in order[:done]:
            frame[:, p // width, p % width] = canvas[:, p // width, p % width]
        now = float(clf.network(frame[None]).softmax(1)[0, target])
        if before is not None:
            area += (now + before[0]) / 2 * (done - before[1]) / (height * width)
        before = now, done
        if done == height * width:
            return area
        done = min(done + step, height * width)


@pytest.mark.parametrize("step", [66, 200])
def test_equals_the_literal_loop_on_any_canvas(step):
    clf, (images, maps) = classifier(), data()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=images.dtype)
    predicted = clf.predict(images)
    for canvas in (blur(images), torch.zeros_like(images), noise):
        found = deletion_onto(clf, images, maps, canvas, step=step)
        for i in range(3):
            expected = literal(clf, images[i], maps[i], canvas[i], predicted[i], step)
            assert found[i].item() == pytest.approx(expected, rel=1e-9)


def test_on_the_blurred_picture_it_is_the_librarys_deletion():
    clf, (images, maps) = classifier(batch=5), data()
    for classes in (None, [3, 0, 1]):
        expected = insertion_deletion(clf, images, maps, classes, step=100).deletion_auc
        assert deletion_onto(clf, images, maps, blur(images), classes, step=100).allclose(expected, rtol=1e-9)


def test_by_hand_where_the_probability_is_the_share_of_bright_pixels():
    clf = Classifier(Share().double(), layer="layer", activation="sigmoid")
    bright, dark = (torch.full((1, 1, 32, 32), value, dtype=torch.float64) for value in (1.0, 0.0))
    maps = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert deletion_onto(clf, bright, maps, dark, 0, step=64).item() == pytest.approx(0.5, abs=1e-6)
    assert deletion_onto(clf, bright, maps, bright, 0, step=64).item() == pytest.approx(1, abs=1e-6)


def test_one_canvas_for_all_and_what_it_costs():
    clf, (images, maps) = classifier(), data()
    zeros = torch.zeros_like(images)
    with counting() as counts:
        one = deletion_onto(clf, images, maps, zeros[:1], [0, 0, 0], step=100)
    assert one.equal(deletion_onto(clf, images, maps, zeros, [0, 0, 0], step=100))
    assert counts["forward images"] == 3 * 12  # the intact one, and of 924 pixels 0, 100, ..., 900, 924


def test_bad_input():
    clf, (images, maps) = classifier(), data()
    zeros = torch.zeros_like(images)
    for canvas, sentence in (
        (zeros[:2], "as large as the images"), (zeros[..., :-1], "as large as the images"),
        (zeros + torch.nan, "NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            deletion_onto(clf, images, maps, canvas)
    with pytest.raises(ValueError, match="step"):
        deletion_onto(clf, images, maps, zeros, step=924)
    with pytest.raises(ValueError, match="maps must be"):
        deletion_onto(clf, images, maps[:, 1:], zeros)
    with pytest.raises(IndexError):
        deletion_onto(clf, images, maps, zeros, 9)


def test_rows_have_a_column_for_each_canvas():
    clf, (images, maps) = classifier(), data()
    classes = clf.predict(images)
    rounds = Rounds(clf, images, classes, [], classes, step=200)
    found = METRICS["canvases"].function(rounds, None, maps)
    assert list(found) == list(METRICS["canvases"].columns) == [f"deletion_{name}" for name in CANVASES]
    expected = deletion_onto(clf, images, maps, torch.zeros_like(images), classes, 200)
    assert torch.from_numpy(found["deletion_mean"]).equal(expected)
