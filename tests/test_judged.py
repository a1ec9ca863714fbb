"""Maps of known quality, and what many measures say of one map."""

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import thesis_lib as tl
from thesis_lib.data.datasets import Sample
from thesis_lib.kernels import blur
from thesis_lib.metrics import METRICS, Rounds, judged, known
from thesis_lib.metrics.measure import measure
from thesis_lib.pages import judges
from thesis_lib.runs import record

SIDE = 32


def thing(top=8, left=4, height=12, width=9, side=SIDE):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    mask[top, left] = False  # no box
    return mask


def given(mask, *others):
    """Rounds of one made-up picture with these masks, of classes 0, 1, ..."""
    sample = Sample("made up", torch.rand(3, *mask.shape), (0,), {}, dict(enumerate([mask, *others])))
    return Rounds(small(), sample.pixels[None], torch.tensor([0]), [sample], torch.tensor([0]), step=100)


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tl.Classifier(networks.Plain(), networks.Plain.layer)


# Maps of known quality


def test_every_map_of_a_chain_is_made_or_a_yardstick():
    names = {name for chain in known.CHAINS.values() for name in chain}
    assert names - {"centre"} == set(known.known_maps()) and "centre" in tl.METHODS


def test_a_mask_is_moved_to_where_there_is_room():
    mask = thing(left=4)
    assert known.moved(pixels=8)(given(mask))[0].equal(thing(left=12).float())
    assert known.moved(pixels=8)(given(mask.flip(1)))[0].equal(thing(left=12).flip(1).float())
    assert known.moved(pixels=23)(given(mask))[
        0, :, 27:
    ].any()  # what leaves is cut off, and does not come back
    assert not known.moved(pixels=23)(given(mask))[0, :, :27].any()


def test_a_blurred_mask_is_the_gaussian_mean_of_its_surroundings():
    mask, sigma = thing(side=65, top=30, left=28), 4
    y, x = torch.meshgrid(torch.arange(65), torch.arange(65), indexing="ij")
    near = (y - 33).abs().le(12) & (x - 30).abs().le(12)
    weight = torch.exp(-((y - 33) ** 2 + (x - 30) ** 2) / (2 * sigma**2)) * near
    expected = (weight * mask).sum() / weight.sum()
    assert float(known.blurred(sigma=sigma)(given(mask))[0, 33, 30]) == pytest.approx(
        float(expected), abs=1e-5
    )


def test_box_other_thing_and_complement():
    mask, other = thing(), thing(top=16, left=8)
    rounds = given(mask, other)
    box = known.box()(rounds)[0]
    assert box.sum() == 12 * 9 and box[8, 4] and (box.bool() | mask).equal(box.bool())
    assert known.other_thing()(rounds)[0].equal((other & ~mask).float())
    assert not known.other_thing()(given(mask)).any()  # alone in its picture
    assert known.complement()(rounds)[0].equal(1 - mask.float())


# Measures


def test_orders_differ_in_equal_pixels_only():
    maps = torch.tensor([[[0.5, 0.0, 0.0, 0.9], [0.0, 0.5, 0.0, 0.1]]]).repeat(2, 1, 1)
    maps[1] = maps[1].flip(1)
    ranks = judged.orders(maps, 50, sigma=0)
    for order in ranks:
        for k in range(2):
            assert order[k].flatten().sort().values.tolist() == list(range(8))
            by_rank = maps[k].flatten()[order[k].flatten().argsort()]
            assert (by_rank.diff() <= 0).all()
    assert len({tuple(order.flatten().tolist()) for order in ranks}) > 10
    assert ranks[:, 0].float().mean(0)[0, 1] == pytest.approx(5.5, abs=0.8)  # places 4 to 7, none favoured


def test_equal_pixels_go_in_patches_or_strewn():
    """Of the first half of the pixels of a flat map, how many neighbours are of it as well."""
    alike = {}
    for sigma in (0, 16):
        first = judged.orders(torch.zeros(1, 128, 128), 3, sigma) < 128 * 64
        alike[sigma] = float((first[..., 1:] == first[..., :-1]).float().mean())
    assert alike[0] == pytest.approx(0.5, abs=0.02) and alike[16] > 0.95


