"""The configurations for the real datasets, run as they are on tiny ones in the same layouts."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
import trees
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("full-*.yaml"))


def run(config, folder, **smaller):
    """Execute a configuration's notebook with papermill, as its first lines say; the executed
    notebook. `smaller`: what stands in the way of a test of seconds."""
    parameters = yaml.safe_load((ROOT / "configs" / config).read_text("utf-8"))
    parameters |= {"data_root": str(folder / "data"), "out": str(folder / "runs"), "device": "cpu"}
    path = folder / "out.ipynb"
    papermill.execute_notebook(
        ROOT / f"notebooks/{parameters['notebook']}.ipynb", path, parameters | smaller,
        kernel_name="python3", progress_bar=False, cwd=folder,
    )  # fmt: skip
    return nbformat.read(path, as_version=4)


def text_of(notebook):
    """All that the page displays, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    texts = [d.get("text/markdown", d.get("text/plain", "")) for d in data]
    return "\n".join([*texts, *(output.get("text", "") for output in outputs)])


def manifests(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/manifest.json"))]


def test_table_3_2_on_ilsvrc2012(tmp_path):
    tree = trees.imagenet(tmp_path / "data", pictures=2, flat=True)
    page = run("full-imagenet.yaml", tmp_path, network="vgg19_glyphs", step=16 * 448)
    (manifest,) = manifests(tmp_path)
    assert {name for name, _ in manifest["skipped"]} == set(tree.skipped)
    assert manifest["pictures"]["measured"] == len(tree.classes)
    text = text_of(page)
    assert f"{len(tree.classes)} pictures" in text and f"{len(tree.skipped)} more could not" in text
    assert "here (imagenet, vgg19_glyphs)" in text and "synthetic" not in text
