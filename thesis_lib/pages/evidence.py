"""Verdicts on claims: functions over recorded rows.

The ledger (`data/claims.csv`) names calls of them. A table is written "dataset/network/table", as `tl.recorded`
takes them. The unit is the picture. A verdict is one of

holds
    every difference that the claim speaks of is clear and of its sign
contradicted
    one of them is clear and of the other sign
equivalent
    the interval of each lies within the margin, which stands below, before anything is looked at
open
    none of these

Clear is a difference whose 95 % interval leaves out 0 and whose p is below 0.05 after Holm's correction. The family
is one table: all comparisons that a function makes with one reference (or, of variants, with their bare methods).
Fewer pictures than could give p < 0.05 in that family leave a claim open, whatever they show. A null that was not
rejected is evidence of nothing.

A claim is decided on whole tables only: where a method, a picture of the plan (`runs/record.py`) or of the
provenance, or a layer is missing, it is open. So no choice of pictures, methods or seeds can turn a verdict. What
the rows say that are there is shown all the same, as "so far".
"""

import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from thesis_lib.data import REPOSITORY
from thesis_lib.methods import METHODS
from thesis_lib.metrics import METRICS
from thesis_lib.pages import report
from thesis_lib.pages.plots import name
from thesis_lib.runs.record import PLAN, recorded

# Below these nothing matters here: a point of over-all and of its two areas, and of rank correlations.
MARGINS = {"overall": 0.01, "insertion_auc": 0.01, "deletion_auc": 0.01}
CORRELATION_MARGIN = 0.05
DARK = 0.1  # a probability "close to 0", of the class on the blurred picture
MISSING = "rows are missing: "
SO_FAR = " so far"  # behind a table's name: the pictures that it has, whatever the plan says


class Finding(NamedTuple):
    """What a function found.

    Args:
        verdict: "holds", "contradicted", "equivalent", "open"; "" where a value is only shown.
        text: in words, with the numbers.
        n: pictures that were looked at; 0 where rows are missing, None where the claim is about no pictures.
    """

    verdict: str
    text: str
    n: int | None


class Incomplete(Exception):
    """Rows that a claim needs are not there; the message says which."""


EVIDENCE: dict[str, Callable[..., Finding]] = {}


