"""The ledger of claims, data/claims.csv: what the thesis says, and what became of it here.

    python -m thesis_lib.pages.ledger             recompute the status of every row that has a check; say what differs
    python -m thesis_lib.pages.ledger --update    the same, and write it into the status column, nothing else

Run the second after new rows in data/results or new outputs in notebooks/, and then `make notebooks`, which
executes the pages of chapter 5 again.

The columns `embedded` and `recorded` hold no numbers. They hold calls of the functions below, which read
the stored outputs of the notebooks (embedded benchmark) and the rows of data/results (real network), so
that evidence cannot go stale. Each call finds a verdict, by one rule through the whole book:

holds
    every difference that the claim speaks of is clear (`report.is_clear`) and of the right sign
contradicted
    at least one of them is clear and of the wrong sign
open
    neither: this many pictures cannot tell

`check` names the function that makes a status of the verdicts.
"""

import ast
import csv
import functools
import html
import re
import sys
from collections import namedtuple
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
from docutils.nodes import make_id
from scipy import stats

from thesis_lib import report
from thesis_lib.methods import METHODS
from thesis_lib.pages.plots import name

ROOT = Path(__file__).resolve().parent.parent
STATUSES = {
    "reproduced": "it holds wherever it was measured here, or the code that follows it passes its test",
    "corrected": "it holds with the correction that is named",
    "contradicted": "a clear difference of the wrong sign somewhere, and nowhere one of the right sign",
    "open": "measured, and undecided: too few pictures, or two measurements that disagree",
    "not checkable here": "needs data or people that are not here; what would check it is named",
}
Finding = namedtuple("Finding", "verdict text")  # "holds", "contradicted", "open", or "": only shown
METRICS = {"insertion_auc": "insertion", "deletion_auc": "deletion", "overall": "over-all"}
SEVEN = METHODS.convolutional


def read(path=None):
    """The ledger as a table of texts, one row for each claim, by its id."""
    path = path or ROOT / "data/claims.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")


def listed(methods):
    return ", ".join(map(name, methods)) or "none"


# The embedded benchmark: stored outputs of the notebooks


@functools.lru_cache
def _notebook(path):
    return nbformat.read(path, as_version=4)


def notebook(stem):
    """A notebook of the book, as it is stored. Raises FileNotFoundError."""
    return _notebook(ROOT / "notebooks" / f"{stem}.ipynb")


def outputs(place, kind):
    """The outputs of one kind, "text/html" for instance, of the cell "notebook#cell-id"."""
    stem, _, cell_id = place.partition("#")
    cells = [cell for cell in notebook(stem).cells if cell.id == cell_id]
    if not cells:
        raise KeyError(f"no cell {cell_id!r} in notebook {stem}")
    found = [output.get("data", {}).get(kind) for output in cells[0].get("outputs", [])]
    if kind == "text/plain":
        found += [output.get("text") for output in cells[0].get("outputs", [])]
    return [text for text in found if text]


def tables(place):
    """The tables that a cell displays: each {row: {column: text}}.

    Labels of several levels are joined by " / ", as in "Grad-CAM / enhanced".
    """
    found = []
    for text in outputs(place, "text/html"):
        for source in re.findall(r"<table.*?</table>", text, re.S):
            root = ElementTree.fromstring(source)
            head, body = (_spread(root.find(part)) for part in ("thead", "tbody"))
            levels = len(root.find("tbody/tr[1]").findall("th"))
            columns = [" / ".join(filter(None, labels)) for labels in zip(*head, strict=True)]
            found.append(
                {
                    " / ".join(row[:levels]): dict(zip(columns[levels:], row[levels:], strict=True))
                    for row in body
                }
            )
    return found


def _spread(part):
    """Rows of a table's head or body as lists of texts, each cell repeated over what it spans."""
    lines, pending = [], {}  # pending: column -> (rows still to fill, text)
    for line in part.findall("tr"):
        texts, cells = [], iter(line)
        while True:
            column = len(texts)
            if column in pending:
                left, text = pending.pop(column)
                texts.append(text)
                if left > 1:
                    pending[column] = left - 1, text
            elif (cell := next(cells, None)) is not None:
                text = "".join(cell.itertext()).strip()
                for _ in range(int(cell.get("colspan", 1))):
                    if (rows := int(cell.get("rowspan", 1))) > 1:
                        pending[len(texts)] = rows - 1, text
                    texts.append(text)
            else:
                break
        lines.append(texts)
    return lines


def _verdict(wrong, right, of):
    """The rule at the top: so many differences are clear and of the wrong sign, of the right sign, of all."""
    return "contradicted" if wrong else "holds" if right == of else "open"


