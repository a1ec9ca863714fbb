import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from thesis_lib.classifier import Classifier
from thesis_lib.data.models import load_classifier
from thesis_lib.data.registry import open_dataset
from thesis_lib.methods import METHODS
from thesis_lib.metrics.insertion_deletion import insertion_deletion
from thesis_lib.metrics.pointing_game import energy_inside, pointing_game
from thesis_lib.runs import files, key
from thesis_lib.runs.evaluate import evaluate, load_rows

torch.set_num_threads(1)
SIZE = 32
calls = []  # how many images `method` was given, call by call


class Pictures:
    """Seven small pictures of two classes each; `broken` ones cannot be read."""

    def __init__(self, n=7, seed=0, broken=()):
        self.ids = [f"picture-{i}" for i in range(n)]
        self.seed, self.broken = seed, broken

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError(f"cannot identify image file '/home/someone/data/{self.ids[i]}.jpg'")
        generator = torch.Generator().manual_seed(100 * self.seed + i)
        pixels = torch.rand(3, SIZE, SIZE, generator=generator)
        left = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        left[:, :16] = True
        return SimpleNamespace(
            id=self.ids[i], pixels=pixels, classes=(0, 2), masks={0: left, 2: ~left},
            pixel_masks={2: ~left} if i % 2 else {},
        )  # fmt: skip


def classifier(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        network[-1].weight.data *= 10
    return Classifier(network, layer="3", name="small")


def method(clf, images, classes=None, power=1):
    calls.append(len(images))
    return images.abs().mean(1).div(5).clamp(0, 1) ** power


METHODS_HERE = {"mine": method, "grad_cam": METHODS["grad_cam"]}


def run(out, dataset=None, methods=METHODS_HERE, clf=None, **settings):
    calls.clear()
    settings = {"step": 100, "chunk": 3, "progress": False} | settings
    return evaluate(dataset or Pictures(), clf or classifier(), methods, out, **settings)


def folder(rows):
    return Path(rows.attrs["run"])


def test_rows_of_insertion_and_deletion(tmp_path):
    rows = run(tmp_path)
    clf, dataset = classifier(), Pictures()
    images = clf.normalise(torch.stack([dataset[i].pixels for i in range(7)]))
    classes = clf.predict(images)
    assert len(rows) == 14 and not rows.duplicated(["id", "class", "method"]).any()
    for name, explain in METHODS_HERE.items():
        part = rows[rows["method"] == name]
        expected = insertion_deletion(clf, images, explain(clf, images, classes), classes, step=100)
        assert part["id"].tolist() == dataset.ids
        assert part["class"].tolist() == classes.tolist()
        assert part["correct"].tolist() == [c in (0, 2) for c in classes.tolist()]
        assert part["probability"].to_numpy() == pytest.approx(expected.insertion[:, -1].numpy())
        for column in ("insertion", "deletion"):
            curves = np.stack(part[column])
            assert curves.shape == (7, 12)
            assert curves == pytest.approx(getattr(expected, column).numpy(), abs=1e-6)
        for column in ("insertion_auc", "deletion_auc", "overall"):
            assert part[column].to_numpy() == pytest.approx(getattr(expected, column).numpy(), abs=1e-6)
    tied = rows[rows["method"] == "grad_cam"]["tied"]  # exact, but for ties by rounding
    assert tied.to_numpy() == pytest.approx(expected.tied.numpy(), abs=20) and tied.min() > 0


def test_rows_of_the_pointing_game(tmp_path):
    rows = run(tmp_path, metrics=("pointing_game",))
    assert "overall" not in rows
    assert len(rows) == 7 * 2 * 2  # pictures, classes, methods
    dataset, clf = Pictures(), classifier()
    sample = dataset[5]
    part = rows[(rows["id"] == "picture-5") & (rows["method"] == "grad_cam")].set_index("class")
    assert part.index.tolist() == [0, 2]
    for c in (0, 2):
        images, mask = clf.normalise(sample.pixels[None]), sample.masks[c][None]
        maps = METHODS["grad_cam"](clf, images, [c])
        hits, misses = pointing_game(maps, mask)
        assert (part.loc[c, "hits"], part.loc[c, "misses"]) == (hits.item(), misses.item())
        assert part.loc[c, "argmax_hit"] == pointing_game(maps, mask, 1, 15)[0].item()
        assert part.loc[c, "energy"] == pytest.approx(energy_inside(maps, mask).item(), abs=1e-5)
        assert part.loc[c, "probability"] == pytest.approx(clf.probabilities(images)[0, c].item())
    assert part["correct"].all()
    assert part["first_choice"].tolist() == [int(clf.predict(images)) == c for c in (0, 2)]
    assert part.loc[0, "boxes"] == 0.5 and part.loc[0, "near_boxes"] == pytest.approx((16 + 14) / 32)
    assert np.isnan(part.loc[0, "pixel_energy"])  # there is a pixel mask of class 2 only
    assert part.loc[2, "pixel_energy"] == pytest.approx(part.loc[2, "energy"])
    even = rows[rows["id"] == "picture-4"]
    assert even["pixel_energy"].isna().all()


def test_both_metrics_follow_the_labelled_classes(tmp_path):
    rows = run(tmp_path, metrics=("pointing_game", "insertion_deletion"), limit=2)
    assert len(rows) == 2 * 2 * 2
    assert {"hits", "overall"} <= set(rows)
    ends = np.array([curve[-1] for curve in rows["insertion"]])
    assert ends == pytest.approx(rows["probability"].to_numpy(), abs=1e-6)


def test_limit_and_names(tmp_path):
    rows = run(tmp_path, methods=["grad_cam", "xgrad_cam"], limit=4)
    assert rows["id"].unique().tolist() == [f"picture-{i}" for i in range(4)]
    assert rows["method"].unique().tolist() == ["grad_cam", "xgrad_cam"]


def test_a_finished_run_is_not_computed_again(tmp_path):
    first = run(tmp_path)
    assert sorted(calls) == [1, 3, 3]
    manifest = folder(first) / "manifest.json"
    written = manifest.stat().st_mtime_ns
    again = run(tmp_path)
    assert calls == []
    pd.testing.assert_frame_equal(first, again)
    assert manifest.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(load_rows(folder(first)), first)


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "delete"])
def test_a_damaged_shard_is_computed_again(tmp_path, damage):
    first = run(tmp_path)
    shard = folder(first) / "chunk-000003.parquet"
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "flip":
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)
    else:
        shard.unlink()
    with pytest.raises(ValueError, match="has 8 of 14 rows"):
        load_rows(folder(first))
    again = run(tmp_path)
    assert calls == [3]
    pd.testing.assert_frame_equal(first, again)


