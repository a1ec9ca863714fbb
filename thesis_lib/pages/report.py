"""Numbers for the reader: stable printing, bootstrap intervals, paired comparisons, tables.

The unit is the picture: several classes, rounds or seeds of one picture never count as more pictures.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

# Figure 3-3 of the thesis names eleven groups and says only of the last that it is >= 99.99 %:
# ten deciles, the tenth cut short at 0.9999, and the rest.
CONFIDENCE_EDGES = np.append(np.arange(1, 10) / 10, 0.9999)
CONFIDENCE_LABELS = [f"{k / 10:.1f}-{(k + 1) / 10:.1f}" for k in range(9)] + [
    "0.9-0.9999",
    ">=0.9999",
]


def show(data: dict | pd.DataFrame, digits: int = 3) -> None:
    """Print a dict (one `key: value` line each) or a DataFrame, sorted and rounded.

    Made for cells whose output nbval compares: floats get a fixed number of digits, a negative zero
    loses its sign, numpy scalars, arrays and tensors print as plain numbers, the order does not
    depend on how the data came about.

    >>> report.show({"overall": 0.44740001, "images": 256, "auc": [0.5, -1e-9]})
    auc: [0.500, 0.000]
    images: 256
    overall: 0.447
    """
    if isinstance(data, pd.DataFrame):
        table = data.sort_index()
        print(table.map(lambda value: _text(value, digits)).to_string())
    else:
        for key in sorted(data, key=str):
            print(f"{key}: {_text(data[key], digits)}")


def _text(value, digits):
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        value = value.tolist()
    if isinstance(value, float):
        return f"{round(value, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 == 0.0
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item, digits) for item in value) + "]"
    return str(value)


def typeset(text: str) -> str:
    """Numbers as print has them: a minus sign before a negative one, per cent and an interval on its line.

    >>> report.typeset("a change of -1.0 [-2.0, 0.5] points, or 5 %, p = 1e-5")
    'a change of −1.0\xa0[−2.0,\xa00.5] points, or 5\xa0%, p = 1e-5'
    """
    text = re.sub(r"(?<![\w.-])-(?=\.?\d)", "−", text)
    text = re.sub(r"(?<=\d) (?=%)", "\xa0", text)
    return re.sub(r" ?\[[−+\d., ]*\d\]", lambda interval: interval[0].replace(" ", "\xa0"), text)


def bootstrap_interval(
    x: Any, seed: int = 0, n: int = 10_000, groups: Any = None, clusters: Any = None
) -> tuple[float, float, float]:
    """Mean of `x` with its 95 % percentile bootstrap interval: (mean, low, high).

    Pictures are resampled with replacement, `n` times, by a generator of its own. Equal seeds resample
    equal positions, so methods measured on the same pictures share their resamples.

    Args:
        x: (N,), finite.
        groups: (N,), asks for the mean over groups of the group means (the pointing game's mean over
            classes). A group that a resample has nothing of is left out of its mean, which makes the interval
            somewhat narrow where groups have a picture or two: `is_clear` asks the test as well.
        clusters: (N,), the picture of each value: values of one picture are drawn together, and without
            `groups` count as their mean. None: each value is a picture.

    Raises:
        ValueError: for an empty or non-finite `x`.

    >>> mean, low, high = report.bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    >>> mean, low < mean < high
    (0.75, True)
    >>> report.bootstrap_interval([0.0, 1.0, 1.0, 1.0], clusters=["a", "b", "b", "b"])[0]
    0.5
    """
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError("x must be a non-empty list of finite numbers; drop missing values first")
    picture = np.arange(x.size) if clusters is None else pd.factorize(np.asarray(clusters))[0]
    group = np.zeros(x.size, int) if groups is None else pd.factorize(np.asarray(groups))[0]
    shape = picture.max() + 1, group.max() + 1
    place = np.ravel_multi_index((picture, group), shape)
    sums, counts = (
        np.bincount(place, weights, np.prod(shape)).reshape(shape) for weights in (x, np.ones(x.size))
    )
    if groups is None:
        sums, counts = sums / counts, np.ones(shape)
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // shape[0])  # bounds the memory: 50,000 pictures would need 4 GB at once
    means = [_means(sums, counts, _drawn(shape[0], min(rows, n - k), generator)) for k in range(0, n, rows)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(_means(sums, counts, np.ones((1, shape[0])))[0]), float(low), float(high)


def _drawn(pictures, resamples, generator):
    """(resamples, pictures): how often each picture is in each resample."""
    chosen = generator.integers(pictures, size=(resamples, pictures))
    chosen += pictures * np.arange(resamples)[:, None]
    return np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(float)


def _means(sums, counts, often):
    """Mean over groups of the group means, in each resample, from (pictures, groups) sums and counts."""
    with np.errstate(invalid="ignore"):
        return np.nanmean((often @ sums) / (often @ counts), axis=1)


def holm(p: Any) -> np.ndarray:
    """Holm's step-down correction of p-values (M,), keeping the family-wise error rate.

    NaN, where nothing was tested, stays NaN and does not count.

    >>> report.holm([0.01, 0.04, float("nan")]).tolist()
    [0.02, 0.04, nan]
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # NaN is sorted to the end
    stepped = p[order] * np.arange(order.size, 0, -1)
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return corrected