def _apart(table, sign=1):
    """Methods whose difference is clearly above 0, and below; and the verdict that all are below."""
    clear = report.is_clear(table)
    above, below = (table.index[clear & (s * sign * table["difference"] > 0)] for s in (1, -1))
    return above, below, _verdict(len(above), len(below), len(table))


def _pictures(row):
    return f"n = {row['n']}; " if row.get("n") else ""


def _table_cell(place, row, column, which=0):
    table = tables(place)[which]
    if row not in table or column not in table[row]:
        raise KeyError(f"{place} shows no {row!r}, {column!r}; it has {list(table)}")
    return table[row][column]


def _interval(text):
    """(mean, low, high) of a text such as "1.6 [-1.6, 5.4]"."""
    mean, low, high = re.findall(r"[-+]?\d+(?:\.\d+)?", text)[:3]
    return float(mean), float(low), float(high)


def _sign(difference, p):
    """+1 or -1 where a printed difference is clear, else 0. `p` is a number, or "*" marks the text."""
    _, low, high = _interval(difference)
    clear = low * high > 0 and (difference.endswith("*") if p == "*" else float(p) < 0.05)
    return (1 if low > 0 else -1) if clear else 0


def said(place, key, expected="True"):
    """A line `key: value` that a check cell prints; the claim is that the value is `expected`."""
    for text in outputs(place, "text/plain"):
        for line in text.splitlines():
            if line.startswith(f"{key}: "):
                value = line[len(key) + 2 :]
                return Finding("holds" if value == expected else "contradicted", line)
    raise KeyError(f"{place} does not print {key!r}")


def told(place, key):
    """A line `key: value` that a check cell prints, shown only."""
    return Finding("", said(place, key).text)


def shown(place, row, column, which=0):
    """A value of a table, shown only."""
    text = _table_cell(place, row, column, which)
    return Finding("", f"{_pictures(tables(place)[which][row])}{row}, {column}: {text}")


def examined(place, claim):
    """A row of the table of claims that a notebook tests itself."""
    rank = "rank here (1 would agree)"
    row = tables(place)[0][claim]
    return Finding(
        row["verdict here"],
        f"rank {row[rank]}; clearly ahead of it: {row['clearly ahead of it']}; clearly behind it: "
        f"{row['clearly behind it']}",
    )


def best(place, method, difference, p):
    """That `method` is ahead of all others, in a table of the others' differences to it."""
    table = tables(place)[0]
    rows = {label: row for label, row in table.items() if row[difference]}
    signs = {label: _sign(row[difference], row[p]) for label, row in rows.items()}
    ahead = [label for label, sign in signs.items() if sign > 0]
    behind = [label for label, sign in signs.items() if sign < 0]
    return Finding(
        _verdict(len(ahead), len(behind), len(rows)),
        f"{_pictures(table[method])}clearly ahead of {method}: {', '.join(ahead) or 'none'}; clearly "
        f"behind: {', '.join(behind) or 'none'}; of {len(rows)}",
    )


def differs(place, row, difference, p, sign=1, which=0):
    """That the printed difference of a row has the sign `sign`."""
    text = _table_cell(place, row, difference, which)
    probability = p if p == "*" else _table_cell(place, row, p, which)
    verdict = {1: "holds", 0: "open", -1: "contradicted"}[sign * _sign(text, probability)]
    text = f"{_pictures(tables(place)[which][row])}{row}, {difference.replace(' [95 %]', '')}: {text}"
    return Finding(verdict, text + ("" if p == "*" else f", p = {probability}"))


def helps(place, network, variant="enhanced", part=0):
    """That a variant is better for every method of a network, as `report.verdicts` put it into words.

    `part` counts the lists of a cell that displays several.
    """
    pattern = (
        rf"- {re.escape(network)}, {variant}: clearly better for (.*?); clearly worse for (.*?);"
        r" open for (.*?)\."
    )
    text = "\n".join(outputs(place, "text/markdown"))
    better, worse, undecided = re.findall(pattern, text)[part]
    verdict = "contradicted" if worse != "none" else "holds" if undecided == "none" else "open"
    return Finding(verdict, f"clearly better: {better}; clearly worse: {worse}; open: {undecided}")


