"""data/sweep.csv: every network of torchvision and timm is explained rightly, or refused in a sentence."""

import doctest
import functools
import random

import pandas as pd
import pytest
import sweep
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import nn

import thesis_lib as tl
from thesis_lib.runs.files import commit

pytestmark = pytest.mark.minutes

SMALL = 30e6  # parameters of a network that takes seconds
TOLERANCE = 1e-3  # of a map in [0, 1]
SHALLOW = 50  # percent of the modules: a layer before them is no summary of what the network sees
NOT_COMPARED = {"difference", "parameters"}  # the one has a tolerance, the other was counted elsewhere
TABLE = sweep.read()


def faults(rows):
    """What no row may say; a line each."""
    for row in rows.to_dict("records"):
        if row["outcome"] == "refused":
            if not 0 < len(row["sentence"]) <= sweep.LONGEST or "\n" in row["sentence"]:
                yield f"{row['network']} is refused without a sentence: {row['sentence']}"
        elif row["outcome"] != "explained":
            yield f"{row['network']}: {row['sentence']}"
        elif not row["difference"] < TOLERANCE:
            yield f"{row['network']}: Grad-CAM differs by {row['difference']} from plain back-propagation"
        elif row["place"] not in ("there", "everywhere"):
            yield f"{row['network']}: {row['sentence']}"
        elif not int(row["depth"]) >= SHALLOW:
            yield f"{row['network']}: {row['layer']} is too near to the picture"


def missing(rows, modules, versions):
    """What the table lacks of these modules, at these versions; a line each."""
    known = {(row["library"], row["module"], row["version"]) for row in rows.to_dict("records")}
    wanted = {(library, module, versions[library]) for library, module in modules}
    for library, module, version in sorted(known ^ wanted):
        yield f"{library} {version}: {module}; run `make sweep`, look at what changed and commit data/sweep.csv"


@functools.cache
def drawn():
    """Ten rows of networks that take seconds, other ones for each commit."""
    small = TABLE[TABLE["parameters"] < SMALL].to_dict("records")
    return random.Random(commit() or "no commit").sample(small, 10)


def disagreements(row):
    """What this machine finds otherwise than a row says."""
    found = {c: str(value) for c, value in sweep.look(row["network"]).items() if c not in NOT_COMPARED}
    wrong = {c: (row[c], value) for c, value in found.items() if row[c] != value}
    # How faint an untrained network's answers are depends on the machine that draws its weights.
    if set(wrong.get("place", ())) == {"there", "everywhere"}:
        del wrong["place"]
        wrong.pop("sentence", None)
    return wrong


def test_the_table_has_every_network_of_the_installed_versions():
    assert not list(missing(TABLE, sweep.modules(), sweep.versions()))


def test_every_network_is_explained_rightly_or_refused_in_a_sentence():
    assert not list(faults(TABLE))
    assert (TABLE["outcome"] == "explained").mean() > 0.8
    assert (TABLE["place"] == "everywhere").mean() < 0.03  # where nobody can tell


@pytest.mark.parametrize("i", range(10))
def test_networks_drawn_by_the_commit_come_out_again(i):
    row = drawn()[i]
    found = sweep.look(row["network"])
    assert not disagreements(row), row["network"]
    assert not list(faults(pd.DataFrame([row | found])))


# Each of the checks above finds its fault.

ROW = dict.fromkeys(sweep.COLUMNS, "") | {
    "network": "a", "library": "timm", "version": "1", "module": "m", "outcome": "explained", "depth": "90",
    "difference": 1e-6, "place": "there",
}  # fmt: skip


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"outcome": "refused", "sentence": "name the layer"}, None),
        ({"outcome": "refused"}, "without a sentence"),
        ({"outcome": "refused", "sentence": "why? " * 50}, "without a sentence"),
        ({"outcome": "refused", "sentence": "Traceback\nof it"}, "without a sentence"),
        ({"outcome": "error", "sentence": "IndexError: 3"}, "IndexError: 3"),
        ({"difference": 0.01}, "differs by 0.01"),
        ({"difference": float("nan")}, "differs by nan"),
        ({"place": "elsewhere", "sentence": "9 of 16 parts"}, "9 of 16 parts"),
        ({"depth": "3"}, "too near"),
    ],
)
def test_each_fault_of_a_row_is_found(change, fault):
    found = list(faults(pd.DataFrame([ROW | change])))
    assert (len(found) == 1 and fault in found[0]) if fault else not found


