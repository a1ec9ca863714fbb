"""The recorded runs of data/results: do the rows agree with the manifests that came with them?"""

import json
from pathlib import Path

import networks
import numpy as np
import pandas as pd
import trees

import thesis_lib as tl
from thesis_lib.data.datasets import Folder

RESULTS = Path(__file__).resolve().parent.parent / "data/results"


def test_rows_of_the_real_network_agree_with_their_manifests():
    rows = pd.read_csv(RESULTS / "squeezenet1_1/insertion_deletion.csv")
    manifests = json.loads((RESULTS / "squeezenet1_1/insertion_deletion.json").read_text("utf-8"))
    assert not rows.duplicated(["id", "class", "method"]).any()
    expected = {}
    for manifest in manifests:
        assert manifest["finished"]
        # Of clean code. The tree of the last recording was dirty with its own first rows alone.
        code = manifest["settings"]["code"]
        assert code in {m["settings"]["code"] for m in manifests if len(m["commit"]) == 40}
        assert manifest["settings"]["classifier"]["name"] == "squeezenet1_1"
        for method in manifest["settings"]["methods"]:
            expected[method] = expected.get(method, 0) + manifest["pictures"]["measured"]
    assert rows["method"].value_counts().to_dict() == expected
    assert rows["id"].nunique() == 96
    difference = rows["insertion_auc"] - rows["deletion_auc"] - rows["overall"]
    assert difference.abs().max() < 1e-5
    assert rows[["insertion_auc", "deletion_auc", "probability"]].stack().between(0, 1).all()


def test_rows_of_the_sanity_check_are_complete():
    rows = pd.read_csv(RESULTS / "squeezenet1_1/sanity.csv")
    networks, methods = rows.groupby(["mode", "layers"]).ngroups, rows["method"].nunique()
    assert methods == 7 + 4 and len(rows) == networks * methods * rows["picture"].nunique()
    assert rows[["spearman", "ssim"]].stack().between(-1, 1).all()
    assert np.allclose(rows.loc[rows["flat"], "spearman"], 0)  # a flat map ranks nothing
    facts = json.loads((RESULTS / "squeezenet1_1/sanity.json").read_text("utf-8"))
    assert list(facts["methods"]) == list(rows["method"].unique()) and len(facts["commit"]) == 40
    assert len(facts["pictures"]) == rows["picture"].nunique()


def test_memory_stays_flat():
    rows = pd.read_csv(RESULTS / "memory.csv", comment="#")
    running = rows[(rows["pictures"] >= 1000)].iloc[:-1]
    assert running["pictures"].iloc[-1] == 50_000 - 500 or running["pictures"].iloc[-1] == 50_000
    assert running["megabytes"].max() < 1.05 * running["megabytes"].min()


def test_a_recording_measures_only_what_has_no_rows(tmp_path, monkeypatch):
    import record

    for k in range(3):
        trees.picture([(8, 12, 40, 44)], seed=k).save(tmp_path / f"photograph{k}.png")
    data = Folder(tmp_path, size=64)
    classifier = tl.Classifier(networks.Plain().eval(), name="plain")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "SEVEN", ["grad_cam", "group_cam"])
    monkeypatch.setattr(
        tl, "enhance", lambda name: tl.METHODS["grad_cam"]
    )  # windows of 160 pixels do not fit here
    record.insertion_deletion(classifier, data, tmp_path)
    table, provenance = tmp_path / "insertion_deletion.csv", tmp_path / "insertion_deletion.json"
    whole = pd.read_csv(table)
    assert whole["method"].value_counts().eq(3).all() and whole["method"].nunique() == 2 + 7
    assert len(json.loads(provenance.read_text())) == 4

    first = whole[~((whole["method"] == "score_cam enhanced") & (whole["id"] > "photograph0"))]
    first.to_csv(table, index=False)
    record.insertion_deletion(classifier, data, tmp_path)
    manifests = json.loads(provenance.read_text())
    assert [m["pictures"]["measured"] for m in manifests] == [3, 3, 3, 3, 2]
    pd.testing.assert_frame_equal(pd.read_csv(table), whole)
