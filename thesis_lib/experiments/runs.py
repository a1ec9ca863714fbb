"""Run methods over a dataset: rows in Parquet shards, so that a run survives whatever happens.

A run is cut into chunks of pictures, each of which becomes one shard. Which chunks are missing can
be seen from the folder alone, so a process that died, a second one beside it and a cluster are the
same to this file: somebody computes what is not there yet.
"""

import errno
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm  # as text, which papermill's log shows as well

from thesis_lib.experiments import shards
from thesis_lib.experiments.measure import METRICS, measure
from thesis_lib.kernels import counting
from thesis_lib.methods import METHODS

DISK_ERRORS = {
    errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE,
}  # fmt: skip

def evaluate(
    dataset, classifier, methods, out, *, metrics=("insertion_deletion",), limit=None, step=448,
    chunk=16, engine="local", scheduler=None, device=None, progress=None,
):  # fmt: skip
    """Measure methods on a dataset: one row per (image, class, method).

    A run has its own folder under `out`, named by a hash of everything that changes the numbers:
    pictures, network, methods with their settings, metrics, this library's code, versions, kind of
    device. The same call again continues where it stopped, or returns at once; a changed setting is
    a new run. Each chunk of pictures is one Parquet shard, renamed into place when it is complete;
    a damaged shard is computed again. Several processes may work on one run: they share its chunks.
    `manifest.json` beside the shards says what was run, where, for how long, and what was skipped;
    `pictures.csv` lists the pictures in their order.

    Pictures that cannot be read, that show no annotated class, or whose class's boxes cover no
    pixel are skipped, pictures on which a method or the network fails are left out; both are
    listed. Out of memory on a GPU, the batch is halved. Memory does not grow with the number of
    pictures, but for the rows at the end: about 1 kB each.

    Args:
        dataset: has a length, `ids` and Samples, as those of `thesis_lib.data.datasets`.
        classifier: a Classifier; its `batch` bounds the memory.
        methods: names in METHODS, or a dict of name: `method(clf, images, classes)`, with settings
            by functools.partial.
        out: folder for runs.
        metrics: "insertion_deletion" explains the class predicted on the intact picture; with
            "pointing_game", alone or beside it, it is each class that the picture has boxes for.
        limit: the first `limit` pictures only.
        step: pixels per point of the curves.
        chunk: pictures a shard.
        engine: "local", or "dask": chunks go to the workers of a Dask cluster, who must see `out`
            and the dataset under the same paths (needs the extra `cluster`).
        scheduler: for "dask": address of a running cluster, its Client or cluster object; None
            starts one on this machine, a worker for each core.
        device: for "dask": where workers put the network, such as "cuda"; None: the kind of device
            that it is on here.
        progress: True prints an estimate of the time, then a bar; None: unless the environment
            variable TQDM_DISABLE is set.

    Returns:
        DataFrame with id, class, method, probability (of the class on the intact picture), correct
        (the picture is labelled with it); for "insertion_deletion" insertion, deletion (curves),
        insertion_auc, deletion_auc, overall, tied; for "pointing_game" first_choice (the network
        predicts the class), boxes, near_boxes (shares of the picture within the class's boxes, and
        within 15 pixels of them), hits, misses (of the 100 strongest points), argmax_hit (of the
        strongest, tolerance 15 pixels), energy (share inside the boxes), pixel_energy (inside the
        pixel mask; NaN where there is none); for "fineness"
        pixel_energy, boundary_distance (NaN likewise) and effective_resolution.
        `rows.attrs["run"]` is the run's folder.

    Raises:
        KeyError: unknown method.
        ValueError: unknown metric or engine; a scheduler for the local engine; a method whose
            settings have no stable description; no picture that could be measured.
        OSError: a shard cannot be written, as on a full disk, or the disk of the pictures fails or
            is gone; shards written before stay.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     rows = tl.evaluate(
    ...         open_dataset("glyphs"), clf, ["grad_cam", "xgrad_cam"], out=out, limit=2, step=6272,
    ...         progress=False,
    ...     )
    >>> rows[["id", "method"]].iloc[0].tolist(), len(rows)
    (['ILSVRC2012_val_00000001', 'grad_cam'], 4)
    """
    if engine not in ("local", "dask"):
        raise ValueError(f'engine must be "local" or "dask", not {engine!r}')
    if scheduler and engine == "local":
        raise ValueError(f'a scheduler ({scheduler}) is for engine="dask"')
    if not metrics or set(metrics) - set(METRICS):
        raise ValueError(f"metrics must be among {METRICS}, not {metrics!r}")
    if not isinstance(methods, dict):
        methods = {name: METHODS[name] for name in methods}
    device = torch.device(device or classifier.device)
    if engine == "local" and device.type != classifier.device.type:
        raise ValueError(f"the classifier is on {classifier.device}, not on {device}: load it there")
    ids = list(dataset.ids)[:limit]
    settings = {
        "dataset": {"pictures": len(ids), "sha256": shards.fingerprint(dataset, ids)},
        "classifier": shards.describe_classifier(classifier) | {"device": device.type},
        "methods": {name: shards.describe(method) for name, method in methods.items()},
        "metrics": sorted(metrics),
        "step": step,
        "chunk": chunk,
        "code": shards.code(),
        "versions": shards.versions(),
    }
    run = Path(out).resolve() / shards.sha256([json.dumps(settings, sort_keys=True)])[:16]
    job = Job(run, dataset, ids, classifier, methods, tuple(metrics), step, chunk, settings["code"])
    if progress is None:
        progress = not os.environ.get("TQDM_DISABLE")

    missing = job.missing()
    if not missing and shards.is_finished(run):
        return load_rows(run)
    settings["dataset"]["name"] = type(getattr(dataset, "dataset", dataset)).__name__  # not "Subset"
    shards.begin(run, settings, ids, getattr(dataset, "seed", None))
    if progress:
        pictures = sum(len(job.part(start)) for start in missing)
        say(
            f"run {run.name}: {len(ids):,} pictures, {len(methods)} methods; "
            f"{len(ids) - pictures:,} pictures are there already, {pictures:,} are to do"
        )
    random.Random().shuffle(missing)  # two processes on one run then seldom do the same chunk
    if engine == "local":
        if progress:
            say(foretell(job, missing))
        done = (compute(job, start) for start in missing)
    else:
        from thesis_lib.experiments.cluster import compute_all  # Dask is an optional extra

        done = compute_all(job, missing, scheduler, device, progress)
    finished = len(ids) - sum(len(job.part(start)) for start in missing)
    seldom = 0.1 if sys.stderr.isatty() else 10  # seconds between updates: a log keeps every line
    with tqdm(
        total=len(ids), initial=finished, unit="picture", disable=not progress, mininterval=seldom
    ) as bar:
        try:
            for pictures in done:
                finished += pictures
                bar.update(pictures)
        except BaseException as error:
            if progress or isinstance(error, KeyboardInterrupt):
                bar.write(
                    f"stopped ({type(error).__name__}): {finished} of {len(ids)} pictures are kept in "
                    f"{run}; the same call continues there",
                    file=sys.stderr,
                )
            raise
    shards.finish(run, map(job.file, job.starts()))
    return load_rows(run)


