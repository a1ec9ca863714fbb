"""The ledger of claims: does what it names exist, and does every status follow from its evidence?

`problems` lists what is wrong with one row. Each of its rules is seen to fail below.
"""

import ast
import functools
import html
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from thesis_lib.pages import evidence, ledger
from thesis_lib.runs.record import PLAN, tables

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ledger.read()
EQUATIONS = [*(f"3-eq-{n}" for n in range(1, 14)), *(f"4-eq-{n}" for n in range(1, 19))]
COLUMNS = ["place", "statement", "status", "table", "evidence", "beside", "cell", "test", "note"]
STATED = {"implemented", "reproduced", "corrected", "not checkable here"}  # without evidence over rows
TABLES = {"/".join(name) for name in tables()} | {f"{p.dataset}/{p.network}/{p.table}" for p in PLAN}
PRINTED = {path.stem for path in (ROOT / "data/thesis_tables").glob("*.csv")}


@functools.cache
def names_in(file):
    """Names of the test functions of a file, without running it."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"}


@functools.cache
def cells_of(stem):
    return {cell.id for cell in nbformat.read(ROOT / f"notebooks/{stem}.ipynb", as_version=4).cells}


def problems(row):
    """Everything that is wrong with a row, one line each."""
    found = []
    if row["status"] not in ledger.STATUSES:
        found.append(f"no such status: {row['status']!r}")
    if not row["place"] or not row["statement"]:
        found.append("place and statement are needed")
    if row["status"] in ("corrected", "not checkable here") and not row["note"]:
        found.append("the note must name the correction, or what would check the claim")
    if row["status"] == "corrected" and not row["note"].startswith(ledger.CORRECTED):
        found.append(f"the note must begin with {ledger.CORRECTED!r}")
    for place in row["cell"].split():
        stem, _, cell = place.partition("#")
        if not (ROOT / f"notebooks/{stem}.ipynb").is_file() or cell not in cells_of(stem):
            found.append(f"there is no cell {place}")
    for test in row["test"].split():
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file() or name not in names_in(file):
            found.append(f"there is no test {test}")
    if row["table"] and row["table"] not in TABLES | PRINTED:
        found.append(f"there is no table {row['table']}")
    if row["table"] and not row["evidence"]:
        found.append("a table decides nothing without evidence")
    for _, given, _ in ledger.calls(row["evidence"], row["table"] or "none"):
        if row["table"] and given[0] != row["table"]:
            found.append(f"{given[0]} is not the table that decides")
        elif not row["table"] and given[0] == "none":
            found.append("the table that decides must be named")
    for _, given, _ in ledger.calls(row["beside"]):
        if given[0] not in TABLES - {row["table"]}:
            found.append(f"there is no table {given[0]} beside it")
    if found:
        return found
    if not row["evidence"]:
        if row["status"] not in STATED:
            found.append(f"without evidence nothing is {row['status']}")
        if row["status"] in ("implemented", "reproduced") and not row["test"]:
            found.append("neither evidence nor a test shows it")
        if row["status"] == "corrected" and not (row["test"] or row["cell"]):
            found.append("neither evidence nor a test nor a cell shows it")
    if row["status"] == "implemented" and row["evidence"]:
        found.append("what is implemented rests on its test, not on rows")
    if (now := ledger.status(row)) != row["status"]:
        found.append(f"its evidence finds {now!r}, not {row['status']!r}")
    return found


# The ledger


@pytest.mark.parametrize("claim", LEDGER.index)
def test_claim(claim):
    assert not problems(LEDGER.loc[claim])


def test_ids_are_unique_and_every_equation_has_its_row():
    assert LEDGER.index.is_unique and list(LEDGER.columns) == COLUMNS
    assert all(re.fullmatch(r"[0345](-[a-z0-9]+)+", claim) for claim in LEDGER.index)
    printed = [claim for claim in LEDGER.index if re.fullmatch(r"\d-eq-\d+", claim)]
    assert sorted(printed) == sorted(EQUATIONS)
    for claim in EQUATIONS:
        assert LEDGER.loc[claim, "place"].startswith(claim.replace("-eq-", "-") + ",")


def test_equations_are_implemented_or_corrected_and_a_test_compares_them():
    assert set(LEDGER.loc[EQUATIONS, "status"]) == {"implemented", "corrected"}
    assert LEDGER.loc[EQUATIONS, "test"].all() and not LEDGER.loc[EQUATIONS, "evidence"].any()


def test_the_tests_that_are_named_are_collected():
    wanted = {test for row in LEDGER["test"] for test in row.split()}
    files = sorted({test.partition("::")[0] for test in wanted})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    collected = {line.partition("[")[0] for line in found.stdout.splitlines()}
    assert wanted <= collected, found.stdout[-2000:] + found.stderr[-2000:]


def test_no_number_is_read_from_a_page():
    """Evidence takes rows, the thesis's printed tables and arithmetic; no module behind it opens a notebook."""
    source = Path(evidence.__file__).read_text("utf-8")
    assert not re.search(r"nbformat|ipynb|html|outputs", source)
    assert ".outputs" not in Path(ledger.__file__).read_text("utf-8")


