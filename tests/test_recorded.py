"""The tables of data/results: are they whole, and does this machine still measure what they say?"""

import dataclasses
import random
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

import thesis_lib as tl
from thesis_lib.metrics import METRICS
from thesis_lib.runs import record, verify
from thesis_lib.runs.agree import disagreements
from thesis_lib.runs.files import LIBRARY, name_of

pytestmark = pytest.mark.minutes

TABLES = record.tables()
PARTS = [(name, part) for name in TABLES for part in verify.parts_of(*name)]
# Their pictures and weights may not be passed on; `test_real.py` uses them where they are.
ELSEWHERE = {("imagenet_96", "squeezenet1_1", table) for table in ("insertion_deletion", "sanity")}


def commit():
    """What the draw of the day depends on: the commit, so that each draws other rows."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=LIBRARY, capture_output=True, text=True)
    return found.stdout.strip() or "no commit"


def test_every_part_of_the_plan_is_recorded():
    wanted = {(part.dataset, part.network, part.table) for part in record.PLAN}
    assert wanted | ELSEWHERE == set(TABLES)


@pytest.mark.parametrize("name", TABLES, ids="/".join)
def test_a_table_is_whole(name):
    rows = tl.recorded(*name)
    provenance = rows.attrs["provenance"]
    assert list(provenance["methods"]) == list(rows["method"].unique())
    assert not rows.duplicated(["id", "class", "method"]).any()
    for label, facts in provenance["methods"].items():
        part = rows[rows["method"] == label]
        assert part["id"].nunique() == facts["pictures"], label
        assert len(facts["commit"]) == 40 and facts["device"] and facts["date"] and facts["command"]
    assert rows["probability"].between(0, 1).all()
    if "overall" in rows:
        gap = rows["insertion_auc"] - rows["deletion_auc"] - rows["overall"]
        assert gap.abs().max() < 1e-5
    if "hits" in rows:
        assert (rows["hits"] + rows["misses"] == 100).all()
    for column in rows.filter(like="_spearman"):
        values = np.hstack(rows[column])
        assert (np.abs(values[np.isfinite(values)]) <= 1).all()


@pytest.mark.parametrize(
    ("name", "part"), PARTS, ids=lambda x: "/".join(x) if isinstance(x, tuple) and len(x) == 3 else ""
)
def test_some_rows_come_out_again(name, part):
    """Two rows of at most 1,500 passes, other ones for each commit, on whatever machine this is."""
    rng = random.Random(f"{commit()} {name} {part.name}")
    found = verify.check(part, tl.recorded(*name), rng, seconds=0, most=1500, fewest=2)
    assert found["rows"] >= 2
    assert found["agree"] + found["edge"] == found["rows"], "\n".join(found["lines"])


def test_a_table_that_is_shifted_by_a_hundredth_is_seen(tmp_path, monkeypatch, capsys):
    name, part = next((n, p) for n, p in PARTS if "insertion_deletion" in p.metrics)
    rows = tl.recorded(*name)
    provenance = rows.attrs.pop("provenance")
    rows["overall"] += 0.01
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.write(tmp_path.joinpath(*name[:2], f"{name[2]}.parquet"), rows, provenance)
    found = verify.check(part, tl.recorded(*name), random.Random(0), 0, 2000, 3, 3)
    assert found["agree"] == found["edge"] == 0 and abs(found["greatest"] - 0.01) < 1e-3
    assert "overall: recorded" in found["lines"][0]
    monkeypatch.setattr(verify, "PLAN", [part])
    assert verify.main(["--minutes", "0", "--seed", "3"]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_disagreements_know_curves_gaps_and_missing_rows():
    row = {"id": "a", "class": 1, "method": "m", "passes": 2.0, "tied": 3}
    row |= {
        "insertion": [0.1, 0.2],
        "deletion": [0.1, 0.2],
        "insertion_auc": 0.5,
        "deletion_auc": 0.2,
        "overall": 0.3,
    }
    old = pd.DataFrame([row])
    assert disagreements(old, old, ["insertion_deletion"]).empty
    for column, value in (("insertion", [0.1, 0.23]), ("overall", 0.304), ("overall", np.nan)):
        new = old.assign(**{column: [value]})
        assert disagreements(old, new, ["insertion_deletion"])["column"].tolist() == [column]
    assert disagreements(old, old.assign(tied=9), ["insertion_deletion"]).empty  # no tolerance: not compared
    assert METRICS["insertion_deletion"].columns["tied"].tolerance is None
    other = old.assign(**{"class": 2})
    assert np.isinf(disagreements(old, other, ["insertion_deletion"])["difference"]).all()


def test_a_table_grows_by_what_is_missing(tmp_path, monkeypatch):
    """More pictures, another method, a stop between two blocks: nothing is measured twice."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(record, "BLOCK", 2)
    measured = []

    def evaluate(data, classifier, methods, *args, **settings):
        measured.append((list(data.ids), list(methods)))
        if len(measured) == stop:
            raise KeyboardInterrupt
        return tl.evaluate(data, classifier, methods, *args, **settings, progress=False)

    def part(pictures, *names):
        methods = {name: tl.METHODS[name] for name in names}
        return record.Part("a", "cutouts", "vgg19_cutouts", lambda: methods, ("insertion_deletion",), "a", pictures,
                           25088)  # fmt: skip

    monkeypatch.setattr(record, "evaluate", evaluate)
    ids, stop = list(tl.open_dataset("cutouts").ids), 3
    with pytest.raises(KeyboardInterrupt):
        record.record(part(5, "random", "centre"))
    assert tl.recorded("cutouts", "vgg19_cutouts", "a")["id"].tolist() == 2 * ids[:4]
    measured.clear()
    stop = 0
    record.record(part(5, "random", "centre", "grad_cam"))
    assert measured == [
        (ids[4:5], ["random", "centre"]),
        (ids[:2], ["grad_cam"]),
        (ids[2:4], ["grad_cam"]),
        (ids[4:5], ["grad_cam"]),
    ]
    measured.clear()
    record.record(part(5, "random", "centre", "grad_cam"))
    assert not measured
    grown = tl.recorded("cutouts", "vgg19_cutouts", "a")
    for facts in grown.attrs["provenance"]["methods"].values():
        assert facts["pictures"] == 5 and facts["device"] == name_of(torch.device("cpu"))  # said once
    monkeypatch.setattr(record, "RESULTS", tmp_path / "at once")
    monkeypatch.setattr(record, "BLOCK", 5)
    record.record(part(5, "random", "centre", "grad_cam"))
    at_once = tl.recorded("cutouts", "vgg19_cutouts", "a")
    wanted = ["method", "id", "insertion_auc", "deletion_auc"]
    pd.testing.assert_frame_equal(grown[wanted], at_once[wanted], atol=1e-4)


