"""The ledger of claims: does what it names exist, and does every status recompute?

`problems` lists what is wrong with one row. Each of its rules is seen to fail below.
"""

import ast
import functools
import html
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from thesis_lib.pages import ledger

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ledger.read()
EQUATIONS = [*(f"3-eq-{n}" for n in range(1, 14)), *(f"4-eq-{n}" for n in range(1, 19))]
COLUMNS = ["place", "statement", "status", "embedded", "recorded", "cell", "test", "check", "note"]


@functools.cache
def names_in(file):
    """Names of the test functions of a file, without running it."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@functools.cache
def cells_of(stem):
    return {cell.id for cell in nbformat.read(ROOT / f"notebooks/{stem}.ipynb", as_version=4).cells}


def cells_named(row):
    """All "notebook#cell" of a row, those in its evidence as well."""
    arguments = [
        a for column in ("embedded", "recorded") for _, args in ledger.calls(row[column]) for a in args
    ]
    return [*row["cell"].split(), *(a for a in arguments if isinstance(a, str) and "#" in a)]


def problems(row):
    """Everything that is wrong with a row, one line each."""
    found = []
    if row["status"] not in ledger.STATUSES:
        found.append(f"no such status: {row['status']!r}")
    if not row["place"] or not row["statement"]:
        found.append("place and statement are needed")
    if row["status"] in ("corrected", "not checkable here") and not row["note"]:
        found.append("the note must name the correction, or what would check the claim")
    for place in cells_named(row):
        stem, _, cell = place.partition("#")
        if not (ROOT / f"notebooks/{stem}.ipynb").is_file() or cell not in cells_of(stem):
            found.append(f"there is no cell {place}")
    for test in row["test"].split():
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file() or name not in names_in(file):
            found.append(f"there is no test {test}")
    if row["check"] and row["check"] not in ledger.CHECKS:
        found.append(f"there is no check {row['check']}")
    if found:
        return found
    evidence = ledger.findings(row["embedded"]) + ledger.findings(row["recorded"])
    if any(finding.verdict for finding in evidence) and not row["check"]:
        found.append("evidence with a verdict needs a check")
    if not row["check"] and row["status"] in ("contradicted", "open"):
        found.append("without a check nothing can be contradicted or open")
    if not row["check"] and row["status"] in ("reproduced", "corrected") and not (row["test"] or row["cell"]):
        found.append("neither check nor test nor cell shows it")
    if (now := ledger.status(row)) != row["status"]:
        found.append(f"its check finds {now!r}, not {row['status']!r}")
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


def test_statuses_of_equations_rest_on_a_comparison_with_them():
    assert all(LEDGER.loc[claim, "check"] and LEDGER.loc[claim, "test"] for claim in EQUATIONS)


def test_the_stored_page_shows_the_ledger_as_it_is_now():
    """Evidence of other notebooks or rows, after the page was executed, would leave it behind."""
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


@pytest.mark.parametrize(
    ("claim", "column", "value", "message"),
    [
        ("3-table-2-first", "status", "reproduced", "its check finds"),
        ("3-table-2-second", "status", "open", "its check finds"),
        ("3-eq-3", "status", "reproduced", "its check finds"),
        ("3-eq-7", "status", "true", "no such status"),
        ("3-eq-7", "cell", "03_1_method#method-99", "no cell 03_1_method#method-99"),
        ("3-eq-7", "cell", "03_9_method#method-01", "no cell 03_9_method"),
        ("3-coarse", "embedded", "said('03_1_method#method-80', 'values computed', '196')", "no cell"),
        (
            "3-coarse",
            "embedded",
            "said('03_1_method#method-08', 'values computed', '197')",
            "its check finds",
        ),
        ("3-eq-7", "test", "tests/test_kernels.py::test_nothing", "no test"),
        ("3-eq-7", "test", "tests/test_nothing.py::test_nothing", "no test"),
        ("3-eq-7", "check", "believed", "no check believed"),
        ("3-eq-7", "check", "", "evidence with a verdict needs a check"),
        ("3-eq-8-text", "note", "", "must name the correction"),
        ("3-table-2", "note", "", "must name the correction"),
        ("3-table-2", "status", "open", "nothing can be contradicted or open"),
        ("3-eq-7", "statement", "", "place and statement"),
    ],
)
def test_each_rule_finds_its_fault(claim, column, value, message):
    row = LEDGER.loc[claim].copy()
    assert not problems(row)
    row[column] = value
    assert any(message in problem for problem in problems(row)), problems(row)


def test_evidence_that_is_no_call_of_ours_is_refused():
    for text in ("open('x')", "__import__('os')", "1 + 1", "highest(metric='overall')"):
        with pytest.raises(ValueError, match="not a call"):
            ledger.calls(text)
    with pytest.raises(KeyError, match="does not print"):
        ledger.findings("said('03_1_method#method-08', 'nothing')")
    with pytest.raises(KeyError, match="shows no"):
        ledger.findings("shown('03_6_ablation#ablation-21', 'N = 9', 'passes')")


# Verdicts


VERDICTS = [
    ("2.0 [1.0, 3.0]", "0.01", 1),
    ("-2.0 [-3.0, -1.0]", "1e-05", -1),
    ("2.0 [1.0, 3.0]", "0.2", 0),
    ("2.0 [-1.0, 3.0]", "0.01", 0),
    ("2.0 [1.0, 3.0] *", "*", 1),
    ("2.0 [1.0, 3.0]", "*", 0),
]


@pytest.mark.parametrize(("difference", "p", "sign"), VERDICTS)
def test_a_printed_difference_is_clear_if_both_ways_agree(difference, p, sign):
    assert ledger._sign(difference, p) == sign


def test_tables_are_read_as_pandas_writes_them(monkeypatch):
    columns = pd.MultiIndex.from_product([["energy", "resolution"], ["mean", "difference"]])
    index = pd.MultiIndex.from_product([["Grad-CAM", "A & B"], ["bare", "enhanced"]], names=["m", "v"])
    table = pd.DataFrame([[f"{i}{j}" for j in range(4)] for i in range(4)], index, columns)
    monkeypatch.setattr(ledger, "outputs", lambda place, kind: [table._repr_html_() * 2])
    first, second = ledger.tables("x#y")
    assert first == second and list(first) == [
        "Grad-CAM / bare", "Grad-CAM / enhanced", "A & B / bare", "A & B / enhanced",
    ]  # fmt: skip
    assert first["A & B / enhanced"]["resolution / difference"] == "33"
    plain = pd.DataFrame({"n": [6]}, index=["MSG-CAM"])
    monkeypatch.setattr(ledger, "outputs", lambda place, kind: [plain._repr_html_()])
    assert ledger.tables("x#y") == [{"MSG-CAM": {"n": "6"}}]


def made_up(better, n=40):
    """Rows in which each method's over-all score is 0.5, plus its own gain, plus a little noise."""
    rows = []
    for i in range(n):
        for k, method in enumerate(ledger.SEVEN):
            noise = 0.01 * ((i * 7 + k * 3) % 11 - 5)
            rows.append({
                "id": str(i), "class": 0, "method": method, "probability": (i + 1) / n,
                "overall": 0.5 + better.get(method, 0) + noise,
            })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def recorded(monkeypatch):
    def use(rows):
        ledger._compared.cache_clear()
        monkeypatch.setattr(ledger, "recorded", lambda file="insertion_deletion": rows)

    yield use
    ledger._compared.cache_clear()


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [({"msg_cam": 0.2}, "holds"), ({"grad_cam": 0.2}, "contradicted"), ({}, "open")],
)
def test_recorded_rows_decide(recorded, gain, verdict):
    recorded(made_up(gain))
    assert ledger.highest("overall", "msg_cam").verdict == verdict
    assert ledger.certain(least=0.2).verdict == verdict
    assert ledger.certain().text == "n = 1: too few to test"