@pytest.mark.parametrize("step", [100, 64])
def test_curves_frame_by_frame(step):
    """Point t in order t modulo their number, one frame at a time."""
    clf, generator = small(), torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, SIDE, SIDE, generator=generator)
    canvas = torch.rand(3, 3, SIDE, SIDE, generator=generator)
    maps = torch.stack([thing(left=k + 2) for k in range(3)]).float()
    classes, ranks = torch.tensor([1, 4, 0]), judged.orders(maps, 3)
    insertion, deletion = judged.curves(clf, images, canvas, ranks, classes, step)
    counts = [*range(0, SIDE * SIDE, step), SIDE * SIDE]
    for k in range(3):
        for t, q in enumerate(counts):
            strong = ranks[t % 3, k] < q
            for curve, front, ground in ((insertion, images, canvas), (deletion, canvas, images)):
                frame = torch.where(strong, front[k], ground[k])[None]
                assert float(curve[k, t]) == pytest.approx(
                    float(clf.probabilities(frame)[0, classes[k]]), abs=1e-5
                )


def test_without_ties_the_blurred_canvas_is_insertion_and_deletion():
    clf = small()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    maps = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    plain = tl.insertion_deletion(clf, images, maps, [1, 2], step=100)
    ours = judged.curves(clf, images, blur(images), judged.orders(maps), torch.tensor([1, 2]), 100)
    assert torch.allclose(ours[0], plain.insertion, atol=1e-5)
    assert torch.allclose(ours[1], plain.deletion, atol=1e-5)


def test_best_iou_is_the_best_of_all_thresholds():
    generator = torch.Generator().manual_seed(0)
    maps = (torch.rand(4, 8, 8, generator=generator) * 6).round() / 6  # many ties
    masks = torch.rand(4, 8, 8, generator=generator) < 0.4
    for k, found in enumerate(judged.best_iou(maps, masks).tolist()):
        tried = [maps[k] >= value for value in maps[k].unique()]
        expected = max(float((m & masks[k]).sum() / (m | masks[k]).sum()) for m in tried)
        assert found == pytest.approx(expected)


def test_the_canvases():
    data, clf = tl.open_dataset("cutouts"), tl.load_classifier("vgg19_cutouts", device="cpu")
    sample = data[3]
    images = clf.normalise(sample.pixels[None])
    found = judged.canvases(clf, images, [sample])
    assert tuple(found) == judged.CANVASES
    pixels = {name: clf.denormalise(canvas)[0] for name, canvas in found.items()}
    changed, mask = (pixels["empty"] - sample.pixels).abs().amax(0), sample.pixel_masks[sample.classes[0]]
    assert changed[~mask].mean() < 0.01 and changed[mask].mean() > 0.05
    assert pixels["black"].abs().max() < 1e-6
    assert pixels["mean"].std((1, 2)).max() < 1e-6 and found["mean"].abs().max() == 0
    assert found["noise"].std() == pytest.approx(1, abs=0.02)
    other = Sample("of somebody else", sample.pixels)
    assert "empty" not in judged.canvases(clf, images, [other])


def test_the_exact_mask_is_found_perfect_and_the_complement_is_not():
    data, clf = tl.open_dataset("cutouts"), tl.load_classifier("vgg19_cutouts", device="cpu")
    methods = known.known_maps(["elsewhere"])
    rows, left_out = measure([data[3], Sample("no mask", data[3].pixels)], clf, methods, ["judged"], 784)
    assert [name for name, _ in left_out] == ["no mask"] and "exact mask" in left_out[0][1]
    rows = rows.set_index("method")
    for column in ("points_1", "points_100", "energy_exact", "iou"):
        assert rows.loc["exact", column] == 1
    assert rows.loc["complement", "energy_exact"] == 0 and rows.loc["complement", "points_1"] == 0
    for canvas in ("blurred", "mean", "empty"):
        assert rows.loc["exact", f"overall_{canvas}"] > rows.loc["complement", f"overall_{canvas}"]
    assert np.isfinite(rows[list(METRICS["judged"].columns)].to_numpy(float)).all()


# Do measures recover the order?

PICTURES, CHAIN = 40, {"moved": known.CHAINS["moved"]}