def test_memory_stays_flat():
    rows = pd.read_csv(record.RESULTS / "memory.csv", comment="#")
    for compiled, count in ((False, 50_000), (True, 5_000)):
        running = rows[(rows["compiled"] == compiled) & (rows["pictures"] >= 1000)].iloc[:-1]
        assert running["pictures"].iloc[-1] in (count - 500, count)
        assert running["megabytes"].max() < 1.05 * running["megabytes"].min()


# Going on


@pytest.mark.parametrize("shift, asked_for", [(0.0, 2), (1.0, 4)])
def test_a_table_that_is_not_whole_goes_on_where_code_has_changed(
    tmp_path, monkeypatch, capsys, shift, asked_for
):
    """Rows that come out again stay, and only the pictures without any are measured; else all of them are."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "RUNS", tmp_path / "runs")
    part = record.Part(
        "p", "cutouts", "vgg19_cutouts", lambda: {"random": tl.METHODS["random"]}, ("fineness",), "t", 2
    )
    record.record(part)
    rows, provenance = record._table(part)
    record.write(part.file, rows.assign(boundary_distance=rows["boundary_distance"] + shift), provenance)

    monkeypatch.setattr(record.key, "loop", lambda: "0123456789abcdef")  # other code
    evaluate, asked = record.evaluate, []
    monkeypatch.setattr(
        record, "evaluate", lambda few, *a, **k: asked.extend(few.ids) or evaluate(few, *a, **k)
    )
    more = dataclasses.replace(part, pictures=4)
    record.record(more)
    assert asked == more.data().ids[-asked_for:]
    assert ("the code has changed, the rows have not" in capsys.readouterr().err) == (shift == 0)
    again, _ = record._table(more)
    assert again["id"].tolist() == more.data().ids
    assert np.allclose(again["boundary_distance"][:2], rows["boundary_distance"], equal_nan=True)
