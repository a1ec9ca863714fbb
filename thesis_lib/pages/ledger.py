"""The ledger of claims, data/claims.csv: what the thesis says, and what became of it here.

    python -m thesis_lib.pages.ledger             compute every status again; say what differs
    python -m thesis_lib.pages.ledger --update    the same, and write it into the status column, nothing else

Run the second after new rows in data/results, and then `make notebooks`, which executes the pages of chapter 5
again. The columns of a row:

id, place, statement
    the claim, in our words
status
    one of `STATUSES`; follows from the rest, see `status`
table
    the one table that decides, named before it is read: "dataset/network/table" in data/results, or the name of one of
    the thesis's own in data/thesis_tables
evidence
    calls of functions of `evidence`, separated by ";", in which `table` stands for that table
beside
    the same over tables of other networks, which do not decide, but may disagree
cell, test
    where it is shown, "notebook#cell-id", and tested, "tests/file.py::function"
note
    what would check it; behind "corrected: " the correction with which it holds

No number stands here, and none is read from a page: evidence is recorded rows, which `make test` measures again, or a
named test.
"""

import ast
import csv
import functools
import html
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from docutils.nodes import make_id

from thesis_lib.data import REPOSITORY
from thesis_lib.pages.evidence import EVIDENCE, MISSING, Finding
from thesis_lib.pages.report import typeset

ROOT = Path(REPOSITORY)
STATUSES = {
    "implemented": "an equation or algorithm, and a test compares the code with it, written out literally",
    "reproduced": "the deciding table says so, or a test does",
    "corrected": "it holds with the correction that is named",
    "contradicted": "a clear difference of the other sign",
    "equivalent": "no difference that matters: its interval lies within the margin",
    "depends on the network": "decided, and otherwise on another network",
    "open": "this many pictures cannot tell; how many could is said",
    "not checkable here": "needs data or people that are not here; what would check it is named",
}
BY_VERDICT = {
    "holds": "reproduced",
    "contradicted": "contradicted",
    "equivalent": "equivalent",
    "open": "open",
}
CORRECTED = "corrected: "


def read(path: Path | None = None) -> pd.DataFrame:
    """The ledger as a table of texts, one row for each claim, by its id."""
    path = path or ROOT / "data/claims.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")


# From evidence to a status


def calls(text: str, table: str = "") -> list[tuple[str, list, dict]]:
    """The calls in a column of evidence: [(function, arguments, keywords), ...].

    Raises ValueError for what is no call of known evidence on plain values. The name `table` stands for the table.

    >>> from thesis_lib.pages import ledger
    >>> ledger.calls("highest(table, 'overall', 'msg_cam')", "cutouts/vgg19_cutouts/insertion_deletion")
    [('highest', ['cutouts/vgg19_cutouts/insertion_deletion', 'overall', 'msg_cam'], {})]
    """

    def value(node):
        return (
            table if table and isinstance(node, ast.Name) and node.id == "table" else ast.literal_eval(node)
        )

    found = []
    for statement in ast.parse(text).body:
        call = getattr(statement, "value", None)
        name = getattr(getattr(call, "func", None), "id", None)
        if not isinstance(call, ast.Call) or name not in EVIDENCE:
            raise ValueError(f"not a call of known evidence: {text}")
        keywords = {keyword.arg: value(keyword.value) for keyword in call.keywords}
        found.append((name, [value(argument) for argument in call.args], keywords))
    return found


def findings(text: str, table: str = "") -> list[Finding]:
    """What the calls in a column of evidence find."""
    return [EVIDENCE[function](*given, **keywords) for function, given, keywords in calls(text, table)]


def beside(row: pd.Series) -> dict[str, list[Finding]]:
    """{table: findings} of the networks that do not decide."""
    found: dict[str, list[Finding]] = {}
    for function, given, keywords in calls(row["beside"]):
        found.setdefault(given[0], []).append(EVIDENCE[function](*given, **keywords))
    return found


def together(verdicts: list[str]) -> str:
    """One verdict on a claim that several findings of one table speak of; "" if all are shown only.

    >>> from thesis_lib.pages import ledger
    >>> ledger.together(["holds", "open"]), ledger.together(["contradicted", "open"])
    ('open', 'contradicted')
    """
    found = set(verdicts) - {""}
    return (
        "contradicted"
        if "contradicted" in found
        else found.pop()
        if len(found) == 1
        else "open" * bool(found)
    )


def status(row: pd.Series) -> str:
    """The status of a row: from its evidence; without any, the one that it states.

    The deciding table decides, unless two networks are decided and differ. Rows that are missing, of any of its
    tables, leave it open.
    """
    deciding, others = findings(row["evidence"], row["table"]), beside(row)
    verdict = together([f.verdict for f in deciding])
    if not verdict:
        return row["status"]
    if any(f.n == 0 for found in (deciding, *others.values()) for f in found):
        return "open"
    networks = {verdict, *(together([f.verdict for f in found]) for found in others.values())}
    if len(networks - {"open", ""}) > 1:
        return "depends on the network"
    if verdict == "holds" and row["note"].startswith(CORRECTED):
        return "corrected"
    return BY_VERDICT[verdict]