@dataclass
class Job:
    """All that is needed to compute any chunk of a run, in this process or in another."""

    run: Path
    dataset: object
    ids: list
    classifier: object
    methods: dict
    metrics: tuple
    step: int
    chunk: int
    code: str

    def starts(self):
        """The chunks, each named by its first picture."""
        return range(0, len(self.ids), self.chunk)

    def part(self, start):
        """The indices of a chunk's pictures."""
        return range(start, min(start + self.chunk, len(self.ids)))

    def file(self, start):
        return self.run / f"chunk-{start:06d}.parquet"

    def missing(self):
        return [start for start in self.starts() if shards.read(self.file(start)) is None]


def compute(job, start):
    """Measure one chunk and write its shard, if nobody has yet; returns its number of pictures."""
    part, file = job.part(start), job.file(start)
    if shards.read(file) is not None:
        return len(part)
    begin = time.perf_counter()
    with counting() as counts:
        samples, skipped = _load(job.dataset, job.ids, part)
        rows, left_out, failed = _measure_each(job, samples)
    facts = {
        "seconds": round(time.perf_counter() - begin, 3),
        "pictures": len({*rows["id"]}) if len(rows) else 0,
        "skipped": skipped + left_out,
        "failed": failed,
        "counts": counts,
        "device": shards.name_of(job.classifier.device),
    }
    shards.write(file, rows, facts)
    return len(part)


