"""Verdicts on made-up rows whose truth is known, and that a choice of rows cannot turn one."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import thesis_lib as tl
from thesis_lib.data.registry import open_dataset
from thesis_lib.methods import METHODS
from thesis_lib.methods.window import low_pass
from thesis_lib.metrics import similarity
from thesis_lib.pages import evidence, report
from thesis_lib.runs.record import PLAN, tables

SEVEN = METHODS.convolutional
NAME = "made/up/table"
bootstrap_interval = report.bootstrap_interval
LAYERS = ["head", "features.2", "features.0"]


def forget():
    for value in vars(evidence).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture
def use(monkeypatch):
    """Makes rows the table NAME, with a provenance and, where given, a plan."""

    def set_rows(rows, plan=None, pictures=None, layers=None):
        forget()
        facts = {
            label: {
                "pictures": pictures or part["id"].nunique(), "left_out": [],
                "layers": layers or dict.fromkeys(("convolutions", "independent"), LAYERS),
            }
            for label, part in rows.groupby("method", sort=False)
        }  # fmt: skip
        rows = rows.copy()
        rows.attrs["provenance"] = {"methods": facts}
        monkeypatch.setattr(evidence, "load", lambda table: rows)
        monkeypatch.setattr(evidence, "planned", lambda table: plan or {})
        few = functools.partial(bootstrap_interval, n=400)  # resamples: it is not them that are tested here
        monkeypatch.setattr(report, "bootstrap_interval", few)

    yield set_rows
    monkeypatch.undo()
    forget()


def made_up(better=None, n=40, labels=SEVEN, seed=0, noise=0.02, rounds=1):
    """Rows in which each label's numbers are 0.5, plus its own gain, plus noise of the picture."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        for c in range(rounds):
            for label in labels:
                x = 0.5 + (better or {}).get(label, 0) + rng.normal(0, noise)
                rows.append({
                    "id": f"{i:03d}", "class": (i + c) % 5, "method": label, "probability": (i + 1) / n, "overall": x,
                    "insertion_auc": x, "hits": 100 * x, "pixel_energy": x, "insertion": [x, 1.0],
                })  # fmt: skip
    return pd.DataFrame(rows)


