import networks
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thesis_lib import kernels
from thesis_lib.counts import count, counting

SMALL = settings(max_examples=60, deadline=None)


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def arrays(values=st.floats(-1e6, 1e6, width=32), side=7):
    shapes = st.tuples(st.integers(1, 3), st.integers(1, side), st.integers(1, side))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=values))


# resize, blur


def test_resize_is_bilinear_between_pixel_centres():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    expected = torch.tensor([[0.0, 0.25, 0.75, 1.0], [0.5, 0.8125, 1.4375, 1.75],
                             [1.5, 1.9375, 2.8125, 3.25], [2.0, 2.5, 3.5, 4.0]])  # fmt: skip
    torch.testing.assert_close(kernels.resize(x, (4, 4))[0, 0], expected)
    assert kernels.resize(x, (2, 2)) is x


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_blur_is_the_whole_kernel_over_the_reflected_image(dtype, tolerance):
    x = networks.images(2, 30, 41, dtype=dtype)
    torch.testing.assert_close(kernels.blur(x), oracle.blurred(x), rtol=0, atol=tolerance)
    small = kernels.blur(x, kernel_size=7, sigma=1.5)
    torch.testing.assert_close(small, oracle.blurred(x, 7, 1.5), rtol=0, atol=tolerance)


def test_blur_needs_room_to_reflect():
    kernels.blur(torch.zeros(1, 3, 26, 40))
    with pytest.raises(ValueError, match="at least 26 pixels"):
        kernels.blur(torch.zeros(1, 3, 25, 40))


# min_max, usable


@SMALL
@given(arrays())
def test_min_max_spans_0_to_1_or_is_zero(x):
    maps = torch.from_numpy(x)
    result = kernels.min_max(maps)
    for before, after in zip(maps, result, strict=True):
        span = (before.max() - before.min()).item()
        if span > 1e-13 * before.abs().max():
            assert after.min() == 0 and after.max() == 1
            torch.testing.assert_close(after, (before - before.min()) / span)
        elif span == 0:
            assert not after.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_min_max_zeroes_what_is_not_finite_and_nothing_else(bad):
    maps = rand(3, 5, 6)
    expected = kernels.min_max(maps)
    maps[1, 2, 3] = bad
    result = kernels.min_max(maps)
    assert not result[1].any()
    assert torch.equal(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_up_sampled_constant_is_flat(dtype):
    up = kernels.resize(rand(1, 200, 1, 1, dtype=dtype).repeat(1, 1, 7, 7), (40, 56))
    assert up.max() > up.min(), "without rounding errors there is nothing to test"
    assert not kernels.min_max(up).any()
    assert not kernels.usable(up).any()


def test_usable_counts_flat_and_nan_masks():
    masks = rand(2, 3, 4, 4)
    masks[0, 1] = 2.5
    masks[1, 0, 0, 0] = float("nan")
    masks[1, 2, 0, 0] = float("inf")
    with counting() as counts:
        alive = kernels.usable(masks)
    assert alive.tolist() == [[True, False, True], [False, True, False]]
    assert counts == {"flat groups": 1, "nan groups": 2}


# percentile_denoise


def test_denoise_worked_example_of_equation_3_8():
    mask = torch.arange(1.0, 101)[torch.randperm(100)].view(1, 10, 10)
    kept = kernels.percentile_denoise(mask, 70)
    assert sorted(kept[kept > 0].tolist()) == list(range(71, 101))
    assert torch.equal(kept[kept > 0], mask[mask > 70])


@SMALL
@given(arrays(st.integers(-9, 9).map(float)), st.integers(0, 100))
def test_denoise_keeps_what_is_above_numpys_percentile(x, theta):
    result = kernels.percentile_denoise(torch.from_numpy(x), theta)
    for mask, kept in zip(x, result.numpy(), strict=True):
        # A position between two equal values may be off by rounding in numpy's own interpolation.
        p = np.round(np.percentile(mask, theta), 9)
        np.testing.assert_array_equal(kept, np.where(mask > p, mask, 0))


@pytest.mark.parametrize("theta", [12.5, 70, 99.9])
def test_denoise_at_full_resolution(theta):
    masks = rand(4, 224, 224)
    result = kernels.percentile_denoise(masks, theta)
    for mask, kept in zip(masks.numpy(), result.numpy(), strict=True):
        np.testing.assert_array_equal(kept > 0, mask > np.percentile(mask, theta))


def test_denoise_takes_rounding_errors_for_ties():
    mask = torch.linspace(0, 1, 100, dtype=torch.float64)
    mask[60:80] = 0.7  # the percentile lies in this plateau: strictly above it are the last 20
    mask[60:80] += 2.3e-16 * (torch.arange(20) % 2)
    assert (kernels.percentile_denoise(mask.view(1, 10, 10)) > 0).sum() == 20


def test_denoise_leaves_nan_to_be_seen():
    masks = rand(2, 5, 5)
    expected = kernels.percentile_denoise(masks)[1]
    masks[0, 0, 0] = float("nan")
    result = kernels.percentile_denoise(masks)
    assert result[0].isnan().any() and torch.equal(result[1], expected)


@pytest.mark.parametrize("theta", [-1, 101])
def test_denoise_refuses_what_is_no_percentage(theta):
    with pytest.raises(ValueError, match="percentage"):
        kernels.percentile_denoise(torch.zeros(1, 2, 2), theta)


# group_sum, pixel_mean_weights


@SMALL
@given(st.integers(1, 20), st.integers(1, 24), st.integers(1, 3))
def test_group_sum_is_numpys_array_split(channels, groups, n):
    features, weights = rand(n, channels, 3, 2), rand(n, channels, seed=1)
    result = kernels.group_sum(features, weights, groups)
    weighed = (features * weights[..., None, None]).numpy()
    parts = [part.sum(1) for part in np.array_split(weighed, groups, axis=1)]
    np.testing.assert_allclose(result.numpy(), np.stack(parts, 1), rtol=1e-12)


def test_group_sum_keeps_nan_in_its_group():
    features, weights = rand(2, 7, 3, 3), rand(2, 7, seed=1)
    expected = kernels.group_sum(features, weights, 3)
    features[0, 6, 1, 1] = float("nan")
    result = kernels.group_sum(features, weights, 3)
    assert result[0, 2, 1, 1].isnan() and result.isnan().sum() == 1
    assert torch.equal(result[:, :2], expected[:, :2])


def test_group_sum_needs_a_group():
    with pytest.raises(ValueError, match="at least 1"):
        kernels.group_sum(rand(1, 4, 2, 2), rand(1, 4), 0)


@SMALL
@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 30)] * 2))
def test_pixel_mean_weights_are_the_mean_of_the_up_sampled(small, big):
    rows, columns = kernels.pixel_mean_weights(small, big)
    x = rand(1, 1, *small)
    mean = torch.einsum("nkhw,h,w->nk", x, rows, columns)
    torch.testing.assert_close(mean, kernels.resize(x, big).mean((-2, -1)))
    torch.testing.assert_close(rows.sum() * columns.sum(), torch.tensor(1.0).double())


