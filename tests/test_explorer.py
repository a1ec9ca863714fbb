"""The photographs of page 00_explore: are their files what the rows and the methods say?"""

import numpy as np
import pandas as pd
import pytest

import thesis_lib as tl
from thesis_lib.pages import explore

ROWS = tl.recorded("photographs", "efficientnet_lite0", "insertion_deletion")
SEVEN = ROWS[ROWS["method"].isin(tl.METHODS.convolutional)]
FILES = sorted(path.stem for path in explore.FOLDER.glob("*.js"))


def test_the_dozen_is_what_the_rule_says():
    assert sorted(explore.dozen(SEVEN)) == FILES
    score = {f"p{k}": {"a": 0.5, "b": 0.5 + k / 100} for k in range(60)}
    rows = pd.DataFrame([(i, m, x) for i, of in score.items() for m, x in of.items()], columns=["id", "method", "overall"])  # fmt: skip
    chosen = explore.dozen(rows, first=23)
    assert chosen == [f"p{2 * k}" for k in range(12)]
    without = rows.drop(rows.index[(rows["id"] == "p0") & (rows["method"] == "b")])
    assert explore.dozen(without, first=23)[0] == "p1"  # p0 has not all methods


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_rows_say(name):
    data = explore.load(name)
    for label in tl.METHODS.convolutional:
        shown, row = data["methods"][label], ROWS.set_index(["id", "method"]).loc[name, label]
        for curve in ("insertion", "deletion"):
            assert (
                np.abs(np.array(shown[curve]) - np.array(row[curve], float)).max() < 6e-3
            )  # rows have hundredths
        for score in tl.METRICS["insertion_deletion"].better:
            assert abs(shown[score] - row[score]) < 1e-4
    for shown in data["methods"].values():
        assert shown["overall"] == pytest.approx(shown["insertion_auc"] - shown["deletion_auc"], abs=2e-4)
        assert np.bincount(explore.levels(shown["ranks"]).ravel()).tolist() == 112 * [448]
        assert (np.diff(shown["steps"]) <= 0).all()  # what is replaced first is strongest


def test_a_map_comes_out_again():
    """Of one photograph, by methods that cost little."""
    data, classifier = tl.open_dataset("photographs"), tl.load_classifier("efficientnet_lite0", device="cpu")
    name = FILES[0]
    images = classifier.normalise(data[data.ids.index(name)].pixels[None])
    for label in ("grad_cam", "group_cam", "cameras"):
        again = 255 * tl.METHODS[label](classifier, images)[0].numpy()
        stored = explore.load(name)["methods"][label]
        steps = explore.steps(again / 255, explore.levels(stored["ranks"]))
        assert np.abs(np.subtract(steps, stored["steps"])).max() <= 1, label
        assert np.abs(again - explore.drawn(stored)).mean() < 1, label


def test_a_file_is_small_and_comes_back(tmp_path):
    data = {"category": "cat; {a} }", "map": explore.grey(np.linspace(0, 1, 12).reshape(3, 4))}
    explore.save("a", data, tmp_path)
    assert explore.load("a", tmp_path) == data
    assert np.array_equal(explore.levels(data["map"]).ravel(), np.linspace(0, 255, 12).round())
    with pytest.raises(ValueError, match="has at most 300000"):
        explore.save("b", {"text": 300_000 * "x"}, tmp_path)
    assert not (tmp_path / "b.js").exists()
