import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import stats

from thesis_lib import plots
from thesis_lib.methods import METHODS
from thesis_lib.pages.report import (
    CONFIDENCE_LABELS,
    bootstrap_interval,
    confidence_bins,
    confidence_table,
    detectable,
    differences,
    holm,
    least_n,
    needed,
    paired_table,
    readable,
    show,
    signed_rank,
)


def rows(n=40, seed=0, gains=(("a", 0.0), ("msg_cam", 0.1), ("b", 0.1))):
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 0.5, n)
    return pd.DataFrame(
        [
            {"id": f"{i:03d}", "class": i % 4, "method": method, "probability": base[i] * 2,
             "overall": base[i] + gain + rng.normal(0, 0.05)}
            for method, gain in gains
            for i in range(n)
        ]
    )  # fmt: skip


def test_show_a_dict(capsys):
    show(
        {
            "b": np.float32(1 / 3),
            "a": 7,
            "d": torch.tensor([0.12345, -1e-9]),
            "c": "text",
            "e": torch.tensor(2.0),
            "f": (True, None, float("nan")),
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "a: 7",
        "b: 0.333",
        "c: text",
        "d: [0.123, 0.000]",
        "e: 2.000",
        "f: [True, None, nan]",
    ]


def test_show_a_table(capsys):
    table = pd.DataFrame({"mean": [0.5, -0.0001], "n": [3, 4]}, index=["z", "a"])
    show(table, digits=2)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["mean", "n"],
        ["a", "0.00", "4"],
        ["z", "0.50", "3"],
    ]


def test_show_does_not_depend_on_the_order_of_making(capsys):
    show({"x": 1.0, "y": 2.0})
    first = capsys.readouterr().out
    show({"y": 2.0, "x": 1.0 + 1e-9})
    assert capsys.readouterr().out == first


def test_bootstrap_against_the_normal_interval():
    x = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = bootstrap_interval(x)
    half = 1.96 * x.std() / np.sqrt(400)
    assert mean == pytest.approx(x.mean())
    assert low == pytest.approx(mean - half, abs=0.02) and high == pytest.approx(mean + half, abs=0.02)
    assert bootstrap_interval(x) == (mean, low, high)
    assert bootstrap_interval(x, seed=1) != (mean, low, high)


def test_bootstrap_by_enumeration():
    # Three values have 27 resamples; the bounds converge to the quantiles of their means.
    x = np.array([0.0, 1.0, 5.0])
    means = np.sort([np.mean([a, b, c]) for a in x for b in x for c in x])
    _, low, high = bootstrap_interval(x, n=200_000)
    assert low == pytest.approx(np.quantile(means, 0.025, method="inverted_cdf"))
    assert high == pytest.approx(np.quantile(means, 0.975, method="inverted_cdf"))


def test_bootstrap_takes_the_mean_over_groups():
    x, groups = np.array([1.0] * 9 + [0.0]), ["many"] * 9 + ["one"]
    assert bootstrap_interval(x)[0] == 0.9
    # A resample without the tenth picture has the first group only: its mean is 1.
    assert bootstrap_interval(x, groups=groups) == (0.5, 0.5, 1.0)


def test_bootstrap_by_enumeration_of_pictures_with_classes():
    """All 27 resamples of three pictures that have one, two and two classes; an absent class is left out."""
    pictures, classes = np.array([0, 1, 1, 2, 2]), np.array(["a", "a", "b", "b", "c"])
    x = np.array([0.0, 1.0, 5.0, 2.0, 9.0])

    def mean(drawn):
        rows = np.concatenate([np.flatnonzero(pictures == p) for p in drawn])
        return pd.Series(x[rows]).groupby(classes[rows]).mean().mean()

    means = [mean(drawn) for drawn in np.ndindex(3, 3, 3)]
    found = bootstrap_interval(x, n=100_000, groups=classes, clusters=pictures)
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert found == pytest.approx((mean([0, 1, 2]), *expected))


