"""What a night does to a run: kill -9, a full disk, damaged files, bad pictures, too little memory.

In the end the rows equal those of an undisturbed run to the last bit.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_runs import METHODS_HERE, Pictures, classifier

from thesis_lib.runs import files
from thesis_lib.runs.evaluate import evaluate, load_rows

pytestmark = pytest.mark.minutes

PICTURES = 80
# Forked from a process that has imported all that is slow and computed nothing: fast, and safe.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["thesis_lib.metrics", "pytest"])


class Slow(Pictures):
    """A picture takes 20 ms, so that there is a moment to be killed at."""

    def __init__(self):
        super().__init__(PICTURES)

    def __getitem__(self, i):
        time.sleep(0.02)
        return super().__getitem__(i)


def work(out, **settings):
    torch.set_num_threads(1)
    settings = {"step": 100, "chunk": 1, "progress": False} | settings
    return evaluate(Slow(), classifier(), METHODS_HERE, out, **settings)


def start(*arguments):
    process = processes.Process(target=work, args=arguments)
    process.start()
    return process


def run_folder(out):
    (folder,) = Path(out).iterdir()
    return folder


def equal(a, b):
    """Equal to the last bit, curves included; no row twice, none missing."""
    assert not a.duplicated(["id", "class", "method"]).any()
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def close(a, b):
    """The same pictures and methods in any order, and the same scores but for rounding."""
    a, b = (x.set_index(["id", "method"])["overall"].sort_index() for x in (a, b))
    pd.testing.assert_series_equal(a, b, check_exact=False, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return work(tmp_path_factory.mktemp("undisturbed"))


def test_kill_9_at_ten_random_moments(tmp_path, undisturbed):
    """Some while a process starts, most when it has written a few shards, on any machine's clock."""
    moments, kept = random.Random(0), [0]
    for _ in range(10):
        process = start(tmp_path)
        wanted = kept[-1] + moments.randrange(4)
        while len(list(tmp_path.glob("*/*.parquet"))) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept.append(len(list(tmp_path.glob("*/*.parquet"))))
    assert len(set(kept)) > 3 and kept[-1] < PICTURES  # killed at work, not only at the start
    equal(work(tmp_path), undisturbed)
    equal(load_rows(run_folder(tmp_path)), undisturbed)


def test_two_processes_share_a_run(tmp_path, undisturbed):
    together = [start(tmp_path) for _ in range(2)]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0]
    equal(work(tmp_path), undisturbed)
    counts = json.loads((run_folder(tmp_path) / "manifest.json").read_text())["counts"]
    assert counts["forward images"] == 46 * PICTURES


def test_two_processes_do_less_than_twice_the_work(tmp_path, monkeypatch):
    """The second one sees what the first has done since it began."""
    loaded = []

    class Counted(Slow):
        def __getitem__(self, i):
            loaded.append(i)
            if len(loaded) == 2 + 5:  # 2 to know the network again; somebody else finishes the run
                work(tmp_path)
            return Pictures.__getitem__(self, i)

    rows = evaluate(Counted(), classifier(), METHODS_HERE, tmp_path, step=100, chunk=1, progress=False)
    assert len(loaded) == 2 + 5 and len(rows) == 2 * PICTURES


def test_a_full_disk(tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs can be mounted by root only")
    try:
        with pytest.raises(OSError, match="No space left"):
            work(disk)
        kept = {shard: shard.read_bytes() for shard in run_folder(disk).glob("*.parquet")}
        assert kept and not list(disk.glob("*/*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        equal(work(disk), undisturbed)
        assert all(shard.read_bytes() == content for shard, content in kept.items())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_fails_half_way(tmp_path, undisturbed):
    """As a full disk, for those who are not root: files may not exceed 8 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
        with pytest.raises(OSError):
            work(tmp_path, chunk=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.glob("*/*.parquet")) and not list(tmp_path.glob("*/*.tmp"))
    close(work(tmp_path, chunk=20), undisturbed)


def test_every_flipped_byte_of_a_shard_is_seen(tmp_path):
    """Parquet's checksums leave its headers out: here a digest covers what is read."""
    shard, values = tmp_path / "shard.parquet", np.random.default_rng(0).random(40)
    rows = pd.DataFrame({"id": [f"picture {i}" for i in range(40)], "overall": values})
    rows["insertion"] = [np.arange(3, dtype=np.float32) + i for i in range(40)]
    rows.loc[3, "overall"] = np.nan
    files.write(shard, rows, {"seconds": 1.5})
    whole = shard.read_bytes()
    pd.testing.assert_frame_equal(files.read(shard).to_pandas(), rows)
    for i in range(0, len(whole), 3):
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[i] ^= bit
            shard.write_bytes(damaged)
            found = files.read(shard)
            if found is not None:  # a flip that changes nothing, as in the name of the writer
                pd.testing.assert_frame_equal(found.to_pandas(), rows)


def test_a_picture_that_fails_does_not_spoil_its_chunk(tmp_path, undisturbed):
    class Odd(Pictures):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            if i == 4:
                sample.pixels = sample.pixels / 0  # infinite
            return sample

    arguments = {"step": 100, "progress": False}
    rows = evaluate(Odd(), classifier(), METHODS_HERE, tmp_path, chunk=3, **arguments)
    manifest = json.loads((run_folder(tmp_path) / "manifest.json").read_text())
    assert manifest["pictures"] == {"measured": 6, "skipped": 0, "failed": 1}
    ((name, why),) = manifest["failed"]
    assert name == "picture-4" and why.startswith("ValueError: pixels lie in [0, 1], not up to inf")
    others = undisturbed[undisturbed["id"].isin(rows["id"])]
    assert rows["id"].nunique() == 6
    close(rows, others)


def test_pictures_without_a_class_are_listed(tmp_path):
    class Bare(Pictures):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            if i == 2:
                sample.masks = {}
            return sample

    rows = evaluate(Bare(), classifier(), METHODS_HERE, tmp_path, metrics=["pointing_game"], progress=False)
    manifest = json.loads((run_folder(tmp_path) / "manifest.json").read_text())
    assert manifest["skipped"] == [["picture-2", "no annotated class"]]
    assert rows["id"].nunique() == 6 == manifest["pictures"]["measured"]


class SmallMemory(torch.nn.Module):
    """A network on a GPU with room for `room` pictures."""

    def __init__(self, room, error):
        super().__init__()
        self.inner, self.room, self.error, self.seen = classifier().network, room, error, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise self.error
        return self.inner(images)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, undisturbed, error):
    clf = classifier()
    clf.network, clf.layer = SmallMemory(5, error), "inner.3"
    clf = clf.with_batch(32)
    arguments = {"step": 100, "chunk": 20, "progress": False}
    rows = evaluate(Slow(), clf, METHODS_HERE, tmp_path, **arguments)
    assert max(clf.network.seen) >= 20 and clf.network.seen.count(max(clf.network.seen)) == 1  # learnt once
    close(rows, undisturbed)
    clf.network.room = 0
    with pytest.raises(type(error)):
        evaluate(Slow(), clf, METHODS_HERE, tmp_path / "none", **arguments)