def test_one_wrong_number_in_a_shard_is_seen(tmp_path):
    shard, values = tmp_path / "shard.parquet", np.random.default_rng(0).random(1000)
    files.write(shard, pd.DataFrame({"overall": values}), {})
    assert files.read(shard)["overall"].to_pylist() == values.tolist()
    content = bytearray(shard.read_bytes())
    content[content.index(values[500].tobytes())] ^= 1
    shard.write_bytes(content)
    assert files.read(shard) is None


def test_an_interrupted_run_continues(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(random.Random, "shuffle", lambda self, x: None)
    expected = run(tmp_path / "whole")

    def stops(clf, images, classes=None):
        if len(calls) == 1:
            raise KeyboardInterrupt
        return method(clf, images, classes)

    methods = {"mine": stops}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, methods=methods)
    (unfinished,) = [path for path in tmp_path.iterdir() if path.name != "whole"]
    assert [path.name for path in unfinished.glob("*.parquet")] == ["chunk-000000.parquet"]
    assert "KeyboardInterrupt): 3 of 7 pictures are kept" in capfd.readouterr().err
    with pytest.raises(FileNotFoundError, match="no finished run"):
        load_rows(unfinished)
    calls[:] = [0, 0]  # goes on now
    dataset, clf = Pictures(), classifier()
    rows = evaluate(dataset, clf, methods, tmp_path, step=100, chunk=3, progress=False)
    assert calls == [0, 0, 3, 1] and folder(rows) == unfinished
    mine = expected[expected["method"] == "mine"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, mine)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(table, path, **settings):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files.pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path)
    (only,) = tmp_path.iterdir()
    assert sorted(path.name for path in only.iterdir()) == ["manifest.json", "pictures.csv"]


