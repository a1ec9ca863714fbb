"""The benchmark runs from its first case to its last, on networks and pictures that cost nothing."""

import json
import sys
from pathlib import Path

import networks
import pandas as pd
import pytest
import torch

import thesis_lib as tl

for package in ("pytorch_grad_cam", "torchcam", "captum", "quantus"):
    pytest.importorskip(package, reason="needs the extra `bench`")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bench  # noqa: E402

pytestmark = pytest.mark.minutes


@pytest.fixture
def small(monkeypatch):
    """Small networks under the names of large ones; compiling is left out."""

    def network(self, name, bf16=None):
        if name == "vit_b_16":
            return tl.load_classifier("vit_cutouts")
        made = networks.random_network(networks.Plain, 0).requires_grad_(True)
        bf16 = self.bf16 if bf16 is None else bf16
        return tl.Classifier(made.to(torch.bfloat16 if bf16 else None), networks.Plain.layer)

    monkeypatch.setattr(bench.Bench, "network", network)
    monkeypatch.setattr(bench.Bench, "sizes", lambda self, first, *_: [(first[0], *(1 for _ in first[1:]))])
    monkeypatch.setattr(bench.Bench, "pictures", lambda self, n, size=224: networks.images(n, size, size))
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)


@pytest.mark.parametrize("key", bench.CASES)
def test_every_case_runs(small, monkeypatch, tmp_path, key):
    out = tmp_path / "speed.csv"
    arguments = ["bench.py", "--quick", "--rounds", "1", "--only", key, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    bench.main()
    rows = pd.read_csv(out)
    assert set(rows["case"]) == {key} and (rows["seconds"] > 0).all()
    assert (rows.groupby(["network", "passes"])["contestant"].first() == "bare passes").all()
    (run,) = json.loads(out.with_suffix(".json").read_text())
    assert run["cases"] == [key] and run["device"]


def test_disagreement_stops_it():
    with pytest.raises(SystemExit, match="results differ by 0.5"):
        bench.same(torch.zeros(2), torch.tensor([0.0, 0.5]), 0.1, "peer")
