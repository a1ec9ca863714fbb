"""The configurations for the real datasets, run as they stand on tiny ones in the same layouts.

Only what size demands is changed: a list of few pictures, a small network, a coarser step.
"""

import json
from pathlib import Path

import papermill
import pytest
import trees
import yaml
from safetensors.torch import save_file

import thesis_lib as tl
from thesis_lib.data import subsets
from thesis_lib.data.models import NETWORKS, read_weights

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).resolve().parent.parent
SCENES = {"voc": trees.voc, "coco": trees.coco}
DATASETS = {"voc": "voc2007", "coco": "coco2014"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(config, ids, **smaller): the manifest of the run, and the text of the executed page."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all tests
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def execute(config, ids, **smaller):
        parameters = yaml.safe_load((ROOT / "configs" / config).read_text("utf-8"))
        assert Path(parameters["out"]) == Path("runs") and parameters["progress"]
        subsets.write(tmp_path / "few.csv", "Tiny", ids, len(ids), 0)
        places = {name: str(tmp_path / name) for name in ("data_root", "out")}
        parameters |= places | {"subset": str(tmp_path / "few.csv"), "device": "cpu"}
        parameters |= {"progress": False} | smaller  # the estimate of the time would take the longest
        page = execute_page(tmp_path, parameters)
        manifests = [json.loads(p.read_text()) for p in tmp_path.glob("out/*/manifest.json")]
        return manifests, text_of(page)

    return execute


def execute_page(tmp_path, parameters):
    return papermill.execute_notebook(
        ROOT / f"notebooks/{parameters['notebook']}.ipynb", tmp_path / "page.ipynb", parameters,
        kernel_name="python3", progress_bar=False, cwd=tmp_path,
    )  # fmt: skip


def outputs_for(dataset, network, tmp_path):
    """A file of an embedded network's weights whose outputs are called as the dataset's classes."""
    names = tl.open_dataset(dataset, tmp_path / "data_root").categories
    state, facts = read_weights(NETWORKS[network].weights)
    for key in list(NETWORKS[network].build().state_dict())[-2:]:
        state[key] = state[key].repeat(4, *[1] * (state[key].ndim - 1))[: len(names)].clone()
    path = tmp_path / f"{network}.safetensors"
    save_file(state, path, facts | {"categories": json.dumps(names)})
    return str(path)


def text_of(page):
    """All that a page displays."""
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    texts = [d.get("text/markdown", d.get("text/html", d.get("text/plain", ""))) for d in data]
    return "\n".join([*texts, *(output.get("text", "") for output in outputs)])


def test_table_3_2_on_ilsvrc2012(run, tmp_path):
    tree = trees.imagenet(tmp_path / "data_root", pictures=2, flat=True)
    bad, good = list(tree.skipped)[0], list(tree.classes)[1:4]
    (manifest,), text = run(
        "full-imagenet.yaml", [bad, *good], network="vgg19_cutouts", step=8 * 448, shown=[0],
        weights=outputs_for("imagenet", "vgg19_cutouts", tmp_path),
    )  # fmt: skip
    assert [name for name, _ in manifest["skipped"]] == [bad]
    assert manifest["settings"]["dataset"]["pictures"] == 4
    assert "3 pictures, 21 rows. 1 more could not be measured" in text
    assert "here (imagenet, vgg19_cutouts)" in text and "composed" not in text


@pytest.mark.parametrize("kind", ["", "-window", "-finetune"])
def test_the_two_of_a_kind_differ_in_names_only(kind):
    """So that it is enough to run one of them."""
    voc, coco = (
        yaml.safe_load((ROOT / f"configs/full-{name}{kind}.yaml").read_text("utf-8").replace(tree, "TREE"))
        for name, tree in (("voc", "voc2007"), ("coco", "coco2014"))
    )
    named = {
        "dataset",
        "test_dataset",
        "epochs",
        "batch",
    }  # VOC's trainval is COCO's train; more pictures, fewer epochs
    assert voc.keys() == coco.keys() and {k for k in voc if voc[k] != coco[k]} <= named


def test_table_3_3(run, tmp_path, name="voc"):
    tree = SCENES[name](tmp_path / "data_root", pictures=2)
    bad, (thin, _) = list(tree.skipped)[0], tree.empty[0]
    ids = [bad, tree.unlabelled[0], thin, *list(tree.classes)[:1]]
    weights = outputs_for(DATASETS[name], "vgg19_cutouts_scenes", tmp_path)
    manifests, text = run(f"full-{name}.yaml", ids, network="vgg19_cutouts_scenes", weights=weights)
    assert len(manifests) == 2  # the table and the gate
    for manifest in manifests:
        assert [name for name, _ in manifest["skipped"]] == [bad, tree.unlabelled[0], thin]
        assert manifest["rows"] == 3 * len(manifest["settings"]["methods"])
    assert "2 scenes make 3 rounds" in text and "composed" not in text


FEW_METHODS = {
    "convolutional": ["grad_cam"], "attentive": ["transformer_attribution"], "sess_sizes": [224, 288],
}  # fmt: skip


def test_table_3_2_in_windows(run, tmp_path):
    tree = trees.imagenet(tmp_path / "data_root", pictures=3, flat=True)
    bad, good = list(tree.skipped)[0], list(tree.classes)[:3]
    manifests, text = run(
        "full-imagenet-window.yaml", [bad, *good], network="vgg19_cutouts", transformer="vit_cutouts",
        weights=outputs_for("imagenet", "vgg19_cutouts", tmp_path),
        weights_transformer=outputs_for("imagenet", "vit_cutouts", tmp_path),
        step=16 * 448, checked=1, **FEW_METHODS,
    )  # fmt: skip
    assert len(manifests) == 2  # the network and the Transformer
    for manifest in manifests:
        assert [name for name, _ in manifest["skipped"]] == [bad] and manifest["rows"] == 3 * 4
    assert "vgg19_cutouts</strong>, imagenet" in text or "**vgg19_cutouts**, imagenet" in text


def test_table_3_3_in_windows(run, tmp_path, name="coco"):
    tree = SCENES[name](tmp_path / "data_root", pictures=2)
    bad, good = list(tree.skipped)[0], list(tree.classes)[:2]
    networks = {
        "network": "vgg19_cutouts_scenes", "transformer": "vit_cutouts_scenes",
        "weights": outputs_for(DATASETS[name], "vgg19_cutouts_scenes", tmp_path),
        "weights_transformer": outputs_for(DATASETS[name], "vit_cutouts_scenes", tmp_path),
    }  # fmt: skip
    manifests, text = run(f"full-{name}-window.yaml", [bad, *good], **networks, **FEW_METHODS)
    for manifest in manifests:
        assert [name for name, _ in manifest["skipped"]] == [bad] and manifest["rows"] > 0
    assert len(manifests) == 2 and "2 scenes make" in text


def test_fine_tuning(tmp_path, name="voc"):
    training, test = {"voc": ("trainval", "test"), "coco": ("train", "val")}[name]
    SCENES[name](tmp_path / "data", 6, training)
    SCENES[name](tmp_path / "data", 6, test, ugly=False)
    parameters = yaml.safe_load((ROOT / f"configs/full-{name}-finetune.yaml").read_text("utf-8"))
    parameters |= {"data_root": str(tmp_path / "data"), "device": "cpu", "network": "vgg19_cutouts"}
    parameters |= {"epochs": 1, "batch": 4, "size": 64, "bf16": False}
    parameters |= {"out": str(tmp_path / "tuned.safetensors"), "checkpoints": str(tmp_path / "states")}
    text = text_of(execute_page(tmp_path, parameters))
    assert (tmp_path / "tuned.safetensors").exists() and (tmp_path / "states/checkpoint.pt").exists()
    assert "mean average precision" in text and "training pictures left out: 0" not in text
