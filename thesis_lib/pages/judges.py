"""What measures of maps are worth: do they recover an order that is known?

Reads rows of the metrics "judged" and "removals" over the maps of `metrics.known`. For each measure, on each picture: of
the pairs of neighbours in a chain, the share that it puts into the right order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from thesis_lib.metrics import METRICS
from thesis_lib.metrics.known import CHAINS
from thesis_lib.pages.report import bootstrap_interval, holm, needed, signed_rank
from thesis_lib.runs.record import recorded

ROW = ["id", "class", "method"]
TOO_FEW = "too few"


def both(dataset: str, network: str) -> pd.DataFrame:
    """Recorded rows of the metric "judged", with the columns of "removals" where a table of that name is there, too.

    Rows that the second table lacks have NaN there. `.attrs["provenance"]` is the first table's, and
    `.attrs["removals"]` the second's.

    Raises:
        FileNotFoundError: as `thesis_lib.recorded`.

    >>> from thesis_lib.pages.judges import both
    >>> {"iou", "road"} <= set(both("cutouts", "vgg19_cutouts"))
    True
    """
    rows = recorded(dataset, network, "judged")
    try:
        more = recorded(dataset, network, "removals")
    except FileNotFoundError:
        return rows
    columns = [*METRICS["removals"].columns]
    found = rows.merge(more[ROW + columns], on=ROW, how="left", validate="one_to_one")
    found.attrs = {"provenance": rows.attrs["provenance"], "removals": more.attrs["provenance"]}
    return found


def measures() -> dict[str, int]:
    """{column: +1 where more is better, -1 where less is} of all measures of a map.

    >>> from thesis_lib.pages.judges import measures
    >>> measures()["overall_blurred"], measures()["deletion_blurred"]
    (1, -1)
    """
    return METRICS["judged"].better | METRICS["removals"].better


def scores(rows: pd.DataFrame, measure: str, chain: Sequence[str], better: int) -> pd.DataFrame:
    """The measure of each map of a chain, turned so that more is better: a row a picture, the mean of its classes.

    Pictures that lack one of the maps, or on which the measure is unknown, are left out.
    """
    part = rows[rows["method"].isin(chain)]
    wide = part.pivot_table(
        index=["id", "class"], columns="method", values=measure, aggfunc="first", dropna=False
    )
    wide = better * wide.reindex(columns=list(chain)).dropna()
    return wide.groupby("id", sort=False).mean()


def steps(
    rows: pd.DataFrame, measure: str, better: int | None = None, chains: Mapping = CHAINS
) -> pd.DataFrame:
    """By how much the better of two neighbours in a chain is ahead, by this measure: a row for each step and picture.

    rows: as recorded. measure: a column; better: +1 or -1, None for that of METRICS. Returns the columns chain, step,
    id, lead, right; right is 1 where the order is the known one, 0 where it is the other, one half where the measure
    makes no difference.
    """
    better = measures()[measure] if better is None else better
    found = []
    for chain, names in chains.items():
        wide = scores(rows, measure, names, better)
        for first, second in zip(names[:-1], names[1:], strict=True):
            lead = (wide[first] - wide[second]).round(9)
            table = pd.DataFrame({"chain": chain, "step": f"{first} > {second}", "lead": lead})
            found.append(table.assign(right=(np.sign(lead) + 1) / 2).reset_index())
    return pd.concat(found, ignore_index=True)


def kendall(
    rows: pd.DataFrame, measure: str, better: int | None = None, chains: Mapping = CHAINS
) -> pd.Series:
    """Kendall's tau-a between the known order and the measure's within chains: a value a picture, the mean of its chains.

    Of all pairs of a chain, the right ones less the wrong ones, over their number; -1 to 1, 0 for a deaf measure.
    """
    better = measures()[measure] if better is None else better
    found = []
    for names in chains.values():
        wide = scores(rows, measure, names, better)
        pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
        signs = [np.sign((wide[a] - wide[b]).round(9)) for a, b in pairs]
        found.append(sum(signs) / len(pairs))
    return pd.concat(found, axis=1).mean(axis=1)


def verdict(low: float, high: float, p: float) -> str:
    """ "hears" where a measure puts clearly more than half of the steps right, "inverted" where clearly fewer, else "deaf".

    low, high: the interval of the share of steps in the right order. p: that the share is one half.

    >>> from thesis_lib.pages.judges import verdict
    >>> verdict(0.6, 0.8, 0.01), verdict(0.4, 0.6, 0.9), verdict(0.2, 0.4, 0.01)
    ('hears', 'deaf', 'inverted')
    """
    if p < 0.05 and (low > 0.5 or high < 0.5):
        return "hears" if low > 0.5 else "inverted"
    return "deaf"


def judged(
    rows: pd.DataFrame, chains: Mapping = CHAINS, columns: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """A row a measure: is it worth asking?

    columns: {measure: +1 or -1}; None for all that the rows have. Returns, indexed by measure: n (pictures), right, low,
    high (the share of steps in the right order, the mean of the chains, with its 95 % interval over pictures), tau
    (Kendall's), p (that the share is one half; Holm over the measures), seen (of all steps the share that this measure
    would see with 100 pictures, see `power`), and the verdict. Where even pictures that all agree would show nothing, as
    2 / 2^n is above 5 % over the number of measures, it is `TOO_FEW`, p is NaN, and the measure does not count for Holm's
    correction.
    """
    found = {}
    for measure, better in (columns or measures()).items():
        if measure not in rows:
            continue
        table = steps(rows, measure, better, chains)
        if table.empty:
            continue
        right = table.groupby(["id", "chain"])["right"].mean().groupby("id").mean()
        mean, low, high = bootstrap_interval(right)
        found[measure] = {
            "n": len(right), "right": mean, "low": low, "high": high,
            "tau": kendall(rows, measure, better, chains).mean(), "p": signed_rank(right - 0.5), "seen": float(power(table, [100]).mean(axis=0).iloc[0]),
        }  # fmt: skip
    table = pd.DataFrame(found).T.infer_objects()
    table["p"] = table["p"].astype(float).where(2 / 2.0 ** table["n"].astype(float) <= 0.05 / len(table))
    enough = table["p"].notna()
    table.loc[enough, "p"] = holm(table.loc[enough, "p"].to_numpy())
    said = [verdict(*row) for row in table[["low", "high", "p"]].to_numpy(float)]
    table["verdict"] = np.where(enough, said, TOO_FEW)
    return table


def power(table: pd.DataFrame, counts: Sequence[int]) -> pd.DataFrame:
    """The chance that so many pictures show a step in its right direction, at 5 %: a row a step, a column a count.

    table: of `steps`. From the mean and the spread of the leads, by the normal distribution; a step whose measured
    mean goes the wrong way is hardly ever shown right, however many pictures.
    """
    found = {}
    for step, leads in table.groupby("step", sort=False)["lead"]:
        spread, mean = leads.std(ddof=1), leads.mean()
        ratio = mean / spread if spread > 0 else np.sign(mean) * np.inf if mean else 0.0
        found[step] = [stats.norm.sf(stats.norm.ppf(0.975) - ratio * np.sqrt(n)) for n in counts]
    return pd.DataFrame(found, index=list(counts)).T


def pictures_needed(table: pd.DataFrame) -> pd.Series:
    """How many pictures show each step, with a power of 80 % at 5 %; infinite where its mean goes the wrong way.

    table: of `steps`.
    """
    of = table.groupby("step", sort=False)["lead"]
    return pd.Series({s: needed(leads) if leads.mean() > 0 else np.inf for s, leads in of})


def agreement(rows: pd.DataFrame, methods: Sequence[str], columns: Mapping[str, int]) -> pd.DataFrame:
    """Kendall's tau-b between the orders in which the measures put the methods by their means: a square table.

    rows: with all the methods. columns: {measure: +1 or -1}.
    """
    means = rows[rows["method"].isin(methods)].groupby("method")[list(columns)].mean().loc[list(methods)]
    turned = means * pd.Series(columns)
    return turned.corr(lambda a, b: stats.kendalltau(a, b).statistic)
