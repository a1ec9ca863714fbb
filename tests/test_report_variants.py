"""Comparisons of a base method with its variants: one family, one correction."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from thesis_lib import plots, report


def make_rows(n=12, missing=0):
    generator = np.random.default_rng(0)
    rows = []
    for base in ("grad_cam", "msg_cam"):
        bare = generator.random((n, 2))
        for suffix, shift in (("", 0), (" enhanced", 0.1), (" SESS", 0)):
            noise = 0 if not suffix else generator.normal(0, 0.05, (n, 2))
            a, b = (bare + shift + noise).T
            rows.append(pd.DataFrame({
                "id": [str(i) for i in range(n)], "class": 0, "method": base + suffix,
                "a": a, "b": np.where(np.arange(n) < missing, np.nan, b),
            }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def test_one_row_for_each_value_method_and_variant():
    table = report.variants_table(make_rows(missing=3), ["a", "b"])
    assert table.index.names == ["value", "method", "variant"]
    assert list(table.loc["a", "grad_cam"].index) == ["bare", "enhanced", "SESS"]
    assert len(table) == 2 * 2 * 3
    assert set(table.loc["a", "n"]) == {12} and set(table.loc["b", "n"]) == {9}


def test_differences_are_to_the_bare_method_of_the_same_base():
    rows = make_rows()
    row = report.variants_table(rows, ["a"]).loc["a", "msg_cam", "enhanced"]
    wide = rows.pivot(index="id", columns="method", values="a")
    difference = wide["msg_cam enhanced"] - wide["msg_cam"]
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference_low"] < difference.mean() < row["difference_high"]


def test_holm_runs_once_over_the_whole_family():
    rows = make_rows()
    table = report.variants_table(rows, ["a", "b"])
    raw = []
    for value in ("a", "b"):
        wide = rows.pivot(index="id", columns="method", values=value)
        for base in ("grad_cam", "msg_cam"):
            for suffix in (" enhanced", " SESS"):
                raw.append(stats.wilcoxon(wide[base + suffix] - wide[base]).pvalue)
    tested = table["p"].dropna()
    assert len(tested) == 8
    np.testing.assert_allclose(tested, report.holm(raw))
    alone = report.paired_table(
        rows[rows["method"].isin(["grad_cam", "grad_cam enhanced"])], "a", reference="grad_cam"
    )
    assert tested["a", "grad_cam", "enhanced"] > alone.loc["grad_cam enhanced", "p"]


def test_holm_keeps_what_was_not_tested():
    corrected = report.holm([np.nan, 0.01, 0.04])
    np.testing.assert_allclose(corrected, [np.nan, 0.02, 0.04])


def test_a_missing_variant_is_named():
    rows = make_rows()
    with pytest.raises(ValueError, match="msg_cam SESS"):
        report.variants_table(rows[rows["method"] != "msg_cam SESS"], ["a"])


def test_clear_needs_both_the_interval_and_the_test():
    table = pd.DataFrame({
        "p": [0.01, 0.2, 0.01, np.nan],
        "difference_low": [0.1, 0.1, -0.1, np.nan], "difference_high": [0.3, 0.3, 0.3, np.nan],
    })  # fmt: skip
    assert list(report.is_clear(table)) == [True, False, False, False]


def test_forest_marks_clear_differences():
    table = report.variants_table(make_rows(), ["a"]).loc["a"]
    figure, axis = plt.subplots()
    plots.forest(axis, table)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["Grad-CAM", "MSG-CAM"]
    filled = [bar.lines[0].get_markerfacecolor() != "white" for bar in axis.containers]
    assert filled == list(report.is_clear(table.dropna(subset=["difference"])))
    assert True in filled
    assert axis.get_legend_handles_labels()[1] == ["enhanced", "SESS"]
    plt.close(figure)


def test_verdicts_say_what_is_clear_and_which_way():
    index = pd.MultiIndex.from_product(
        [["a"], ["one", "two", "three"], ["bare", "enhanced", "SESS"]],
        names=["value", "method", "variant"],
    )
    gain = [np.nan, 2, -2, np.nan, -2, 0.1, np.nan, 0.1, 2]
    table = pd.DataFrame({"difference": gain, "p": 0.01}, index=index)
    table["difference_low"], table["difference_high"] = table["difference"] - 1, table["difference"] + 1  # fmt: skip
    lines = report.verdicts({"net": table}, "a", name=str.title).splitlines()
    assert lines == [
        "- net, enhanced: clearly better for One; clearly worse for Two; open for Three.",
        "- net, SESS: clearly better for Three; clearly worse for One; open for Two.",
    ]
    assert "better for Two; clearly worse for One" in report.verdicts({"net": table}, "a", -1, name=str.title)


def test_intervals_run_from_the_top_down_on_a_shared_axis_too():
    table = pd.DataFrame({"mean": [0.5, 0.6], "low": 0.4, "high": 0.7}, index=["one", "two"])
    figure, axes = plt.subplots(1, 2, sharey=True)
    for axis in axes:
        plots.intervals(axis, table)
    assert axes[0].yaxis_inverted() and axes[1].yaxis_inverted()
    plt.close(figure)
