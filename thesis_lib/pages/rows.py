"""The rows that a page shows: recorded ones where they are what the page's parameters name, else measured."""

import random

import numpy as np
import pandas as pd

from thesis_lib.data import from_repository
from thesis_lib.data.models import load_classifier
from thesis_lib.data.registry import open_dataset
from thesis_lib.data.subsets import Subset
from thesis_lib.metrics import METRICS
from thesis_lib.runs import files, key
from thesis_lib.runs.evaluate import evaluate, load_rows
from thesis_lib.runs.record import chosen, recorded, without_code
from thesis_lib.runs.verify import again, draws, parts_of


def rows_of(
    table: str,
    dataset: str,
    network: str,
    methods: dict,
    *,
    metrics: tuple = ("insertion_deletion",),
    weights: str = "",
    data_root: str = "",
    subset: str = "",
    images: int = 0,
    step: int = 896,
    device: str = "",
    out: str = "_build/runs",
    run: str = "",
    engine: str = "local",
    scheduler: str = "",
    progress: bool = False,
) -> pd.DataFrame:
    """Rows of methods {label: method}, as `evaluate` returns them.

    Recorded ones of `table` if they are of this dataset, network (with its own weights), step and of these
    methods with these settings; `images` is then 0 for all of them, or as many as there are. Else what is missing
    is measured: a run in `out` that goes on where it stopped. `run` names the folder of a finished one.
    `images` with a minus: the last so many, which no table uses.

    The result's `attrs` hold "provenance" (recorded) or "run" (measured).
    """  # fmt: skip
    if run:
        return load_rows(from_repository(run))
    if not (weights or data_root or subset):
        rows = _recorded(table, dataset, network, methods, step, images)
        if rows is not None:
            return rows
    data = open_dataset(dataset, data_root, subset)
    if images < 0:
        data, images = Subset(data, chosen(data.ids, images)), 0
    classifier = load_classifier(
        network, weights or None, device=None if engine == "dask" else device or None
    )
    return evaluate(
        data, classifier, methods, from_repository(out), metrics=metrics, limit=max(images, 0) or None, step=step,
        engine=engine, scheduler=scheduler or None, device=device or None, progress=progress,
    )  # fmt: skip


def _recorded(table, dataset, network, methods, step, images):
    try:
        rows = recorded(dataset, network, table)
    except FileNotFoundError:
        return None
    provenance = rows.attrs["provenance"]
    for label, method in methods.items():
        known = provenance["methods"].get(label)
        if known is None or known["facts"]["step"] != step:
            return None
        if without_code(known["facts"]["method"]) != without_code(key.describe(method)):
            return None
    rows = rows[rows["method"].isin(list(methods))]
    if abs(images) > rows["id"].nunique():
        return None
    rows = rows[rows["id"].isin(chosen(rows["id"].unique(), images))]
    rows = rows.reset_index(drop=True)
    rows.attrs["provenance"] = provenance
    return rows


def source(rows: pd.DataFrame) -> str:
    """One line for under a table, in Markdown: dataset, network, n, command, machine, date."""
    n = rows["id"].nunique()
    if "provenance" not in rows.attrs:
        facts = files.manifest(from_repository(rows.attrs["run"]))
        settings = facts["settings"]
        return (
            f"*{settings['dataset']['name']}, {settings['classifier']['name']}, n = {n} pictures; measured by "
            f"`tl.evaluate`, run {rows.attrs['run'].rsplit('/', 1)[-1]}, {', '.join(facts['devices'])}.*"
        )
    known = rows.attrs["provenance"]
    methods = [known["methods"][label] for label in rows["method"].unique()]

    def each(what, between=", "):
        return between.join(sorted({facts[what] for facts in methods}))

    commits = ", ".join(sorted({(facts["commit"] or "none")[:7] for facts in methods}))
    return (
        f"*{known['dataset']}, {known['network']}, n = {n} pictures; recorded by `{each('command', '` and `')}` on "
        f"{each('device')}, {each('date')}, commit {commits}.*{_still_to_do(known, rows['method'].unique())}"
    )


def _still_to_do(known, labels):
    """What the plan has and the table has not, with the command that goes on."""
    text = ""
    for part in parts_of(known["dataset"], known["network"], known["table"]):
        facts = [known["methods"][label] for label in part.methods() if label in labels]
        there = min((some["pictures"] + len(some["left_out"]) for some in facts), default=None)
        if there is not None and there < (planned := len(part.data())):
            text += f" So far {there} of {planned} planned pictures; `make record PART={part.name}` goes on."
    return text


def measured_again(rows: pd.DataFrame, count: int = 1, most: float = 300, seed: int = 0) -> pd.DataFrame:
    """Some cheap recorded rows measured again on this machine, now: recorded, measured, difference.

    Compared is over-all, the hits, or the sanity check's mean over its layers. Rows that were measured just
    now, or whose pictures or weights are not here, give an empty table.
    """
    columns = ["picture", "method", "column", "recorded", "measured", "difference"]
    known = rows.attrs.get("provenance", {})
    found: list[tuple] = []
    for part in parts_of(*(known.get(k, "") for k in ("dataset", "network", "table"))):
        compared = ("overall", "hits", "convolutions_spearman", "overall_blurred")
        names = [c for m in part.metrics for c in METRICS[m].columns if c in compared]
        for some in draws(part, rows, random.Random(seed), most):
            if len(found) >= count:
                break
            a, b = (float(np.mean(table[names[0]].iloc[0])) for table in (some, again(part, some)))
            found.append((some["id"].iloc[0], some["method"].iloc[0], names[0], a, b, abs(a - b)))
    return pd.DataFrame(found, columns=columns)