def forgotten(place, method, start):
    """That nothing is left of a method's map, in the sentence of a sanity check that begins so."""
    text = "\n".join(outputs(place, "text/markdown"))
    text = text[text.index(start) :]
    gone, left = re.search(r"gone for (.*?); some is left for (.*?)(?:\.\s|\.$)", text, re.S).groups()

    def among(names):
        return bool(re.search(rf"(^|, ){re.escape(method)}( \(|,|$)", names))

    if among(gone) == among(left):
        raise KeyError(f"{place} does not say what became of {method!r}")
    return Finding(
        "holds" if among(gone) else "contradicted",
        f"{start}: of {method}'s map {'nothing' if among(gone) else 'something'} is left",
    )


def faded(place, row, column, other):
    """That a printed rank correlation reaches down to 0 or to that of another picture."""
    text, yardstick = (_table_cell(place, row, key) for key in (column, other))
    low = _interval(text)[1]
    verdict = "holds" if low <= max(0, _interval(yardstick)[0]) else "contradicted"
    return Finding(verdict, f"{column}: {text}; {other}: {yardstick}")


def certain_embedded(place):
    """That MSG-CAM leads where the network is certain, in chapter 3's sentence about that group."""
    pattern = r"n = (\d+): .*?clearly ahead of it: (.*?); clearly behind it: (.*?)\."
    text = "\n".join(outputs(place, "text/markdown"))
    n, ahead, behind = re.search(pattern, text).groups()
    verdict = _verdict(ahead != "none", len(behind.split(", ")), len(SEVEN) - 1)
    return Finding(verdict, f"n = {n}; clearly ahead of MSG-CAM: {ahead}; clearly behind: {behind}")


def follows(place, start):
    """That a rank correlation, in a sentence that begins so, is above 0."""
    text = "\n".join(outputs(place, "text/markdown"))
    r, p = re.search(
        re.escape(start) + r" has a rank correlation of ([-+.\d]+) .*?\(p = ([-.\de]+)\)", text
    ).groups()
    return _correlation(start, float(r), float(p))


def _correlation(what, r, p):
    verdict = "open" if p >= 0.05 else "holds" if r > 0 else "contradicted"
    return Finding(verdict, f"{what}: rank correlation {r:+.2f}, p = {p:.2g}")


# The real network: recorded rows


@functools.lru_cache
def recorded(file="insertion_deletion"):
    """The rows of the recorded run on SqueezeNet 1.1."""
    return pd.read_csv(ROOT / f"data/results/squeezenet1_1/{file}.csv")


def bare():
    """Recorded rows of the seven methods without windows."""
    rows = recorded()
    return rows[rows["method"].isin(SEVEN)]


@functools.lru_cache
def _compared(metric, reference, without=()):
    rows = bare()
    return report.paired_table(rows[~rows["method"].isin(without)], metric, reference)


def highest(metric, method, sign=1, *without):
    """That a method has the highest (sign 1) or lowest (-1) mean of all but those `without`."""
    table = _compared(metric, method, without)
    front, back, verdict = _apart(table.drop(index=method), sign)
    rank = int((-sign * table["mean"]).rank()[method])
    return Finding(
        verdict,
        f"n = {int(table['n'].iloc[0])}; rank {rank} of {len(table)}; clearly ahead of it: {listed(front)};"
        f" clearly behind it: {len(back)} of {len(table) - 1}",
    )


def ahead(metric, method, other):
    """That `method` has a higher mean than `other`; p is corrected over all seven methods."""
    row = _compared(metric, method).loc[other]
    return _difference(row, -1, f"{name(method)} minus {name(other)}")


def _difference(row, sign, what):
    columns = ["difference", "difference_low", "difference_high"]
    low, mean, high = sorted(100 * sign * row[columns].astype(float))
    verdict = "open" if not report.is_clear(row) else "holds" if mean > 0 else "contradicted"
    text = f"{what}: {mean:.1f} [{low:.1f}, {high:.1f}], p = {row['p']:.2g}"
    return Finding(verdict, f"n = {int(row['n'])}; {text}")


def certain(least=0.9999, fewest=6):
    """That MSG-CAM leads all others where the class has at least that probability."""
    rows = bare()
    rows = rows[rows["probability"] >= least]
    n = rows["id"].nunique()
    if n < fewest:  # a signed-rank test of fewer pairs can never give p < 0.05
        return Finding("open", f"n = {n}: too few to test")
    front, back, verdict = _apart(report.paired_table(rows, "overall").drop(index="msg_cam"))
    text = f"n = {n}; clearly ahead of MSG-CAM: {listed(front)}; clearly behind: {listed(back)}"
    return Finding(verdict, text)


def _by_picture():
    rows = bare()
    wide = rows.pivot(index="id", columns="method", values="overall")
    return wide, rows.drop_duplicates("id").set_index("id")["probability"].loc[wide.index]