def test_rounds_of_one_picture_are_not_more_pictures():
    """What an interval promises, on pictures whose four rounds are alike: it holds the truth nearly always if
    pictures are drawn, and far from it if rounds are."""
    rng = np.random.default_rng(0)
    pictures, held = np.repeat(np.arange(15), 4), np.zeros(2)
    for trial in range(200):
        x = rng.normal(0, 1, 15)[pictures] + rng.normal(0, 0.2, 60)
        for k, clusters in enumerate((pictures, None)):
            _, low, high = bootstrap_interval(x, trial, n=300, clusters=clusters)
            held[k] += low <= 0 <= high
    assert held[0] / 200 > 0.85 and held[1] / 200 < 0.75


@pytest.mark.parametrize("groups", [None, "class"])
def test_interval_and_test_speak_of_the_same_pictures(groups):
    """Page 4.4 once printed +17.5 [11.8, 22.4] beside p = 1: rounds were drawn within their class, which of a
    class with one round gives no spread at all, and the test was of rounds, too."""
    gain = np.random.default_rng(4).normal(0.1, 0.3, 12)
    made = pd.DataFrame([
        {"id": f"{p:02d}", "class": p % 3 + 3 * twin, "method": method, "share": 0.5 + (method == "b") * gain[p]}
        for method in "ab" for p in range(12) for twin in (0, 1)
    ])  # fmt: skip
    row = paired_table(made, "share", "a", groups).loc["b"]
    assert row["n"] == 12 and row["rounds"] == 24
    _, low, high = bootstrap_interval(gain, groups=groups and np.arange(12) % 3)
    assert [row["difference_low"], row["difference_high"]] == pytest.approx([low, high], abs=1e-9)
    assert row["p"] == pytest.approx(stats.wilcoxon(gain).pvalue)
    assert differences(made, "share", "b", "a") == pytest.approx(gain)
    once = paired_table(made[made["class"] < 3], "share", "a", groups)
    assert "rounds" not in once
    both = ["n", "mean", "low", "high", "difference", "difference_low", "difference_high", "p"]
    assert once.loc["b", both].tolist() == pytest.approx(row[both].tolist(), abs=1e-9)
    # The kind of page 4.4: a class for each round. Half of the pictures gain, half lose as much.
    split = made.assign(share=0.5 + (made["method"] == "b") * np.where(made["id"] < "06", 0.2, -0.2))
    split["class"] = split["class"] + 6 * split["id"].astype(int)
    row = paired_table(split, "share", "a", groups).loc["b"]
    assert row["p"] > 0.9 and row["difference_low"] < -0.05 < 0.05 < row["difference_high"]


@pytest.mark.parametrize("family", [1, 2, 6, 22, 40])
def test_the_least_n_is_the_first_at_which_holm_can_reject(family):
    def best(n):
        return holm([signed_rank(np.arange(1, n + 1))] + [1.0] * (family - 1))[0]

    assert best(least_n(family)) < 0.05 <= best(least_n(family) - 1)


def test_the_least_n_over_six_comparisons_is_eight():
    assert least_n(6) == 8


def test_signed_rank_is_scipys_and_never_surer_than_so_few_pictures_can_be():
    x = np.random.default_rng(0).normal(0.3, 1, 20)
    assert signed_rank(x) == stats.wilcoxon(x).pvalue
    # With ties scipy may take the normal approximation, which is surer of five pictures than 2 / 2^5.
    assert signed_rank([0, 0, 0, 1, 1, 1, 1, 1]) >= 2 / 2**5
    assert signed_rank([0.0, 0.0]) == 1


def test_detectable_is_seen_four_times_in_five():
    rng = np.random.default_rng(0)
    shift = detectable(rng.normal(0, 1, 100_000)) * np.sqrt(100_000 / 50)  # of 50 such pictures
    seen = [stats.ttest_1samp(rng.normal(shift, 1, 50), 0).pvalue < 0.05 for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)
    x = rng.normal(0, 1, 40)
    assert detectable(x, family=6) > detectable(x) > detectable(np.tile(x, 4))
    assert np.isnan(detectable([1.0]))