def test_the_stored_page_shows_the_ledger_as_it_is_now():
    """New rows, after the page was executed, would leave it behind."""
    shown = nbformat.read(ROOT / "notebooks/05_2_ledger.ipynb", as_version=4)
    stored = "\n".join(
        output["data"]["text/html"]
        for cell in shown.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "claim-" in output.get("data", {}).get("text/html", "")
    )
    rows, now = (re.findall(r"<tr id=.*?</tr>", text, re.S) for text in (stored, ledger.as_html(LEDGER)))
    assert len(rows) == len(LEDGER)
    stale = {re.search('id="(.*?)"', row)[1] for row in set(rows) ^ set(now)}
    assert not stale, "python -m thesis_lib.pages.ledger --update, then make notebooks"


# Rules, tried out


def another(claim):
    """A status that a claim does not have now."""
    return "open" if LEDGER.loc[claim, "status"] == "reproduced" else "reproduced"


@pytest.mark.parametrize(
    ("claim", "column", "value", "message"),
    [
        ("3-table-2-first", "status", another("3-table-2-first"), "its evidence finds"),
        ("3-step", "status", "open", "its evidence finds"),
        ("3-table-2-sums", "note", "corrected: so", "its evidence finds 'corrected'"),
        ("3-step", "evidence", "equal('100 * 448 / 224 ** 2', 0.88)", "its evidence finds 'contradicted'"),
        ("3-eq-7", "status", "true", "no such status"),
        ("3-eq-7", "status", "open", "without evidence nothing is open"),
        ("3-eq-7", "cell", "03_1_method#method-99", "no cell 03_1_method#method-99"),
        ("3-eq-7", "cell", "03_9_method#method-01", "no cell 03_9_method"),
        ("3-eq-7", "test", "tests/test_kernels.py::test_nothing", "no test"),
        ("3-eq-7", "test", "tests/test_nothing.py::test_nothing", "no test"),
        ("3-eq-7", "test", "", "neither evidence nor a test"),
        ("3-eq-7", "table", "table_3_2", "a table decides nothing"),
        ("3-eq-7", "evidence", "equal('1 + 1', 2)", "what is implemented rests on its test"),
        (
            "3-table-2-first",
            "table",
            "cutouts/vgg19_cutouts/no_table",
            "no table cutouts/vgg19_cutouts/no_table",
        ),
        (
            "3-table-2-first",
            "evidence",
            "highest('a/b/c', 'overall', 'msg_cam')",
            "not the table that decides",
        ),
        ("3-table-2-first", "table", "", "the table that decides must be named"),
        ("3-table-2-first", "beside", "highest('a/b/c', 'overall', 'msg_cam')", "no table a/b/c beside it"),
        ("3-eq-8-text", "note", "", "must name the correction"),
        ("3-eq-8-text", "note", "from small to large", "must begin with"),
        ("3-table-2", "note", "", "must name the correction"),
        ("3-eq-7", "statement", "", "place and statement"),
    ],
)
def test_each_rule_finds_its_fault(claim, column, value, message):
    row = LEDGER.loc[claim].copy()
    assert not problems(row)
    row[column] = value
    assert any(message in problem for problem in problems(row)), problems(row)