def check_rows(left, n=20, flat=0.0, other=0.2, seed=0, noise=0.05):
    """Rows of a sanity check; `left`: mean correlation at each layer."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        x = np.clip(np.array(left) + rng.normal(0, noise, len(left)), -1, 1)
        gone = rng.random(len(left)) < flat
        rows.append({
            "id": f"{i:03d}", "class": 0, "method": "msg_cam", "probability": 0.9, "flat": False,
            "other_spearman": other + rng.normal(0, noise), "convolutions_spearman": np.where(gone, 0, x),
            "convolutions_flat": gone, "independent_spearman": np.where(gone, 0, x), "independent_flat": gone,
        })  # fmt: skip
    return pd.DataFrame(rows)


# What each verdict takes


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"),
    [
        ({"msg_cam": 0.1}, 0.02, "holds"),
        ({"grad_cam": 0.1}, 0.02, "contradicted"),
        ({"msg_cam": 0.1, "grad_cam": 0.1}, 0.02, "open"),
        ({}, 0.02, "open"),
        ({}, 0.003, "equivalent"),
        ({"msg_cam": 0.1, "grad_cam": 0.1}, 0.003, "open"),  # ahead of five, equal to one
    ],
)
def test_verdicts_on_the_highest(use, gain, noise, verdict):
    use(made_up(gain, noise=noise, seed=3))
    found = evidence.highest(NAME, "overall", "msg_cam")
    assert found.verdict == verdict and found.n == 40
    assert evidence.highest(NAME, "hits", "msg_cam").verdict == (
        "open" if verdict == "equivalent" else verdict  # no margin was stated for hits
    )
    assert ("would decide it" in found.text) == (verdict == "open")


def test_a_null_that_is_not_rejected_is_no_evidence(use):
    use(made_up(noise=0.1))
    assert evidence.ahead(NAME, "overall", "msg_cam", "grad_cam").verdict == "open"
    use(made_up(noise=0.005))
    assert evidence.ahead(NAME, "overall", "msg_cam", "grad_cam").verdict == "equivalent"


@pytest.mark.parametrize(("n", "verdict"), [(7, "open"), (8, "holds")])
def test_over_six_comparisons_eight_pictures_are_the_least(use, n, verdict):
    use(made_up({"msg_cam": 0.3}, n=n))
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == verdict
    use(made_up(noise=1e-4, n=n))
    equivalent = "equivalent" if verdict == "holds" else "open"
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == equivalent


def test_rounds_do_not_make_up_for_pictures(use):
    use(made_up({"msg_cam": 0.3}, n=7, rounds=5))
    assert evidence.pointing(NAME, "msg_cam").verdict == "open"
    use(made_up({"msg_cam": 0.3}, n=8, rounds=5))
    found = evidence.pointing(NAME, "msg_cam")
    assert found.verdict == "holds" and found.n == 8 and "n = 8 (40 rounds)" in found.text


def test_first_last_and_without(use):
    use(made_up({"msg_cam": 0.2, "score_cam": 0.1, "cameras": -0.1}))
    assert evidence.highest(NAME, "overall", "score_cam").verdict == "contradicted"
    assert evidence.highest(NAME, "overall", "score_cam", without=("msg_cam",)).verdict == "holds"
    assert evidence.lowest(NAME, "overall", "cameras").verdict == "holds"
    assert evidence.lowest(NAME, "overall", "msg_cam").verdict == "contradicted"
    assert evidence.ahead(NAME, "overall", "msg_cam", "score_cam").verdict == "holds"
    assert evidence.ahead(NAME, "overall", "score_cam", "msg_cam").verdict == "contradicted"
    text = evidence.highest(NAME, "overall", "score_cam").text
    assert "rank 2 of 7; clearly ahead of it: MSG-CAM;" in text and "(Holm over 6)" in text
    assert evidence.selectivity(NAME, "msg_cam").verdict == "holds"


def test_one_method_is_tested_in_the_family_of_its_table(use):
    rows = made_up({"msg_cam": 0.012}, n=30)
    use(rows)
    p = report.paired_table(rows, "overall", "score_cam").loc["msg_cam", "p"]
    assert f"p = {p:.2g} (Holm over 6)" in evidence.ahead(NAME, "overall", "msg_cam", "score_cam").text


def test_settings_against_a_default(use):
    use(made_up({"N = 1": -0.1, "N = 2": 0.1}, labels=["default", "N = 1", "N = 2", "N = 3"]))
    assert evidence.differs(NAME, "N = 1", "default", "overall", -1).verdict == "holds"
    assert evidence.differs(NAME, "N = 2", "default", "overall", -1).verdict == "contradicted"
    for label, sign in (("N = 1", "-"), ("N = 2", "+")):
        found = evidence.effect(NAME, label, "default")
        assert found.verdict == "holds" and f"over-all: {sign}" in found.text and "points" in found.text
    use(made_up(labels=["default", "N = 1"], noise=0.004))
    assert evidence.effect(NAME, "N = 1", "default").verdict == "equivalent"


def test_variants(use):
    labels = [f"{m}{v}" for m in ("grad_cam", "msg_cam") for v in ("", " enhanced", " mean")]
    use(made_up({"grad_cam enhanced": 0.1, "msg_cam enhanced": 0.1, "msg_cam mean": -0.1}, labels=labels))
    assert evidence.better_variants(NAME, "overall", "enhanced").verdict == "holds"
    assert evidence.better_variants(NAME, "overall", "enhanced", -1).verdict == "contradicted"
    found = evidence.better_variants(NAME, "overall", "mean")
    assert found.verdict == "contradicted" and "clearly worse: MSG-CAM (Holm over 4)" in found.text
    assert evidence.better_variants(NAME, "overall", "SESS").verdict == "open"


def test_correlations(use):
    rows = made_up(n=60)
    rows.loc[rows["method"] == "msg_cam", "overall"] += rows["probability"]
    use(rows)
    assert evidence.correlation(NAME, "lead").verdict == "holds"
    assert evidence.correlation(NAME, "lead", sign=-1).verdict == "contradicted"
    use(made_up(n=60))
    found = evidence.correlation(NAME, "lead")
    assert found.verdict == "open" and "(Holm over 3)" in found.text and "would decide" in found.text
    # While a table grows, one method may be ahead of the others: the pictures that all have count.
    six = [m for m in SEVEN if m != "score_cam"]
    use(pd.concat([made_up(n=60, labels=six), made_up(n=80, labels=["score_cam"])]))
    assert evidence.correlation(NAME, "lead").text.startswith("n = 60;")


def test_where_the_network_is_certain(use):
    use(made_up({"msg_cam": 0.2}))
    assert evidence.certain(NAME, "msg_cam", 0.8).verdict == "holds"
    found = evidence.certain(NAME, "msg_cam")
    assert (
        found.verdict == "open" and found.text.startswith("n = 1 of 40") and "; 8 of the kind" in found.text
    )
    use(made_up({"grad_cam": 0.2}))
    assert evidence.certain(NAME, "msg_cam", 0.8).verdict == "contradicted"


@pytest.mark.parametrize(("start", "verdict"), [(-0.48, "holds"), (-0.4, "open"), (0, "contradicted")])
def test_the_blurred_picture(use, start, verdict):
    use(made_up({"grad_cam": start}, labels=["grad_cam"], noise=0.03))
    assert evidence.blurred(NAME).verdict == verdict
    use(made_up({"grad_cam": start}, labels=["grad_cam"], n=5))
    assert evidence.blurred(NAME).verdict == "open"


def test_a_level_is_only_shown(use):
    use(made_up())
    found = evidence.level(NAME, "overall", "msg_cam")
    assert found.verdict == "" and found.text.startswith("n = 40; MSG-CAM, over-all: 50")


# The sanity check


@pytest.mark.parametrize(
    ("left", "other", "fates"),
    [
        ([0.9, 0.5, 0.2], 0.2, ["left", "left", "gone"]),  # as another picture's
        ([0.2, 0.0, -0.4], 0.0, ["left", "gone", "gone"]),  # as a flat map's, or clearly below
        ([0.2, 0.2, 0.2], 0.5, ["gone", "gone", "gone"]),  # below another picture's
        ([0.0, 0.0, 0.0], -0.5, ["gone", "gone", "gone"]),  # 0 is enough: flat maps have it
    ],
)
def test_layer_by_layer(use, left, other, fates):
    use(check_rows(left, other=other))
    assert evidence.layers(NAME, "msg_cam", "convolutions")["fate"].tolist() == fates


def test_what_is_not_seen_is_not_gone(use):
    """A wide interval around the yardstick rejects nothing, and shows nothing."""
    use(check_rows([0.25, 0.25, 0.25], noise=0.3))
    table = evidence.layers(NAME, "msg_cam", "convolutions")
    assert set(table["fate"]) == {"open"} and (table["p"] > 0.05).any()
    assert evidence.sanity(NAME, "msg_cam", "convolutions").verdict == "open"
    use(check_rows([0, 0, 0], n=6))
    assert evidence.sanity(NAME, "msg_cam", "convolutions").verdict == "open"


def test_flat_maps_are_a_result_of_their_own(use):
    use(check_rows([0.9, 0.2, 0.2], flat=1.0))
    found = evidence.sanity(NAME, "msg_cam", "convolutions", "each")
    assert evidence.layers(NAME, "msg_cam", "convolutions")["fate"].tolist() == ["flat"] * 3
    assert found.verdict == "open" and "flat maps: 20 with head, 20 with features.2" in found.text
    use(check_rows([0.9, 0.2, 0.9], flat=0.5, n=40))
    table = evidence.layers(NAME, "msg_cam", "convolutions")
    assert (table["n"] + table["flat"] == 40).all() and table["flat"].gt(0).all()
    assert table.loc["head", "mean"] == pytest.approx(0.9, abs=0.05)  # of maps that are not flat


def test_which_layers_a_claim_speaks_of(use):
    use(check_rows([0.9, 0.2, 0.2]))
    verdicts = [
        evidence.sanity(NAME, "msg_cam", "convolutions", w).verdict for w in ("last", "each", "features")
    ]
    assert verdicts == ["holds", "contradicted", "holds"]
    with pytest.raises(ValueError, match="no layer"):
        evidence.sanity(NAME, "msg_cam", "convolutions", "tail")


# Dropping rows


CLAIMS = {
    "highest": lambda: evidence.highest(NAME, "overall", "msg_cam"),
    "lowest": lambda: evidence.lowest(NAME, "overall", "cameras"),
    "second": lambda: evidence.highest(NAME, "overall", "score_cam", without=("msg_cam",)),
    "ahead": lambda: evidence.ahead(NAME, "overall", "msg_cam", "score_cam"),
    "differs": lambda: evidence.differs(NAME, "msg_cam", "cameras", "overall", 1),
    "effect": lambda: evidence.effect(NAME, "msg_cam", "group_cam"),
    "variants": lambda: evidence.better_variants(NAME, "overall", "enhanced"),
    "pointing": lambda: evidence.pointing(NAME, "msg_cam"),
    "spread": lambda: evidence.correlation(NAME, "spread"),
    "lead": lambda: evidence.correlation(NAME, "lead"),
    "certain": lambda: evidence.certain(NAME, "msg_cam", 0.5),
    "blurred": lambda: evidence.blurred(NAME),
}
ALL = [*SEVEN, *(f"{m} enhanced" for m in SEVEN)]
GAINS = st.dictionaries(st.sampled_from(ALL), st.sampled_from([-0.1, -0.01, 0.01, 0.1]), max_size=8)


def verdicts():
    return {claim: found().verdict for claim, found in CLAIMS.items()}


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(gains=GAINS, noise=st.sampled_from([0.002, 0.02]), seed=st.integers(0, 99), data=st.data())
def test_dropping_rows_only_opens(use, gains, noise, seed, data):
    """Whatever pictures and methods are left out of the rows, or were never recorded, no verdict turns. The
    pictures that are left are those that favour one method most, as somebody would choose them."""
    rows = made_up(gains, n=20, labels=ALL, seed=seed, noise=noise, rounds=2)
    ids, plan = sorted(rows["id"].unique()), {label: set(rows["id"]) for label in ALL}
    use(rows)
    before = verdicts()
    wide = rows.pivot_table(index="id", columns="method", values="overall")
    a, b = data.draw(st.sampled_from([("msg_cam", "score_cam"), ("score_cam", "msg_cam")]))
    order = (wide[a] - wide[b]).sort_values().index
    pictures = order[-data.draw(st.sampled_from([8, 9, 12]), label="pictures") :]
    methods = set(ALL) - data.draw(st.sets(st.sampled_from(ALL), max_size=1), label="methods left out")
    rest = rows[rows["id"].isin(pictures) & rows["method"].isin(methods)]
    for facts in ({"pictures": len(ids)}, {"plan": plan}):  # either tells what is missing
        use(rest, **facts)
        if facts.get("pictures"):  # the rows are gone, their provenance is still there
            provenance = evidence.load(NAME).attrs["provenance"]["methods"]
            provenance |= {label: next(iter(provenance.values())) for label in ALL if label not in methods}
        for claim, verdict in verdicts().items():
            assert verdict in (before[claim], "open"), (claim, before[claim], verdict)


def test_without_that_rule_a_choice_of_pictures_turns_a_verdict(use):
    """What the test above would see, were claims decided on the rows that happen to be there."""
    rows = made_up(n=60, noise=0.05)
    wide = rows.pivot(index="id", columns="method", values="overall")
    lead = (wide["msg_cam"] - wide.drop(columns="msg_cam").max(axis=1)).sort_values()
    use(rows)
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == "open"
    chosen = rows[rows["id"].isin(lead.index[-8:])]
    use(chosen)  # as if these had been all
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == "holds"
    use(chosen, pictures=60)
    verdict, text, n = evidence.highest(NAME, "overall", "msg_cam")
    so_far, missing = text.split("; rows are missing: ")
    assert (verdict, missing, n) == ("open", f"{NAME} has 8 of 60 pictures of Grad-CAM", 0)
    expected = "so far n = 8; over-all: rank 1 of 7; clearly ahead of it: none; clearly behind it: Grad-CAM,"
    assert so_far.startswith(expected)
    use(chosen)  # what was looked at so far is kept apart from what decides
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == "holds"


def test_a_smaller_family_does_not_decide(use):
    """Without its rivals a method would be first sooner."""
    rows = made_up({"msg_cam": 0.2})
    use(rows)
    assert evidence.highest(NAME, "overall", "msg_cam").verdict == "holds"
    use(rows[rows["method"] != "cameras"])
    found = evidence.highest(NAME, "overall", "msg_cam")
    assert found.verdict == "open" and found.n == 0 and "has none of CAMERAS" in found.text


def test_layers_that_are_missing_leave_it_open(use):
    rows = check_rows([0.9, 0.2, 0.2])
    use(rows, layers={"convolutions": [*LAYERS, "stem"]})
    assert evidence.sanity(NAME, "msg_cam", "convolutions").verdict == "open"
    assert "fewer layers" in evidence.sanity(NAME, "msg_cam", "convolutions").text
    assert evidence.sanity(NAME, "msg_cam", "cascading").n == 0


def test_a_class_that_only_one_method_has_is_seen(use):
    rows = made_up({"msg_cam": 0.2}, rounds=2)
    drop = rows.index[(rows["method"] == "msg_cam") & (rows["id"] == "003")][:1]
    use(rows.drop(index=drop))
    assert "other classes of" in evidence.highest(NAME, "overall", "msg_cam").text
    use(rows.assign(pixel_energy=rows["pixel_energy"].where(~rows.index.isin(drop))))
    assert "not there for every method" in evidence.selectivity(NAME, "msg_cam").text
    no_mask = rows["id"].isin(["003", "004"])  # pictures without a mask have a value of no method
    use(rows.assign(pixel_energy=rows["pixel_energy"].mask(no_mask)))
    assert evidence.selectivity(NAME, "msg_cam").n == 38


def test_tables_that_are_not_recorded_leave_it_open():
    found = evidence.highest("cutouts/no_network/insertion_deletion", "overall", "msg_cam")
    assert found == ("open", "rows are missing: cutouts/no_network/insertion_deletion is not recorded", 0)


def test_what_the_plan_has_is_wanted():
    part = next(p for p in PLAN if p.table == "insertion_deletion")
    plan = evidence.planned(f"{part.dataset}/{part.network}/{part.table}")
    assert set(part.methods()) <= set(plan) and plan["grad_cam"] == set(part.data().ids)
    for table in map("/".join, tables()):
        known = evidence.load(table).attrs["provenance"]["methods"]
        assert set(evidence.labels_of(table)) == {*evidence.planned(table), *known}


# One column beside another


@pytest.mark.parametrize(
    ("gain", "n", "verdict"),
    [(0.05, 40, "holds"), (-0.05, 40, "contradicted"), (0, 40, "open"), (0.05, 5, "open")],
)
def test_a_column_beside_another_of_the_same_pictures(use, gain, n, verdict):
    rows = made_up(n=n, labels=["grad_cam"])
    rng = np.random.default_rng(1)
    use(rows.assign(other=rows["overall"] - gain + rng.normal(0, 0.01, len(rows))))
    found = evidence.above(NAME, "grad_cam", "overall", "other")
    assert found.verdict == verdict and found.n == n, found.text
    p = [evidence.above(NAME, "grad_cam", "overall", "other", family=f).text for f in (1, 2)]
    assert "(of 2)" in p[1] and p[0] != p[1]


def test_a_column_that_is_not_there_leaves_it_open(use):
    use(made_up(labels=["grad_cam"]))
    assert evidence.above(NAME, "grad_cam", "overall", "none").n == 0


# The thesis's tables, and arithmetic


def test_the_thesis_tables():
    assert evidence.printed_first("table_3_2", "overall", "msg_cam").verdict == "holds"
    assert evidence.printed_first("table_3_2", "deletion", "cameras").verdict == "holds"
    assert evidence.printed_first("table_3_2", "insertion", "msg_cam").verdict == "contradicted"
    assert evidence.printed_sums("table_3_2").verdict == "holds"
    assert evidence.printed_lead("table_3_2", "overall", 1.07).verdict == "holds"
    assert evidence.printed_lead("table_3_2", "overall", 2.45).verdict == "contradicted"
    assert evidence.printed("table_3_2", "deletion").text.startswith("deletion: CAMERAS 8.01, MSG-CAM 9.78")


def test_what_somebody_else_published_stands_beside_a_table():
    found = evidence.published("table_3_2", "xplain_cam", "insertion")
    assert found.verdict == "" and found.n is None
    assert found.text.startswith("insertion, xplain-cam minus the thesis: Grad-CAM -1.52, Grad-CAM++ +0.73")
    assert found.text.endswith("mean -1.00 points")
    assert "CAMERAS" not in found.text  # of which the other table has nothing


def test_sums_are_computed():
    assert evidence.equal("224 ** 2 / 448 + 1", 113).verdict == "holds"
    assert evidence.equal("100 * 448 / 224 ** 2", 0.9).verdict == "holds"
    assert evidence.equal("100 * 448 / 224 ** 2", 0.88).verdict == "contradicted"
    with pytest.raises(ValueError, match="numbers alone"):
        evidence.equal("__import__('os')", 1)


# Facts that the ledger takes from a test


def test_a_low_pass_weakens_the_grid_of_windows():
    """Weighted maps of sliding windows, added up: steps at the windows' borders, over those elsewhere."""
    generator = torch.Generator().manual_seed(0)
    side, window, stride = 112, 48, 16
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 4, 4, generator=generator), side, mode="bicubic", align_corners=False
    )[0, 0].double()
    fused = torch.zeros(side, side, dtype=torch.float64)
    for top in range(0, side - window + 1, stride):
        for left in range(0, side - window + 1, stride):
            there = slice(top, top + window), slice(left, left + window)
            fused[there] += (smooth[there] + 1) * torch.rand((), generator=generator)

    def grid(x):
        steps = x.diff(dim=1).abs().mean(0)
        border = torch.zeros(side - 1, dtype=torch.bool)
        border[stride - 1 : -1 : stride] = True
        return float(steps[border].mean() / steps[~border].mean())

    assert grid(fused) > 3
    for kind in ("ideal", "gaussian"):
        assert grid(low_pass(fused[None], 14, kind)[0]) < 0.5 * grid(fused)


