"""Tensor kernels of chapters 3 and 4: no network in sight, any device, any float type.

Shapes: images (N, 3, H, W), features (N, K, h, w), masks (N, B, H, W), maps (N, H, W).
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from thesis_lib.counts import count


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """The thesis's phi: bilinear interpolation of x (N, C, h, w) to size (H, W).

    Pixel centres as in `align_corners=False`, no anti-aliasing (PyTorch's default).

    >>> kernels.resize(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).flatten()
    tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def blur(images: Tensor, kernel_size: int = 51, sigma: float = 50.0) -> Tensor:
    """Gaussian blur of images (N, C, H, W), reflected at the border: the base image I'_0.

    kornia's `gaussian_blur2d` with the parameters of section 3.3.3. With sigma as wide as the
    kernel it is nearly a box filter.

    Raises:
        ValueError: images too small to reflect: up to 25 pixels a side for the default kernel.

    >>> kernels.blur(images).std() < images.std()
    tensor(True)
    """
    if min(images.shape[-2:]) <= kernel_size // 2:
        raise ValueError(
            f"a blur of {kernel_size} pixels needs images of at least {kernel_size // 2 + 1} "
            f"pixels a side, not {tuple(images.shape[-2:])}; enlarge the images"
        )
    return gaussian_blur2d(images, (kernel_size, kernel_size), (sigma, sigma), border_type="reflect")


def _extremes(maps):
    """The least and the greatest value of each map (keeping dims)."""
    low, high = maps.flatten(-2).aminmax(dim=-1)
    return low[..., None, None], high[..., None, None]


def _rounding(low, high):
    """Differences that may be rounding errors in a map: a few units in its greatest value's last place.

    Interpolation leaves them (measured: up to 2.7 units) between pixels that are equal: all over
    a constant map, and at the borders, where pixels beyond the last sample repeat it.
    """
    return 4 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())


def _extent(maps):
    """Minimum and span (keeping dims), and whether a map has a range: finite and not flat."""
    low, high = _extremes(maps)
    span = high - low
    return low, span, span > _rounding(low, high)  # NaN and infinity compare false


def min_max(maps: Tensor) -> Tensor:
    """Equation 3-9: each map (..., H, W) by itself to [0, 1]; a flat or non-finite one to zero.

    >>> kernels.min_max(torch.tensor([[[2.0, 4.0, 3.0]], [[5.0, 5.0, 5.0]]])).tolist()
    [[[0.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]]
    """
    low, span, ranged = _extent(maps)
    return torch.where(ranged, (maps - low) / span, 0)


def usable(masks: Tensor) -> Tensor:
    """Whether each mask (N, B, h, w) is finite and not flat -> (N, B) bool; counts the others.

    >>> kernels.usable(torch.tensor([[[[0.0, 1.0]], [[2.0, 2.0]]]])).tolist()
    [[True, False]]
    """
    _, span, ranged = _extent(masks)
    finite = span.isfinite()
    count("nan groups", (~finite).sum())
    count("flat groups", (finite & ~ranged).sum())
    return ranged[..., 0, 0]