def test_what_changes_the_numbers_is_another_run(tmp_path):
    twice = classifier()
    twice.network[0].bias.data[0] += 1e-3
    half = Classifier(classifier().network, layer="1", name="small")
    changed = [
        {},
        {"step": 101},
        {"limit": 6},
        {"chunk": 4},
        {"clf": twice},
        {"clf": half},
        {"dataset": Pictures(seed=1)},
        {"dataset": Pictures(n=8)},
        {"metrics": ("pointing_game",)},
        {"methods": {"mine": method}},
        {"methods": {"mine": functools.partial(method, power=2)}},
        {"methods": {"mine": functools.partial(method, power=3)}},
        {"methods": {"other": method}},
    ]
    folders = {folder(run(tmp_path, **settings)) for settings in changed}
    assert len(folders) == len(changed) == len(list(tmp_path.iterdir()))
    # What does not: the batch, the memory format, the order in which metrics are named.
    clf = classifier().with_batch(2)
    clf.network.to(memory_format=torch.channels_last)
    assert folder(run(tmp_path, clf=clf)) in folders and calls == []


class Scale(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x * self.k


def scaled(k):
    return Classifier(nn.Sequential(Scale(k), classifier().network), layer="1.3", name="small")


def test_what_a_state_dict_does_not_hold_is_another_run(tmp_path):
    one, other = run(tmp_path, clf=scaled(1.0)), run(tmp_path, clf=scaled(0.3))
    assert folder(one) != folder(other)
    truth = run(tmp_path / "truth", clf=scaled(0.3))
    pd.testing.assert_frame_equal(other, truth)
    assert not np.allclose(one["probability"], truth["probability"], atol=1e-3)


def test_a_hook_is_another_run_of_the_same_digest(tmp_path):
    """No key can see it; what the network makes of two pictures does."""
    clf = classifier()
    one = run(tmp_path, clf=clf)
    handle = clf.network[1].register_forward_hook(lambda module, inputs, output: output * 0.5)
    other = run(tmp_path, clf=clf)
    assert folder(other) == folder(one).with_name(f"{folder(one).name}-2") and calls
    assert not np.allclose(one["probability"], other["probability"], atol=1e-3)
    again = run(tmp_path, clf=clf)
    pd.testing.assert_frame_equal(again, other)
    assert not calls
    handle.remove()
    handle = clf.network[1].register_forward_hook(lambda module, inputs, output: output * (1 + 1e-6))
    pd.testing.assert_frame_equal(run(tmp_path, clf=clf), one)  # as rounding on another machine
    assert not calls
    handle.remove()
    real = nn.Conv2d.forward
    nn.Conv2d.forward = lambda self, x: real(self, x) * 2
    try:
        assert folder(run(tmp_path, clf=clf)).name == f"{folder(one).name}-3"
    finally:
        nn.Conv2d.forward = real


def test_another_picture_under_the_same_name_is_another_run(tmp_path):
    """Any of them, not only those by which the network is known; also when the run is finished."""
    clf = classifier()
    for changed in (1, 5):

        class Replaced(Pictures):
            def __getitem__(self, i):
                sample = super().__getitem__(i)
                if i == changed:
                    sample.pixels = 1 - sample.pixels
                return sample

        out = tmp_path / str(changed)
        one, other = run(out, clf=clf), run(out, Replaced(), clf=clf)
        assert folder(other).name == f"{folder(one).name}-2"
        pd.testing.assert_frame_equal(other, run(out / "truth", Replaced(), clf=clf))
        pd.testing.assert_frame_equal(run(out, clf=clf), one)
        assert not calls
        # The same of a run that was stopped, for the chunks that are there.
        for file in (folder(one) / f"chunk-{k:06d}.parquet" for k in (0, 3, 6)):
            if not file.name.endswith(f"{changed // 3 * 3:06d}.parquet"):
                file.unlink()
        pd.testing.assert_frame_equal(run(out, Replaced(), clf=clf), other)
        assert not calls


def test_files_that_are_replaced(tmp_path):
    """As a user would: a folder of pictures, one of which is another one now."""
    from PIL import Image

    from thesis_lib.data.datasets import Folder

    (tmp_path / "pictures").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i:03d}.png")

    def scores(out):
        rows = run(out, Folder(tmp_path / "pictures", size=SIZE), ["grad_cam"], chunk=16)
        return rows.set_index("id")["overall"]

    before = scores(tmp_path / "runs")
    Image.fromarray(255 - pixels).save(tmp_path / "pictures/004.png")
    after, truth = scores(tmp_path / "runs"), scores(tmp_path / "truth")
    pd.testing.assert_series_equal(after, truth)
    assert after["004"] != before["004"] and after.drop("004").equals(before.drop("004"))