# Pages


def chapter(claim: str) -> str:
    """The chapter of an id such as "3-eq-7"."""
    return claim.split("-")[0]


def counts(ledger: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each chapter have which status."""
    table = pd.crosstab(ledger.index.map(chapter), ledger["status"])
    table = table.reindex(columns=list(STATUSES), fill_value=0)
    table.loc["all"] = table.sum()
    table.index.name = table.columns.name = None
    return table.assign(all=table.sum(axis=1)).T.add_prefix("chapter ").rename(columns={"chapter all": "all"})


@functools.lru_cache
def _headings(stem):
    """{cell id: (heading above or in it, the page's first)} of a notebook."""
    heading, top, found = None, None, {}
    for cell in nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
            for line in re.findall(r"^#+ (.+)$", text, re.M):
                top, heading = top or line, line
        found[cell.id] = heading, top
    return found


def link(place: str) -> str:
    """HTML link to the section of the book that holds the cell "notebook#cell-id".

    Raises KeyError for a cell that is not there.
    """
    stem, _, cell_id = place.partition("#")
    if cell_id not in _headings(stem):
        raise KeyError(f"no cell {cell_id!r} in notebook {stem}")
    heading, top = _headings(stem)[cell_id]
    words = re.sub(r"[`*$]", "", heading)
    label = re.split(r" · ", words)[0]
    anchor = "" if heading == top else "#" + make_id(words)
    return f'<a href="{stem}.html{anchor}">{stem[:4]} {html.escape(label)}</a>'


def _where(table):
    """A table in words."""
    if "/" not in table:
        return (
            f"printed in the thesis, {table.replace('_', ' ', 1).replace('_', '-')}"
            if table
            else "arithmetic"
        )
    dataset, network, title = table.split("/")
    return f"{network} on {dataset}, {title.replace('_', ' ')}"


def _evidence(row):
    deciding = findings(row["evidence"], row["table"])
    groups = {_where(row["table"]) + (" (decides)" if "/" in row["table"] else ""): deciding}
    groups |= {f"{_where(table)} (beside)": found for table, found in beside(row).items()}
    lines = []
    for label, found in groups.items():
        items = (f"<b>{f.verdict}</b>: " * bool(f.verdict) + html.escape(typeset(f.text)) for f in found)
        if found:
            lines.append(f"<p>{label}</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>")
    return "".join(lines)


def verdicts(*claims: str) -> str:
    """Markdown for the beginning of a page: some of its claims, each with its status and what the deciding table says."""
    ledger = read()
    lines = ["**What the thesis says of this, and what the rows say:**\n"]
    for claim in claims:
        row = ledger.loc[claim]
        found = [f.text.partition(f"; {MISSING}") for f in findings(row["evidence"], row["table"])]
        # One sentence for each finding, and one for what is missing, which is the same for all of a table.
        said = dict.fromkeys(
            [text for text, *_ in found] + [f"{MISSING}{what}" for *_, what in found if what]
        )
        text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in said)
        lines.append(
            f"- *{row['statement']}* **{row['status'].capitalize()}**, by {_where(row['table'])}. {text} "
            f'(<a href="05_2_ledger.html#claim-{claim}">{claim}</a>)'
        )
    return "\n".join(lines)


def as_html(ledger: pd.DataFrame) -> str:
    """The ledger as one table; its rows are anchors (`claim-3-eq-7`) and carry what filters need."""
    lines = ['<table class="ledger"><thead><tr>']
    lines += [f'<th scope="col">{label}</th>' for label in ("claim", "status", "evidence", "shown in")]
    lines += ["</tr></thead><tbody>"]
    for claim, row in ledger.iterrows():
        word, note = row["status"], row["note"].removeprefix(CORRECTED)
        lines += [
            f'<tr id="claim-{claim}" data-chapter="{chapter(claim)}" data-status="{word}">',
            f'<th scope="row"><a href="#claim-{claim}">{claim}</a>',
            f"<span>({html.escape(row['place'])})</span><br>",
            f"{html.escape(row['statement'])}</th>",
            f"<td><b>{word}</b>{'. ' + html.escape(note) if note else ''}</td>",
            "<td>",
            _evidence(row),
            "</td><td>",
            "<br>".join([*map(link, row["cell"].split())]),
            "".join(f"<br><code>{html.escape(t.removeprefix('tests/'))}</code>" for t in row["test"].split()),
            "</td></tr>",
        ]
    return "\n".join([*lines, "</tbody></table>"])


def main() -> None:
    path = ROOT / "data/claims.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    changed = 0
    for row in rows:
        now = status(row)
        if now != row["status"]:
            print(f"{row['id']}: {row['status'] or 'no status'} -> {now}")
            row["status"], changed = now, changed + 1
    print(f"{len(rows)} claims, {sum(bool(r['evidence']) for r in rows)} with evidence, {changed} changed")
    if changed and "--update" in sys.argv[1:]:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"written: {path.relative_to(ROOT)}")
    elif changed:
        sys.exit(1)


if __name__ == "__main__":
    main()
