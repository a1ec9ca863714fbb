"""Several things of one class: shares that are known by hand, and what has none."""

import numpy as np
import pytest
import torch

import thesis_lib as tl
from thesis_lib.data.datasets import Sample
from thesis_lib.data.match import match
from thesis_lib.metrics import METRICS, occurrences
from thesis_lib.metrics.base import Rounds


def square(top, left, side=20, size=60):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


LEFT, RIGHT, LARGE = square(5, 5), square(5, 35), square(28, 5, 30)


def one(saliency, *things):
    return {
        key: float(values[0]) for key, values in occurrences(saliency[None], [torch.stack(things)]).items()
    }


def test_the_exact_mask_marks_all_alike_whatever_their_sizes():
    found = one((LEFT | LARGE).float(), LEFT, LARGE)
    assert found["things"] == 2
    assert found["least_energy"] == pytest.approx(400 / 1300)
    assert found["most_energy"] == pytest.approx(900 / 1300)
    assert found["evenness"] == pytest.approx(1) and found["found"] == 1


def test_one_of_two_alone():
    found = one(LEFT.float(), LEFT, RIGHT)
    assert found == {
        "things": 2, "least_energy": 0, "most_energy": 1, "evenness": 0, "least_points": 0, "most_points": 100,
        "found": 0.5, "found_by_points": 0.5,
    }  # fmt: skip


def test_a_weaker_one_is_found_above_half_the_maximum_only():
    for value, share in ((0.6, 1), (0.5, 0.5), (0.4, 0.5)):
        found = one(LEFT + value * RIGHT, LEFT, RIGHT)
        assert found["found"] == share and found["evenness"] == pytest.approx(value)
        assert found["least_energy"] == pytest.approx(value / (1 + value))


def test_points_by_hand_on_three():
    saliency = torch.zeros(60, 60)
    saliency[5:11, 5:15] = 3  # 60 points on the left one
    saliency[5:10, 35:42] = 2  # 35 on the right one
    saliency[0, :5] = 1  # 5 on none
    found = one(saliency, LEFT, RIGHT, LARGE)
    assert (found["least_points"], found["most_points"]) == (0, 60)
    assert found["found_by_points"] == pytest.approx(2 / 3)
    assert found["things"] == 3 and found["least_energy"] == 0
    assert found["most_energy"] == pytest.approx(180 / 255)


def test_a_map_that_covers_everything_has_even_things_and_little_on_each():
    found = one(torch.ones(60, 60), LEFT, LARGE)
    assert found["evenness"] == 1 and found["found"] == 1
    assert found["least_energy"] == pytest.approx(400 / 3600)


def test_a_map_of_zeros_shows_nothing():
    found = one(torch.zeros(60, 60), LEFT, RIGHT)
    assert [found[key] for key in ("least_energy", "most_energy", "evenness", "found", "least_points")] == [
        0
    ] * 5


def test_a_map_alone_is_as_in_a_batch():
    maps = torch.rand(2, 60, 60, generator=torch.Generator().manual_seed(0))
    things = [torch.stack([LEFT, RIGHT]), torch.stack([LEFT, RIGHT, LARGE])]
    both = occurrences(maps, things)
    for i in range(2):
        alone = occurrences(maps[[i]], [things[i]])
        assert all(alone[key][0] == both[key][i] for key in both)


@pytest.mark.parametrize(
    ("maps", "things", "sentence"),
    [
        (torch.ones(1, 60, 60), [LEFT[None]], "two or more"),
        (torch.ones(2, 60, 60), [torch.stack([LEFT, RIGHT])], "2 maps and the things of 1"),
        (torch.ones(1, 60, 60), [torch.stack([LEFT, LEFT & RIGHT])], "are empty"),
        (torch.ones(1, 60, 50), [torch.stack([LEFT, RIGHT])], "maps must be"),
        (torch.ones(1, 60, 60), [torch.stack([LEFT, RIGHT]).float()], "bool"),
        (-torch.ones(1, 60, 60), [torch.stack([LEFT, RIGHT])], "negative"),
        (torch.full((1, 60, 60), torch.nan), [torch.stack([LEFT, RIGHT])], "NaN"),
    ],
)
def test_bad_input(maps, things, sentence):
    with pytest.raises(ValueError, match=sentence):
        occurrences(maps, things)


def test_rows_have_no_value_where_two_things_are_not_known():
    outlined = [{3: torch.stack([LEFT, RIGHT])}, {3: LEFT[None]}, {}, {3: torch.stack([LEFT, LEFT & RIGHT])}]
    samples = [
        Sample(str(i), torch.zeros(3, 60, 60), (3,), things=things) for i, things in enumerate(outlined)
    ]
    rounds = Rounds(None, None, torch.full((4,), 3), samples, None)
    found = METRICS["occurrences"].function(rounds, None, LEFT.float().expand(4, -1, -1))
    assert found.keys() == METRICS["occurrences"].columns.keys()
    for key, values in found.items():
        assert np.isnan(values).tolist() == [False, True, True, True], key
    assert found["most_energy"][0] == 1


def test_the_embedded_pictures_have_two_or_three_things_each():
    data = tl.open_dataset("cutouts_occurrences")
    numbers = []
    for sample in (data[i] for i in range(len(data))):
        (c,) = sample.classes
        things = sample.things[c]
        assert things.shape[1:] == sample.pixels.shape[1:] and things.flatten(1).any(1).all()
        assert torch.equal(things.any(0), sample.pixel_masks[c]) and things.sum(0).max() == 1  # none overlaps
        numbers.append(len(things))
    assert set(numbers) == {2, 3} and len(numbers) == 51


def test_things_go_with_their_class_where_the_outputs_are_in_another_order():
    plain, clf = tl.open_dataset("cutouts_occurrences"), tl.load_classifier("vgg19_cutouts", device="cpu")
    reverse = tl.Classifier(clf.network, layer=clf.layer, categories=clf.categories[::-1])
    (c,), (turned,) = plain[3].classes, match(plain, reverse)[3].classes
    assert turned == len(clf.categories) - 1 - c
    assert torch.equal(match(plain, reverse)[3].things[turned], plain[3].things[c])
