"""`tl.compare` on a network whose truth is known: its score is the brightness of one corner."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn
from torchvision.utils import save_image

import thesis_lib as tl
from thesis_lib.__main__ import main
from thesis_lib.data.datasets import Folder, Sample
from thesis_lib.metrics import similarity
from thesis_lib.pages import compare, explain
from thesis_lib.pages.report import least_n


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


class Corner(nn.Module):
    """Class 0 is as probable as the upper left quarter is bright; nothing else is looked at."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        self.head = nn.Linear(1, 2, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 3)
        self.head.weight.data = torch.tensor([[4.0], [-4.0]])

    def forward(self, x):
        return self.head(self.conv(x)[..., :16, :16].mean((2, 3)))


CORNER = tl.Classifier(Corner(), "conv", mean=(0, 0, 0), std=(1, 1, 1))


def good(clf, images, classes=None):
    """Exactly what the network looks at, the brightest first."""
    maps = clf.denormalise(images).mean(1)
    seen = torch.zeros_like(maps)
    seen[:, :16, :16] = 1 + maps[:, :16, :16]
    return seen / 2


def deaf(clf, images, classes=None):
    """The same map for every picture, with the corner last."""
    return torch.linspace(0, 1, 32 * 32).view(1, 32, 32).expand(len(images), -1, -1)


def deaf_again(clf, images, classes=None):
    return deaf(clf, images) / 2


def bright(n):
    """n pictures, grey but for a bright corner."""
    pixels = 0.2 + 0.1 * torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels[:, :, :16, :16] += 0.6
    return pixels


def test_the_better_method_is_named_where_the_pictures_tell():
    found = tl.compare(CORNER, bright(12), [deaf, good])
    assert found.verdict.startswith("Use good: on n = 12 pictures good has the highest over-all score, ")
    assert re.search(
        r"deaf is clearly behind, deaf is \d+\.\d \[\d+\.\d, \d+\.\d\] points behind", found.verdict
    )
    assert found.table.loc["good", "n"] == 12 and found.table.loc["deaf", "p (Holm)"] == "0.00049"


def test_three_pictures_cannot_tell_and_it_says_how_many_could():
    found = tl.compare(CORNER, bright(3), [deaf, good])
    assert found.verdict.startswith("n = 3 cannot tell which method to use: good has the highest")
    assert f"about {least_n(1)} pictures could tell" in found.verdict
    one = tl.compare(CORNER, bright(1), [deaf, good]).verdict
    assert "n = 1 cannot tell" in one and f"has no interval, and {least_n(1)} are the fewest" in one


def test_methods_that_are_equally_good_are_not_crowned():
    found = tl.compare(CORNER, bright(12), [deaf, deaf_again])
    assert found.verdict.startswith("Use deaf: ") and "deaf_again within a point of it" in found.verdict
    three = tl.compare(CORNER, bright(12), [deaf, good, deaf_again])
    assert (
        three.verdict.startswith("Use good: ") and "deaf and deaf_again are clearly behind" in three.verdict
    )


def test_chance_is_seldom_named():
    """Of two methods of equal means on 20 pictures one is named one time in twenty, up to chance."""
    named = 0
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(0.5, 0.2, (2, 20))
        parts = [
            pd.DataFrame({"id": range(20), "class": 0, "method": name, "overall": x, "passes": 1})
            for name, x in zip("ab", scores, strict=True)
        ]
        rows = pd.concat(parts, ignore_index=True)
        named += compare._verdict(rows, *compare._compared(rows)).startswith("Use")
    assert named <= 6  # 2 are expected, 7 or more have a probability of 0.3 %


