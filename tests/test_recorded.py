"""The recorded runs of data/results: do the rows agree with the manifests that came with them?"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).resolve().parent.parent / "data/results"


def test_rows_of_the_real_network_agree_with_their_manifests():
    rows = pd.read_csv(RESULTS / "squeezenet1_1/insertion_deletion.csv")
    manifests = json.loads((RESULTS / "squeezenet1_1/insertion_deletion.json").read_text("utf-8"))
    assert not rows.duplicated(["id", "class", "method"]).any()
    expected = {}
    for manifest in manifests:
        assert manifest["finished"] and len(manifest["commit"]) == 40  # of a clean tree
        assert manifest["settings"]["classifier"]["name"] == "squeezenet1_1"
        for method in manifest["settings"]["methods"]:
            expected[method] = manifest["pictures"]["measured"]
    assert rows["method"].value_counts().to_dict() == expected
    assert rows["id"].nunique() == 96
    difference = rows["insertion_auc"] - rows["deletion_auc"] - rows["overall"]
    assert difference.abs().max() < 1e-5
    assert rows[["insertion_auc", "deletion_auc", "probability"]].stack().between(0, 1).all()


def test_rows_of_the_sanity_check_are_complete():
    rows = pd.read_csv(RESULTS / "squeezenet1_1/sanity.csv")
    networks, methods = rows.groupby(["mode", "layers"]).ngroups, rows["method"].nunique()
    assert methods == 7 and len(rows) == networks * methods * rows["picture"].nunique()
    assert rows[["spearman", "ssim"]].stack().between(-1, 1).all()
    assert np.allclose(rows.loc[rows["flat"], "spearman"], 0)  # a flat map ranks nothing


def test_memory_stays_flat():
    rows = pd.read_csv(RESULTS / "memory.csv", comment="#")
    running = rows[(rows["pictures"] >= 1000)].iloc[:-1]
    assert running["pictures"].iloc[-1] == 50_000 - 500 or running["pictures"].iloc[-1] == 50_000
    assert running["megabytes"].max() < 1.05 * running["megabytes"].min()
