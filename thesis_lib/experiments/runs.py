"""Run methods over a dataset: rows in Parquet shards, so that a run survives a restart."""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from thesis_lib.experiments import shards
from thesis_lib.experiments.fineness import boundary_distance, effective_resolution
from thesis_lib.experiments.insertion_deletion import insertion_deletion
from thesis_lib.experiments.pointing_game import energy_inside, pointing_game
from thesis_lib.kernels import counting
from thesis_lib.methods import METHODS

METRICS = ("insertion_deletion", "pointing_game", "fineness")


def evaluate(
    dataset, classifier, methods, out, *, metrics=("insertion_deletion",), limit=None, step=448,
    chunk=16, engine="local", progress=None,
):  # fmt: skip
    """Measure methods on a dataset: one row per (image, class, method).

    A run has its own folder under `out`, named by a hash of everything that changes the numbers:
    pictures, network, methods with their settings, metrics, this library's code, versions, kind of
    device. The same call again continues where it stopped, or returns at once; a changed setting is
    a new run. Each chunk of pictures is one Parquet shard, renamed into place when it is complete;
    a damaged shard is computed again. `manifest.json` beside the shards says what was run, where,
    for how long, and what was skipped.

    Pictures that cannot be read and classes whose boxes cover no pixel are skipped, and listed.

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
        chunk: pictures per shard.
        engine: "local".
        progress: whether to show a progress bar. None: on a terminal, unless TQDM_DISABLE is set.

    Returns:
        DataFrame with id, class, method, probability (of the class on the intact picture), correct
        (the picture is labelled with it); for "insertion_deletion" insertion, deletion (curves),
        insertion_auc, deletion_auc, overall, tied; for "pointing_game" hits, misses (of the 100
        strongest points), argmax_hit (of the strongest, tolerance 15 pixels), energy (share inside
        the boxes), pixel_energy (inside the pixel mask; NaN where there is none); for "fineness"
        pixel_energy, boundary_distance (NaN likewise) and effective_resolution.
        `rows.attrs["run"]` is the run's folder.

    Raises:
        KeyError: unknown method.
        ValueError: unknown metric or engine; a method whose settings have no stable description;
            no picture that could be measured.
    """
    if engine != "local":
        raise ValueError(f'engine must be "local", not {engine!r}')
    if not metrics or set(metrics) - set(METRICS):
        raise ValueError(f"metrics must be among {METRICS}, not {metrics!r}")
    if not isinstance(methods, dict):
        methods = {name: METHODS[name] for name in methods}
    ids = list(dataset.ids)[:limit]
    settings = {
        "dataset": {"pictures": len(ids), "sha256": shards.fingerprint(dataset, ids)},
        "classifier": shards.describe_classifier(classifier),
        "methods": {name: shards.describe(method) for name, method in methods.items()},
        "metrics": sorted(metrics),
        "step": step,
        "chunk": chunk,
        "code": shards.code(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "kornia")},
    }
    run = Path(out) / shards.sha256([json.dumps(settings, sort_keys=True)])[:16]
    run.mkdir(parents=True, exist_ok=True)

    parts = [range(len(ids))[start : start + chunk] for start in range(0, len(ids), chunk)]
    files = {part: run / f"chunk-{part.start:06d}.parquet" for part in parts}
    missing = [part for part in parts if shards.read(files[part]) is None]
    if progress is None:
        progress = sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")
    done = len(ids) - sum(map(len, missing))
    with tqdm(total=len(ids), initial=done, unit="picture", disable=not progress) as bar:
        for part in missing:
            start = time.perf_counter()
            with counting() as counts:
                samples, skipped = _load(dataset, ids, part)
                rows, left_out = _measure(samples, classifier, methods, metrics, step)
            facts = {
                "seconds": round(time.perf_counter() - start, 3),
                "skipped": skipped + left_out,
                "counts": counts,
            }
            shards.write(files[part], rows, facts)
            bar.update(len(part))

    if missing or not (run / "manifest.json").exists():
        shards.write_manifest(run, settings, files.values(), classifier.device)
    return load_rows(run)


