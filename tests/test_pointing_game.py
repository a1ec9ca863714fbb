import functools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis_lib.metrics.pointing_game import (
    energy_inside,
    grow,
    mean_over_classes,
    pointing_game,
)


def box(height, width, y0, x0, y1, x1):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_hand_computed():
    maps = torch.tensor([[[9.0, 8.0, 1.0], [7.0, 0.0, 6.0]]])
    masks = torch.tensor([[[True, False, True], [True, False, False]]])
    expected = {1: (1, 0), 2: (1, 1), 3: (2, 1), 4: (2, 2), 5: (3, 2), 6: (3, 3)}
    for points, result in expected.items():
        hits, misses = pointing_game(maps, masks, points)
        assert (hits.item(), misses.item()) == result


def test_ties_go_in_reading_order():
    maps = torch.zeros(1, 20, 30)
    top, bottom = box(20, 30, 0, 0, 10, 30)[None], box(20, 30, 10, 0, 20, 30)[None]
    assert pointing_game(maps, top)[0].item() == 100
    assert pointing_game(maps, bottom)[0].item() == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_box_hits_equal_a_sorted_list(data):
    height, width = data.draw(st.integers(2, 24)), data.draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    levels = data.draw(st.integers(1, 30))  # few levels: many ties
    maps = torch.randint(levels, (2, height, width), generator=generator).float()
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    points = data.draw(st.integers(1, height * width))
    hits, misses = pointing_game(maps, box(height, width, y0, x0, y1, x1).expand(2, -1, -1), points)
    assert (hits + misses == points).all()
    for i in range(2):
        places = [(-maps[i, y, x].item(), y, x) for y in range(height) for x in range(width)]
        inside = [y0 <= y < y1 and x0 <= x < x1 for _, y, x in sorted(places)[:points]]
        assert hits[i] == sum(inside)


def test_tolerance_15_is_a_disk_of_697_pixels():
    point = torch.zeros(1, 64, 64, dtype=torch.bool)
    point[0, 30, 33] = True
    disk = grow(point, 15)[0]
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    assert disk.equal((y - 30) ** 2 + (x - 33) ** 2 < 225)
    assert disk.sum() == 697  # with <= it would be 709


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1, 1.5, 2, 3, 5.5]))
def test_grow_equals_all_distances(seed, tolerance):
    masks = torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(seed)) > 0.9
    grown = grow(masks, tolerance)
    for mask, result in zip(masks, grown, strict=True):
        for y in range(9):
            for x in range(13):
                near = [(y - v) ** 2 + (x - u) ** 2 < tolerance**2 for v, u in mask.nonzero()]
                assert result[y, x] == any(near)


def test_tolerance_decides_at_the_border():
    masks = box(40, 60, 10, 30, 20, 40)[None]
    for distance, hit in ((14, 1), (15, 0)):
        maps = torch.zeros(1, 40, 60)
        maps[0, 15, 30 - distance] = 1
        assert pointing_game(maps, masks, points=1, tolerance=15)[0].item() == hit
        assert pointing_game(maps, masks, points=1)[0].item() == 0
    assert grow(masks, 0).equal(masks)


def test_energy():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[True, False], [False, True]]]).expand(2, -1, -1)
    assert energy_inside(maps, masks).tolist() == [0.5, 0.0]
    assert energy_inside(maps[:1], torch.ones(1, 2, 2, dtype=torch.bool)).tolist() == [1.0]


def test_mean_over_classes():
    hits, misses, classes = [100, 50, 0], [0, 50, 100], [7, 7, 2]
    # class 7: 150 of 200, class 2: 0 of 100
    column = functools.partial(pd.Series, index=[5, 1, 9])  # of a selection of rows
    for kind in (list, np.array, torch.tensor, column):
        assert mean_over_classes(kind(hits), kind(misses), kind(classes)) == 0.375


def test_bad_input():
    maps, masks = torch.rand(2, 12, 15), torch.ones(2, 12, 15, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"maps must be \(2, 12, 15\)"):
        pointing_game(maps[:1], masks)
    with pytest.raises(ValueError, match=r"maps must be \(2, 12, 15\)"):
        pointing_game(maps.transpose(1, 2), masks)
    with pytest.raises(ValueError, match="bool"):
        pointing_game(maps, masks.float())
    with pytest.raises(ValueError, match=r"masks \[1\] are empty"):
        pointing_game(maps, masks & torch.tensor([True, False])[:, None, None])
    for points in (0, 181):
        with pytest.raises(ValueError, match=r"points must lie in 1..180"):
            pointing_game(maps, masks, points)
    with pytest.raises(ValueError, match="tolerance"):
        pointing_game(maps, masks, tolerance=-1)
    with pytest.raises(ValueError, match="NaN"):
        energy_inside(maps / 0 * 0, masks)
    with pytest.raises(ValueError, match="negative"):
        energy_inside(maps - 2, masks)
