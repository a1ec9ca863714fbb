"""Decode a dataset once, to files that training reads at random without holding them in memory."""

import copy
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

CHUNK = 256  # pictures that are in memory at a time


def decode(
    dataset: Any, folder: str | Path, size: int = 224, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Pixels and labels of a dataset as memory-mapped arrays in `folder`.

    COCO 2014 train takes 12 GB at 224 pixels; of that only what a batch needs is read, and the
    system keeps in spare memory what it can. JPEGs are decoded by all cores, and not again in every
    epoch: on one core that takes longer than a GPU's training step.

    A finished `folder` is used again for the same ids, categories and size; anything else in it is
    replaced, and an interrupted decode starts anew. Delete the folder after changing the pictures.

    Args:
        dataset: as `thesis_lib.data.datasets` has them.
        folder: is made; pixels.npy, labels.npy and, when both are complete, decoded.json.
        size: height and width in pixels.
        limit: the first so many pictures; None for all.

    Returns:
        pixels (M, 3, size, size) uint8; labels (M, C) bool, C = len(dataset.categories); and
        {id: reason} of the pictures that are left out: unreadable, or showing no class. It is in
        decoded.json too.

    Raises:
        OSError: the disk has no room.
        ValueError: no picture is left.
    """
    folder, ids = Path(folder), dataset.ids[:limit]
    source = hashlib.sha256(json.dumps([size, dataset.categories, ids]).encode()).hexdigest()
    record = folder / "decoded.json"
    if not record.exists() or json.loads(record.read_text("utf-8"))["source"] != source:
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)  # from here on the folder does not count as finished
        for name in ("pixels.npy", "labels.npy"):
            (folder / name).unlink(missing_ok=True)
        skipped = _write(_sized(dataset, size), ids, folder, size)
        partial = record.with_suffix(".new")
        partial.write_text(json.dumps({"source": source, "skipped": skipped}, indent=1), "utf-8")
        partial.replace(record)
    # "c": torch wants writable arrays; what is written stays in memory.
    pixels, labels = (np.load(folder / f"{n}.npy", mmap_mode="c") for n in ("pixels", "labels"))
    return pixels, labels, json.loads(record.read_text("utf-8"))["skipped"]


def _sized(dataset, size):
    """A copy that gives its pictures at another size."""
    dataset = copy.copy(dataset)
    if hasattr(dataset, "dataset"):  # a subset
        dataset.dataset = _sized(dataset.dataset, size)
    else:
        dataset.size = size
    return dataset


def _write(dataset, ids, folder, size):
    """Writes pixels.npy and labels.npy; returns {id: reason} of what is left out."""

    def read(i):
        try:
            sample = dataset[i]
        except OSError as error:
            return None, str(error)
        if not sample.classes:
            return None, "shows no class"
        return (sample.pixels * 255).round().byte().numpy(), sample.classes

    shape = (len(ids), 3, size, size)
    needed, free = np.prod(shape, dtype=np.int64), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB of free space, and {len(ids):,} pictures of "
            f"{size} x {size} pixels need {needed / 1e9:.1f} GB: make room, or decode at a smaller size"
        )
    labels, skipped = [], {}
    # Written as a stream, not through a memory map: that would end the process on a full disk.
    with open(folder / "pixels.new", "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        _write_header(file, shape)
        with tqdm(total=len(ids), desc="decoding pictures") as bar:
            for start in range(0, len(ids), CHUNK):
                chunk = range(start, min(start + CHUNK, len(ids)))
                for i, (pixels, classes) in zip(chunk, pool.map(read, chunk), strict=True):
                    if pixels is None:
                        skipped[ids[i]] = classes
                    else:
                        file.write(pixels.tobytes())
                        labels.append(np.isin(np.arange(len(dataset.categories)), classes))
                    bar.update()
        if not labels:
            raise ValueError(
                f"none of {len(ids):,} pictures can be used; "
                f"the first: {next(iter(skipped.items()), 'there is none')}"
            )
        file.seek(0)
        _write_header(file, (len(labels), *shape[1:]))
    with open(folder / "labels.new", "wb") as file:
        np.save(file, np.stack(labels))
    for name in ("pixels", "labels"):
        (folder / f"{name}.new").replace(folder / f"{name}.npy")
    return skipped


def _write_header(file, shape):
    """numpy leaves room in it, so that it has one length for any number of pictures."""
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