def test_evidence_that_is_no_call_of_ours_is_refused():
    for text in ("open('x')", "__import__('os')", "1 + 1", "x = 1", "highest(table, 'overall', 'msg_cam')"):
        with pytest.raises(ValueError):
            ledger.calls(text)
    found = ledger.calls("highest(table, 'overall', 'score_cam', without=('msg_cam',))", "a/b/c")
    assert found == [("highest", ["a/b/c", "overall", "score_cam"], {"without": ("msg_cam",)})]


# From verdicts to a status


@pytest.mark.parametrize(
    ("verdicts", "beside", "note", "status"),
    [
        (["holds"], ["holds"], "", "reproduced"),
        (["holds", ""], [], "", "reproduced"),
        (["holds"], ["holds"], "corrected: so", "corrected"),
        (["holds"], ["open"], "", "reproduced"),
        (["open"], ["holds"], "", "open"),  # the deciding table decides
        (["open"], ["contradicted"], "", "open"),
        (["holds"], ["contradicted"], "", "depends on the network"),
        (["contradicted"], ["holds", "open"], "", "depends on the network"),
        (["equivalent"], ["holds"], "", "depends on the network"),
        (["open"], ["holds", "contradicted"], "", "depends on the network"),
        (["contradicted", "open"], [], "", "contradicted"),
        (["holds", "open"], [], "", "open"),
        (["holds", "equivalent"], [], "", "open"),
        (["equivalent", "equivalent"], [], "", "equivalent"),
        (["holds"], ["missing"], "", "open"),
        (["missing"], ["contradicted"], "", "open"),
        ([""], [], "", "not checkable here"),
        ([], [], "", "not checkable here"),
    ],
)
def test_statuses_follow(monkeypatch, verdicts, beside, note, status):
    def finding(table, verdict):
        missing = verdict == "missing"
        return evidence.Finding("open" if missing else verdict, "", 0 if missing else 40)

    monkeypatch.setitem(ledger.EVIDENCE, "told", finding)
    row = {
        "status": "not checkable here", "table": "a/b/c", "note": note,
        "evidence": "; ".join(f"told(table, '{v}')" for v in verdicts),
        "beside": "; ".join(f"told('net {k}', '{v}')" for k, v in enumerate(beside)),
    }  # fmt: skip
    assert ledger.status(row) == status


def test_several_findings_of_one_other_network_are_one_verdict(monkeypatch):
    monkeypatch.setitem(ledger.EVIDENCE, "told", lambda table, v: evidence.Finding(v, "", 40))
    row = {
        "status": "", "table": "a/b/c", "note": "", "evidence": "told(table, 'contradicted')",
        "beside": "told('net', 'holds'); told('net', 'open')",
    }  # fmt: skip
    assert ledger.status(row) == "contradicted"
    row["beside"] = "told('net', 'holds'); told('net', 'holds')"
    assert ledger.status(row) == "depends on the network"


# The command and the page


def test_update_writes_the_status_and_nothing_else(tmp_path, monkeypatch, capsys):
    text = (ROOT / "data/claims.csv").read_text("utf-8")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/claims.csv"
    wrong = re.sub(r"^(3-step,.*),reproduced,", r"\1,open,", text, count=1, flags=re.M)
    assert wrong != text
    file.write_text(wrong, "utf-8")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["ledger"])
    with pytest.raises(SystemExit):
        ledger.main()
    assert "3-step: open -> reproduced" in capsys.readouterr().out and file.read_text("utf-8") == wrong
    monkeypatch.setattr("sys.argv", ["ledger", "--update"])
    ledger.main()
    assert file.read_text("utf-8") == text
    ledger.main()
    assert "0 changed" in capsys.readouterr().out


