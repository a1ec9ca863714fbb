"""Chapter 4's tables and figures: what a base method's variants change, by measure, on several networks."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from thesis_lib.metrics import METRICS
from thesis_lib.pages import plots, report

VARIANTS = ("enhanced", "mean", "SESS")  # beside the bare method, as `thesis_lib.methods.variants` makes them


def readable(table: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """A `report.variants_table` as text: one row for each (measure, method, variant), narrow enough for a page.

    Differences are to the bare method; * marks those that `report.is_clear`.

    >>> from thesis_lib.pages.variants import readable
    >>> found = readable(report.variants_table(in_windows, ["overall"]), ["overall"])
    >>> list(found)[:3], found.index[0][0]
    (['n', 'mean [95 %]', 'difference [95 %]'], 'over-all')
    """
    parts = {}
    for value in values:
        column, part = METRICS.columns[value], table.loc[value]
        text = report.readable(part, scale=column.scale, digits=1)
        text["difference [95 %]"] += report.is_clear(part).map({True: " *", False: ""})
        parts[column.title] = text.assign(thesis="none")
    return pd.concat(parts, names=["measure"]).rename(index=plots.name, level="method")


def forests(tables: dict[str, pd.DataFrame], values: Sequence[str]) -> Figure:
    """`plots.forest` for each network {name: `report.variants_table`} below the other, each value beside the other.

    >>> from thesis_lib.pages.variants import forests
    >>> figure = forests({"VGG19": report.variants_table(in_windows, ["overall"])}, ["overall"])
    >>> figure.axes[0].get_title()
    'over-all'
    """
    shape = len(tables), len(values)
    figure, axes = plt.subplots(
        *shape, figsize=(plots.WIDTH, 0.6 + 2.3 * shape[0]), sharey="row", squeeze=False
    )
    for k, (row, (name, table)) in enumerate(zip(axes, tables.items(), strict=True)):
        for axis, value in zip(row, values, strict=True):
            column = METRICS.columns[value]
            unit = "points from bare" if column.scale == 100 else "difference from bare"
            plots.forest(axis, table.loc[value], column.scale, unit if k == len(tables) - 1 else "")
            axis.set_title("" if k else column.title.replace(", ", ",\n"), fontsize=10)
        row[0].set_ylabel(name)
    figure.align_ylabels(axes[:, 0])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