@pytest.mark.parametrize("when", ["once", "always"])
@pytest.mark.parametrize("what", ["manifest", "shard", "picture", "code"])
def test_a_disk_that_fails_while_the_key_is_made(tmp_path, monkeypatch, what, when):
    """An error is tried again, then raised: it never begins another folder, and nothing is lost."""
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    expected, left = run(tmp_path), [1 if when == "once" else 10**9]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def failing(real):
        def read(*arguments, **settings):
            if left[0] > 0:
                left[0] -= 1
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **settings)

        return read

    dataset = Pictures()
    if what == "manifest":
        monkeypatch.setattr(files, "_text_of", failing(files._text_of))
    elif what == "shard":
        monkeypatch.setattr(files.pq, "read_table", failing(files.pq.read_table))
    elif what == "picture":
        monkeypatch.setattr(Pictures, "__getitem__", failing(Pictures.__getitem__))
    else:
        key._texts.clear()
        monkeypatch.setattr(key, "_read", failing(key._read))
    if when == "once":
        pd.testing.assert_frame_equal(run(tmp_path, dataset), expected)
        assert left == [0]
    else:
        with pytest.raises(OSError, match="Input/output error"):
            run(tmp_path, dataset)
    assert not calls
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert all(path.read_bytes() == kept for path, kept in content.items())
    monkeypatch.undo()
    pd.testing.assert_frame_equal(run(tmp_path), expected)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_late_process_leaves_a_finished_run_finished(tmp_path, stopped):
    """It began when chunks were missing; somebody else finishes the run; it is stopped, or goes on."""
    clf, finished = classifier(), []

    class Late(Pictures):
        def __getitem__(self, i):
            seen.append(i)
            if len(seen) == 4 and not finished:  # its second chunk's first picture, or its first's second
                finished.append(run(tmp_path, clf=clf))
                if stopped:
                    raise KeyboardInterrupt
            return super().__getitem__(i)

    seen = []
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Late(), clf=clf)
    else:
        pd.testing.assert_frame_equal(run(tmp_path, Late(), clf=clf), finished[0])
    assert len(list(tmp_path.iterdir())) == 1
    pd.testing.assert_frame_equal(load_rows(folder(finished[0])), finished[0])


def test_nobody_begins_a_run_twice(tmp_path, monkeypatch):
    """Two processes at the same moment, whose networks differ: each gets a folder of its own."""
    clf, hooked = classifier(), classifier()
    hooked.network[1].register_forward_hook(lambda module, inputs, output: output * 0.5)
    real, others = files.replace, []

    def meanwhile(path, write, over=True):
        if path.name == "manifest.json" and not others:
            others.append(None)
            others[0] = folder(run(tmp_path, clf=hooked))
        real(path, write, over)

    monkeypatch.setattr(files, "replace", meanwhile)
    rows = run(tmp_path, clf=clf)
    assert others[0].name + "-2" == folder(rows).name
    monkeypatch.undo()
    pd.testing.assert_frame_equal(rows, run(tmp_path / "truth", clf=clf))
    pd.testing.assert_frame_equal(load_rows(others[0]), run(tmp_path / "other", clf=hooked))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"finished": true}'])
def test_a_damaged_manifest_costs_no_shard(tmp_path, content):
    expected = run(tmp_path)
    (folder(expected) / "manifest.json").write_text(content)
    again = run(tmp_path)
    if content != '{"finished": true}':  # that one says nothing of the network: not to be trusted
        assert not calls and folder(again) == folder(expected)
    pd.testing.assert_frame_equal(again, expected)
    pd.testing.assert_frame_equal(load_rows(folder(again)), expected)


def test_metrics_in_any_order_are_one_run(tmp_path):
    """Also where one order measured one chunk and another order the next."""
    orders = [("pointing_game", "insertion_deletion"), ["insertion_deletion", "pointing_game"]]
    first = run(tmp_path, metrics=orders[0])
    (folder(first) / "chunk-000003.parquet").unlink()
    again = run(tmp_path, metrics=orders[1])
    assert calls
    pd.testing.assert_frame_equal(again, first)
    one = run(tmp_path / "one", metrics="pointing_game")
    assert folder(one).name == folder(run(tmp_path / "one", metrics=["pointing_game"])).name