def test_needed_is_the_n_at_which_the_mean_is_detectable():
    x = np.random.default_rng(0).normal(0.2, 1, 50)
    n = needed(x, 6)
    at = x.std(ddof=1) / np.sqrt(np.array([n - 1, n]))
    quantiles = stats.norm.ppf(1 - 0.025 / 6) + stats.norm.ppf(0.8)
    assert (quantiles * at > abs(x.mean())).tolist() == [True, False]
    # Near 0, the margin is the nearer way to a decision.
    level = x - x.mean() + 0.001
    assert needed(level, margin=0.1) < needed(level) and needed(level, margin=0.1) == np.ceil(
        (stats.norm.ppf(0.975) * x.std(ddof=1) / 0.099) ** 2
    )
    assert needed([1.0, 1.0, 1.0]) == least_n() and np.isnan(needed([1.0]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(0, 99))
def test_bootstrap_bounds(x, seed):
    mean, low, high = bootstrap_interval(x, seed, n=200)
    assert min(x) - 1e-12 <= low <= high <= max(x) + 1e-12
    assert mean == pytest.approx(np.mean(x))


def test_bootstrap_leaves_the_global_generator_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    bootstrap_interval([1, 2, 3], n=10)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("x", [[], [1.0, np.nan], [[1.0], [2.0]]])
def test_bootstrap_bad_input(x):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(x)


def test_holm_by_hand():
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])


def test_paired_table():
    data = rows()
    table = paired_table(data.sample(frac=1, random_state=0).sort_values("method"), "overall")
    assert list(table.index) == ["a", "b", "msg_cam"]
    wide = data.pivot(index="id", columns="method", values="overall")
    assert table["n"].tolist() == [40, 40, 40]
    assert table["mean"].to_dict() == pytest.approx(wide.mean().to_dict())
    a, b = wide["a"] - wide["msg_cam"], wide["b"] - wide["msg_cam"]
    assert table.loc["a", "difference"] == pytest.approx(a.mean())
    assert table.loc["a", "difference_high"] < 0 < table.loc["b", "difference_high"]
    assert table.loc["msg_cam", ["difference", "p"]].isna().all()
    p = [stats.wilcoxon(d).pvalue for d in (a, b)]
    assert table["p"].tolist()[:2] == pytest.approx(holm(p))
    assert table["p"].tolist()[0] == pytest.approx(2 * p[0])


def test_paired_table_by_class():
    data = rows()
    table = paired_table(data, "overall", groups="class")
    classes = data.groupby(["method", "class"])["overall"].mean().groupby("method").mean()
    assert table["mean"].to_dict() == pytest.approx(classes.to_dict())


def test_equal_methods_do_not_differ():
    data = rows()
    twin = data[data["method"] == "msg_cam"].assign(method="twin")
    table = paired_table(pd.concat([data, twin]), "overall")
    assert table.loc["twin", ["difference", "difference_low", "p"]].tolist() == [0, 0, 1]


def test_paired_table_refuses_unpaired_rows():
    data = rows()
    gap = data.copy()
    gap.loc[gap.index[-1], "overall"] = np.nan
    with pytest.raises(ValueError, match=r"overall is missing for some pairs: \{'b': 1\}"):
        paired_table(gap, "overall")
    two = pd.concat([data, data.assign(**{"class": data["class"] + 1})])
    with pytest.raises(ValueError, match=r"overall is missing for some pairs: \{'b': 1\}"):
        paired_table(two[:-1], "overall")  # one class of a picture of two
    with pytest.raises(ValueError, match="no rows of the reference 'cam'"):
        paired_table(data, "overall", reference="cam")
    with pytest.raises(ValueError):
        paired_table(pd.concat([data, data]), "overall")  # duplicates


def test_a_method_of_fewer_pictures_is_compared_on_those():
    data = rows()
    few = sorted(data["id"].unique())[:12]
    part = data[(data["method"] != "b") | data["id"].isin(few)]
    table, alone = paired_table(part, "overall"), paired_table(data[data["id"].isin(few)], "overall")
    assert table["n"].to_dict() == {"a": 40, "b": 12, "msg_cam": 40}
    columns = ["mean", "low", "high", "difference", "difference_low", "difference_high", "detectable"]
    pd.testing.assert_series_equal(table.loc["b", columns], alone.loc["b", columns])
    pd.testing.assert_series_equal(table.loc["a", columns], paired_table(data, "overall").loc["a", columns])
    turned = paired_table(part, "overall", reference="b")  # of which alone the others are taken
    assert set(turned["n"]) == {12}
    assert turned.loc["msg_cam", "difference"] == pytest.approx(-alone.loc["b", "difference"])