def load_rows(run):
    """The rows of a finished run's folder as `evaluate` returned them; nothing is computed.

    Raises FileNotFoundError if the run is not finished, ValueError if rows are missing or damaged.
    """
    run = Path(run)
    if not (run / "manifest.json").exists():
        raise FileNotFoundError(f"no finished run in {run}: call evaluate as before to finish it")
    wanted = json.loads((run / "manifest.json").read_text())["rows"]
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


def _load(dataset, ids, indices):
    """Samples that can be read, and [id, reason] of the others."""
    samples, skipped = [], []
    for i in indices:
        try:
            samples.append(dataset[i])
        except Exception as error:  # files are broken in many ways, and a run must not end there
            skipped.append([ids[i], shards.without_folders(f"{type(error).__name__}: {error}")])
    return samples, skipped


def _measure(samples, classifier, methods, metrics, step):
    """Rows of one chunk as a DataFrame, and [id, reason] of the classes left out."""
    if not samples:
        return pd.DataFrame(), []
    images = classifier.normalise(torch.stack([sample.pixels for sample in samples]))
    images = classifier.prepare(images)
    probabilities = classifier.probabilities(images)
    pairs, left_out = [], []
    if "pointing_game" in metrics:
        for k, sample in enumerate(samples):
            for c, mask in sample.masks.items():
                if mask.any():
                    pairs.append((k, c))
                else:
                    left_out.append([sample.id, f"class {c}: its boxes cover no pixel"])
    else:
        pairs = list(enumerate(probabilities.argmax(1).tolist()))
    if not pairs:
        return pd.DataFrame(), left_out
    owners, classes = torch.tensor(pairs, device=images.device).unbind(1)
    images = images[owners]
    common = {
        "id": [samples[k].id for k, _ in pairs],
        "class": [c for _, c in pairs],
        "method": "",
        "probability": _numpy(probabilities[owners, classes]),
        "correct": [c in samples[k].classes for k, c in pairs],
    }
    tables = []
    for name, method in methods.items():
        maps = method(classifier, images, classes)
        columns = common | {"method": name}
        if "insertion_deletion" in metrics:
            result = insertion_deletion(classifier, images, maps, classes, step)
            for key in ("insertion", "deletion"):
                columns[key] = list(_numpy(getattr(result, key)))
            for key in ("insertion_auc", "deletion_auc", "overall", "tied"):
                columns[key] = _numpy(getattr(result, key))
        if "pointing_game" in metrics:
            masks = torch.stack([samples[k].masks[c] for k, c in pairs])
            hits, misses = pointing_game(maps, masks)
            columns |= {"hits": _numpy(hits), "misses": _numpy(misses)}
            columns["argmax_hit"] = _numpy(pointing_game(maps, masks, points=1, tolerance=15)[0])
            columns["energy"] = _numpy(energy_inside(maps, masks))
        pixel_masks = [samples[k].pixel_masks.get(c) for k, c in pairs]
        if {"pointing_game", "fineness"} & set(metrics):
            columns["pixel_energy"] = _with_masks(energy_inside, maps, pixel_masks)
        if "fineness" in metrics:
            columns["boundary_distance"] = _with_masks(boundary_distance, maps, pixel_masks)
            columns["effective_resolution"] = effective_resolution(maps)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True), left_out


def _with_masks(measure, maps, masks):
    """measure(maps, masks), NaN where there is no mask."""
    known = [i for i, mask in enumerate(masks) if mask is not None and mask.any()]
    values = np.full(len(masks), np.nan)
    if known:
        values[known] = measure(maps[known].cpu(), torch.stack([masks[i] for i in known]))
    return values


def _numpy(tensor):
    return tensor.cpu().numpy()