def test_dataset_and_classifier_by_name(tmp_path):
    settings = {"limit": 1, "step": 12544, "progress": False}
    by_name = evaluate("cutouts", "vgg19_cutouts", ["grad_cam"], tmp_path, **settings)
    objects = evaluate(
        open_dataset("cutouts"), load_classifier("vgg19_cutouts", device=None), {"grad_cam": METHODS["grad_cam"]},
        tmp_path, **settings,
    )  # fmt: skip
    assert folder(by_name) == folder(objects)
    pd.testing.assert_frame_equal(by_name, objects)
    with pytest.raises(ValueError, match="no dataset is called 'cutout'"):
        evaluate("cutout", "vgg19_cutouts", ["grad_cam"], tmp_path)


class Deadly(Pictures):
    read = 0

    def __getitem__(self, i):
        self.read += i == 4
        if self.read == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_a_killed_process_is_continued_by_another(tmp_path):
    code = f"from test_runs import *; run({str(tmp_path)!r}, Deadly(), ['grad_cam'])"
    environment = os.environ | {
        "PYTHONHASHSEED": "7",  # another one than ours, on which no key may depend
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(files.LIBRARY.parent)]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (unfinished,) = tmp_path.iterdir()
    shards_there = list(unfinished.glob("*.parquet"))
    before = [shard.stat().st_mtime_ns for shard in shards_there]
    rows = run(tmp_path, methods=["grad_cam"])
    assert folder(rows) == unfinished
    assert [shard.stat().st_mtime_ns for shard in shards_there] == before
    expected = run(tmp_path / "whole", methods=["grad_cam"])
    pd.testing.assert_frame_equal(rows, expected)


def test_what_cannot_be_read_is_skipped_and_listed(tmp_path):
    dataset = Pictures(broken=(0, 3, 4, 5))  # the second chunk has nothing left
    rows = run(tmp_path, dataset)
    assert rows["id"].unique().tolist() == ["picture-1", "picture-2", "picture-6"]
    manifest = json.loads((folder(rows) / "manifest.json").read_text())
    assert [name for name, _ in manifest["skipped"]] == [f"picture-{i}" for i in (0, 3, 4, 5)]
    assert manifest["skipped"][0][1] == "OSError: cannot identify image file 'picture-0.jpg'"
    again = run(tmp_path, dataset)
    assert calls == []
    pd.testing.assert_frame_equal(rows, again)
    with pytest.raises(ValueError, match="its manifest lists what was skipped"):
        run(tmp_path, Pictures(broken=range(7)))


def test_a_disk_that_fails_ends_the_run_and_skips_nothing(tmp_path):
    class Mounted(Pictures):
        error = None

        def __getitem__(self, i):
            if i == 5 and self.error:
                try:
                    raise self.error
                except OSError as error:  # as `read_picture` has it
                    raise OSError(f"{self.ids[i]}.jpg is not a readable picture: {error}") from error
            return super().__getitem__(i)

    dataset, expected = Mounted(), run(tmp_path / "whole")
    for error in (
        OSError(errno.EIO, "Input/output error"),
        FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "not mounted/5.jpg")),
    ):
        dataset.error = error
        with pytest.raises(OSError, match="picture-5.jpg is not a readable picture"):
            run(tmp_path / "runs", dataset)
    dataset.error = None
    pd.testing.assert_frame_equal(run(tmp_path / "runs", dataset), expected)
    # One file that is missing beside the others is skipped, as a broken one.
    dataset.error = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "5.jpg"))
    assert run(tmp_path / "missing", dataset)["id"].nunique() == 6


def test_other_masks_are_another_run(tmp_path):
    class Masked(Pictures):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            if i == 3:
                sample.pixel_masks = {0: sample.masks[0]}
            return sample

    assert folder(run(tmp_path)) == folder(run(tmp_path, Pictures()))
    assert folder(run(tmp_path)) != folder(run(tmp_path, Masked()))