def percentile_denoise(masks: Tensor, theta: float = 70) -> Tensor:
    """Equation 3-8: keep what lies strictly above each mask's theta-th percentile, else 0.

    masks (..., H, W). The percentile is the order statistic just below (or at) the linearly
    interpolated one: no pixel lies between the two, so the same pixels are kept, without a sort.
    Pixels that differ from it by rounding error are equal to it, and go. NaN stays NaN, for
    `usable` to see. Of the values 1 to 100 and theta = 70, 71 to 100 remain.

    Raises:
        ValueError: theta outside 0 to 100.

    >>> kernels.percentile_denoise(torch.arange(1.0, 11).view(1, 1, 10)).flatten().tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 9.0, 10.0]
    """
    if not 0 <= theta <= 100:
        raise ValueError(f"theta is a percentage, 0 to 100, not {theta}")
    pixels = masks.flatten(-2)
    k = int(theta * (pixels.shape[-1] - 1) // 100) + 1
    threshold = pixels.kthvalue(k, dim=-1).values[..., None, None]
    return torch.where(masks <= threshold + _rounding(*_extremes(masks)), 0, masks)


def group_sum(features: Tensor, weights: Tensor, groups: int) -> Tensor:
    """The sums of equation 3-7: of w_k A_k over each group of neighbouring channels.

    features (N, K, h, w), weights (N, K) -> (N, groups, h, w). Where K is not a multiple of
    groups, the first ones take a channel more (as `numpy.array_split`). A NaN stays in its group.

    Raises:
        ValueError: fewer than one group.

    >>> features, weights = torch.arange(5.0).view(1, 5, 1, 1), torch.ones(1, 5)
    >>> kernels.group_sum(features, weights, groups=2).flatten().tolist()  # 0 + 1 + 2 and 3 + 4
    [3.0, 7.0]
    """
    if groups < 1:
        raise ValueError(f"the number of groups is at least 1, not {groups}")
    size, extra = divmod(features.shape[1], groups)
    cut = extra * (size + 1)

    def block(part, n, channels):
        a, w = features[:, part].unflatten(1, (n, channels)), weights[:, part]
        return torch.einsum("nbkhw,nbk->nbhw", a, w.unflatten(1, (n, channels)))

    larger = block(slice(cut), extra, size + 1)
    return torch.cat([larger, block(slice(cut, None), groups - extra, size)], 1)


@functools.lru_cache(64)
def interpolation(small: int, big: int, mode: str = "bilinear") -> Tensor:
    """The matrix (big, small) of phi in one direction, float64 on the CPU: phi(x) = rows @ x @ columns.mT.

    mode: as `torch.nn.functional.interpolate` has it.

    >>> rows, columns = kernels.interpolation(2, 6).float(), kernels.interpolation(3, 9).float()
    >>> x = torch.rand(1, 1, 2, 3)
    >>> (rows @ x @ columns.mT).allclose(kernels.resize(x, (6, 9)))
    True
    """
    with torch.inference_mode(False):  # what is kept may be asked for in any mode
        return F.interpolate(torch.eye(small, dtype=torch.float64)[None, None], (big, small), mode=mode)[0, 0]


@functools.lru_cache(256)
def bands(
    small: int, big: int, mode: str, count: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """`interpolation` in `count` bands of its rows: (first, last, block) of each; elsewhere their columns are 0.

    A pixel is made of two or four neighbours, so that most of the matrix need not be multiplied.

    >>> [block.shape for _, _, block in kernels.bands(4, 16, "bilinear", 2, torch.float32, torch.device("cpu"))]
    [torch.Size([8, 3]), torch.Size([8, 3])]
    """
    with torch.inference_mode(False):
        found = []
        for band in interpolation(small, big, mode).tensor_split(count):
            used = band.any(0).nonzero().flatten().tolist()
            first, last = (used[0], used[-1] + 1) if used else (0, 0)
            found.append((first, last, band[:, first:last].to(device, dtype)))
        return found


def resize_by_matrices(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """x (N, C, h, w) to size (H, W), as `torch.nn.functional.interpolate` does it in that mode.

    Two matrices in bands, one for each direction: on a CPU a third of the time of PyTorch's own, if "bicubic". The
    result has its channels last in memory, as convolutions want them.

    >>> x = torch.rand(1, 1, 6, 7)
    >>> ours, theirs = (f(x, (9, 20), mode="bicubic") for f in (kernels.resize_by_matrices, F.interpolate))
    >>> ours.allclose(theirs, atol=1e-5)
    True
    """
    n, channels = x.shape[:2]
    rows, columns = (
        bands(*ends, mode, 8, x.dtype, x.device) for ends in zip(x.shape[-2:], size, strict=True)
    )
    wide = torch.cat([x[..., first:last] @ block.mT for first, last, block in columns], -1)
    wide = wide.permute(0, 2, 3, 1).flatten(2)
    found = x.new_empty(n, size[0], size[1] * channels)
    for image, into in zip(wide, found, strict=True):
        parts = into.split([len(block) for *_, block in rows])
        for part, (first, last, block) in zip(parts, rows, strict=True):
            torch.mm(block, image[first:last], out=part)
    return found.view(n, *size, channels).permute(0, 3, 1, 2)


def resized_sum(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The sum of maps (N, C, h_t, w_t) of several sizes, each resized: sum_t phi(x_t, size) -> (N, C, H, W).

    As phi is two matrices, rows are interpolated for each map and columns for all maps at once, so that
    what is as large as the image is written once.

    >>> maps = [torch.ones(1, 1, 2, 2), torch.full((1, 1, 3, 3), 3.0)]
    >>> kernels.resized_sum(maps, (4, 4)).unique()
    tensor([4.])
    """
    rows = [interpolation(x.shape[-2], size[0]).to(x) @ x for x in maps]
    columns = torch.cat([interpolation(x.shape[-1], size[1]) for x in maps], 1).to(maps[0])
    return torch.cat(rows, -1) @ columns.mT


def resized_dot(left: Sequence[Tensor], right: Sequence[Tensor], size: Sequence[int], room: int) -> Tensor:
    """`resized_sum(left, size)` times that of right, summed over channels: (N, C, h_t, w_t) -> (N, H, W).

    Tile by tile, so that nothing is written that is as large as the image and has channels. room: numbers
    that are held at a time, beyond the maps themselves.

    >>> maps = [torch.rand(2, 5, 3, 4), torch.rand(2, 5, 6, 8)]
    >>> literal = kernels.resized_sum(maps, (12, 16)).square().sum(1)
    >>> kernels.resized_dot(maps, maps, (12, 16), room=10**4).allclose(literal)
    True
    """
    n, channels = left[0].shape[:2]
    # Pixels first: what is cut and joined lies together then.
    maps = [torch.stack(pair).permute(3, 4, 0, 1, 2).flatten(2) for pair in zip(left, right, strict=True)]
    height = max(1, room // sum(x[0].numel() for x in maps))  # of a tile
    some = 8 if maps[0].device.type == "cpu" else 1  # a GPU had rather one large product than small ones

    def shared(dim, count):  # bands of the same pixels, of all sizes
        kind = count, maps[0].dtype, maps[0].device
        return zip(*(bands(x.shape[dim], size[dim], "bilinear", *kind) for x in maps), strict=True)

    columns = [(parts, torch.cat([block for *_, block in parts], 1)) for parts in shared(1, some)]
    total = []
    for parts in shared(0, max(some, -(-size[0] // height))):
        tall = [
            (block @ x[first:last].flatten(1)).unflatten(1, x.shape[1:])
            for x, (first, last, block) in zip(maps, parts, strict=True)
        ]
        line = []
        for across, matrix in columns:
            cut = [x[:, first:last] for x, (first, last, _) in zip(tall, across, strict=True)]
            a, b = (matrix @ torch.cat(cut, 1)).unflatten(2, (2, n, channels)).unbind(2)
            line.append((a * b).sum(-1))
        total.append(torch.cat(line, 1))
    return torch.cat(total).permute(2, 0, 1)


def pixel_mean_weights(small: Sequence[int], big: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Equation 3-5 without up-sampling: the mean over pixels of phi(G, big) as a weighted sum.

    phi is linear and separable, so mean(phi(G)) = rows @ G @ columns for G of size small (h, w).
    Returns rows (h,) and columns (w,), float64 on the CPU; each adds up to 1.

    >>> rows, columns = kernels.pixel_mean_weights((2, 3), (6, 9))
    >>> rows.allclose(torch.tensor([0.5, 0.5], dtype=torch.float64)), columns.shape
    (True, torch.Size([3]))
    """
    rows, columns = (interpolation(n, m).mean(0) for n, m in zip(small, big, strict=True))
    return rows, columns


def masked_scores(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    baselines: Tensor,
    masks: Tensor,
    prepare: Callable[[Tensor], Tensor],
    batch: int,
    alive: Tensor | None = None,
) -> Tensor:
    """Scores of images seen through masks: images * mask + baselines * (1 - mask), eq. 3-10.

    Masks of all images are packed into passes of `batch`. Returns (N, B).

    Args:
        score: inputs (n, C, H, W), owners (n,) -> (n,); owners are the indices of their images.
        images, baselines: (N, C, H, W).
        masks: (N, B, h, w), at any resolution.
        prepare: masks (n, 1, h, w) -> (n, 1, H, W) in [0, 1], called on the masks of one pass.
        batch: masks in a pass.
        alive: (N, B) bool: masks worth a pass; the others score 0. None: all.

    >>> white, black = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    >>> masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    >>> def brightness(inputs, owners):
    ...     return inputs.mean((1, 2, 3))
    >>> kernels.masked_scores(brightness, white, black, masks, lambda mask: mask, batch=8).tolist()
    [[0.25, 1.0]]
    """
    if alive is None:
        alive = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
    counts = alive.sum(1)
    slots = (~alive).int().argsort(dim=1, stable=True)  # those of masks that are alive come first
    owners = torch.arange(len(alive), device=alive.device).repeat_interleave(counts)
    found, start = [], 0
    for part in packed(counts.tolist(), batch):
        inputs = [  # images are not copied for their masks
            torch.lerp(baselines[i], images[i], prepare(masks[i, slots[i, first:last], None]))
            for i, first, last in part
        ]
        stop = start + sum(map(len, inputs))
        found.append(score(joined(inputs), owners[start:stop]))
        start = stop
    scores = images.new_zeros(alive.shape)
    if found:
        scores[alive] = torch.cat(found)
    return scores


def packed(counts: Sequence[int], batch: int) -> Iterator[list[tuple[int, int, int]]]:
    """Jobs of several images in full batches, image by image: for each batch a list of (image, first, last).

    counts: the number of jobs of each image.

    >>> list(kernels.packed([3, 0, 2], batch=4))
    [[(0, 0, 3), (2, 0, 1)], [(2, 1, 2)]]
    """
    part: list[tuple[int, int, int]] = []
    room = batch
    for image, jobs in enumerate(counts):
        first = 0
        while first < jobs:
            last = min(jobs, first + room)
            part.append((image, first, last))
            room -= last - first
            first = last
            if not room:
                yield part
                part, room = [], batch
    if part:
        yield part


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts of a batch as one tensor; a single one is not copied.

    >>> kernels.joined([torch.zeros(2, 3), torch.ones(1, 3)]).shape
    torch.Size([3, 3])
    """
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def rank_pixels(maps: Tensor) -> Tensor:
    """The rank of every pixel, 0 for the strongest: (N, H, W) -> (N, H*W) int64.

    Equal pixels keep their reading order (a stable sort), on every device.

    >>> kernels.rank_pixels(torch.tensor([[[0.1, 0.9], [0.5, 0.5]]])).tolist()
    [[3, 0, 1, 2]]
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)


def window_corners(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The top left corners k_n of equation 4-1, (P, 2): window (h, w) slid over an image (H, W).

    From the top left in steps of stride (vertical, horizontal); where a step would leave the image,
    the last window ends at the border, so that every pixel is covered.

    Raises:
        ValueError: a window that does not fit the image, a stride below 1.

    >>> kernels.window_corners((4, 7), (4, 4), (2, 2)).tolist()
    [[0, 0], [0, 2], [0, 3]]
    """
    for length, part, step in zip(size, window, stride, strict=True):
        if not 1 <= part <= length:
            raise ValueError(
                f"a window of {window[0]} x {window[1]} pixels does not fit an image of "
                f"{size[0]} x {size[1]}: make it smaller"
            )
        if step < 1:
            raise ValueError(f"the stride is at least 1 pixel, not {step}")
    rows, columns = (
        [*range(0, length - part, step), length - part]
        for length, part, step in zip(size, window, stride, strict=True)
    )
    return torch.cartesian_prod(torch.tensor(rows), torch.tensor(columns)).view(-1, 2)


def take_windows(images: Tensor, owners: Tensor, corners: Tensor, window: Sequence[int]) -> Tensor:
    """Equation 4-1: windows (n, C, h, w) of images (N, C, H, W).

    owners (n,) index images, corners (n, 2) are their top left pixels; window is (h, w).

    >>> numbered = torch.arange(16.0).view(1, 1, 4, 4)
    >>> owners, corners = torch.tensor([0]), torch.tensor([[2, 1]])
    >>> kernels.take_windows(numbered, owners, corners, (2, 2)).tolist()
    [[[[9.0, 10.0], [13.0, 14.0]]]]
    """
    everywhere = images.unfold(2, window[0], 1).unfold(3, window[1], 1)  # a view: (N, C, y, x, h, w)
    return everywhere[owners, :, corners[:, 0], corners[:, 1]]


def fuse_windows(windows: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """The sum of equation 4-8: windows (N, P, h, w) added up at corners (P, 2) -> (N, H, W).

    size: (H, W).

    >>> kernels.fuse_windows(torch.ones(1, 2, 1, 2), torch.tensor([[0, 0], [0, 1]]), (1, 3)).tolist()
    [[[1.0, 2.0, 1.0]]]
    """
    h, w = windows.shape[-2:]
    total = windows.new_zeros(len(windows), *size)
    for k, (y, x) in enumerate(corners.tolist()):
        total[:, y : y + h, x : x + w] += windows[:, k]
    return total


def low_pass(maps: Tensor, cutoff: float, kind: str = "ideal") -> Tensor:
    """Equations 4-9 and 4-10: maps (N, H, W) without frequencies above D_0 = cutoff.

    Frequencies are counted in cycles per image side, as distances from the centre of the spectrum:
    D = sqrt(X^2 + Y^2), up to sqrt(H^2 + W^2) / 2. kind: "ideal" keeps D <= D_0 whole and nothing
    else, and rings; "gaussian" weighs by exp(-D^2 / (2 D_0^2)). The image is taken as periodic.

    Raises:
        ValueError: a cutoff out of range, another kind.

    >>> wave = torch.cos(2 * torch.pi * 8 * torch.arange(32) / 32).expand(1, 32, 32)
    >>> kernels.low_pass(1 + wave, cutoff=4).allclose(torch.ones(()), atol=1e-5)  # 8 cycles are gone
    True
    """
    height, width = maps.shape[-2:]
    largest = math.hypot(height, width) / 2
    if not 0 < cutoff <= largest:
        raise ValueError(
            f"the cutoff lies above 0 and at {largest:.0f} cycles per image or below, not at "
            f"{cutoff}; None filters nothing"
        )
    y = torch.fft.fftfreq(height, 1 / height, dtype=maps.dtype, device=maps.device)
    x = torch.fft.rfftfreq(width, 1 / width, dtype=maps.dtype, device=maps.device)
    squared = y[:, None] ** 2 + x**2
    if kind == "ideal":
        transfer = (squared <= cutoff**2).to(maps.dtype)
    elif kind == "gaussian":
        transfer = torch.exp(-squared / (2 * cutoff**2))
    else:
        raise ValueError(f'the low-pass is "ideal" or "gaussian", not {kind!r}')
    return torch.fft.irfft2(torch.fft.rfft2(maps) * transfer, s=(height, width))