def parting():
    """That methods differ more on pictures of which the network is more certain."""
    wide, p = _by_picture()
    found = stats.spearmanr(p, wide.std(axis=1))
    return _correlation(f"n = {len(wide)}; spread of the methods and probability", *found)


def leading():
    """That MSG-CAM's lead over the mean of the others grows with the probability."""
    wide, p = _by_picture()
    found = stats.spearmanr(p, wide["msg_cam"] - wide.drop(columns="msg_cam").mean(axis=1))
    return _correlation(f"n = {len(wide)}; MSG-CAM's lead and probability", *found)


@functools.lru_cache
def _windows():
    return report.variants_table(recorded(), list(METRICS), variants=("enhanced",))


def windows_help(metric, sign=1):
    """That the enhancer improves every one of the seven methods."""
    part = _windows().loc[metric].xs("enhanced", level="variant")
    worse, better, verdict = _apart(part, -sign)
    gain = int((sign * part["difference"] > 0).sum())
    return Finding(
        verdict,
        f"n = {int(part['n'].max())}; better on average: {gain} of {len(part)};"
        f" clearly better: {listed(better)}; clearly worse: {listed(worse)}",
    )


def forgets(method, mode):
    """That random convolutions, all in cascade or one at a time, leave nothing of a method's map.

    Nothing is left where the 95 % interval of the rank correlation with the intact network's map
    reaches down to 0 or to the correlation of two pictures' maps, as in chapter 3.
    """
    rows = recorded("sanity")
    rows = rows[rows["method"] == method]
    part = rows[rows["mode"] == mode]
    if mode == "cascading":
        part = part[part["layers"] == part["layers"].max()]
    after = part.groupby("picture")["spearman"].mean()
    other = rows[rows["mode"] == "control"].set_index("picture")["spearman"].loc[after.index]
    mean, low, high = report.bootstrap_interval(after)
    left = min(low, report.bootstrap_interval(after - other)[1]) > 0
    text = (
        f"n = {len(after)}; {mode}: {mean:.2f} [{low:.2f}, {high:.2f}]; another picture: {other.mean():.2f}"
    )
    if mode == "independent":
        layers = part.groupby("layer")["spearman"].mean()
        text += f"; most is left with {layers.idxmax()} random: {layers.max():.2f}"
    return Finding("contradicted" if left else "holds", text)


# The thesis's own tables


def _printed(metric, table="3_2"):
    rows = pd.read_csv(ROOT / f"data/thesis_tables/table_{table}.csv")
    return rows[rows["metric"] == metric].set_index("method")["value"]


def printed(metric, table="3_2"):
    """The order of the methods in a table of the thesis, best first."""
    values = _printed(metric, table).sort_values(ascending=metric == "deletion")
    return Finding("", f"{metric}: " + ", ".join(f"{name(m)} {v:.2f}" for m, v in values.items()))


# From verdicts to a status


def calls(text):
    """The calls in a column of evidence, separated by ";": [(function, arguments), ...]."""
    found = []
    for statement in ast.parse(text).body:
        call = statement.value
        if not isinstance(call, ast.Call) or call.func.id not in EVIDENCE or call.keywords:
            raise ValueError(f"not a call of known evidence: {text}")
        found.append((call.func.id, [ast.literal_eval(argument) for argument in call.args]))
    return found


def findings(text):
    """What the calls in a column of evidence find now."""
    return [EVIDENCE[function](*arguments) for function, arguments in calls(text)]


def _verdicts(row):
    return {f.verdict for f in findings(row["embedded"]) + findings(row["recorded"])} - {""}


def measured(row):
    """Reproduced if it holds wherever measured, contradicted if somewhere and nowhere held, else open."""
    verdicts = _verdicts(row)
    if verdicts == {"holds"}:
        return "reproduced"
    return "contradicted" if "contradicted" in verdicts and "holds" not in verdicts else "open"


def exact(row):
    """Reproduced if the stored outputs say what the row expects of them."""
    return "reproduced" if _verdicts(row) == {"holds"} else "contradicted"


def exact_but_corrected(row):
    """The same for a claim that holds with a correction only."""
    return "corrected" if exact(row) == "reproduced" else "contradicted"


def areas_add_up(row):
    """Table 3-2: insertion minus deletion is the over-all value, for every method."""
    gap = _printed("insertion") - _printed("deletion") - _printed("overall")
    return "reproduced" if gap.abs().max() < 0.005 else "contradicted"