def test_readable():
    table = readable(paired_table(rows(), "overall"), digits=1)
    columns = ["n", "mean [95 %]", "difference [95 %]", "p (Holm)", "difference seen"]
    assert list(table.columns) == columns
    assert float(table.loc["a", "difference seen"]) > 0 == len(table.loc["msg_cam", "difference seen"])
    assert table.loc["msg_cam", "p (Holm)"] == table.loc["msg_cam", "difference [95 %]"] == ""
    mean, low, high = table.loc["a", "mean [95 %]"].replace("[", "").strip("]").replace(",", "").split()
    assert float(low) < float(mean) < float(high)


def test_eleven_confidence_bins():
    assert len(CONFIDENCE_LABELS) == 11
    probability = [0, 0.0999, 0.1, 0.3, 0.8999, 0.9, 0.99989, 0.9999, 1]
    assert confidence_bins(probability).tolist() == [0, 0, 1, 3, 8, 9, 9, 10, 10]
    assert confidence_bins(np.arange(10) / 10).tolist() == list(range(10))


def test_confidence_table():
    data = rows()
    data.loc[data["id"] == "000", "probability"] = 0.99995
    table = confidence_table(data, "overall")
    assert len(table) == 33
    assert table.groupby("method")["n"].sum().tolist() == [40, 40, 40]
    last = table[(table["bin"] == 10) & (table["method"] == "a")].iloc[0]
    expected = data[(data["id"] == "000") & (data["method"] == "a")]["overall"].item()
    assert (last["n"], last["label"]) == (1, ">=0.9999")
    assert last["mean"] == last["low"] == last["high"] == pytest.approx(expected)
    table = confidence_table(data[data["probability"] < 0.5], "overall")
    empty = table[table["n"] == 0]
    assert set(empty["bin"]) == {5, 6, 7, 8, 9, 10} and empty["mean"].isna().all()


# Plots -------------------------------------------------------------------------------------------


@pytest.fixture
def style():
    plt.switch_backend("agg")
    with plt.rc_context():
        plots.use_style()
        yield
        plt.close("all")


def test_colours_and_names_are_distinct_and_cover_the_methods():
    from thesis_lib.methods import METHODS

    assert (
        len({m.colour for m in METHODS.values()}) == len({m.title for m in METHODS.values()}) == len(METHODS)
    )
    assert plots.name("my_method") == "my_method" and plots.colour("my_method").startswith("#")


def test_colours_have_contrast_on_white():
    for value in (method.colour for method in METHODS.values() if method.family != "yardstick"):
        rgb = np.array(plt.matplotlib.colors.to_rgb(value))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 2


def test_overlay():
    pixels = torch.full((3, 4, 5), 0.25)
    image = plots.overlay(pixels, torch.zeros(4, 5), weight=0)
    assert image.shape == (4, 5, 3) and image == pytest.approx(0.25)
    assert plots.overlay(pixels, torch.ones(4, 5)).mean() > plots.overlay(pixels, torch.zeros(4, 5)).mean()


def test_figures(style):
    pixels = torch.rand(2, 3, 8, 8)
    maps = torch.rand(2, 8, 8)
    figure = plots.show_maps(pixels, {"grad_cam": maps}, ["star", "heart"])
    images = [axis.images[0].get_array() for axis in figure.axes]
    assert (images[2] == plots.picture(pixels[1])).all()
    assert (images[3] == plots.overlay(pixels[1], maps[1])).all()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["picture", "Grad-CAM", "", ""]
    assert figure.dpi <= 100

    figure, axes = plt.subplots(1, 3)
    fractions = np.linspace(0, 1, 5)
    plots.curves(axes[0], fractions, {"msg_cam": fractions, "mine": fractions**2}, "insertion")
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["MSG-CAM 50.0", "mine 34.4"]
    assert axes[0].lines[0].get_color() == METHODS["msg_cam"].colour
    table = paired_table(rows(), "overall")
    plots.intervals(axes[1], table, "over-all", reference="msg_cam")
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["a", "MSG-CAM", "b"]
    plots.confidence(axes[2], confidence_table(rows(), "overall"), "over-all")
    assert len(axes[2].get_xticklabels()) == 11
    # A mean may lie outside its interval by a rounding error: no reason to draw nothing.
    plots.intervals(axes[1], table.assign(low=table["mean"] + 1e-16, high=table["mean"] - 1e-16))
    figure.canvas.draw()