def test_a_class_without_a_pixel_is_left_out(tmp_path):
    class Dataset(Pictures):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            if i == 1:
                sample.masks[0] = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            return sample

    rows = run(tmp_path, Dataset(), metrics=["pointing_game"])
    assert rows[rows["id"] == "picture-1"]["class"].unique().tolist() == [2]
    manifest = json.loads((folder(rows) / "manifest.json").read_text())
    assert manifest["skipped"] == [["picture-1", "class 0: its boxes cover no pixel"]]
    assert manifest["pictures"] == {"measured": 7, "skipped": 0, "failed": 0}


def test_manifest(tmp_path):
    rows = run(tmp_path)
    text = (folder(rows) / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["rows"] == 14 and manifest["skipped"] == []
    assert manifest["settings"]["dataset"]["pictures"] == 7
    assert manifest["settings"]["classifier"]["name"] == "small"
    assert manifest["settings"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    # To know the classes; 12 points of two curves that share their ends, by two methods; Grad-CAM.
    assert manifest["counts"]["forward images"] == 7 + 7 * 22 * 2 + 7
    assert manifest["seconds"] >= 0
    assert str(tmp_path) not in text and str(files.LIBRARY.parent) not in text
    assert set(manifest) == {
        "finished", "settings", "seed", "behaviour", "rows", "pictures", "skipped", "failed", "counts", "seconds",
        "devices", "python", "commit", "compiled",
    }  # fmt: skip
    assert manifest["finished"] and manifest["pictures"] == {
        "measured": 7, "skipped": 0, "failed": 0,
    }  # fmt: skip
    listed = pd.read_csv(folder(rows) / "pictures.csv")
    assert listed["id"].tolist() == Pictures().ids and listed["position"].tolist() == [*range(7)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("OSError: '/a/b c/d.jpg' is broken", "OSError: 'd.jpg' is broken"),
        ("no such file: /a/b/d.jpg", "no such file: d.jpg"),
        (r"bad C:\Users\me\d.jpg", "bad d.jpg"),
        ("d.jpg: 3/4 of it", "d.jpg: 3/4 of it"),
    ],
)
def test_folders_are_dropped(text, expected):
    assert files.without_folders(text) == expected


def test_progress(tmp_path, capfd, monkeypatch):
    run(tmp_path)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run(tmp_path, step=99, progress=None)
    assert capfd.readouterr().err == ""
    monkeypatch.delenv("TQDM_DISABLE")
    run(tmp_path, step=98, progress=None)
    said = capfd.readouterr().err
    assert "7 pictures, 2 methods; 0 pictures are there already, 7 are to do" in said
    # To know the class; 12 points of two curves that share their ends, by two methods; Grad-CAM.
    assert f"measured on 4: a picture takes {1 + 2 * 22 + 1} forward passes" in said
    assert "all of them 322 passes, about 0 days 00:00:0" in said
    assert "7/7" in said and "picture/s" in said
    run(tmp_path, step=98, progress=None)
    assert capfd.readouterr().err == ""  # nothing to do, nothing to say


def test_bad_input(tmp_path):
    with pytest.raises(KeyError, match="no method is called 'grad'"):
        run(tmp_path, methods=["grad"])
    with pytest.raises(ValueError, match="metrics must be among"):
        run(tmp_path, metrics=("insertion",))
    with pytest.raises(ValueError, match="metrics must be among"):
        run(tmp_path, metrics=())
    with pytest.raises(ValueError, match="engine"):
        run(tmp_path, engine="ray")
    with pytest.raises(ValueError, match='a scheduler .tcp://host:8786. is for engine="dask"'):
        run(tmp_path, scheduler="tcp://host:8786")
    with pytest.raises(ValueError, match="is on cpu, not on cuda: load it there"):
        run(tmp_path, device="cuda")
    with pytest.raises(ValueError, match="maps must be"):
        run(tmp_path, methods={"small": lambda clf, images, classes: images[:, 0, ::2]})


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)

    library = tmp_path / "thesis_lib"
    library.mkdir()
    (library / "code.py").write_text("1")
    (tmp_path / "rows.csv").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(files, "LIBRARY", library)
    (tmp_path / "rows.csv").write_text("2")  # what a recording writes does not make its code dirty
    assert len(files.commit()) == 40
    (library / "code.py").write_text("2")
    assert files.commit().endswith("-dirty")
    monkeypatch.setattr(files, "LIBRARY", tmp_path.parent)
    assert files.commit() is None