def test_one_method_against_another(recorded):
    recorded(made_up({"msg_cam": 0.2}))
    assert ledger.ahead("overall", "msg_cam", "score_cam").verdict == "holds"
    assert ledger.ahead("overall", "score_cam", "msg_cam").verdict == "contradicted"
    assert ledger.highest("overall", "msg_cam", -1).verdict == "contradicted"
    assert ledger.highest("overall", "msg_cam", -1).text.startswith(
        "n = 40; rank 7 of 7; clearly ahead of it: Grad-CAM,"
    )


@pytest.mark.parametrize(
    ("embedded", "recorded", "status"),
    [
        (["holds"], ["holds"], "reproduced"),
        (["holds", ""], [], "reproduced"),
        (["holds"], ["open"], "open"),
        (["holds"], ["contradicted"], "open"),
        (["open"], ["contradicted"], "contradicted"),
        (["open"], [""], "open"),
    ],
)
def test_statuses_of_measurements(monkeypatch, embedded, recorded, status):
    monkeypatch.setattr(ledger, "findings", lambda verdicts: [ledger.Finding(v, "") for v in verdicts])
    assert ledger.measured({"embedded": embedded, "recorded": recorded}) == status


def test_words_of_verdicts_are_understood(monkeypatch):
    text = (
        "- vgg, enhanced: clearly better for A; clearly worse for none; open for none.\n"
        "- vgg, enhanced: clearly better for A; clearly worse for none; open for B.\n"
        "- vit, enhanced: clearly better for A; clearly worse for B; open for none."
    )
    monkeypatch.setattr(ledger, "outputs", lambda place, kind: [text])
    assert ledger.helps("x#y", "vgg").verdict == "holds"
    assert ledger.helps("x#y", "vgg", part=1).verdict == "open"
    assert ledger.helps("x#y", "vit").verdict == "contradicted"
    text = "Gone: the correlation is gone for XGrad-CAM, enhanced (0.20); some is left for Grad-CAM (0.95). More."
    assert ledger.forgotten("x#y", "XGrad-CAM", "Gone").verdict == "holds"
    assert ledger.forgotten("x#y", "enhanced", "Gone").verdict == "holds"
    assert ledger.forgotten("x#y", "Grad-CAM", "Gone").verdict == "contradicted"
    with pytest.raises(KeyError, match="what became of"):
        ledger.forgotten("x#y", "CAM", "Gone")


