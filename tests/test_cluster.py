"""A run on a Dask cluster of two processes, one of which is killed: the rows of the local engine."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from test_runs import METHODS_HERE, classifier
from test_runs_survive import PICTURES, Slow, equal, run_folder, work

from thesis_lib.classifier import Classifier
from thesis_lib.runs import files, key
from thesis_lib.runs.evaluate import evaluate

pytestmark = pytest.mark.minutes

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process of its own, that find these tests."""
    before = os.environ.get("PYTHONPATH")
    paths = [str(Path(__file__).parent), str(files.LIBRARY.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster:
            yield cluster
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


def run(out, scheduler, clf=None, **settings):
    settings = {"step": 100, "chunk": 1, "progress": False} | settings
    return evaluate(
        Slow(), clf or classifier(), METHODS_HERE, out, engine="dask", scheduler=scheduler, **settings
    )


def test_a_killed_worker_costs_a_chunk(tmp_path, client):
    """The same rows to the last bit; the run of the local engine is taken for what it is: the same."""
    expected = work(tmp_path / "local")

    def kill():
        while len(list(tmp_path.glob("dask/*/*.parquet"))) < 10:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        killed.append(len(list(tmp_path.glob("dask/*/*.parquet"))))

    victim, killed = next(iter(client.run(os.getpid).values())), []
    killer = threading.Thread(target=kill)
    killer.start()
    rows = run(tmp_path / "dask", client)
    killer.join()
    assert 10 <= killed[0] < PICTURES  # in mid-run
    equal(rows, expected)
    assert run_folder(tmp_path / "dask").name == run_folder(tmp_path / "local").name
    assert victim not in client.run(os.getpid).values()


def test_an_address_and_a_finished_run(tmp_path, client):
    rows = run(tmp_path, client.scheduler.address, chunk=20)
    before = [shard.stat().st_mtime_ns for shard in run_folder(tmp_path).glob("*")]
    equal(run(tmp_path, "tcp://127.0.0.1:1", chunk=20), rows)  # nobody there, nothing to do
    assert before == [shard.stat().st_mtime_ns for shard in run_folder(tmp_path).glob("*")]


class Loud(torch.nn.Module):
    """A network that notes each time it is made again from what was sent."""

    def __init__(self, notes):
        super().__init__()
        self.inner, self.notes = classifier().network, notes

    def __setstate__(self, state):
        super().__setstate__(state)
        (self.notes / f"{os.getpid()}-{time.time_ns()}").touch()

    def forward(self, images):
        return self.inner(images)


def test_the_network_loads_once_for_each_worker(tmp_path, client):
    notes = tmp_path / "notes"
    notes.mkdir()
    run(tmp_path / "runs", client, Classifier(Loud(notes), layer="inner.3"))
    workers = set(client.run(os.getpid).values())
    loads = [int(note.name.split("-")[0]) for note in notes.iterdir()]
    assert sorted(pid for pid in loads if pid != os.getpid()) == sorted(workers)  # here: a copy


def copies():
    """How many compiled copies this process holds."""
    from thesis_lib import compiled

    return sum(known.copy is not None for forms in compiled._known.values() for known in forms.values())


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a compiler")
def test_workers_compile_as_the_caller_decided(tmp_path, client):
    """Each makes a copy of its own; rows are those of eager passes but for rounding."""
    some = classifier()
    some = Classifier(some.network, layer=some.layer, batch=4)
    before = sum(client.run(copies).values())
    rows = run(tmp_path / "compiled", client, some.with_compile("always"), chunk=5)
    assert sum(client.run(copies).values()) == before + 2
    assert files.manifest(run_folder(tmp_path / "compiled"))["compiled"] is True
    plain = run(tmp_path / "eager", client, some.with_compile(False), chunk=5)
    assert files.manifest(run_folder(tmp_path / "eager"))["compiled"] is False
    order = ["id", "method"]
    a, b = (found.sort_values(order).set_index(order)["overall"] for found in (rows, plain))
    assert (a - b).abs().max() < 1e-4


def test_it_says_what_it_will_cost(tmp_path, client, capfd):
    run(tmp_path, client, progress=True, chunk=20)
    said = capfd.readouterr().err
    assert "a picture takes 46 forward passes" in said and "on 2 workers" in said


def test_workers_may_come_late(tmp_path):
    """As from a queue: longer than Dask would wait of itself for data to be sent."""
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, dashboard_address=None, processes=False
    ) as cluster:
        timer = threading.Timer(5, cluster.scale, [1])
        timer.start()
        with distributed.Client(cluster, timeout="0.5s") as client:
            assert run(tmp_path, client, chunk=20)["id"].nunique() == PICTURES


def test_errors_reach_the_caller(tmp_path, client, monkeypatch):
    def wrong(clf, images, classes):
        return images[:, 0, ::2]

    with pytest.raises(ValueError, match="maps must be"):
        evaluate(
            Slow(), classifier(), {"wrong": wrong}, tmp_path, engine="dask", scheduler=client,
            progress=False,
        )  # fmt: skip
    monkeypatch.setattr(key, "library", lambda methods: ["of another version", {}, None, None])
    with pytest.raises(RuntimeError, match="another version of thesis_lib"):
        run(tmp_path / "other", client)