def signed_rank(differences: Any) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, of one difference for each picture.

    Pictures without a difference do not count. Where ties make scipy approximate, the result is kept above
    what so few pictures can show: all of k signs alike have a probability of 2 / 2^k.

    >>> report.signed_rank([1, 2, 3, 4, 5]), report.signed_rank([0, 0])
    (0.0625, 1.0)
    """
    x = np.asarray(differences, dtype=float).round(9)  # what differs by rounding alone is a tie
    x = x[x != 0]
    if not x.size:  # scipy leaves it undefined; there is nothing to reject
        return 1.0
    return float(max(stats.wilcoxon(x).pvalue, 2.0 ** (1 - x.size)))


def least_n(family: int = 1) -> int:
    """The least number of pictures that can give p < 0.05 after Holm's correction over a family.

    All differences of one sign have p = 2 / 2^n, and the smallest p is multiplied by the family's size.

    >>> report.least_n(6), report.least_n()
    (8, 6)
    """
    return math.floor(math.log2(2 * family / 0.05)) + 1


def _spread(differences, family):
    """Standard deviation of the differences, and the quantiles that 5 % and a power of 80 % ask for."""
    x = np.asarray(differences, dtype=float)
    spread = x.std(ddof=1) if x.size > 1 else np.nan
    return x, spread, stats.norm.ppf(1 - 0.025 / family) + stats.norm.ppf(0.8)


def detectable(differences: Any, family: int = 1) -> float:
    """The mean difference that so many pictures see: with a power of 80 % at 5 %, from the measured spread.

    Args:
        differences: (n,), one for each picture.
        family: how many comparisons share the 5 % (Bonferroni, which Holm's first step equals).

    NaN for a single picture.

    >>> round(report.detectable([0.1, -0.1] * 50), 3)
    0.028
    """
    x, spread, quantiles = _spread(differences, family)
    return float(quantiles * spread / math.sqrt(x.size))


def needed(differences: Any, family: int = 1, margin: float | None = None) -> float:
    """How many pictures would decide about a difference, if its mean and spread stay as measured.

    Either the mean is then seen as in `detectable`, or, where a margin is stated and the mean lies within it,
    the 95 % interval is. Infinite for a mean of 0 without a margin, NaN for a single picture.

    >>> report.needed([0.12, -0.08] * 50)
    199.0
    """
    x, spread, quantiles = _spread(differences, family)
    if np.isnan(spread):
        return math.nan
    gaps = [(abs(x.mean()), quantiles)]
    if margin is not None and abs(x.mean()) < margin:
        gaps.append((margin - abs(x.mean()), stats.norm.ppf(0.975)))
    found = [math.ceil((q * spread / gap) ** 2) if gap > 0 else math.inf for gap, q in gaps]
    return float(max(min(found), least_n(family)))


def paired_table(
    rows: pd.DataFrame, value: str, reference: str = "msg_cam", groups: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Compare methods on the same pictures.

    `rows` holds one row per (id, class, method), as `thesis_lib.evaluate` returns them;
    `value` names the column to compare. The unit is the picture: its classes are averaged, or, with
    `groups="class"`, enter the mean over classes together. Returns one row per method, in order of first
    appearance:

    n
        pictures, of those of the reference, of which a method may have been measured on some alone; a column `rounds` follows where there are more (picture, class) pairs than pictures
    mean, low, high
        with the 95 % bootstrap interval, pictures resampled
    difference, difference_low, difference_high
        method minus `reference`, likewise (NaN for the reference)
    p
        `signed_rank` of one difference for each picture, the mean of its rounds; Holm-corrected over the
        table, which is the family
    detectable
        the difference that this n sees before the correction, see `detectable`

    Raises ValueError if the reference is missing or if a picture has other pairs in one method than in another.

    >>> table = report.paired_table(rows, "overall")
    >>> table[["n", "mean", "difference"]].round(3).loc["grad_cam"].tolist()
    [3.0, 0.533, -0.067]
    """
    table = _compared(rows, value, reference, groups, seed)
    table["p"] = holm(table["p"].to_numpy())
    return table


def differences(rows: pd.DataFrame, value: str, method: str, reference: str) -> np.ndarray:
    """method minus reference, one for each picture: the mean of its rounds. Shape (pictures,).

    >>> report.differences(rows, "overall", "grad_cam", "msg_cam").shape
    (3,)
    """
    wide = _wide(rows[rows["method"].isin([method, reference])], value, reference)
    return (wide[method] - wide[reference]).groupby("id").mean().to_numpy()


def _wide(rows, value, reference):
    """(id, class) x method, of the reference's pictures; NaN where a method was not measured on one of them. Any
    other that is missing is a ValueError."""
    if len(own := rows.loc[rows["method"] == reference, "id"]):
        rows = rows[rows["id"].isin(own)]
    wide = rows.pivot(index=["id", "class"], columns="method", values=value)
    wide = wide[rows["method"].drop_duplicates()]
    if reference not in wide:
        raise ValueError(f"no rows of the reference {reference!r}; there are {list(wide)}")
    measured = rows.groupby("method")["id"].unique()
    pictures = wide.index.get_level_values("id")
    missing = pd.Series({m: wide.loc[pictures.isin(measured[m]), m].isna().sum() for m in wide})
    if missing.any():
        raise ValueError(f"{value} is missing for some pairs: {missing[missing > 0].to_dict()}")
    return wide.astype(float)


def _compared(rows, value, reference, groups, seed):
    """`paired_table` before the correction of p."""
    wide = _wide(rows, value, reference)
    by, clusters = (
        None if level is None else pd.Series(wide.index.get_level_values(level), wide.index)
        for level in (groups, "id")
    )

    def interval(x):
        kept = None if by is None else by[x.index]
        return bootstrap_interval(x, seed, groups=kept, clusters=clusters[x.index])

    own = {method: wide[method].dropna() for method in wide}
    table = pd.DataFrame(
        [interval(x) for x in own.values()], index=list(own), columns=["mean", "low", "high"]
    )
    table.index.name = "method"
    table.insert(0, "n", [clusters[x.index].nunique() for x in own.values()])
    if any(len(x) > n for x, n in zip(own.values(), table["n"], strict=True)):
        table.insert(1, "rounds", [len(x) for x in own.values()])
    columns = ["difference", "difference_low", "difference_high", "p", "detectable"]
    table[columns] = np.nan
    for method in wide.columns.drop(reference):
        x = own[method] - wide[reference][own[method].index]
        each = x.groupby("id").mean()
        table.loc[method, columns] = *interval(x), signed_rank(each), detectable(each)
    return table


def variants_table(
    rows: pd.DataFrame,
    values: list[str],
    variants: tuple[str, ...] = ("enhanced", "SESS"),
    groups: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the variants of each base method with the base method itself.

    `rows` as for `paired_table`; methods are called "grad_cam", "grad_cam enhanced", "grad_cam
    SESS" and so on. Pairs without a value (no pixel mask) are left out. Returns the columns of
    `paired_table` by (value, method, variant), where "bare" is the method itself and the reference.
    p is Holm-corrected once over all values, methods and variants: the table is the family.

    Raises ValueError if a variant is missing or was measured on other pairs than its base method.

    >>> table = report.variants_table(in_windows, ["overall"])
    >>> table["difference"].round(3).loc["overall", "grad_cam"].to_dict()
    {'bare': nan, 'enhanced': 0.1, 'SESS': 0.0}
    """
    names = list(rows["method"].drop_duplicates())
    bases = [name for name in names if not name.endswith(tuple(f" {v}" for v in variants))]
    tables = {}
    for value in values:
        known = rows.dropna(subset=[value])
        for base in bases:
            family = {base: "bare"} | {f"{base} {variant}": variant for variant in variants}
            missing = [name for name in family if name not in names]
            if missing:
                raise ValueError(f"no rows of {missing}; there are {names}")
            part = known[known["method"].isin(family)]
            tables[value, base] = _compared(part, value, base, groups, seed).rename(index=family)
    table = pd.concat(tables, names=["value", "method", "variant"])
    table["p"] = holm(table["p"].to_numpy())
    return table


def is_clear(table: pd.DataFrame) -> pd.Series:
    """Which differences have an interval without 0 and p < 0.05: both ways of looking agree.

    >>> table = {"p": [0.01, 0.01], "difference_low": [0.1, -0.1], "difference_high": [0.3, 0.3]}
    >>> report.is_clear(pd.DataFrame(table)).tolist()
    [True, False]
    """
    return (table["p"] < 0.05) & (table["difference_low"] * table["difference_high"] > 0)


def verdicts(
    tables: dict[str, pd.DataFrame], value: str, sign: int = 1, name: Callable[[str], str] = str
) -> str:
    """In words, which methods each variant clearly helps and harms: one Markdown item for each.

    tables: {network: `variants_table`}; sign: 1 where more of the value is better, -1 where less
    is; name: turns a method into its printed name.

    >>> table = report.variants_table(in_windows, ["overall"])
    >>> print(report.verdicts({"VGG19": table}, "overall", name=plots.name))
    - VGG19, enhanced: clearly better for Grad-CAM; clearly worse for none; open for none.
    - VGG19, SESS: clearly better for none; clearly worse for none; open for Grad-CAM.
    """

    def listed(methods):
        return ", ".join(map(name, methods)) or "none"

    lines = []
    for network, table in tables.items():
        for variant, part in table.loc[value].groupby("variant", sort=False):
            if variant == "bare":
                continue
            part = part.droplevel("variant")
            clear, gain = is_clear(part), sign * part["difference"]
            lines.append(
                f"- {network}, {variant}: clearly better for {listed(part.index[clear & (gain > 0)])};"
                f" clearly worse for {listed(part.index[clear & (gain < 0)])};"
                f" open for {listed(part.index[~clear])}."
            )
    return "\n".join(lines)


def readable(table: pd.DataFrame, scale: float = 100, digits: int = 2) -> pd.DataFrame:
    """The same table as text to display: `mean [low, high]`, differences, p and the difference that n can see.

    Means are multiplied by `scale` (100: per cent, as the thesis prints them).

    >>> row = {"n": 3, "mean": 0.5, "low": 0.4, "high": 0.6, "p": 0.03}
    >>> row |= {"difference": 0.1, "difference_low": 0.0, "difference_high": 0.2, "detectable": 0.15}
    >>> report.readable(pd.DataFrame([row]), digits=0).iloc[0, 1:].tolist()
    ['50 [40, 60]', '10 [0, 20]', '0.03', '15']
    """

    def interval(row, name, low, high):
        if np.isnan(row[name]):
            return ""
        mean, low, high = (f"{scale * row[key] + 0.0:.{digits}f}" for key in (name, low, high))
        return f"{mean} [{low}, {high}]"

    return pd.DataFrame(
        {
            **{name: table[name] for name in ("n", "rounds") if name in table},
            "mean [95 %]": [interval(row, "mean", "low", "high") for _, row in table.iterrows()],
            "difference [95 %]": [
                interval(row, "difference", "difference_low", "difference_high")
                for _, row in table.iterrows()
            ],
            "p (Holm)": ["" if np.isnan(p) else f"{p:.2g}" for p in table["p"]],
            "difference seen": [
                "" if np.isnan(seen) else f"{scale * seen:.{digits}f}" for seen in table["detectable"]
            ],
        },
        index=table.index,
    )


def confidence_bins(probability: Any) -> np.ndarray:
    """Bin 0..10 of each probability: [0, 0.1), ..., [0.8, 0.9), [0.9, 0.9999), [0.9999, 1].

    >>> report.confidence_bins([0.05, 0.95, 1.0]).tolist()
    [0, 9, 10]
    """
    return np.digitize(probability, CONFIDENCE_EDGES)


def confidence_table(rows: pd.DataFrame, value: str, seed: int = 0) -> pd.DataFrame:
    """`value` per confidence bin and method, as figure 3-3: n, mean and 95 % interval.

    `rows` needs the columns id, method, probability and `value`; n counts pictures. Returns one row per (bin, method)
    with all eleven bins; an empty one has n = 0 and NaN.

    >>> report.confidence_table(rows, "overall").query("n > 0")["label"].unique().tolist()
    ['0.3-0.4', '0.9-0.9999', '>=0.9999']
    """
    bins = confidence_bins(rows["probability"])
    records = []
    for number, label in enumerate(CONFIDENCE_LABELS):
        for method in rows["method"].drop_duplicates():
            part = rows[(bins == number) & (rows["method"] == method)]
            x, pictures = part[value], part["id"]
            found = bootstrap_interval(x, seed, clusters=pictures) if len(x) else (np.nan,) * 3
            records.append((number, label, method, pictures.nunique(), *found))
    return pd.DataFrame(records, columns=["bin", "label", "method", "n", "mean", "low", "high"])
