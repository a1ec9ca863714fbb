"""Distances between outlines, and the detail that a map holds."""

import numpy as np
import pytest
import torch

from thesis_lib.kernels import low_pass
from thesis_lib.metrics.fineness import boundary_distance, effective_resolution


def square(top, left, side=10, size=40):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def brute_force(a, b):
    """Mean distance between outlines, pixel by pixel."""

    def outline(mask):
        padded = np.pad(mask, 1)
        inside = [padded[1 + i : len(padded) - 1 + i, 1 + j : padded.shape[1] - 1 + j]
                  for i, j in [(0, 1), (1, 0), (0, -1), (-1, 0)]]  # fmt: skip
        return np.argwhere(mask & ~np.logical_and.reduce(inside))

    a, b = outline(a.numpy()), outline(b.numpy())
    distances = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    return np.concatenate([distances.min(1), distances.min(0)]).mean()


def test_a_perfect_map_has_distance_0():
    masks = torch.stack([square(5, 7), square(0, 0)])
    assert boundary_distance(masks.float(), masks).tolist() == [0, 0]
    # Its values may differ, as long as all of them lie above those around.
    values = torch.rand(2, 40, 40) * 0.4 + 0.5 * masks
    assert boundary_distance(values, masks).tolist() == [0, 0]


@pytest.mark.parametrize("shift", [(0, 3), (2, 0), (4, 5), (20, 20)])
def test_a_shifted_square(shift):
    mask = square(5, 5)
    shifted = square(5 + shift[0], 5 + shift[1])
    found = boundary_distance(shifted[None].double(), mask[None])
    assert found == pytest.approx(brute_force(shifted, mask)) and found > 0


def test_a_shifted_line_by_hand():
    line, shifted = torch.zeros(2, 20, 20, dtype=torch.bool)
    line[5, 3:9], shifted[9, 3:9] = True, True
    assert boundary_distance(shifted[None].float(), line[None]).tolist() == [4]


def test_any_blobs_and_a_map_alone_is_as_in_a_batch():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 12, 15, generator=generator)
    masks = torch.rand(4, 12, 15, generator=generator) < 0.3
    found = boundary_distance(maps, masks)
    for i in range(4):
        area = int(masks[i].sum())
        chosen = maps[i] >= maps[i].flatten().sort(descending=True).values[area - 1]
        assert found[i] == pytest.approx(brute_force(chosen, masks[i]))
        assert boundary_distance(maps[[i]], masks[[i]]) == found[i]


def test_ties_are_taken_in_reading_order():
    mask = square(10, 10)
    first = torch.zeros(40, 40, dtype=torch.bool)
    first.view(-1)[:100] = True
    found = boundary_distance(torch.zeros(1, 40, 40), mask[None])
    assert found == pytest.approx(brute_force(first, mask))


def test_bad_input():
    mask = square(3, 3)[None]
    with pytest.raises(ValueError):
        boundary_distance(torch.full((1, 40, 40), float("nan")), mask)
    with pytest.raises(ValueError):
        boundary_distance(torch.rand(1, 40, 40), torch.zeros_like(mask))
    with pytest.raises(ValueError):
        boundary_distance(torch.rand(1, 40, 41), mask)
    with pytest.raises(ValueError):
        effective_resolution(torch.full((1, 8, 8), float("inf")))


@pytest.mark.parametrize("cycles", [0.5, 1, 3, 7.5, 10])
@pytest.mark.parametrize("vertical", [False, True])
def test_a_cosine_of_k_cycles_has_k(cycles, vertical):
    x = (torch.arange(40) + 0.5) / 40
    cam = 0.5 + 0.5 * torch.cos(2 * torch.pi * cycles * x).expand(40, 40)
    cam = cam.T if vertical else cam
    assert effective_resolution(cam[None].double()) == pytest.approx(cycles)


def test_cosines_in_both_directions_are_as_far_as_their_distance():
    x = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    wave = torch.cos(2 * torch.pi * 3 * x)[:, None] * torch.cos(2 * torch.pi * 4 * x)
    assert effective_resolution(wave[None]) == pytest.approx(5)
    # Nine tenths of the energy at 2 cycles and a tenth at 8: it depends on the share.
    mixed = torch.cos(2 * torch.pi * 2 * x) * 0.9**0.5 + torch.cos(2 * torch.pi * 8 * x) * 0.1**0.5
    mixed = mixed.expand(1, 40, 40)
    assert effective_resolution(mixed) == pytest.approx(8)
    assert effective_resolution(mixed, share=0.85) == pytest.approx(2)


def test_flat_maps_have_none_and_scale_does_not_matter():
    noise = torch.rand(1, 24, 32, dtype=torch.float64)
    assert effective_resolution(torch.zeros(2, 8, 8)).tolist() == [0, 0]
    assert effective_resolution(5 * noise + 3) == effective_resolution(noise)


@pytest.mark.parametrize("kind", ["ideal", "gaussian"])
def test_a_higher_cutoff_leaves_more_detail(kind):
    noise = torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [effective_resolution(low_pass(noise, cutoff, kind))[0] for cutoff in (2, 5, 10, 20)]
    assert found == sorted(found) and len(set(found)) == 4