def _load(dataset, ids, indices):
    """Samples that can be read, and [id, reason] of the others."""
    samples, skipped = [], []
    for i in indices:
        try:
            samples.append(dataset[i])
        except Exception as error:  # files are broken in many ways, and a run must not end there
            if _is_out_of_reach(error):
                raise
            skipped.append([ids[i], shards.reason(error)])
    return samples, skipped


def _is_out_of_reach(error):
    """Whether the disk is to blame and not the picture, which must not be skipped for good then."""
    while error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if isinstance(error, FileNotFoundError) and error.filename:
            return not Path(error.filename).parent.is_dir()  # such as a disk that is not mounted
        error = error.__cause__
    return False


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
            failed.append([sample.id, shards.reason(error)])
        else:
            rows.append(found)
            left_out += without
    if len(failed) == len(samples) and not any(job.run.glob("chunk-*.parquet")):
        raise together  # nothing has worked yet: it is not the pictures, but the call
    return pd.concat(rows, ignore_index=True), left_out, failed


def _measure_in_memory(job, samples):
    """`measure`, with half the batch as often as the GPU's memory demands it."""
    while True:
        try:
            return measure(samples, job.classifier, job.methods, job.metrics, job.step)
        except RuntimeError as error:  # cuBLAS and cuDNN have no class of their own for it
            full = isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
            if not full or job.classifier.batch == 1:
                raise
        # Outside of `except`, where the error still holds on to what it could not fit.
        job.classifier = job.classifier.with_batch(job.classifier.batch // 2)
        torch.cuda.empty_cache()


def say(text):
    print(text, file=sys.stderr, flush=True)


def foretell(job, missing, workers=1):
    """What a run will cost, in words, from up to four pictures measured: passes and time."""
    indices = [i for start in missing for i in job.part(start)]
    found = []  # (forward passes, seconds) of pictures that give rows
    for i in indices[:: max(1, len(indices) // 16)]:
        samples, _ = _load(job.dataset, job.ids, [i])
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


def load_rows(run):
    """The rows of a finished run's folder as `evaluate` returned them; nothing is computed.

    Raises FileNotFoundError if the run is not finished, ValueError if rows are missing or damaged.

    >>> import tempfile
    >>> from thesis_lib.experiments import load_rows
    >>> with tempfile.TemporaryDirectory() as out:
    ...     rows = tl.evaluate(
    ...         open_dataset("glyphs"), clf, ["grad_cam"], out=out, limit=1, step=6272, progress=False
    ...     )
    ...     load_rows(rows.attrs["run"]).equals(rows)
    True
    """
    run = Path(run)
    if not shards.is_finished(run):
        raise FileNotFoundError(f"no finished run in {run}: call evaluate as before to finish it")
    wanted = json.loads((run / "manifest.json").read_text("utf-8"))["rows"]
    tables = [shards.read(file) for file in sorted(run.glob("chunk-*.parquet"))]
    tables = [
        table.replace_schema_metadata() for table in tables if table
    ]  # neither None nor empty
    if not wanted or wanted != sum(table.num_rows for table in tables):
        raise ValueError(
            f"run {run.name} has {sum(map(len, tables))} of {wanted} rows: "
            + ("call evaluate as before" if wanted else "its manifest lists what was skipped")
        )
    rows = pa.concat_tables(tables).to_pandas()
    rows.attrs["run"] = str(run)
    return rows
