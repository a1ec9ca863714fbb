"""Numbers for the reader: stable printing, bootstrap intervals, paired comparisons, tables."""

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


def show(data, digits=3):
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


def bootstrap_interval(x, seed=0, n=10_000, groups=None):
    """Mean of `x` with its 95 % percentile bootstrap interval: (mean, low, high).

    `x` is (N,), resampled with replacement `n` times by a generator of its own. `groups` (N,)
    asks for the mean over groups of the group means (the pointing game's mean over classes); each
    group is then resampled on its own, so that none is ever empty. Equal seeds resample equal
    positions, so methods measured on the same images share their resamples.

    Raises ValueError for an empty or non-finite `x`.

    >>> mean, low, high = report.bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    >>> mean, low < mean < high
    (0.75, True)
    """
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError("x must be a non-empty list of finite numbers; drop missing values first")
    generator = np.random.default_rng(seed)
    if groups is None:
        parts = [x]
    else:
        groups = np.asarray(groups)
        parts = [x[groups == group] for group in np.unique(groups)]
    means = np.mean([_resampled_means(part, generator, n) for part in parts], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([part.mean() for part in parts])), float(low), float(high)


def _resampled_means(x, generator, n):
    rows = max(1, 2_000_000 // x.size)  # bounds the memory: 50,000 images would need 4 GB at once
    blocks = [min(rows, n - start) for start in range(0, n, rows)]
    return np.concatenate(
        [x[generator.integers(x.size, size=(block, x.size))].mean(axis=1) for block in blocks]
    )


def holm(p):
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


def paired_table(rows, value, reference="msg_cam", groups=None, seed=0):
    """Compare methods on the same (image, class) pairs.

    `rows` holds one row per (id, class, method), as `thesis_lib.evaluate` returns them;
    `value` names the column to compare. `groups="class"` takes the mean over classes instead of
    the mean over pairs. Returns one row per method, in order of first appearance:

    n
        pairs
    mean, low, high
        with the 95 % bootstrap interval
    difference, difference_low, difference_high
        method minus `reference`, pair by pair, with its interval (NaN for the reference)
    p
        Wilcoxon signed-rank test of the differences, Holm-corrected over the table

    Raises ValueError if the reference is missing or if methods were measured on different pairs.

    >>> table = report.paired_table(rows, "overall")
    >>> table[["n", "mean", "difference"]].round(3).loc["grad_cam"].tolist()
    [3.0, 0.533, -0.067]
    """
    table = _compared(rows, value, reference, groups, seed)
    table["p"] = holm(table["p"].to_numpy())
    return table


def _compared(rows, value, reference, groups, seed):
    """`paired_table` before the correction of p."""
    wide = rows.pivot(index=["id", "class"], columns="method", values=value)
    wide = wide[rows["method"].drop_duplicates()]
    if reference not in wide:
        raise ValueError(f"no rows of the reference {reference!r}; there are {list(wide)}")
    if wide.isna().any(axis=None):
        missing = wide.isna().sum()
        raise ValueError(f"{value} is missing for some pairs: {missing[missing > 0].to_dict()}")
    by = None if groups is None else wide.index.get_level_values(groups)
    table = pd.DataFrame(
        [bootstrap_interval(wide[method], seed, groups=by) for method in wide],
        index=wide.columns,
        columns=["mean", "low", "high"],
    )
    table.insert(0, "n", len(wide))
    others = [method for method in wide if method != reference]
    differences = [(wide[method] - wide[reference]).to_numpy() for method in others]
    columns = ["difference", "difference_low", "difference_high"]
    table[columns] = np.nan
    for method, difference in zip(others, differences, strict=True):
        table.loc[method, columns] = bootstrap_interval(difference, seed, groups=by)
    table["p"] = pd.Series([_wilcoxon(d) for d in differences], index=others, dtype=float)
    return table


def variants_table(rows, values, variants=("enhanced", "SESS"), groups=None, seed=0):
    """Compare the variants of each base method with the base method itself.

    `rows` as for `paired_table`; methods are called "grad_cam", "grad_cam enhanced", "grad_cam
    SESS" and so on. Pairs without a value (no pixel mask) are left out. Returns the columns of
    `paired_table` by (value, method, variant), where "bare" is the method itself and the reference.
    p is Holm-corrected once over all values, methods and variants: they are one family of
    comparisons.

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


def is_clear(table):
    """Which differences have an interval without 0 and p < 0.05: both ways of looking agree.

    >>> table = {"p": [0.01, 0.01], "difference_low": [0.1, -0.1], "difference_high": [0.3, 0.3]}
    >>> report.is_clear(pd.DataFrame(table)).tolist()
    [True, False]
    """
    return (table["p"] < 0.05) & (table["difference_low"] * table["difference_high"] > 0)


def verdicts(tables, value, sign=1, name=str):
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


def _wilcoxon(differences):
    # scipy leaves the test undefined where nothing differs; there is then nothing to reject.
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def readable(table, scale=100, digits=2):
    """The same table as text to display: `mean [low, high]`, differences and p, one per column.

    Means are multiplied by `scale` (100: per cent, as the thesis prints them).

    >>> row = {"n": 3, "mean": 0.5, "low": 0.4, "high": 0.6, "p": 0.03}
    >>> row |= {"difference": 0.1, "difference_low": 0.0, "difference_high": 0.2}
    >>> report.readable(pd.DataFrame([row]), digits=0).iloc[0, 1:].tolist()
    ['50 [40, 60]', '10 [0, 20]', '3.0e-02']
    """

    def interval(row, name, low, high):
        if np.isnan(row[name]):
            return ""
        mean, low, high = (f"{scale * row[key] + 0.0:.{digits}f}" for key in (name, low, high))
        return f"{mean} [{low}, {high}]"

    return pd.DataFrame(
        {
            "n": table["n"],
            "mean [95 %]": [interval(row, "mean", "low", "high") for _, row in table.iterrows()],
            "difference [95 %]": [
                interval(row, "difference", "difference_low", "difference_high")
                for _, row in table.iterrows()
            ],
            "p (Holm)": ["" if np.isnan(p) else f"{p:.1e}" for p in table["p"]],
        },
        index=table.index,
    )


def confidence_bins(probability):
    """Bin 0..10 of each probability: [0, 0.1), ..., [0.8, 0.9), [0.9, 0.9999), [0.9999, 1].

    >>> report.confidence_bins([0.05, 0.95, 1.0]).tolist()
    [0, 9, 10]
    """
    return np.digitize(probability, CONFIDENCE_EDGES)


def confidence_table(rows, value, seed=0):
    """`value` per confidence bin and method, as figure 3-3: n, mean and 95 % interval.

    `rows` needs the columns method, probability and `value`. Returns one row per (bin, method)
    with all eleven bins; an empty one has n = 0 and NaN.

    >>> report.confidence_table(rows, "overall").query("n > 0")["label"].unique().tolist()
    ['0.3-0.4', '0.9-0.9999', '>=0.9999']
    """
    bins = confidence_bins(rows["probability"])
    records = []
    for number, label in enumerate(CONFIDENCE_LABELS):
        for method in rows["method"].drop_duplicates():
            x = rows[value][(bins == number) & (rows["method"] == method)]
            mean, low, high = bootstrap_interval(x, seed) if len(x) else (np.nan,) * 3
            records.append((number, label, method, len(x), mean, low, high))
    return pd.DataFrame(records, columns=["bin", "label", "method", "n", "mean", "low", "high"])