def test_a_new_version_a_new_network_and_one_that_is_gone_are_found():
    rows = pd.DataFrame([ROW])
    assert not list(missing(rows, [("timm", "m")], {"timm": "1"}))
    for modules, version in (([("timm", "m")], "2"), ([("timm", "m"), ("timm", "n")], "1"), ([], "1")):
        found = list(missing(rows, modules, {"timm": version}))
        assert found and all("make sweep" in line for line in found)


@pytest.mark.parametrize("column", ["outcome", "size", "layer", "depth", "features", "layout", "place"])
def test_a_row_that_was_changed_is_found(column, monkeypatch):
    right = {"outcome": "explained", "size": 64, "layer": "a.1", "depth": 80, "features": "8x7x7",
             "layout": "channels first", "difference": 1e-7, "place": "there", "sentence": ""}  # fmt: skip
    monkeypatch.setattr(sweep, "look", lambda name: right)
    row = ROW | {key: str(value) for key, value in right.items() if key != "difference"}
    assert not disagreements(row)
    assert set(disagreements(row | {column: "other"})) == {column}


def test_where_nobody_can_tell_on_one_machine_another_may(monkeypatch):
    row = ROW | {"place": "everywhere", "sentence": "felt in all"}
    found = dict.fromkeys(("there", "elsewhere"), {})
    for place in found:
        monkeypatch.setattr(sweep, "look", lambda name, place=place: {"place": place, "sentence": ""})
        found[place] = disagreements(row)
    assert not found["there"] and set(found["elsewhere"]) == {"place", "sentence"}


# The measurements themselves: each sees what it is there to see.


