"""One chunk of a run: read its pictures, measure them, write the shard. In this process or in another."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from thesis_lib.classifier import Classifier
from thesis_lib.counts import counting
from thesis_lib.metrics.measure import measure
from thesis_lib.runs import files, key

ENOUGH = 32  # pictures: to measure one more of so many costs little


@dataclass
class Job:
    """All that is needed to compute any chunk of a run."""

    run: Path
    dataset: Any
    ids: list
    classifier: Classifier
    methods: dict
    metrics: tuple
    step: int
    chunk: int
    code: list  # digests, which a worker compares with those of its own library

    def starts(self) -> range:
        """The chunks, each named by its first picture."""
        return range(0, len(self.ids), self.chunk)

    def part(self, start: int) -> range:
        """The indices of a chunk's pictures."""
        return range(start, min(start + self.chunk, len(self.ids)))

    def file(self, start: int) -> Path:
        """Its shard."""
        return self.run / f"chunk-{start:06d}.parquet"

    def missing(self) -> list[int]:
        """The chunks without a shard."""
        return [start for start in self.starts() if files.read(self.file(start)) is None]

    def is_of_this_code(self) -> bool:
        """Whether the caller's library is this process's."""
        pairs = zip(self.code, key.library(self.methods), strict=True)
        return all(here is None or here == there for there, here in pairs)


def compute(job: Job, start: int) -> int:
    """Measure one chunk and write its shard, if nobody has yet; returns its number of pictures."""
    part, file = job.part(start), job.file(start)
    if files.read(file) is not None:
        return len(part)
    begin = time.perf_counter()
    with counting() as counts:
        samples, skipped = load(job.dataset, job.ids, part)
        rows, left_out, failed = _measure_each(job, samples)
    facts = {
        "seconds": round(time.perf_counter() - begin, 3),
        "pictures": len({*rows["id"]}) if len(rows) else 0,
        "digests": digests(samples, skipped),
        "skipped": skipped + left_out,
        "failed": failed,
        "counts": counts,
        "device": files.name_of(job.classifier.device),
    }
    files.write(file, rows, facts)
    return len(part)


def load(dataset: Any, ids: list, indices: Iterable[int]) -> tuple[list, list]:
    """Samples that can be read, and [id, reason] of the others."""
    samples, skipped = [], []
    for i in indices:
        try:
            samples.append(files.patiently(lambda i=i: dataset[i]))
        except Exception as error:  # files are broken in many ways, and a run must not end there
            if files.is_out_of_reach(error):
                raise
            skipped.append([ids[i], files.reason(error)])
    return samples, skipped


def digests(samples: list, skipped: list) -> dict:
    """{id: digest of the picture}, None for those that cannot be read."""
    return {s.id: key.picture(s) for s in samples} | {name: None for name, _ in skipped}


def same_pictures(job: Job) -> bool:
    """Whether the pictures of all shards that are there are still those that were measured."""
    for start in job.starts():
        table = files.read(job.file(start))
        if table is None:
            continue
        known = files.facts_of(table).get("digests")
        if known != digests(*load(job.dataset, job.ids, job.part(start))):
            return False
    return True


def _measure_each(job, samples):
    """Rows, [id, reason] of what is left out, and of what fails.

    All pictures together; where that fails, each by itself, so that one does not spoil the others.
    """
    if not samples:
        return pd.DataFrame(), [], []
    expected = ValueError, IndexError  # what methods say of bad images; not, say, CUDA's errors
    try:
        return *_measure_in_memory(job, samples), []
    except expected as error:
        together = error
    rows, left_out, failed = [pd.DataFrame()], [], []
    for sample in samples:
        try:
            found, without = _measure_in_memory(job, [sample])
        except expected as error:
            failed.append([sample.id, files.reason(error)])
        else:
            rows.append(found)
            left_out += without
    if len(failed) == len(samples) and not any(job.run.glob("chunk-*.parquet")):
        raise together  # nothing has worked yet: it is not the pictures, but the call
    return pd.concat(rows, ignore_index=True), left_out, failed


def _measure_in_memory(job, samples):
    return _in_memory(job, lambda: measure(samples, job.classifier, job.methods, job.metrics, job.step))


def _in_memory(job, work):
    """work(), with half the batch as often as the GPU's memory demands it."""
    while True:
        try:
            return work()
        except RuntimeError as error:  # cuBLAS and cuDNN have no class of their own for it
            full = isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
            if not full or job.classifier.batch == 1:
                raise
        # Outside of `except`, where the error still holds on to what it could not fit.
        job.classifier = job.classifier.with_batch(job.classifier.batch // 2)
        torch.cuda.empty_cache()


def pays_to_compile(job: Job, samples: list) -> bool:
    """Whether a run's scoring passes are to run a compiled copy of the network: what its rows depend on in
    their last digits, so that it is decided once.

    A picture is measured for it, and, where there is work enough for the copy, that is made and tried.
    """
    if job.classifier.compile is not True:
        return bool(job.classifier.compile)
    if len(job.ids) < ENOUGH or not samples:
        return False
    image = job.classifier.normalise(samples[0].pixels[None])

    def tried():
        clf = job.classifier
        with clf.compiled(counts["forward images"] * len(job.ids), image.shape[-2:]) as plan:
            while plan and not plan.run:
                clf.logits(image.expand(plan.shape[0], -1, -1, -1))
        return bool(plan) and plan.run is not clf.network

    try:
        with counting() as counts:
            _measure_each(job, samples[:1])
        return _in_memory(job, tried)
    except (ValueError, IndexError):  # the first chunk says so
        return False


def say(text: str) -> None:
    """To where a terminal or papermill's log shows it."""
    print(text, file=sys.stderr, flush=True)


def foretell(job: Job, missing: list[int], workers: int = 1) -> str:
    """What a run will cost, in words, from up to four pictures measured: passes and time."""
    indices = [i for start in missing for i in job.part(start)]
    found = []  # (forward passes, seconds) of pictures that give rows
    for i in indices[:: max(1, len(indices) // 16)]:
        samples, _ = load(job.dataset, job.ids, [i])
        begin = time.perf_counter()
        with counting() as counts:
            rows, _, _ = _measure_each(job, samples)
        if len(rows):
            found.append((counts["forward images"], time.perf_counter() - begin))
        if len(found) == 5 or sum(seconds for _, seconds in found) > 10:
            break
    if not found:
        return "none of the first pictures could be measured: there is no estimate of the time"
    found = found[1:] or found  # the first one is for the device to warm up
    passes, seconds = (sum(values) / len(found) for values in zip(*found, strict=True))
    left = pd.Timedelta(round(seconds * len(indices) / workers), "s")
    return (
        f"measured on {len(found)}: a picture takes {passes:,.0f} forward passes, {seconds:.2f} s; "
        f"all of them {passes * len(indices):,.0f} passes, about {left}"
        + (f" on {workers} workers" if workers > 1 else "")
    )
