import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thesis_lib.classifier import Classifier
from thesis_lib.counts import counting
from thesis_lib.kernels import blur
from thesis_lib.metrics.insertion_deletion import insertion_deletion, tied_pixels

torch.set_num_threads(1)


class Share(nn.Module):
    """A network to work out by hand: its probabilities (sigmoid) are the share of bright pixels
    and one minus that."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, images):
        share = (self.layer(images) > 0.5).to(images.dtype).mean((1, 2, 3))
        return torch.stack([share, 1 - share], 1).logit(eps=1e-9)


def small_cnn(seed=0, classes=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, stride=2),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
        for parameter in network.parameters():
            parameter.data *= 3  # so that the probabilities differ between frames
    return network.double()


def classifier(batch=16, **settings):
    return Classifier(small_cnn(**settings), layer="3", batch=batch)


def data(n=3, height=28, width=33, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64)
    maps = torch.rand(n, height, width, generator=generator).round(decimals=2)  # with ties
    return images, maps


def literal(clf, image, saliency, target, step):
    """Section 3.4.4 read aloud, one image, one frame at a time."""
    height, width = saliency.shape
    canvas = blur(image[None])[0]
    order = sorted(range(height * width), key=lambda p: -float(saliency.flatten()[p]))
    curves, fractions = [], []
    for start, end in ((canvas, image), (image, canvas)):
        frame, curve, fractions = start.clone(), [], []
        done = 0
        while True:
            curve.append(float(clf.network(frame[None]).softmax(1)[0, target]))
            fractions.append(done / (height * width))
            if done == height * width:
                break
            for p in order[done : done + step]:
                frame[:, p // width, p % width] = end[:, p // width, p % width]
            done = min(done + step, height * width)
        curves.append(curve)
    return curves, [np.trapezoid(curve, fractions) for curve in curves]


@pytest.mark.parametrize("step", [66, 100, 923])
@torch.no_grad()
def test_equals_the_literal_loop(step):
    clf, (images, maps) = classifier(), data()
    result = insertion_deletion(clf, images, maps, step=step)
    predicted = clf.network(images).argmax(1)
    assert result.classes.equal(predicted)
    for i in range(3):
        curves, areas = literal(clf, images[i], maps[i], predicted[i], step)
        assert result.insertion[i].tolist() == pytest.approx(curves[0], rel=1e-9)
        assert result.deletion[i].tolist() == pytest.approx(curves[1], rel=1e-9)
        assert result.insertion_auc[i].item() == pytest.approx(areas[0], rel=1e-9)
        assert result.deletion_auc[i].item() == pytest.approx(areas[1], rel=1e-9)
        assert result.overall[i].item() == pytest.approx(areas[0] - areas[1], rel=1e-9)


def test_given_classes():
    clf, (images, maps) = classifier(), data()
    several = insertion_deletion(clf, images, maps, [3, 0, 1], step=200)
    assert several.classes.tolist() == [3, 0, 1]
    alone = insertion_deletion(clf, images[1:2], maps[1:2], 0, step=200)
    torch.testing.assert_close(several.insertion[1:2], alone.insertion)
    torch.testing.assert_close(several.deletion_auc[1:2], alone.deletion_auc)


def test_areas_in_closed_form():
    # The canvas of a constant image is the image itself: nothing changes, the area is the
    # probability. Of the share of bright pixels in a chequered image the canvas has none.
    clf = Classifier(Share().double(), layer="layer", activation="sigmoid")
    constant = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    result = insertion_deletion(clf, constant, torch.rand(1, 32, 32), 0, step=32)
    assert result.insertion_auc.item() == pytest.approx(1)
    assert result.overall.item() == pytest.approx(0)

    chequered = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    image = 0.9 * chequered.double()[None, None]  # blurred to 0.45: dark everywhere
    assert (blur(image) < 0.5).all()
    # Bright pixels first: insertion rises linearly to 1/2 at half the pixels and stays there,
    # deletion falls in the same way. Areas: 1/8 + 1/4 and 1/8.
    best = insertion_deletion(clf, image, chequered[None].float(), 0, step=16)
    assert best.insertion_auc.item() == pytest.approx(3 / 8)
    assert best.deletion_auc.item() == pytest.approx(1 / 8)
    assert best.overall.item() == pytest.approx(1 / 4)
    # The worst order exchanges the two.
    worst = insertion_deletion(clf, image, 1 - chequered[None].float(), 0, step=16)
    assert worst.overall.item() == pytest.approx(-1 / 4)
    # Of 1 - share the areas are those of the complement.
    other = insertion_deletion(clf, image, chequered[None].float(), 1, step=16)
    assert other.insertion_auc.item() == pytest.approx(5 / 8)


def test_the_true_fractions_count_when_the_step_does_not_divide():
    clf, (images, maps) = classifier(), data(1)
    result = insertion_deletion(clf, images, maps, step=800)  # 924 pixels: 0, 800, 924
    assert result.fractions.tolist() == pytest.approx([0, 800 / 924, 1])
    a, b, c = result.insertion[0].tolist()
    expected = 800 / 924 * (a + b) / 2 + 124 / 924 * (b + c) / 2
    assert result.insertion_auc.item() == pytest.approx(expected, rel=1e-12)


def test_the_thesis_step_gives_113_points():
    clf = Classifier(Share(), layer="layer", activation="sigmoid")
    with counting() as counts:
        result = insertion_deletion(clf, torch.rand(1, 1, 224, 224), torch.rand(1, 224, 224))
    assert result.insertion.shape == result.deletion.shape == (1, 113)
    assert counts["forward images"] == 2 * 113 - 2


@pytest.mark.parametrize("batch", [1, 4, 7, 1000])
def test_any_batch_gives_the_same(batch):
    images, maps = data(4)
    expected = insertion_deletion(classifier(16), images, maps, step=90)
    with counting() as counts:
        result = insertion_deletion(classifier(batch), images, maps, step=90)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)
    points = result.insertion.shape[1]
    assert points == 12
    assert counts["forward images"] == 4 * (2 * points - 2)


def test_passes_are_full_and_frames_are_made_pass_by_pass(monkeypatch):
    clf, sizes, passes = classifier(10), [], []
    clf.network.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    scores = clf.scores

    def noted(frames, *settings):
        sizes.append(len(frames))
        return scores(frames, *settings)

    monkeypatch.setattr(clf, "scores", noted)
    images, maps = data(3)
    insertion_deletion(clf, images, maps, step=90)
    assert passes == [3, 3] + [10] * 6  # intact, canvas, then 3 x 2 x 10 frames
    assert sizes == passes[1:]


def test_end_points_are_shared_and_the_blur_is_made_once(monkeypatch):
    calls = []

    def counted(images):
        calls.append(len(images))
        return blur(images)

    monkeypatch.setattr(sys.modules[insertion_deletion.__module__], "blur", counted)
    clf, (images, maps) = classifier(), data()
    result = insertion_deletion(clf, images, maps, step=100)
    assert calls == [3]
    assert result.insertion[:, -1].equal(result.deletion[:, 0])
    assert result.insertion[:, 0].equal(result.deletion[:, -1])
    intact = clf.probabilities(images).gather(1, result.classes[:, None])[:, 0]
    torch.testing.assert_close(result.insertion[:, -1], intact)


def test_only_the_order_of_the_map_counts():
    clf, (images, maps) = classifier(), data()
    expected = insertion_deletion(clf, images, maps, step=100)
    result = insertion_deletion(clf, images, 5 * maps.double() ** 3 - 7, step=100)
    assert result.insertion.equal(expected.insertion)


def test_ties():
    maps = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    assert tied_pixels(maps).tolist() == [5, 0]
    assert tied_pixels(torch.zeros(1, 4, 5)).tolist() == [20]
    clf, (images, _) = classifier(), data(1)
    # A flat map goes in reading order, and so does one that falls along the reading order.
    falling = -torch.arange(28 * 33).view(1, 28, 33).float()
    with counting() as counts:
        flat = insertion_deletion(clf, images, torch.zeros(1, 28, 33), step=100)
    ordered = insertion_deletion(clf, images, falling, step=100)
    assert flat.insertion.equal(ordered.insertion)
    assert (flat.tied.item(), ordered.tied.item()) == (28 * 33, 0)
    assert counts["tied pixels"] == 28 * 33


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.integers(30, 924 - 1), levels=st.integers(1, 50))
def test_bounds(seed, step, levels):
    images, maps = data(2, seed=seed)
    maps = (maps * levels).round()
    result = insertion_deletion(classifier(seed=seed), images, maps, step=step)
    points = -(-924 // step) + 1
    assert result.insertion.shape == result.deletion.shape == (2, points)
    for curve, area in (
        (result.insertion, result.insertion_auc),
        (result.deletion, result.deletion_auc),
    ):
        assert (area >= curve.amin(1) - 1e-9).all() and (area <= curve.amax(1) + 1e-9).all()
        assert (curve >= 0).all() and (curve <= 1).all()
    assert (result.overall.abs() <= 1).all()


def test_float32_network_and_numpy_maps():
    clf = Classifier(small_cnn().float(), layer="3")
    images, maps = data(2)
    result = insertion_deletion(clf, images, maps.numpy(), step=100)  # images float64
    assert result.insertion.dtype == torch.float32
    expected = insertion_deletion(classifier(), images, maps, step=100)
    torch.testing.assert_close(result.insertion.double(), expected.insertion, rtol=1e-4, atol=1e-5)


def test_bad_input():
    clf, (images, maps) = classifier(), data()
    nan = maps.clone()
    nan[1, 3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"images \[1\] hold NaN"):
        insertion_deletion(clf, images, nan)
    with pytest.raises(ValueError, match=r"maps must be \(3, 28, 33\)"):
        insertion_deletion(clf, images, maps.transpose(1, 2))
    with pytest.raises(ValueError, match=r"maps must be \(3, 28, 33\)"):
        insertion_deletion(clf, images, maps[:2])
    for step in (0, -3, 924, 10**9):
        with pytest.raises(ValueError, match=r"step must lie in 1..923"):
            insertion_deletion(clf, images, maps, step=step)
    for classes in (4, -1, [0, 1, 9]):
        with pytest.raises(IndexError, match="out of range"):
            insertion_deletion(clf, images, maps, classes, step=100)
    with pytest.raises(ValueError):
        insertion_deletion(clf, images, maps, [0, 1], step=100)
    with pytest.raises(ValueError, match="at least 26"):
        insertion_deletion(clf, images[:, :, :20, :20], maps[:, :20, :20], step=100)


def test_the_classifier_stays_as_it_was():
    clf, (images, maps) = classifier(), data()
    clf.network.train()
    before = {key: value.clone() for key, value in clf.network.state_dict().items()}
    image, saliency = images.clone(), maps.clone()
    insertion_deletion(clf, images, maps, step=300)
    assert all(module.training for module in clf.network.modules())
    assert all(before[k].equal(v) for k, v in clf.network.state_dict().items())
    assert images.equal(image) and maps.equal(saliency)