@SMALL
@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=1, max_size=4),
    st.tuples(*[st.integers(1, 30)] * 2),
)
def test_a_sum_of_several_sizes_is_that_of_the_resized(smalls, big):
    """Larger and smaller ones, and what is reduced."""
    maps = [rand(2, 3, *small, seed=k) for k, small in enumerate(smalls)]
    expected = sum(kernels.resize(x, big) for x in maps)
    torch.testing.assert_close(kernels.resized_sum(maps, big), expected, rtol=1e-12, atol=1e-12)


@SMALL
@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=1, max_size=4),
    st.tuples(*[st.integers(1, 30)] * 2),
    st.integers(1, 3000),
)
def test_a_product_of_sums_tile_by_tile_is_that_of_whole_maps(smalls, big, room):
    left, right = ([rand(2, 3, *small, seed=s + k) for k, small in enumerate(smalls)] for s in (0, 9))
    a, b = (sum(kernels.resize(x, big) for x in maps) for maps in (left, right))
    ours = kernels.resized_dot(left, right, big, room)
    torch.testing.assert_close(ours, (a * b).sum(1), rtol=1e-12, atol=1e-12)


# masked_scores


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_masked_scores_equal_one_job_at_a_time(batch):
    images, baselines = rand(3, 3, 6, 8), rand(3, 3, 6, 8, seed=1)
    masks, alive = rand(3, 5, 2, 2, seed=2), rand(3, 5, seed=3) > 0.3
    targets = torch.tensor([2, 0, 1])
    sizes = []

    def score(inputs, owners):
        sizes.append(len(inputs))
        return (inputs**2).mean((-2, -1)).gather(1, targets[owners, None])[:, 0]

    def prepare(mask):
        return kernels.resize(mask, (6, 8))

    result = kernels.masked_scores(score, images, baselines, masks, prepare, batch, alive)
    assert sizes[:-1] == [batch] * (len(sizes) - 1) and sum(sizes) == alive.sum()
    for i in range(3):
        for r in range(5):
            mask = kernels.resize(masks[i, r][None, None], (6, 8))[0]
            seen = images[i] * mask + baselines[i] * (1 - mask)
            expected = (seen[targets[i]] ** 2).mean() if alive[i, r] else torch.tensor(0.0).double()
            torch.testing.assert_close(result[i, r], expected)