def not_alone_in_front(row):
    """Table 3-2: MSG-CAM is first neither in insertion nor in deletion."""
    first = _printed("insertion").idxmax(), _printed("deletion").idxmin()
    return "contradicted" if "msg_cam" in first else "reproduced"


def lead_in_points(row):
    """Table 3-2: the lead is 1.07 percentage points, and not 1.07 per cent of the second value."""
    first, second = _printed("overall").sort_values(ascending=False).iloc[:2]
    points, per_cent = round(first - second, 2), round(100 * (first / second - 1), 2)
    if points != 1.07:
        return "contradicted"
    return "reproduced" if per_cent == 1.07 else "corrected"


EVIDENCE = {
    f.__name__: f
    for f in (
        said, told, shown, examined, best, differs, helps, forgotten, faded, certain_embedded, follows,
        highest, ahead, certain, parting, leading, windows_help, forgets, printed,
    )
}  # fmt: skip
CHECKS = {
    f.__name__: f
    for f in (
        measured, exact, exact_but_corrected, areas_add_up, not_alone_in_front, lead_in_points,
    )
}  # fmt: skip


def status(row):
    """The status that a row's check finds now; its own where it has none."""
    return CHECKS[row["check"]](row) if row["check"] else row["status"]


# Pages


def chapter(claim):
    """The chapter of an id such as "3-eq-7"."""
    return claim.split("-")[0]


def counts(ledger):
    """How many claims of each chapter have which status."""
    table = pd.crosstab(ledger.index.map(chapter), ledger["status"])
    table = table.reindex(columns=list(STATUSES), fill_value=0)
    table.loc["all"] = table.sum()
    table.index.name = table.columns.name = None
    return table.assign(all=table.sum(axis=1)).T.add_prefix("chapter ").rename(columns={"chapter all": "all"})


def link(place):
    """HTML link to the section of the book that holds the cell "notebook#cell-id"."""
    stem, _, cell_id = place.partition("#")
    heading, top = None, None
    for cell in notebook(stem).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
            for line in re.findall(r"^#+ (.+)$", text, re.M):
                top, heading = top or line, line
        if cell.id == cell_id:
            words = re.sub(r"[`*$]", "", heading)
            label = re.split(r" · ", words)[0]
            anchor = "" if heading == top else "#" + make_id(words)
            return f'<a href="{stem}.html{anchor}">{stem[:4]} {html.escape(label)}</a>'
    raise KeyError(f"no cell {cell_id!r} in notebook {stem}")


def _evidence(row):
    groups = {"embedded benchmark": [], "recorded run, SqueezeNet 1.1": [], "printed in the thesis": []}
    for label, column in zip(groups, ("embedded", "recorded"), strict=False):
        for (function, _), finding in zip(calls(row[column]), findings(row[column]), strict=True):
            groups["printed in the thesis" if function == "printed" else label].append(finding)
    lines = []
    for label, found in groups.items():
        items = (f"<b>{f.verdict}</b>: " * bool(f.verdict) + html.escape(f.text) for f in found)
        if found:
            lines.append(f"<p>{label}</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>")
    return "".join(lines)


def as_html(ledger):
    """The ledger as one table; its rows are anchors (`claim-3-eq-7`) and carry what filters need."""
    lines = ['<table class="ledger"><thead><tr>']
    lines += [f'<th scope="col">{label}</th>' for label in ("claim", "status", "evidence", "shown in")]
    lines += ["</tr></thead><tbody>"]
    for claim, row in ledger.iterrows():
        word = row["status"]
        lines += [
            f'<tr id="claim-{claim}" data-chapter="{chapter(claim)}" data-status="{word}">',
            f'<th scope="row"><a href="#claim-{claim}">{claim}</a>',
            f"<span>({html.escape(row['place'])})</span><br>",
            f"{html.escape(row['statement'])}</th>",
            f"<td><b>{word}</b>{'. ' + html.escape(row['note']) if row['note'] else ''}</td>",
            "<td>",
            _evidence(row),
            "</td><td>",
            "<br>".join([*map(link, row["cell"].split())]),
            "".join(f"<br><code>{html.escape(t.removeprefix('tests/'))}</code>" for t in row["test"].split()),
            "</td></tr>",
        ]
    return "\n".join([*lines, "</tbody></table>"])


def main():
    path = ROOT / "data/claims.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    changed = 0
    for row in rows:
        now = status(row)
        if now != row["status"]:
            print(f"{row['id']}: {row['status'] or 'no status'} -> {now}")
            row["status"], changed = now, changed + 1
    print(f"{len(rows)} claims, {sum(bool(r['check']) for r in rows)} with a check, {changed} changed")
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