def test_guided_back_propagation_hardly_looks_at_the_linear_layers():
    """The known case of a method that does not depend on what the network has learnt (Adebayo et al., 2018)."""
    pytest.importorskip("captum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's own, at its import and at every call
        from captum.attr import GuidedBackprop

        def guided(clf):
            return (
                GuidedBackprop(clf.network)
                .attribute(x.clone().requires_grad_(), target=classes)
                .abs()
                .sum(1)
                .detach()
            )

        clf, data = tl.load_classifier("vgg19_cutouts", device="cpu"), open_dataset("cutouts")
        x = clf.normalise(torch.stack([data[i].pixels for i in range(6)]))
        classes = clf.predict(x)
        cascade = dict(tl.randomize(clf, "cascading", layers="all"))
        linear = [network for name, network in cascade.items() if name.startswith("classifier")][-1]
        everything = list(cascade.values())[-1]
        like = {}
        for name, method in (
            ("guided", guided),
            ("grad_cam", functools.partial(METHODS["grad_cam"], images=x, classes=classes)),
        ):
            before = method(clf)
            for what, network in (("linear", linear), ("everything", everything)):
                like[name, what] = similarity(before, method(network))[0].mean()
    assert like["guided", "linear"] > 0.8 > like["guided", "everything"]
    assert like["grad_cam", "linear"] < 0.8