class Rearranged(nn.Module):
    """8 x 8 cells of 32 pixels with their features, put in another order."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.order, self.layer, self.head = (
            nn.Conv2d(3, 12, 32, 32),
            order,
            nn.ReLU(),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        return self.head(self.layer(self.order(self.stem(x))).mean((-2, -1)))


def windows(x):
    """Window after window of 4 x 4, read as if they were rows."""
    return x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).transpose(3, 4).reshape(x.shape)


ORDERS = {
    "as it was": (lambda x: x, True),
    "seen widely": (lambda x: F.avg_pool2d(x, 5, 1, 2), True),
    "weaker on one side": (lambda x: x * torch.logspace(-3, 0, 8), True),
    "with all of the picture in each": (lambda x: x + 3 * x.mean((-2, -1), keepdim=True), True),
    "with hardly any of it": (lambda x: x + 1e-6 * x.mean((-2, -1), keepdim=True), True),
    "transposed": (lambda x: x.mT, False),
    "mirrored": (lambda x: x.flip(-1), False),
    "upside down": (lambda x: x.flip(-2), False),
    "turned by half": (lambda x: x.flip(-2, -1), False),
    "in windows": (windows, False),
    "shuffled": (lambda x: x.flatten(2)[..., torch.arange(64) * 11 % 64].view_as(x), False),
    "the same everywhere": (lambda x: x.mean((-2, -1), keepdim=True).expand_as(x), None),
}


@pytest.mark.parametrize("order", ORDERS)
def test_cells_in_another_order_than_the_picture_are_seen(order):
    change, right = ORDERS[order]
    place, sentence = sweep.placed(
        tl.Classifier(Rearranged(change).eval(), layer="layer"), sweep.blobs(1, 256)
    )
    assert place == {True: "there", False: "elsewhere", None: "everywhere"}[right]
    assert bool(sentence) != (right is True)


@pytest.mark.parametrize(
    "spoil", [lambda m: m.mT, lambda m: m.flip(0), lambda m: m * 0], ids=["mT", "swap", "flat"]
)
def test_another_map_than_the_literal_one_is_seen(spoil, monkeypatch):
    images = sweep.blobs(2, 256)
    sweep.liven(network := Rearranged(lambda x: x), images)
    clf, method = tl.Classifier(network, layer="layer"), tl.METHODS["grad_cam"]
    assert sweep.compared(clf, images)[0] < TOLERANCE
    monkeypatch.setitem(tl.METHODS, "grad_cam", lambda *args: spoil(method(*args)))
    assert sweep.compared(clf, images)[0] > 0.1


def test_a_layout_that_is_not_known_is_no_layout():
    for shape in [(1, 7, 7, 7), (1, 5, 6, 7), (1, 512)]:
        with pytest.raises(AssertionError, match="layout"):
            sweep.literal_layout(shape)


def test_an_error_that_is_no_sentence_is_an_error(monkeypatch):
    for error, outcome in (
        (ValueError("name the layer"), "refused"),
        (ValueError("two\nlines"), "error"),
        (ValueError("long " * 50), "error"),
        (IndexError("3"), "error"),
    ):

        def broken(*args, _error=error, **settings):
            raise _error

        monkeypatch.setattr(tl, "load_classifier", broken)
        row = sweep.look("any")
        assert row["outcome"] == outcome and "\n" not in row["sentence"]


# The table's making.


@pytest.fixture
def three(tmp_path, monkeypatch):
    """A sweep of three networks; what it looks at."""
    looked = []

    def look(name):
        looked.append(name)
        if name == "big c":
            raise KeyboardInterrupt
        return {"outcome": "refused", "sentence": "no layer, name one"}

    monkeypatch.setattr(sweep, "TABLE", tmp_path / "sweep.csv")
    monkeypatch.setattr(sweep, "modules", lambda: iter([("timm", m) for m in "abc"]))
    monkeypatch.setattr(sweep, "network_of", lambda library, module: (f"big {module}", 10))
    monkeypatch.setattr(sweep, "versions", lambda: {"timm": "1"})
    monkeypatch.setattr(sweep, "look", look)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep()
    looked.clear()
    return looked


def test_a_sweep_that_was_stopped_goes_on(three, monkeypatch):
    monkeypatch.setattr(sweep, "network_of", lambda library, module: (f"small {module}", 10))
    sweep.sweep()
    assert three == ["small c"]
    assert sweep.read()["network"].tolist() == ["big a", "big b", "small c"]
    assert sweep.read()["sentence"][0] == "no layer, name one" and sweep.read()["parameters"][0] == 10
    sweep.sweep()
    assert three == ["small c"]


def test_whole_numbers_stay_whole_beside_rows_that_have_none(three, monkeypatch):
    monkeypatch.setattr(sweep, "look", lambda name: {"outcome": "explained", "size": 224, "depth": 98})
    sweep.sweep()
    sweep.sweep(["a"])
    assert sweep.read()[["size", "depth"]].values.tolist() == [["224", "98"], ["", ""], ["224", "98"]]


@pytest.mark.parametrize("again, looked", [(["b"], "bc"), (["big a"], "ac"), ([], "abc")])
def test_what_is_named_is_looked_at_again(three, again, looked, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(again)
    assert three == [f"big {m}" for m in looked]


def test_a_name_that_is_none_is_refused(three):
    with pytest.raises(ValueError, match="called d"):
        sweep.sweep(["d"])
    assert not three


def test_rows_of_another_version_or_of_networks_that_are_gone_are_replaced(three, monkeypatch):
    monkeypatch.setattr(sweep, "modules", lambda: iter([("timm", m) for m in "ad"]))
    sweep.sweep()
    assert three == ["big d"] and sweep.read()["module"].tolist() == ["a", "d"]
    monkeypatch.setattr(sweep, "versions", lambda: {"timm": "2"})
    sweep.sweep()
    assert three == ["big d", "big a", "big d"] and set(sweep.read()["version"]) == {"2"}


def test_a_second_sweep_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep.argparse.ArgumentParser, "parse_args", lambda self: pytest.fail("it began"))
    (tmp_path / "_build").mkdir()
    with FileLock(tmp_path / "_build" / "sweep.lock"):
        with pytest.raises(SystemExit, match="another sweep is running"):
            sweep.main()


def test_the_examples_of_the_script():
    found = doctest.testmod(sweep)
    assert found.attempted >= 3 and not found.failed