# rank_pixels


@SMALL
@given(arrays(st.integers(-2, 2).map(float)))
def test_ranks_are_a_stable_descending_order(x):
    ranks = kernels.rank_pixels(torch.from_numpy(x)).numpy()
    for pixels, rank in zip(x.reshape(len(x), -1), ranks, strict=True):
        np.testing.assert_array_equal(np.argsort(rank), np.argsort(-pixels, kind="stable"))


def test_ranks_of_a_toy_map():
    maps = torch.tensor([[[1.0, 3.0], [3.0, 2.0]]])
    assert kernels.rank_pixels(maps).tolist() == [[3, 0, 1, 2]]
    assert kernels.rank_pixels(maps).dtype == torch.int64


# counting


def test_counting_adds_up_in_every_open_block():
    count("x", 1)  # nobody counts: nothing happens
    with counting() as outer:
        count("x", 2)
        with counting() as inner:
            count("x", torch.tensor(3))
        count("y", torch.tensor(True))
    assert outer == {"x": 5, "y": 1} and inner == {"x": 3}
    assert all(type(n) is int for n in outer.values())
    assert outer["never"] == 0


def test_counting_ends_with_an_exception():
    with pytest.raises(RuntimeError), counting() as counts:
        count("x", torch.tensor(1))
        raise RuntimeError
    count("x", 1)
    assert counts == {"x": 1}


def test_batches_are_full_and_every_job_is_in_one():
    for counts in ([], [0], [5], [3, 0, 2], [1] * 7, [16, 16], [0, 40, 1, 0, 3]):
        batches = list(kernels.packed(counts, 4))
        jobs = [(i, k) for part in batches for i, first, last in part for k in range(first, last)]
        assert jobs == [(i, k) for i, count in enumerate(counts) for k in range(count)]
        assert all(sum(last - first for _, first, last in part) == 4 for part in batches[:-1])


@pytest.mark.parametrize("small, big", [(224, 324), (224, 924), (32, 33), (7, 50), (50, 7)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_two_matrices_enlarge_as_pytorch_does(small, big, mode):
    x = torch.rand(2, 3, small, small + 3, dtype=torch.float64)
    rows, columns = (kernels.interpolation(n, big, mode) for n in x.shape[-2:])
    theirs = torch.nn.functional.interpolate(x, (big, big), mode=mode)
    torch.testing.assert_close(rows @ x @ columns.mT, theirs, rtol=0, atol=1e-12)
    banded = kernels.resize_by_matrices(x, (big, big), mode)
    torch.testing.assert_close(banded, theirs, rtol=0, atol=1e-12)


def test_what_is_kept_of_an_interpolation_may_be_used_in_any_mode():
    kernels.interpolation.cache_clear()
    kernels.bands.cache_clear()
    kind = "bilinear", 1, torch.float64, torch.device("cpu")
    with torch.inference_mode():
        kernels.interpolation(3, 5), kernels.bands(3, 5, *kind)
    for matrix in (kernels.interpolation(3, 5), kernels.bands(3, 5, *kind)[0][2]):
        (matrix @ torch.rand(3, 3, dtype=torch.float64, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("small, big", [(14, 224), (57, 224), (224, 57), (1, 9), (3, 2)])
@pytest.mark.parametrize("count", [1, 2, 8, 300])
def test_bands_are_the_matrix_without_most_of_its_zeros(small, big, mode, count):
    whole, row = kernels.interpolation(small, big, mode), 0
    for first, last, block in kernels.bands(small, big, mode, count, torch.float64, whole.device):
        rows = whole[row : row + len(block)]
        assert torch.equal(block, rows[:, first:last])
        assert not rows[:, :first].any() and not rows[:, last:].any()
        row += len(block)
    assert row == big