def test_rows_of_the_page_are_anchors_with_what_filters_need():
    page = ledger.as_html(LEDGER.loc[["3-eq-7", "3-table-2-first"]])
    assert '<tr id="claim-3-eq-7" data-chapter="3" data-status="implemented">' in page
    assert 'href="03_1_method.html#mask-refinement"' in page
    assert html.escape(LEDGER.loc["3-eq-7", "statement"]) in page and "<script" not in page
    assert "<p>efficientnet_lite0 on photographs, insertion deletion (decides)</p>" in page
    assert "<p>squeezenet1_1 on imagenet_96, insertion deletion (beside)</p>" in page
    assert "corrected:" not in ledger.as_html(LEDGER.loc[["3-eq-3"]])
    counts = ledger.counts(LEDGER)
    assert counts.loc["all", "all"] == len(LEDGER)
    assert counts.loc["all", "chapter 3"] == LEDGER.index.str.startswith("3-").sum()


def test_a_page_opens_with_what_became_of_its_claims():
    claims = "3-table-2-first", "3-step"
    heading, _, *lines = ledger.verdicts(*claims).split("\n")
    for claim, line in zip(claims, lines, strict=True):
        row = LEDGER.loc[claim]
        found = [f.text for f in ledger.findings(row["evidence"], row["table"])]
        assert (
            row["statement"] in line
            and f"**{row['status'].capitalize()}**" in line
            and f"#claim-{claim}" in line
        )
        for text in found:
            so_far, _, missing = text.partition(f"; {evidence.MISSING}")
            assert so_far[1:] in line and line.count(missing or so_far[1:]) == 1
    with pytest.raises(KeyError):
        ledger.verdicts("3-no-such-claim")


def test_cells_that_are_not_there_have_no_link():
    with pytest.raises(KeyError, match="no cell"):
        ledger.link("03_1_method#method-99")


def test_the_filters_in_a_browser(browser, tmp_path):
    page = tmp_path / "page.html"
    sections = "".join(
        f"<section>{ledger.as_html(LEDGER[LEDGER.index.str.startswith(c)])}</section>" for c in "34"
    )
    script = (ROOT / "book/_static/ledger.js").read_text("utf-8")
    page.write_text(f"<!doctype html><meta charset=utf-8>{sections}<script>{script}</script>", "utf-8")
    tab = browser.new_page()
    tab.goto(page.as_uri())

    def left():
        assert tab.locator("tbody tr:visible").count() == int(tab.inner_text("output").split()[0])
        return tab.locator("tbody tr:visible").evaluate_all("rows => rows.map(r => r.id.slice(6))")

    ours = LEDGER[LEDGER.index.str.match("[34]")]
    corrected = ours.index[ours["status"] == "corrected"]
    assert left() == list(ours.index)
    tab.get_by_label("Status").select_option("corrected")
    assert left() == list(corrected)
    tab.get_by_label("Chapter").focus()  # by keyboard alone: the second choice is chapter 3
    tab.keyboard.press("ArrowDown")
    assert left() == [c for c in corrected if c[0] == "3"]
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.type("34TH convolution")
    assert left() == ["3-conv34"] and tab.locator("section:visible").count() == 1
    tab.evaluate("location.hash = 'claim-4-eq-8'")  # a link to a hidden row shows it
    tab.wait_for_function("!document.getElementById('claim-4-eq-8').hidden")
    assert left() == list(ours.index)
    tab.close()


def test_counts_have_a_column_for_every_chapter():
    assert list(ledger.counts(LEDGER).index) == [*ledger.STATUSES, "all"]
    assert isinstance(ledger.read(), pd.DataFrame)