# The command and the page


def test_update_writes_the_status_and_nothing_else(tmp_path, monkeypatch, capsys):
    text = (ROOT / "data/claims.csv").read_text("utf-8")
    for folder in ("notebooks", "data/results", "data/thesis_tables"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(ROOT / folder)
    ledger = tmp_path / "data/claims.csv"
    wrong = re.sub(r"^(3-eq-7,.*),reproduced,", r"\1,open,", text, count=1, flags=re.M)
    assert wrong != text
    ledger.write_text(wrong, "utf-8")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["claims"])
    with pytest.raises(SystemExit):
        ledger.main()
    assert "3-eq-7: open -> reproduced" in capsys.readouterr().out and ledger.read_text("utf-8") == wrong
    monkeypatch.setattr("sys.argv", ["claims", "--update"])
    ledger.main()
    assert ledger.read_text("utf-8") == text
    ledger.main()
    assert "0 changed" in capsys.readouterr().out


def test_rows_of_the_page_are_anchors_with_what_filters_need():
    page = ledger.as_html(LEDGER.loc[["3-eq-7"]])
    assert '<tr id="claim-3-eq-7" data-chapter="3" data-status="reproduced">' in page
    assert 'href="03_1_method.html#mask-refinement"' in page
    assert html.escape(LEDGER.loc["3-eq-7", "statement"]) in page and "<script" not in page
    counts = ledger.counts(LEDGER)
    assert counts.loc["all", "all"] == len(LEDGER)
    assert counts.loc["all", "chapter 3"] == LEDGER.index.str.startswith("3-").sum()


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
    assert left() == list(ours.index)
    tab.get_by_label("Status").select_option("contradicted")
    assert left() == list(ours.index[ours["status"] == "contradicted"])
    tab.get_by_label("Chapter").focus()  # by keyboard alone: the second choice is chapter 3
    tab.keyboard.press("ArrowDown")
    assert left() == [c for c in ours.index[ours["status"] == "contradicted"] if c[0] == "3"]
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.type("SCORE-CAM second")
    assert left() == ["3-table-2-second"] and tab.locator("section:visible").count() == 1
    tab.evaluate("location.hash = 'claim-4-eq-8'")  # a link to a hidden row shows it
    tab.wait_for_function("!document.getElementById('claim-4-eq-8').hidden")
    assert left() == list(ours.index)
    tab.close()