def evidence(function: Callable[..., Finding]) -> Callable[..., Finding]:
    """Registers what the ledger may call. Where rows are missing, the claim is open, and n is 0."""

    @functools.lru_cache  # rows do not change under a page
    @functools.wraps(function)
    def found(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Incomplete as reason:
            missing = f"{MISSING}{reason}"
        try:
            so_far = function(f"{args[0]}{SO_FAR}", *args[1:], **kwargs)
        except Incomplete:
            return Finding("open", missing, 0)
        return Finding("open", f"so far {so_far.text}; {missing}", 0)

    EVIDENCE[function.__name__] = found
    return found


# Whole tables


@functools.lru_cache
def load(table: str) -> pd.DataFrame:
    """The recorded rows of "dataset/network/table", with their provenance."""
    table = table.removesuffix(SO_FAR)
    try:
        return recorded(*table.split("/"))
    except FileNotFoundError:
        raise Incomplete(f"{table} is not recorded") from None


@functools.lru_cache
def planned(table: str) -> dict[str, set]:
    """{label: ids of the pictures} that the plan has for a table; nothing for one that is no part of it."""
    table = table.removesuffix(SO_FAR)
    parts = [p for p in PLAN if f"{p.dataset}/{p.network}/{p.table}" == table]
    return {label: set(part.data().ids) for part in parts for label in part.methods()}


def labels_of(table: str) -> list[str]:
    """All labels that the plan or the provenance has for a table."""
    return list({**planned(table), **load(table).attrs["provenance"]["methods"]})


def whole(table: str, labels: Iterable[str]) -> pd.DataFrame:
    """The rows of these labels, all of them.

    The plan may have fewer pictures of a label than of another (Score-CAM's passes are many). Of a table "so far",
    the rows that are there.

    Raises:
        Incomplete: without a label, a picture of the plan or of the provenance, or a pair of a picture and a class
            that another of the labels has.
    """
    labels, rows, plan = list(labels), load(table), planned(table)
    known = rows.attrs["provenance"]["methods"]
    pairs = {label: part[["id", "class"]] for label, part in rows.groupby("method")}
    if lacking := [label for label in labels if label not in known or label not in pairs]:
        raise Incomplete(f"{table} has none of {', '.join(map(name, lacking))}")
    everything = set(
        rows.loc[rows["method"].isin(labels), ["id", "class"]].itertuples(index=False, name=None)
    )
    for label in labels:
        there = set(pairs[label]["id"])
        wanted = plan.get(label, set()) - set(known[label]["left_out"])
        few = not wanted <= there or len(there) < known[label]["pictures"]
        if few and not table.endswith(SO_FAR):
            n = max(len(wanted), known[label]["pictures"])
            raise Incomplete(f"{table} has {len(there)} of {n} pictures of {name(label)}")
        if set(pairs[label].itertuples(index=False, name=None)) != {
            pair for pair in everything if pair[0] in there
        }:
            raise Incomplete(f"{table} has other classes of {name(label)} than of the rest")
    part = rows[rows["method"].isin(labels)]
    return part.sort_values("method", key=lambda m: m.map(labels.index), kind="stable")


def _known(rows, value):
    """Without the pairs of which no method has a value (no pixel mask)."""
    if value not in rows:
        raise Incomplete(f"there is no column {value!r}")
    some = rows.groupby(["id", "class"])[value].transform("count")
    rows = rows[some > 0]
    if rows[value].isna().any() or not len(rows):
        raise Incomplete(f"{value} is not there for every method")
    return rows


def _groups(rows):
    """The mean over classes where a picture has several, as in the pointing game."""
    return "class" if rows.duplicated(["id", "method"]).any() else None


# From differences to a verdict


def decide(table: pd.DataFrame, sign: int, margin: float | None = None, family: int | None = None) -> str:
    """The verdict on rows of `report.paired_table` (without the reference): all differences have this sign.

    family: how many comparisons Holm's correction was over; None for as many as there are rows.
    """
    if table["n"].min() < report.least_n(family or len(table)):
        return "open"
    clear, gain = report.is_clear(table), sign * table["difference"]
    if (clear & (gain < 0)).any():
        return "contradicted"
    if (clear & (gain > 0)).all():
        return "holds"
    if margin is not None and (table[["difference_low", "difference_high"]].abs() < margin).all(axis=None):
        return "equivalent"
    return "open"


def _n_needed(differences, sign, margin, family):
    """How many pictures would decide that all differences have this sign, as far as one can tell now."""
    wrong = [report.needed(d, family) for d in differences if sign * d.mean() < 0]
    return min(wrong) if wrong else max(report.needed(d, family, margin) for d in differences)


def _would_decide(needed, n):
    if not math.isfinite(needed):
        return "; no number of pictures is foreseen to decide it"
    return f"; about {max(round(needed), n + 1):,} pictures would decide it"


def _scale(value):
    """(factor, unit) in print."""
    scale = METRICS.columns[value].scale if value in METRICS.columns else 1
    return scale, " points" if scale == 100 else ""


def _title(value):
    title = METRICS.columns[value].title if value in METRICS.columns else ""
    return title or value


def _number(x, digits=2):
    return f"{round(x, digits) + 0.0:.{digits}f}"


def _difference(row, value, what, family):
    """One row of a table in words."""
    scale, unit = _scale(value)
    mean, low, high = (_number(scale * row[f"difference{k}"]) for k in ("", "_low", "_high"))
    seen = f"this n sees {_number(scale * row['detectable'])}" if np.isfinite(row["detectable"]) else ""
    sign = "+" if row["difference"] > 0 else ""
    text = f"{what}, {_title(value)}: {sign}{mean} [{low}, {high}]{unit}, p = {row['p']:.2g} (Holm over {family})"
    return f"{_pictures(row)}; {text}" + f"; {seen}" * bool(seen)


def _pictures(row):
    rounds = f" ({int(row['rounds'])} rounds)" if row.get("rounds", row["n"]) != row["n"] else ""
    return f"n = {int(row['n'])}{rounds}"


def _all_pictures(table):
    """The same of several rows, which need not be of as many pictures."""
    few = table[table["n"] < table["n"].max()]
    some = "".join(f", of {name(label)} {int(row['n'])}" for label, row in few.iterrows())
    return _pictures(table.loc[table["n"].idxmax()]) + some


def listed(labels: Iterable[str]) -> str:
    """Labels as they are printed, or "none"."""
    return ", ".join(map(name, labels)) or "none"


# Methods against one another


def _rivals(method, without):
    return [m for m in METHODS.of(METHODS[method].family) if m not in without]


@functools.lru_cache
def against(
    table: str, value: str, reference: str, labels: tuple, least: float = 0.0
) -> tuple[pd.DataFrame, dict]:
    """(comparisons with the reference, {label: differences of the pictures}), of pictures of that probability."""
    rows = _known(whole(table, labels), value)
    rows = rows[rows["probability"] >= least]
    if rows["id"].nunique() < 2:
        raise Incomplete(f"{rows['id'].nunique()} pictures of the kind")
    compared = report.paired_table(rows, value, reference, _groups(rows))
    others = [label for label in labels if label != reference]
    return compared, {m: report.differences(rows, value, m, reference) for m in others}


def _first(table, value, method, without, sign, least=0.0):
    compared, differences = against(table, value, method, tuple(_rivals(method, without)), least)
    others = compared.drop(index=method)
    family, margin, n = len(others), MARGINS.get(value), int(others["n"].min())
    verdict = decide(others, -sign, margin)
    clear, gain = report.is_clear(others), sign * others["difference"]
    rank = int((-sign * compared["mean"]).rank(method="min")[method])
    seen = _scale(value)[0] * others["detectable"].max()
    text = (
        f"{_all_pictures(others)}; {_title(value)}: rank {rank} of {len(compared)}; "
        f"clearly ahead of it: {listed(others.index[clear & (gain > 0)])}; "
        f"clearly behind it: {listed(others.index[clear & (gain < 0)])} (Holm over {family}); "
        f"this n sees {_number(seen)}"
    )
    if verdict == "open":
        text += _would_decide(_n_needed(differences.values(), -sign, margin, family), n)
    return Finding(verdict, text, n)


@evidence
def highest(table: str, value: str, method: str, without: tuple = ()) -> Finding:
    """That a method has the highest mean of the thesis's methods of its family, but for those `without`."""
    return _first(table, value, method, without, 1)


@evidence
def lowest(table: str, value: str, method: str, without: tuple = ()) -> Finding:
    """That it has the lowest."""
    return _first(table, value, method, without, -1)


@evidence
def pointing(table: str, method: str) -> Finding:
    """That a method leads the pointing game: hits of 100 points, mean over classes."""
    return _first(table, "hits", method, (), 1)


@evidence
def selectivity(table: str, method: str) -> Finding:
    """That most of a method's map lies on the object's own pixels, mean over classes."""
    return _first(table, "pixel_energy", method, (), 1)


@evidence
def certain(table: str, method: str, least: float = 0.9999) -> Finding:
    """That a method's over-all score leads where the class has at least that probability."""
    whole(table, _rivals(method, ()))
    rows = load(table)
    n = rows.loc[rows["probability"] >= least, "id"].nunique()
    fewest = report.least_n(len(_rivals(method, ())) - 1)
    if n < fewest:
        text = (
            f"n = {n} of {rows['id'].nunique()} pictures have a probability of at least {least}; {fewest} of "
        )
        return Finding("open", text + "the kind could decide", rows["id"].nunique())
    return _first(table, "overall", method, (), 1, least)


@evidence
def ahead(table: str, value: str, a: str, b: str) -> Finding:
    """That method a has a higher mean than b; p is corrected over all of a's family."""
    compared, differences = against(table, value, b, tuple(_rivals(a, ())))
    return _one(compared, differences, value, a, b, 1)


def _one(compared, differences, value, label, reference, sign):
    row, family, margin = compared.loc[label], len(compared) - 1, MARGINS.get(value)
    verdict = decide(compared.loc[[label]], sign, margin, family)
    text = _difference(row, value, f"{name(label)} minus {name(reference)}", family)
    if verdict == "open":
        needed = _n_needed([differences[label]], sign, margin, family)
        text += _would_decide(needed, int(row["n"]))
    return Finding(verdict, text, int(row["n"]))


@evidence
def differs(table: str, label: str, reference: str, value: str, sign: int) -> Finding:
    """That label minus reference has this sign; p is corrected over all labels of the table."""
    compared, differences = against(table, value, reference, tuple(labels_of(table)))
    return _one(compared, differences, value, label, reference, sign)


@evidence
def effect(table: str, label: str, reference: str, value: str = "overall") -> Finding:
    """What a setting changes, with unit, sign, interval and n; it holds that it changes something."""
    compared, differences = against(table, value, reference, tuple(labels_of(table)))
    sign = 1 if compared.loc[label, "difference"] >= 0 else -1
    return _one(compared, differences, value, label, reference, sign)


@evidence
def above(table: str, method: str, a: str, b: str, family: int = 1) -> Finding:
    """That column a of a method is above column b, on the same pictures.

    family: how many such comparisons the claim makes of the table; p is multiplied by it (Bonferroni).
    """
    rows = _known(_known(whole(table, [method]), a), b)
    gaps = (rows[a] - rows[b]).groupby(rows["id"]).mean().to_numpy()
    if len(gaps) < 2:
        raise Incomplete(f"{len(gaps)} pictures of the kind")
    mean, low, high = report.bootstrap_interval(gaps)
    row = {"n": len(gaps), "difference": mean, "difference_low": low, "difference_high": high}
    row |= {"p": min(1, family * report.signed_rank(gaps)), "detectable": report.detectable(gaps)}
    compared = pd.DataFrame([row])
    verdict = decide(compared, 1, None, family)
    scale, unit = _scale(a)
    text = (
        f"n = {len(gaps)}; {name(method)}, {_title(a)} minus {_title(b)}: {_number(scale * mean)} "
        f"[{_number(scale * low)}, {_number(scale * high)}]{unit}, p = {row['p']:.2g} (of {family}); "
        f"this n sees {_number(scale * row['detectable'])}"
    )
    if verdict == "open":
        text += _would_decide(_n_needed([gaps], 1, None, family), len(gaps))
    return Finding(verdict, text, len(gaps))


# Variants against their bare methods


def _variants(table, variant):
    """Bare methods that have this variant, and all variants that each of them has."""
    labels = labels_of(table)
    bases = [label.removesuffix(f" {variant}") for label in labels if label.endswith(f" {variant}")]
    found = {
        label.removeprefix(f"{base} ") for base in bases for label in labels if label.startswith(f"{base} ")
    }
    if not bases:
        raise Incomplete(f"{table} has nothing {variant}")
    return bases, tuple(sorted(found))


@functools.lru_cache
def varied(table: str, value: str, variant: str) -> tuple[pd.DataFrame, dict, int]:
    """(comparisons with the bare methods, {method: differences of the pictures}, size of the family)."""
    bases, variants = _variants(table, variant)
    rows = _known(whole(table, [*bases, *(f"{b} {v}" for b in bases for v in variants)]), value)
    compared = report.variants_table(rows, [value], variants, _groups(rows)).loc[value]
    return (
        compared.xs(variant, level="variant").loc[bases],
        {b: report.differences(rows, value, f"{b} {variant}", b) for b in bases},
        len(bases) * len(variants),
    )


@evidence
def better_variants(table: str, value: str, variant: str, sign: int = 0) -> Finding:
    """That a variant improves every method of a table that has it.

    sign: +1 where more of the value is meant, -1 where less is; 0 for the column's own direction.
    """
    sign = sign or METRICS.columns[value].better
    part, differences, family = varied(table, value, variant)
    margin, n = MARGINS.get(value), int(part["n"].min())
    verdict = decide(part, sign, margin, family)
    clear, gain = report.is_clear(part), sign * part["difference"]
    scale, unit = _scale(value)
    each = ", ".join(
        f"{name(m)} {scale * row['difference']:+.1f} [{_number(scale * row['difference_low'], 1)}, "
        f"{_number(scale * row['difference_high'], 1)}]"
        for m, row in part.iterrows()
    )
    text = (
        f"{_pictures(part.iloc[0])}; {variant}, {_title(value)}: clearly better: {listed(part.index[clear & (gain > 0)])}; "
        f"clearly worse: {listed(part.index[clear & (gain < 0)])} (Holm over {family}); {each}{unit}; "
        f"this n sees {_number(scale * part['detectable'].max())}"
    )
    if verdict == "open":
        text += _would_decide(_n_needed(differences.values(), sign, margin, family), n)
    return Finding(verdict, text, n)


# Figure 3-3: probability and the methods


CORRELATIONS = {
    "spread": "the methods' standard deviation and the probability",
    "lead": "the lead over the mean of the others and the probability",
    "relative lead": "the lead divided by the probability, and the probability",
}


@functools.lru_cache
def _correlations(table, value, method):
    plan = planned(table)  # without a method that it measures on fewer pictures
    labels = [m for m in _rivals(method, ()) if plan.get(method, set()) <= plan.get(m, set())]
    rows = _known(whole(table, labels), value)
    wide = rows.pivot_table(index="id", columns="method", values=value, aggfunc="mean").dropna()
    p = rows.groupby("id")["probability"].mean().loc[wide.index].to_numpy()
    lead = (wide[method] - wide.drop(columns=method).mean(axis=1)).to_numpy()
    x = {"spread": wide.std(axis=1).to_numpy(), "lead": lead, "relative lead": lead / p}
    found = {}
    for what, y in x.items():
        draws = np.random.default_rng(0).integers(len(p), size=(2000, len(p)))
        ranks = (stats.rankdata(values[draws], axis=1) for values in (p, y))
        a, b = (r - r.mean(1, keepdims=True) for r in ranks)
        with np.errstate(invalid="ignore"):
            r = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
        low, high = np.nanquantile(r, [0.025, 0.975])
        rho = stats.spearmanr(p, y)
        found[what] = len(p), rho.statistic, low, high, rho.pvalue
    columns = ["n", "difference", "difference_low", "difference_high", "p"]
    table = pd.DataFrame(found, index=columns).T
    table["p"] = report.holm(table["p"].to_numpy())
    return table


@evidence
def correlation(
    table: str, what: str, value: str = "overall", method: str = "msg_cam", sign: int = 1
) -> Finding:
    """That a rank correlation over the pictures has this sign: one of `CORRELATIONS`, which are one family."""
    compared = _correlations(table, value, method)
    row, n = compared.loc[what], int(compared.loc[what, "n"])
    verdict = decide(compared.loc[[what]], sign, CORRELATION_MARGIN, len(compared))
    rho, low, high = row[["difference", "difference_low", "difference_high"]]
    text = (
        f"n = {n}; {CORRELATIONS[what]}: rank correlation {rho:+.2f} [{low:+.2f}, {high:+.2f}], "
        f"p = {row['p']:.2g} (Holm over {len(compared)})"
    )
    if verdict == "open":  # Fisher's z of a rank correlation has a standard error of about 1.03 / sqrt(n - 3)
        quantiles = stats.norm.ppf(1 - 0.025 / len(compared)) + stats.norm.ppf(0.8)
        z = abs(np.arctanh(rho))
        text += _would_decide((1.03 * quantiles / z) ** 2 + 3 if z else math.inf, n)
    return Finding(verdict, text, n)


# The sanity check


@functools.lru_cache
def layers(table: str, method: str, kind: str) -> pd.DataFrame:
    """A method's sanity check of one kind, layer by layer, output end first.

    Returns one row for each layer: n (pictures whose map is not flat), flat (those whose map is), mean, low, high
    (rank correlation with the intact network's map, of those n), other (of another picture's map with it),
    fate ("gone", "left", "flat", "open") and the n that would decide an open one. A flat map ranks nothing: it is no sign of a
    map that is gone, and does not count as one.

    gone
        the interval of the correlation, less that of another picture, or less the 0 of a flat map, lies below the
        margin of 0.05
    left
        it is clearly above both, and not gone
    flat
        all maps are flat
    open
        none of these, or fewer pictures than could give p < 0.05 after Holm's correction over the layers
    """
    rows = whole(table, [method])
    known = load(table).attrs["provenance"]["methods"][method]["layers"] or {}
    if kind not in known or f"{kind}_spearman" not in rows:
        raise Incomplete(f"{table} has no {kind} of {name(method)}")
    names = known[kind]
    if set(rows[f"{kind}_spearman"].map(len)) != {len(names)}:
        raise Incomplete(f"{table} has fewer layers than the provenance")
    x, flat = (np.stack(rows[f"{kind}_{what}"].tolist()).astype(float) for what in ("spearman", "flat"))
    flat = (flat > 0) | (np.array(rows["flat"], bool)[:, None] if "flat" in rows else False)
    other = rows["other_spearman"].to_numpy(float)
    if not np.isfinite(other).all():
        raise Incomplete(f"{table} has no other picture for some")
    found = []
    for layer, values, without in zip(names, x.T, flat.T, strict=True):
        row = {"layer": layer, "n": int((~without).sum()), "flat": int(without.sum()), "other": other.mean()}
        kept, gap = values[~without], (values - other)[~without]
        row |= {"p": np.nan, "mean": np.nan, "low": np.nan, "high": np.nan, "above": np.nan, "most": np.nan}
        row["needed"] = np.nan
        if row["n"]:
            row["mean"], row["low"], row["high"] = report.bootstrap_interval(kept)
            _, low, high = report.bootstrap_interval(gap)
            row["above"], row["most"] = min(low, row["low"]), min(high, row["high"])
            row["p"] = max(report.signed_rank(kept), report.signed_rank(gap))
            row["needed"] = min(
                report.needed(d, len(names), CORRELATION_MARGIN if d.mean() < CORRELATION_MARGIN else None)
                for d in (kept, gap)
            )
        found.append(row)
    layers = pd.DataFrame(found).set_index("layer")
    layers["p"] = report.holm(layers["p"].to_numpy())
    layers["fate"] = [_fate(row, len(layers)) for _, row in layers.iterrows()]
    return layers


def _fate(row, family):
    if not row["n"]:
        return "flat"
    if row["n"] < report.least_n(family):
        return "open"
    if row["most"] < CORRELATION_MARGIN:
        return "gone"
    return "left" if row["above"] > 0 and row["p"] < 0.05 else "open"


@evidence
def sanity(table: str, method: str, kind: str, which: str = "last") -> Finding:
    """That random layers leave nothing of a method's map: see `layers`.

    kind: one of `metrics.sanity.KINDS`; which: "last", the end of a cascade, where all are random; "each" layer; or
    each whose name begins so.
    """
    rows = layers(table, method, kind)
    meant = (
        rows.iloc[-1:]
        if which == "last"
        else rows
        if which == "each"
        else rows[rows.index.str.startswith(which)]
    )
    if not len(meant):
        raise ValueError(f"no layer of {table} begins with {which!r}: {list(rows.index)}")
    fates = set(meant["fate"])
    verdict = "holds" if fates == {"gone"} else "contradicted" if "left" in fates else "open"
    pictures = int(rows["n"].iloc[0] + rows["flat"].iloc[0])
    each = "; ".join(
        f"{layer} {_number(row['mean'])} [{_number(row['low'])}, {_number(row['high'])}] {row['fate']}"
        if row["n"]
        else f"{layer} flat"
        for layer, row in meant.iterrows()
    )
    flat = ", ".join(f"{int(row['flat'])} with {layer}" for layer, row in rows.iterrows() if row["flat"])
    text = (
        f"n = {pictures}; {name(method)}, {kind}, rank correlation with the intact network's map (another picture's: "
        f"{_number(rows['other'].iloc[0])}): {each}; flat maps: {flat or 'none'} (Holm over {len(rows)})"
    )
    if verdict == "open" and (needed := meant.loc[meant["fate"] == "open", "needed"]).size:
        text += _would_decide(max(report.least_n(len(rows)), needed.max()), pictures)
    return Finding(verdict, text, int(meant["n"].min()) or pictures)


# Levels


@evidence
def blurred(table: str, method: str = "grad_cam") -> Finding:
    """That the class's probability on the blurred picture, where insertion begins, is below `DARK`."""
    rows = whole(table, [method])
    mean, low, high = report.bootstrap_interval(
        [curve[0] for curve in rows["insertion"]], clusters=rows["id"]
    )
    n = rows["id"].nunique()
    decided = n >= report.least_n()
    verdict = "open" if not decided or low < DARK <= high else "holds" if high < DARK else "contradicted"
    text = f"n = {n}; probability on the blurred picture {mean:.3f} [{low:.3f}, {high:.3f}], close to 0 is below {DARK}"
    return Finding(verdict, text, n)


@evidence
def level(table: str, value: str, method: str) -> Finding:
    """The mean of a method, shown only."""
    try:
        rows = _known(whole(table, [method]), value)
    except Incomplete as reason:
        return Finding("", f"rows are missing: {reason}", 0)
    found = report.bootstrap_interval(rows[value], groups=_by(rows), clusters=rows["id"])
    scale, _ = _scale(value)
    mean, low, high = (_number(scale * x) for x in found)
    n = rows["id"].nunique()
    return Finding("", f"n = {n}; {name(method)}, {_title(value)}: {mean} [{low}, {high}]", n)


def _by(rows):
    groups = _groups(rows)
    return rows[groups] if groups else None


# The thesis's own tables, and arithmetic


def _printed(table, metric, folder="thesis_tables"):
    rows = pd.read_csv(REPOSITORY / "data" / folder / f"{table}.csv")
    return rows[rows["metric"] == metric].set_index("method")["value"]


@evidence
def printed(table: str, metric: str) -> Finding:
    """The order of the methods in a table of the thesis, best first; shown only."""
    values = _printed(table, metric).sort_values(ascending=metric == "deletion")
    return Finding("", f"{metric}: " + ", ".join(f"{name(m)} {v:.2f}" for m, v in values.items()), None)


@evidence
def published(table: str, source: str, metric: str) -> Finding:
    """What somebody else has published (`data/public`), less the thesis's table, method by method; shown only."""
    gaps = (_printed(source, metric, "public") - _printed(table, metric)).dropna()
    each = ", ".join(f"{name(m)} {gap:+.2f}" for m, gap in gaps.items())
    text = f"{metric}, {source.replace('_', '-')} minus the thesis: {each}; mean {gaps.mean():+.2f} points"
    return Finding("", text, None)


@evidence
def printed_first(table: str, metric: str, method: str) -> Finding:
    """That a method is the best of a column of the thesis's table."""
    values = (-1 if metric == "deletion" else 1) * _printed(table, metric)
    verdict = "holds" if values.idxmax() == method else "contradicted"
    return Finding(verdict, f"{metric}: {name(values.idxmax())} is first", None)


@evidence
def printed_sums(table: str) -> Finding:
    """That insertion minus deletion is the over-all value that is printed, for every method."""
    gap = (
        (_printed(table, "insertion") - _printed(table, "deletion") - _printed(table, "overall")).abs().max()
    )
    verdict = "holds" if gap < 0.005 else "contradicted"
    return Finding(verdict, f"insertion minus deletion differs from over-all by at most {gap:.2f}", None)


@evidence
def printed_lead(table: str, metric: str, points: float) -> Finding:
    """That the first of a column is so many points ahead of the second."""
    first, second = _printed(table, metric).sort_values(ascending=False).iloc[:2]
    lead = round(first - second, 2)
    text = f"{first} - {second} = {lead} points, {100 * lead / second:.2f} % of {second}"
    return Finding("holds" if lead == points else "contradicted", text, None)


@evidence
def equal(formula: str, value: float) -> Finding:
    """That a sum of numbers is what it is said to be, to the digits that are given.

    >>> from thesis_lib.pages.evidence import equal
    >>> equal("100 * 448 / 224 ** 2", 0.89).text
    '100 * 448 / 224 ** 2 = 0.89'
    """
    if not re.fullmatch(r"[\d\s.+*/()-]+", formula):
        raise ValueError(f"not made of numbers alone: {formula}")
    digits = len(repr(value).partition(".")[2]) if isinstance(value, float) else 0
    found = round(eval(formula), digits)  # numbers and operators only, see above
    return Finding("holds" if found == value else "contradicted", f"{formula} = {found:g}", None)
