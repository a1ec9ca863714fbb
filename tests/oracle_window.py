"""Chapter 4 transcribed literally, and SESS: one image, one window, one frequency at a time.

Slow on purpose, and written without thesis_lib. A method f takes an image (1, 3, H, W) and a class
and returns its map (H, W), min-maxed, as those of oracle.py with their network.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from oracle import finish, phi


def corners_of(size, window, stride):
    """psi's places: to the right, then down; the last ones end at the border."""
    starts = []
    for length, part, step in zip(size, window, stride, strict=True):
        places, at = [], 0
        while at + part < length:
            places.append(at)
            at += step
        starts.append(places + [length - part])
    return [(top, left) for top in starts[0] for left in starts[1]]


def phi_image(x, size):
    return torch.stack([phi(channel, size) for channel in x[0]])[None]


def low_pass(cam, cutoff, kind):
    """Equations 4-9 and 4-10, with the centre of the spectrum in the middle."""
    height, width = cam.shape
    spectrum = np.fft.fftshift(np.fft.fft2(cam.numpy()))
    for row in range(height):
        for column in range(width):
            d = math.sqrt((row - height // 2) ** 2 + (column - width // 2) ** 2)
            if kind == "ideal":
                spectrum[row, column] *= 1 if d <= cutoff else 0
            else:
                spectrum[row, column] *= math.exp(-(d**2) / (2 * cutoff**2))
    return torch.from_numpy(np.fft.ifft2(np.fft.ifftshift(spectrum)).real)


def enhanced(
    forward, f, x, c, window, stride, cutoff, lowpass="ideal", cover="sum", weight="probability",
    skip=0.0,
):  # fmt: skip
    size = x.shape[-2:]
    whole = f(x, c)  # 4-4
    total, covered = torch.zeros_like(whole), torch.zeros_like(whole)
    for top, left in corners_of(size, window, stride):
        place = (slice(top, top + window[0]), slice(left, left + window[1]))
        p = x[:, :, place[0], place[1]]  # 4-1
        enlarged = phi_image(p, size)  # 4-3
        s = phi(f(enlarged, c), window)  # 4-5 and 4-7
        alpha = forward.score(enlarged, c, weight)  # 4-6
        if forward.score(enlarged, c, "probability") < skip:
            s = torch.zeros_like(s)
        total[place] += alpha * s  # 4-8
        if cover == "sum":
            total[place] += whole[place]
        covered[place] += 1
    if cover == "mean":
        total = total / covered + whole
    return finish(total if cutoff is None else low_pass(total, cutoff, lowpass))  # 4-9, 4-11


def gaussian(cam, length=11, sigma=5.0):
    t = torch.arange(length, dtype=cam.dtype) - length // 2
    kernel = torch.exp(-(t[:, None] ** 2 + t[None, :] ** 2) / (2 * sigma**2))
    padded = F.pad(cam[None, None], [length // 2] * 4, mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[0, 0]


def sess(forward, f, x, c, sizes, prefilter=0.0):
    """Each window's map on a zero canvas of its scale, which is resized whole."""
    size = tuple(x.shape[-2:])
    jobs = []
    for length in sizes:
        scale = tuple(round(side * length / min(size)) for side in size)
        enlarged = phi_image(x, scale)
        for top, left in corners_of(scale, size, size):
            patch = enlarged[:, :, top : top + size[0], left : left + size[1]]
            jobs.append((forward.score(patch, c, "probability"), scale, top, left, patch))
    rounding = 64 * torch.finfo(x.dtype).eps
    jobs.sort(key=lambda job: job[0])
    placed = []
    for score, scale, top, left, patch in jobs[int(len(jobs) * prefilter) :]:
        canvas = torch.zeros(scale, dtype=x.dtype)
        canvas[top : top + size[0], left : left + size[1]] = score / jobs[-1][0] * f(patch, c)
        # Below a map's rounding errors nothing is positive.
        placed.append((phi(canvas, size), rounding * score / jobs[-1][0]))
    mean = torch.zeros(size, dtype=x.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            values = [cam[row, column].item() for cam, low in placed if cam[row, column] > low]
            mean[row, column] = sum(values) / len(values) if values else 0
    return finish(gaussian(mean))
