"""Recorded rows, measured again at random: `make verify MINUTES=20 [SEED=n]`.

For each table: how many rows were measured again, how many agree, and the greatest difference. A row agrees if
every column lies within its metric's tolerance (0.002 of over-all). Each other one is listed. It lies on an edge
(a gate, a percentile, a tie, a class that is as likely as another) if it moves as far when its picture gets noise
of a millionth, about what another machine's rounding is. The exit status is 1 if of some table less than 99 %
agree or lie on an edge. Tables whose pictures or weights are not here are named.
"""

import argparse
import functools
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from thesis_lib.data.match import match
from thesis_lib.data.models import load_classifier
from thesis_lib.metrics import METRICS
from thesis_lib.metrics.measure import measure
from thesis_lib.runs.agree import ROW, difference, disagreements, on_an_edge, shaken
from thesis_lib.runs.record import PLAN, Part, recorded, tables

AGREE = 0.99


def parts_of(dataset: str, network: str, table: str) -> list[Part]:
    """The parts of the plan that make a table; none where its pictures or weights are not here."""
    return [p for p in PLAN if (p.dataset, p.network, p.table) == (dataset, network, table)]


def again(part: Part, rows: pd.DataFrame, seed: int | None = None) -> pd.DataFrame:
    """Rows of one picture and one method measured again, of pictures that are `shaken` with that seed."""
    data, classifier, methods = _means(part)
    name, label = rows["id"].iloc[0], rows["method"].iloc[0]
    position = list(data.ids).index(name)
    start = position // part.chunk * part.chunk
    chunk = range(start, min(start + part.chunk, len(data))) if part.together else [position]
    samples = [shaken(data[i], seed) for i in chunk]
    new, _ = measure(samples, classifier, {label: methods[label]}, part.metrics, part.step)
    return new[new["id"] == name]


@functools.lru_cache(maxsize=4)
def _means(part):
    classifier = load_classifier(part.network)
    return match(part.data(), classifier), classifier, part.methods()


def draws(part: Part, rows: pd.DataFrame, rng: random.Random, most: float) -> Iterator[pd.DataFrame]:
    """The rows of one picture and method after the other, in random order, each of at most so many passes."""
    labels = set(part.methods())
    cost = rows.groupby(["id", "method"])["spent"].sum()
    if part.together:
        cost = cost * part.chunk
    pairs = sorted(pair for pair, passes in cost.items() if passes <= most and pair[1] in labels)
    rng.shuffle(pairs)
    for name, label in pairs:
        yield rows[(rows["id"] == name) & (rows["method"] == label)]


def check(
    part: Part,
    rows: pd.DataFrame,
    rng: random.Random,
    seconds: float,
    most: float = np.inf,
    fewest: int = 1,
    limit: int | None = None,
) -> dict[str, Any]:
    """Measure rows of a part again for so many seconds, `fewest` at least and `limit` at most.

    Returns rows (how many were measured again), agree, edge (how many do not and lie on an edge), greatest
    (difference of over-all, or of the first column), and lines: what lies beyond the tolerance, and why.
    """  # fmt: skip
    begin = time.monotonic()
    found: dict[str, Any] = {"rows": 0, "agree": 0, "edge": 0, "greatest": 0.0, "lines": []}
    columns = [c for m in part.metrics for c in METRICS[m].columns]
    first = "overall" if "overall" in columns else next(c for c in columns if METRICS.columns[c].tolerance)
    for some in draws(part, rows, rng, most):
        if found["rows"] >= fewest and time.monotonic() - begin > seconds:
            break
        if limit is not None and found["rows"] >= limit:
            break
        new = again(part, some)
        wrong = disagreements(some, new, part.metrics)
        bad = min(len(some), len(wrong.drop_duplicates(ROW)))
        edge = bad > 0 and on_an_edge(functools.partial(again, part, some), new, wrong, part.metrics)
        found["rows"] += len(some)
        found["agree"] += len(some) - bad
        found["edge"] += bad if edge else 0
        if len(some) == len(new):
            gaps = (
                difference(np.asarray(x, float), np.asarray(y, float))
                for x, y in zip(some[first], new[first], strict=True)
            )
            found["greatest"] = max(found["greatest"], *gaps)
        for _, line in wrong.iterrows():
            found["lines"].append(
                f"{line['id']} class {line['class']} {line['method']} {line['column']}: recorded "
                f"{line['recorded']:.4f}, now {line['measured']:.4f} "
                f"({'an edge: noise of a millionth or other kernels move the row as far' if edge else 'other values'})"
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m thesis_lib.runs.verify", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="repeats a draw; without it each is new")
    given = parser.parse_args(arguments)
    seed = int.from_bytes(os.urandom(4)) if given.seed is None else given.seed
    rng = random.Random(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    work = []
    for name in tables():
        parts = parts_of(*name)
        if not parts:
            print(f"{' '.join(name)}: not measured again, its pictures or weights are not in this repository")
        work += [(name, part) for part in parts]
    print(f"seed {seed}; {len(work)} parts of tables, {given.minutes:g} minutes", flush=True)
    failed, begin = [], time.monotonic()
    for k, (name, part) in enumerate(work):
        left = 60 * given.minutes - (time.monotonic() - begin)
        found = check(part, recorded(*name), rng, max(0, left) / (len(work) - k))
        bad = found["agree"] + found["edge"] < AGREE * found["rows"]
        edge = f", {found['edge']} lie on an edge" if found["edge"] else ""
        print(
            f"{' '.join(name)}, {part.name}: {found['agree']} of {found['rows']} rows agree{edge}, greatest "
            f"difference {found['greatest']:.5f}{'  DISAGREES' if bad else ''}",
            flush=True,
        )
        for line in found["lines"]:
            print(f"    {line}")
        failed += [name] if bad else []
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
