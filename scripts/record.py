"""Measure all methods, bare and enhanced, on a real network and real photographs, and record it.

    python scripts/record.py squeezenet1_1 WEIGHTS PHOTOGRAPHS

Rows and manifests go to `data/results/NETWORK/`, from where the book shows them: neither the
photographs nor the weights may be passed on. Photographs that have their rows there are not measured
again, so a recording may take several days and machines, each with a manifest of its own. What one
start has measured is kept in `runs/`: interrupted, it goes on, and two of them share the work.
"""

import argparse
import copy
import json
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

import thesis_lib as tl
from thesis_lib.data.datasets import Folder
from thesis_lib.metrics import similarity
from thesis_lib.runs import files

ROOT = Path(__file__).resolve().parent.parent
SEVEN = [
    "grad_cam", "grad_cam_plus_plus", "xgrad_cam", "score_cam", "group_cam", "cameras", "msg_cam",
]  # fmt: skip
CHEAP = ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "group_cam"]  # in windows as well


def bare(names):
    return {name: tl.METHODS[name] for name in names}


def enhanced(names):
    return {f"{name} enhanced": tl.enhance(name) for name in names}


def insertion_deletion(classifier, data, out):
    """Curves for each photograph and method that have none yet, cheap methods first: in windows
    CAMERAS and MSG-CAM take ten times eight sizes, Score-CAM ten times 500 masks."""
    plan = [bare(SEVEN)]
    plan += [enhanced(names) for names in (CHEAP, ["cameras", "msg_cam"], ["score_cam"])]
    table, provenance = out / "insertion_deletion.csv", out / "insertion_deletion.json"
    rows = pd.read_csv(table, dtype={"id": str}) if table.exists() else pd.DataFrame(columns=["id", "method"])
    manifests = json.loads(provenance.read_text("utf-8")) if provenance.exists() else []
    for methods in plan:
        there = rows[rows["method"].isin(list(methods))].groupby("id")["method"].nunique()
        keep = [i for i, name in enumerate(data.ids) if there.get(name) != len(methods)]
        if not keep:
            continue
        left = copy.copy(data)
        left.ids, left.paths = [data.ids[i] for i in keep], [data.paths[i] for i in keep]
        new = tl.evaluate(left, classifier, methods, ROOT / "runs", step=1792, chunk=4)
        manifests.append(json.loads(Path(new.attrs["run"], "manifest.json").read_text("utf-8")))
        rows = pd.concat([rows, new.drop(columns=["insertion", "deletion", "correct"])])
        rows.to_csv(table, index=False, float_format="%.6g")
        provenance.write_text(json.dumps(manifests, indent=1) + "\n", "utf-8")


def sanity(classifier, data, out, pictures=6, every=12, seed=0):
    """Similarity of the first pictures' maps to those of the network with random convolutions."""
    methods = bare(SEVEN) | enhanced(CHEAP)
    images = classifier.normalise(torch.stack([data[i].pixels for i in range(pictures)]))
    classes = classifier.predict(images)

    def explain(clf):
        return {name: method(clf, images, classes) for name, method in methods.items()}

    intact, rows = explain(classifier), []
    compared = {("control", 0, "other picture"): {m: x.roll(1, 0) for m, x in intact.items()}}
    layers = [name for name, _ in tl.randomize(classifier, "cascading", seed)]
    tried = sorted({*range(0, len(layers), every), len(layers) - 1})
    with tqdm(total=2 * len(tried), unit="network") as bar:
        for mode in ("cascading", "independent"):
            for k, (layer, clf) in enumerate(tl.randomize(classifier, mode, seed)):
                if k in tried:
                    compared[mode, k + 1, layer] = explain(clf)
                    bar.update()
    for (mode, number, layer), maps in compared.items():
        for name, x in maps.items():
            spearman, ssim = similarity(intact[name], x)
            flat = (x.amax((1, 2)) == 0).tolist()
            for i, values in enumerate(zip(spearman, ssim, flat, strict=True)):
                rows.append((mode, number, layer, name, i, *values))
    columns = ["mode", "layers", "layer", "method", "picture", "spearman", "ssim", "flat"]
    rows = pd.DataFrame(rows, columns=columns)
    rows.to_csv(out / "sanity.csv", index=False, float_format="%.6g")
    facts = {
        "network": classifier.name,
        "pictures": list(data.ids[:pictures]),
        "methods": {name: files.describe(method) for name, method in methods.items()},
        "seed": seed,
        "device": files.name_of(classifier.device),
        "versions": files.versions(),
        "commit": files.commit(),
    }
    (out / "sanity.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="a name that load_classifier knows")
    parser.add_argument("weights", help="path of its weights")
    parser.add_argument("photographs", help="folder of pictures")
    parser.add_argument("--only", choices=["insertion_deletion", "sanity"])
    arguments = parser.parse_args()
    classifier = tl.load_classifier(arguments.network, arguments.weights)
    data = Folder(arguments.photographs)
    out = ROOT / "data/results" / arguments.network
    out.mkdir(parents=True, exist_ok=True)
    if arguments.only != "sanity":
        insertion_deletion(classifier, data, out)
    if arguments.only != "insertion_deletion":
        sanity(classifier, data, out)