def test_the_numbers_are_those_of_insertion_deletion():
    clf = tl.Classifier(
        networks.random_network(networks.Plain), networks.Plain.layer, mean=[0] * 3, std=[1] * 3
    )
    pixels = networks.images(6).sigmoid()
    found = tl.compare(clf, pixels, ["grad_cam", "group_cam"])
    images, step = clf.normalise(pixels), -(-48 * 48 // 28)
    for name, rows in found.groupby("method"):
        # A picture first, then four at a time: tied pixels may change places in another batch.
        parts = [tl.METHODS[name](clf, part) for part in images.split([1, 4, 1])]
        maps = torch.cat(parts)
        r = tl.insertion_deletion(clf, images, maps, step=step)
        for column in ("insertion_auc", "deletion_auc", "overall"):
            assert torch.tensor(rows[column].to_numpy()).allclose(getattr(r, column), atol=1e-6), (
                name,
                column,
            )
        with tl.counting() as counts:
            tl.METHODS[name](clf, images)
        assert rows["passes"].sum() == pytest.approx(counts["forward images"]) and (rows["seconds"] > 0).all()
        (_, random), *_ = tl.randomize(clf, "independent", layers="all")
        likeness = similarity(maps, tl.METHODS[name](random, images, r.classes))[0]
        assert rows["sanity"].to_numpy() == pytest.approx(likeness, abs=1e-6)


def test_the_result_is_rows_and_what_is_made_of_them_is_plain():
    found = tl.compare(CORNER, bright(2), {"mine": good, "grad_cam": "grad_cam"})
    assert list(found["method"].unique()) == ["mine", "grad_cam"] == list(found.rows["method"].unique())
    assert not hasattr(found[found["method"] == "mine"], "verdict") and not hasattr(found.rows, "verdict")
    assert list(found.table.index) == ["mine", "Grad-CAM"]


def test_flat_maps_are_counted_and_deaf_maps_do_not_change_with_the_last_layer():
    def flat(clf, images, classes=None):
        return torch.zeros(len(images), 32, 32)

    found = tl.compare(CORNER, bright(3), [flat, deaf, "grad_cam"])
    assert "With a random last layer the maps of deaf stay as they are" in found.verdict
    table = found.table.loc[["flat", "deaf"]]
    assert table["flat maps"].tolist() == [3, 0]
    assert table.loc["deaf", "random last layer [95 %]"] == "1.00 [1.00, 1.00]"


@pytest.mark.parametrize("family", [networks.Plain, networks.Residual])
def test_the_thesis_seven_by_default(family):
    clf = tl.Classifier(networks.random_network(family), family.layer)
    found = tl.compare(clf, networks.images(2).sigmoid())
    assert list(found["method"].unique()) == tl.METHODS.convolutional and not found.left_out


def test_a_transformers_three_by_default():
    clf = tl.Classifier(networks.vit())
    found = tl.compare(clf, networks.images(2, 32, 32).sigmoid())
    assert list(found["method"].unique()) == tl.METHODS.of("transformer")


def test_score_cam_has_to_be_named_where_it_makes_many_passes(monkeypatch):
    monkeypatch.setattr(compare, "MANY", 12)
    clf = tl.Classifier(networks.random_network(networks.Plain), networks.Plain.layer)  # 13 channels
    found = tl.compare(clf, networks.images(1).sigmoid())
    assert "score_cam" not in set(found["method"]) and "13 passes a picture" in found.left_out["score_cam"]
    assert "Score-CAM is left out: it makes 13 passes a picture" in found.verdict
    assert set(tl.compare(clf, networks.images(1).sigmoid(), "score_cam")["method"]) == {"score_cam"}


def test_what_does_not_fit_and_what_cannot_be_read_is_left_out_and_said(tmp_path):
    for k, picture in enumerate(bright(3)):
        save_image(picture, tmp_path / f"{k}.png")
    (tmp_path / "broken.png").write_text("no picture")
    clf = tl.Classifier(networks.vit())  # takes 32 x 32, which files are resized to
    found = tl.compare(clf, tmp_path, ["grad_cam", "cameras"])
    assert set(found["method"]) == {"grad_cam"} and found["id"].nunique() == 3
    assert (
        "CAMERAS is left out: " in found.verdict
        and "1 pictures could not be read, first broken" in found.verdict
    )
    given = Folder(tmp_path, 40)
    with pytest.raises(ValueError, match="refuses images of 40 x 40"):
        tl.compare(clf, given)
    files = [tmp_path / "0.png", str(tmp_path / "2.png")]
    assert tl.compare(clf, files, ["grad_cam"])["id"].tolist() == list(map(str, files))


class Sizes(list):
    ids = ["a", "b"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pictures": bright(0)}, ValueError, "with one at least, not 0 x 3 x 32 x 32"),
        ({"pictures": []}, ValueError, "there are no pictures: the list is empty"),
        ({"pictures": "no/folder"}, FileNotFoundError, "there is no folder no/folder, and no dataset of this name"),
        ({"pictures": ["no/cat.jpg"]}, FileNotFoundError, "there is no picture at no/cat.jpg"),
        ({"pictures": 3}, TypeError, "pictures are the name of a dataset, .* not int"),
        ({"pictures": bright(1) * 255}, ValueError, "divide 0 to 255 by 255"),
        ({"pictures": Sizes([Sample("a", bright(1)[0]), Sample("b", torch.zeros(3, 40, 40))])}, ValueError, "several sizes, 32 x 32 and 40 x 40"),
        ({"pictures": torch.rand(1, 3, 20, 20)}, ValueError, "no method can explain .*20"),
        ({"methods": ["gradcam"]}, KeyError, "no method is called 'gradcam'; did you mean 'grad_cam'"),
        ({"methods": []}, ValueError, "there is no method to compare"),
        ({"methods": {"mine": 3}}, TypeError, "the method 'mine' is no function but 3"),
        ({"classifier": "resnet51"}, ValueError, "no network is called 'resnet51'"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))}, ValueError, "name"),
        ({"classifier": 3}, TypeError, "a network is a torch.nn.Module, not int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_errors_say_what_to_do(given, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        tl.compare(**{"classifier": CORNER, "pictures": bright(2), "methods": ["grad_cam"]} | given)


def test_pictures_of_a_size_that_the_network_refuses():
    clf = tl.Classifier(networks.vit())
    with pytest.raises(ValueError, match="the network refuses images of 48 x 48"):
        tl.compare(clf, networks.images(1).sigmoid())


def test_the_function_is_not_hidden_by_the_file_of_the_same_name():
    assert importlib.import_module("thesis_lib.compare") is tl.compare is compare.compare


# From a shell


@pytest.fixture
def small(monkeypatch):
    """The shell's network is a small one."""

    def load(name):
        if name != "small":
            return tl.load_classifier(name)
        return tl.Classifier(networks.random_network(networks.Plain), networks.Plain.layer)

    monkeypatch.setattr(compare, "load_classifier", load)
    monkeypatch.setattr(explain, "load_classifier", load)


def test_explain_writes_a_picture_and_nothing_over_another(tmp_path, small, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_image(torch.full((3, 40, 80), 0.5), "cat.png")
    before = (tmp_path / "cat.png").read_bytes()
    line = ["explain", "cat.png", "--network", "small", "--method", "grad_cam"]
    assert [main(line), main(line), main([*line, "--out", "cat.png"]), main([*line, "--out", "cat.png"])] == [
        0
    ] * 4
    names = ["cat-grad_cam.png", "cat-grad_cam-2.png", "cat-2.png", "cat-3.png"]
    said = capsys.readouterr().out.splitlines()
    assert [name for name, text in zip(names, said, strict=True) if text.endswith(f"s: {name}.")] == names
    assert (tmp_path / "cat.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "cat.png"])
    after = Image.open("cat-grad_cam.png").convert("RGB")
    assert after.size == (80, 40) and after.getpixel((5, 5)) == (128, 128, 128)  # outside of the square


def test_explain_chooses_by_the_network(tmp_path, small):
    save_image(bright(1)[0], tmp_path / "cat.png")
    said = explain.explain(tmp_path / "cat.png", tl.Classifier(networks.vit()), out=tmp_path / "a.png")
    assert said.startswith("Transformer attribution explains class ")


def test_the_colours_are_infernos_to_the_eye():
    values = np.linspace(0, 1, 256)[None]
    theirs = colormaps["inferno"](values, bytes=True)[..., :3].astype(int)
    assert abs(explain.in_colour(values) - theirs).max() < 25


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("explain no/cat.jpg", "there is no picture at no/cat.jpg"),
        ("explain cat.png --network resnet51", "no network is called 'resnet51'; did you mean"),
        ("explain cat.png --method gradcam", "no method is called 'gradcam'; did you mean 'grad_cam'"),
        ("explain cat.png --network small --out no/x.png", "there is no folder no to write x.png to"),
        ("explain cat.png --network small --out x.xyz", "x.xyz has no ending of a picture, such as .png"),
        ("explain text.png --network small", "text.png is not a readable picture"),
        ("compare no_folder --network small", "there is no folder no_folder"),
        ("compare . --network resnet51", "no network is called 'resnet51'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_exit_status_2(
    tmp_path, small, monkeypatch, capsys, line, sentence
):
    monkeypatch.chdir(tmp_path)
    save_image(bright(1)[0], "cat.png")
    (tmp_path / "text.png").write_text("no picture")
    assert main(line.split()) == 2
    written = capsys.readouterr()
    assert written.err.startswith(f"error: {sentence}") and written.err.count("\n") == 1 and not written.out
    assert len(list(tmp_path.iterdir())) == 2


def test_compare_from_the_shell(tmp_path, small, capsys):
    for k, picture in enumerate(bright(2)):
        save_image(picture, tmp_path / f"{k}.png")
    assert main(["compare", str(tmp_path), "--network", "small"]) == 0
    text = capsys.readouterr().out
    assert "MSG-CAM" in text and "n = 2 cannot tell which method to use: " in text


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options
    )


def test_both_ways_to_write_the_command(tmp_path):
    def ask(*words):
        line = [sys.executable, "-m", *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert "{explain,compare,doctor}" in ask("thesis_lib", "--help").stdout
    done = ask("thesis_lib.compare", "no_folder")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no folder no_folder"), done.stderr


def test_without_the_book_s_packages():
    """Methods, evaluate, compare and explain in a process where these cannot be imported."""
    code = """
import sys
for name in "matplotlib seaborn IPython ipywidgets jupyterlab papermill nbval yaml pycocotools".split():
    sys.modules[name] = None
import thesis_lib as tl
tl.METHODS, tl.METRICS, tl.evaluate, tl.compare, tl.load_classifier, tl.open_dataset, tl.report, tl.recorded
from thesis_lib.pages.explain import explain
try:
    tl.plots
except ImportError as error:
    print(error)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip()
        == "tl.plots needs matplotlib: pip install matplotlib, or this library with its extra [book]"
    )


def test_the_library_is_imported_in_under_a_second_beyond_torch():
    code = """
import time, torch, torchvision
begin = time.process_time()
import thesis_lib as tl
tl.METHODS, tl.load_classifier
print(time.process_time() - begin)
"""
    assert min(float(run(code).stdout) for _ in range(2)) < 1


def test_data_are_missing_where_the_library_is_installed_without_its_repository(tmp_path):
    """A copy of the package alone, in a folder with nothing else, as in an environment."""
    shutil.copytree(
        Path(tl.__file__).parent, tmp_path / "lib/thesis_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "here").mkdir()
    code = f"""
import functools, sys
sys.path.insert(0, {str(tmp_path / "lib")!r})
import thesis_lib as tl
for ask in (
    functools.partial(tl.open_dataset, "photographs"),
    functools.partial(tl.load_classifier, "vgg19_cutouts"),
    functools.partial(tl.recorded, "photographs", "efficientnet_lite0", "insertion_deletion"),
):
    try:
        ask()
    except FileNotFoundError as error:
        print(error)
"""
    done = run(code, cwd=tmp_path / "here")
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(f"is not in {tmp_path / 'here'}: it comes with the repository" in line for line in lines)
