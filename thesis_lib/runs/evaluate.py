"""Run methods over a dataset: rows in Parquet shards, so that a run survives whatever happens.

A run is cut into chunks of pictures, each of which becomes one shard. Which chunks are missing can
be seen from the folder alone, so a process that died, a second one beside it and a cluster are the
same to this file: somebody computes what is not there yet.
"""

import copy
import functools
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm  # as text, which papermill's log shows as well

from thesis_lib.checks import check_settings, whole
from thesis_lib.data.match import Matched, match
from thesis_lib.data.models import load_classifier
from thesis_lib.data.registry import open_dataset
from thesis_lib.methods import METHODS
from thesis_lib.metrics import METRICS
from thesis_lib.runs import files, key
from thesis_lib.runs.files import sha256
from thesis_lib.runs.job import Job, compute, foretell, load, pays_to_compile, same_pictures, say


def evaluate(
    dataset: Any,
    classifier: Any,
    methods: Iterable[str] | dict[str, Callable],
    out: str | Path,
    *,
    metrics: Iterable[str] = ("insertion_deletion",),
    limit: int | None = None,
    step: int = 448,
    chunk: int = 16,
    engine: str = "local",
    scheduler: Any = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measure methods on a dataset: one row per (image, class, method).

    A run has its own folder under `out`, named by a hash of what its numbers depend on: the pictures'
    ids, the network's weights and settings, methods with their settings, metrics, the code of all of
    them and what it calls, versions, kind of device. The same call again continues where it stopped,
    or reads the pictures, sees that they are still the same, and returns the rows; a changed setting
    or code is a new run, and a comment, a docstring or another method's code is not. Where pictures
    differ from those that were measured, or what the network makes of two of them (a hook), the
    folder's name ends in -2, -3, ... Each chunk of pictures is one Parquet shard, renamed into place
    when it is complete; a damaged shard is computed again. Several processes may work on one run:
    they share its chunks. `manifest.json` beside the shards says what was run, where, for how long,
    and what was skipped; `pictures.csv` lists the pictures in their order.

    The dataset's classes are the network's outputs by WNID, else by name (`thesis_lib.data.match.match`): `class`
    in the rows is an output. What cannot be run is said before the network's first pass; where its outputs
    have no names, one pass counts them.

    Whether passes without a graph run a compiled copy of the network is decided when a run begins, from
    what a picture takes, and stands in its manifest as "compiled": who goes on with it does the same, and
    so do workers, so that rows are the same to the bit on one machine. Less than 32 pictures are never
    worth it.

    Pictures that cannot be read, that show no annotated class, or whose class's boxes cover no
    pixel are skipped, pictures on which a method or the network fails are left out; both are
    listed. Out of memory on a GPU, the batch is halved. Memory does not grow with the number of
    pictures, but for the rows at the end: about 1 kB each.

    Args:
        dataset: a name that `open_dataset` knows ("cutouts"), or an object that has a length, `ids` and
            Samples, as those of `thesis_lib.data.datasets`.
        classifier: a name that `load_classifier` knows ("vgg19_cutouts"), or a Classifier; its `batch`
            bounds the memory.
        methods: names in METHODS, or a dict of name: `method(clf, images, classes)`, with settings
            by functools.partial.
        out: folder for runs.
        metrics: names in METRICS, in any order. "insertion_deletion" explains the class predicted on the intact picture; with
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
        DataFrame with id, class, method, probability (of the class on the intact picture), correct (the
        picture is labelled with it), passes (forward passes of the method), area (the same in passes of
        224 x 224 pixels), spent (with what the metrics took), and the columns of each metric, which
        `tl.METRICS["insertion_deletion"].columns` lists and names.
        `rows.attrs["run"]` is the run's folder.

    Raises:
        KeyError: unknown method.
        TypeError: a dataset, classifier or method that is none; a setting that a method has not.
        ValueError: unknown metric or engine; no method; limit, step or chunk out of range; a scheduler for the
            local engine; a class that is no output of the network, or may be several; outputs and their
            names of different number; a method whose settings have no stable description, whose code
            cannot be read or was changed since it was imported; no picture that could be measured.
        OSError: `out` cannot be written; nobody answers at `scheduler`; a shard cannot be written, as on a
            full disk, or the disk of the pictures fails or is gone; shards written before stay.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     rows = tl.evaluate(
    ...         open_dataset("cutouts"), clf, ["grad_cam", "xgrad_cam"], out=out, limit=2, step=6272,
    ...         progress=False,
    ...     )
    >>> rows[["id", "method"]].iloc[0].tolist(), len(rows)
    (['ILSVRC2012_val_00000001', 'grad_cam'], 4)
    """
    if engine not in ("local", "dask"):
        raise ValueError(f'engine must be "local" or "dask", not {engine!r}')
    if scheduler and engine == "local":
        raise ValueError(f'a scheduler ({scheduler}) is for engine="dask"')
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    if not metrics or set(metrics) - set(METRICS):
        raise ValueError(f"metrics must be among {', '.join(METRICS)}, not {metrics!r}")
    metrics = [name for name in METRICS if name in metrics]  # shards of any order have the same columns
    functions = _methods(methods)
    limit = None if limit is None else whole(limit, "limit", 1)
    step, chunk = whole(step, "step", 1), whole(chunk, "chunk", 1)
    if isinstance(dataset, str):
        dataset = open_dataset(dataset)
    if isinstance(classifier, str):
        classifier = load_classifier(classifier)
    if not hasattr(dataset, "ids"):
        raise TypeError(
            f"{type(dataset).__name__} is no dataset: give a name, or what tl.open_dataset returns"
        )
    if not hasattr(classifier, "logits"):
        raise TypeError(f"{type(classifier).__name__} is no classifier: give tl.Classifier(network)")
    device = torch.device(device or classifier.device)
    if engine == "local" and device.type != classifier.device.type:
        raise ValueError(f"the classifier is on {classifier.device}, not on {device}: load it there")
    source = dataset
    while hasattr(source, "dataset"):  # of a subset
        source = source.dataset
    ids = list(dataset.ids)[:limit]
    few = _two(dataset, ids)
    pixels = min((sample.pixels[0].numel() for sample in few), default=step + 1)
    if "insertion_deletion" in metrics and step >= pixels:
        raise ValueError(f"step is {step:,} pixels, and a picture has {pixels:,}: give less")
    dataset = match(dataset, classifier)
    settings: dict[str, Any] = {
        "dataset": {"pictures": len(ids), "sha256": sha256([json.dumps(ids)])},
        "classifier": key.describe_classifier(classifier) | {"device": device.type},
        "methods": {name: key.describe(method) for name, method in functions.items()},
        "metrics": key.describe_metrics(metrics),
        "step": step,
        "chunk": chunk,
        "code": key.loop(),
        "versions": key.versions(),
    }
    if isinstance(dataset, Matched):
        settings["dataset"]["classes"] = dataset.classes
    digest = sha256([json.dumps(settings, sort_keys=True)])[:16]
    settings["dataset"]["name"] = getattr(source, "name", type(source).__name__)
    code = key.library(functions) if engine == "dask" else []
    out = Path(out).resolve()
    if not files.is_finished(out / digest):  # to read one takes neither
        _try_to_write(out)
        if engine == "dask":
            from thesis_lib.runs.cluster import reach  # Dask is an optional extra

            reach(scheduler)
    nameless = copy.copy(classifier)  # with names of another number every picture would fail
    nameless.categories = None
    behaviour = key.behaviour(nameless, few)
    for known in behaviour if classifier.categories is not None else []:
        if len(known["logits"]) not in (0, len(classifier.categories)):
            raise ValueError(
                f"{classifier} has {len(known['logits']):,} outputs and {len(classifier.categories):,} names for "
                "them: give tl.Classifier(..., categories=[...]) a name for each output, in their order"
            )
    job = Job(out, dataset, ids, classifier, functions, tuple(metrics), step, chunk, code)
    compiled = _enter(job, digest, settings, behaviour, few if device.type == classifier.device.type else [])
    job.classifier = job.classifier.with_compile("always" if compiled and classifier.compile else False)
    run = job.run
    if progress is None:
        progress = not os.environ.get("TQDM_DISABLE")

    missing = job.missing()
    if not missing and files.is_finished(run):
        return load_rows(run)
    if progress:
        pictures = sum(len(job.part(start)) for start in missing)
        say(
            f"run {run.name}: {len(ids):,} pictures, {len(functions)} methods; "
            f"{len(ids) - pictures:,} pictures are there already, {pictures:,} are to do"
        )
    random.Random().shuffle(missing)  # two processes on one run then seldom do the same chunk
    if engine == "local":
        if progress:
            say(foretell(job, missing))
        done = (compute(job, start) for start in missing)
    else:
        from thesis_lib.runs.cluster import compute_all

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
    files.finish(run, map(job.file, job.starts()))
    return load_rows(run)


def _methods(methods: Any) -> dict[str, Callable]:
    """{name: function}, each of which can be called."""
    if not isinstance(methods, dict):
        methods = {name: METHODS[name] for name in ([methods] if isinstance(methods, str) else methods)}
    if not methods:
        raise ValueError(
            'there is no method to measure: give names, such as ["grad_cam"], or {name: function}'
        )
    for name, method in methods.items():
        if not callable(method):
            raise TypeError(f"the method {name!r} is no function but {method!r}: give one, as tl.METHODS has")
        if isinstance(method, functools.partial):
            check_settings(method, {})
    return methods


def _try_to_write(out):
    """Raises OSError where no run can be written to the folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OSError(
            f"no run can be written to out, {out} ({error.strerror}): give another folder"
        ) from error


def _enter(job, digest, settings, behaviour, few):
    """Give a job its folder: the first of that digest in which network and pictures are as they are here,
    or that nobody has begun. Returns whether its scoring passes are compiled."""
    decide = functools.partial(pays_to_compile, job, few)
    out = job.run
    for number in itertools.count(1):
        job.run = out / (digest if number == 1 else f"{digest}-{number}")
        # Begun first and looked at then: another process may be doing the same.
        seed = getattr(job.dataset, "seed", None)
        known = files.begin(job.run, settings, job.ids, seed, behaviour, decide)
        if key.agrees(known.get("behaviour", []), behaviour) and same_pictures(job):
            return known.get("compiled", False)


def _two(dataset, ids):
    """Two pictures of the dataset that can be read, by which a network is recognised."""
    found = []
    for i in dict.fromkeys([0, len(ids) // 2, *range(len(ids))] if ids else []):
        found += load(dataset, ids, [i])[0]
        if len(found) == 2:
            break
    return found


def load_rows(run: str | Path) -> pd.DataFrame:
    """The rows of a finished run's folder as `evaluate` returned them; nothing is computed.

    Raises FileNotFoundError if the run is not finished, ValueError if rows are missing or damaged.

    >>> import tempfile
    >>> from thesis_lib.runs.evaluate import load_rows
    >>> with tempfile.TemporaryDirectory() as out:
    ...     rows = tl.evaluate(
    ...         open_dataset("cutouts"), clf, ["grad_cam"], out=out, limit=1, step=6272, progress=False
    ...     )
    ...     load_rows(rows.attrs["run"]).equals(rows)
    True
    """
    run = Path(run)
    if not files.is_finished(run):
        raise FileNotFoundError(f"no finished run in {run}: call evaluate as before to finish it")
    wanted = files.manifest(run)["rows"]
    found = [files.read(file) for file in sorted(run.glob("chunk-*.parquet"))]
    tables = [table.replace_schema_metadata() for table in found if table]  # neither None nor empty
    if not wanted or wanted != sum(table.num_rows for table in tables):
        raise ValueError(
            f"run {run.name} has {sum(map(len, tables))} of {wanted} rows: "
            + ("call evaluate as before" if wanted else "its manifest lists what was skipped")
        )
    rows = pa.concat_tables(tables).to_pandas()
    rows.attrs["run"] = str(run)
    return rows