def made_up(noise, sign=1.0):
    """Rows of a measure that sees the order under so much noise; sign 0: it is deaf, -1: it is inverted."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"p{k}", "class": 0, "method": name, "m": -sign * place + noise * rng.normal()}
        for k in range(PICTURES)
        for place, name in enumerate(CHAIN["moved"])
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "noise, sign, expected",
    [
        (0, 1, "hears"),
        (1, 1, "hears"),
        (0, 0, "deaf"),
        (1, 0, "deaf"),
        (0, -1, "inverted"),
        (1, -1, "inverted"),
    ],
)
def test_a_deaf_and_an_inverted_measure_are_told(noise, sign, expected):
    table = judges.judged(made_up(noise, sign), CHAIN, {"m": 1})
    assert table.loc["m", "verdict"] == expected and table.loc["m", "n"] == PICTURES
    turned = judges.judged(made_up(noise, sign), CHAIN, {"m": -1})  # as if less were better
    assert turned.loc["m", "verdict"] == {"hears": "inverted", "inverted": "hears", "deaf": "deaf"}[expected]
    if not noise:
        assert table.loc["m", ["right", "tau"]].tolist() == [(sign + 1) / 2, sign]


def test_measures_of_both_metrics_are_judged_as_they_say_what_is_better():
    hears, deaf = made_up(1), made_up(1, 0)
    rows = hears.rename(columns={"m": "road"}).assign(
        infidelity=hears["m"], single_deletion=deaf["m"], iou=-hears["m"]
    )
    table = judges.judged(rows, CHAIN)
    assert table["verdict"].to_dict() == {
        "iou": "inverted", "road": "hears", "infidelity": "inverted", "single_deletion": "deaf"
    }  # fmt: skip


def test_a_few_pictures_that_all_agree_are_too_few():
    rows = made_up(0)
    few = rows["id"].isin([f"p{k}" for k in range(5)])
    assert judges.judged(rows[few], CHAIN, {"m": 1}).loc["m", "verdict"] == judges.TOO_FEW
    six = rows["id"].isin([f"p{k}" for k in range(6)])
    assert judges.judged(rows[six], CHAIN, {"m": 1}).loc["m", "verdict"] == "hears"
    both = judges.judged(rows.assign(some=rows["m"].where(few)), CHAIN, {"m": 1, "some": 1})
    assert both["verdict"].tolist() == ["hears", judges.TOO_FEW]
    alone = judges.judged(rows, CHAIN, {"m": 1})
    assert both.loc["m", "p"] == alone.loc["m", "p"] and np.isnan(both.loc["some", "p"])


def test_columns_of_both_tables_stand_in_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    names = METRICS["removals"].columns
    first = pd.DataFrame(
        {"id": ["a", "a", "b"], "class": [1, 1, 2], "method": ["x", "y", "x"], "iou": [0.125, 0.25, 0.5]}
    )
    second = pd.DataFrame(
        {"id": ["b", "a"], "class": [2, 1], "method": ["x", "y"]} | dict.fromkeys(names, [0.5, 0.25])
    )
    record.write(tmp_path / "d/n/judged.parquet", first, {"table": "judged"})
    assert judges.both("d", "n").equals(tl.recorded("d", "n", "judged"))
    record.write(tmp_path / "d/n/removals.parquet", second, {"table": "removals"})
    rows = judges.both("d", "n")
    assert rows["iou"].tolist() == [0.125, 0.25, 0.5]
    for name in names:
        assert np.isnan(rows[name][0]) and rows[name].tolist()[1:] == [0.25, 0.5]
    assert rows.attrs == {"provenance": {"table": "judged"}, "removals": {"table": "removals"}}


def test_the_same_score_for_every_map_is_no_order():
    rows = made_up(0, 0)
    assert (judges.steps(rows, "m", 1, CHAIN)["right"] == 0.5).all()
    assert (judges.kendall(rows, "m", 1, CHAIN) == 0).all()
    assert np.isinf(judges.pictures_needed(judges.steps(rows, "m", 1, CHAIN))).all()


def test_power_is_what_repeated_tests_see():
    """Of many samples of n pictures the share in which a t-test sees the step."""
    rng, n = np.random.default_rng(0), 60
    leads = rng.normal(size=4000)
    leads = (leads - leads.mean()) / leads.std(ddof=1) + 0.3
    table = pd.DataFrame({"step": "a > b", "lead": leads})
    samples = rng.choice(leads, (3000, n))
    statistic = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(n))
    seen = (statistic > stats.t.ppf(0.975, n - 1)).mean()
    assert float(judges.power(table, [n]).loc["a > b", n]) == pytest.approx(seen, abs=0.05)
    assert judges.power(table.assign(lead=-leads), [n]).loc["a > b", n] < 0.01


def test_pictures_without_one_of_the_maps_do_not_count():
    rows = made_up(0)
    less = rows[~((rows["id"] == "p0") & (rows["method"] == "exact"))]
    assert judges.judged(less, CHAIN, {"m": 1}).loc["m", "n"] == PICTURES - 1
    rows.loc[rows["id"] == "p1", "m"] = np.nan
    assert judges.judged(rows, CHAIN, {"m": 1}).loc["m", "n"] == PICTURES - 1


def test_agreement_is_the_correlation_of_the_orders():
    rows = pd.DataFrame({"method": ["a", "b", "c"], "x": [3.0, 2, 1], "y": [1.0, 2, 3], "z": [3.0, 1, 2]})
    table = judges.agreement(rows, ["a", "b", "c"], {"x": 1, "y": -1, "z": 1})
    assert table.loc["x", "y"] == pytest.approx(1) and table.loc["x", "z"] == pytest.approx(1 / 3)
