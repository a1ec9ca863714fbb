"""Measure all methods, bare and enhanced, on a real network and real photographs, and record it.

    python scripts/record.py squeezenet1_1 WEIGHTS PHOTOGRAPHS

Rows and manifests go to `data/results/NETWORK/`, from where the book shows them: neither the
photographs nor the weights may be passed on. What is measured is kept in `runs/`, so a recording
that was interrupted goes on when it is started again, and two of them share the work.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

import thesis_lib as tl
from thesis_lib.data.datasets import Folder
from thesis_lib.experiments import similarity

ROOT = Path(__file__).resolve().parent.parent
SEVEN = [
    "grad_cam", "grad_cam_plus_plus", "xgrad_cam", "score_cam", "group_cam", "cameras", "msg_cam",
]  # fmt: skip


def insertion_deletion(classifier, data, out, some, few):
    """Curves for each photograph and method, cheap methods first. In windows CAMERAS and MSG-CAM,
    ten times eight sizes, on the first `some`, and Score-CAM, ten times 500 masks, on `few`."""

    def windows(*names):
        return {f"{name} enhanced": tl.enhance(name) for name in names}

    plan = [
        ({name: tl.METHODS[name] for name in SEVEN}, None),
        (windows("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "group_cam"), None),
        (windows("cameras", "msg_cam"), some),
        (windows("score_cam"), few),
    ]
    parts = [
        tl.evaluate(data, classifier, methods, ROOT / "runs", limit=limit, step=1792, chunk=4)
        for methods, limit in plan
    ]
    rows = pd.concat(parts, ignore_index=True).drop(columns=["insertion", "deletion", "correct"])
    rows.to_csv(out / "insertion_deletion.csv", index=False, float_format="%.6g")
    manifests = [json.loads(Path(p.attrs["run"], "manifest.json").read_text()) for p in parts]
    text = json.dumps(manifests, indent=1) + "\n"
    (out / "insertion_deletion.json").write_text(text, "utf-8")


def sanity(classifier, data, out, pictures=6, every=12, seed=0):
    """Similarity of the first pictures' maps to those of the network with random convolutions."""
    images = classifier.normalise(torch.stack([data[i].pixels for i in range(pictures)]))
    classes = classifier.predict(images)

    def explain(clf):
        return {name: tl.METHODS[name](clf, images, classes) for name in SEVEN}

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="a name that load_classifier knows")
    parser.add_argument("weights", help="path of its weights")
    parser.add_argument("photographs", help="folder of pictures")
    parser.add_argument("--some", type=int, default=24, help="pictures for CAMERAS, MSG-CAM in windows")
    parser.add_argument("--few", type=int, default=4, help="pictures for Score-CAM in windows")
    parser.add_argument("--only", choices=["insertion_deletion", "sanity"])
    arguments = parser.parse_args()
    classifier = tl.load_classifier(arguments.network, arguments.weights)
    data = Folder(arguments.photographs)
    out = ROOT / "data/results" / arguments.network
    out.mkdir(parents=True, exist_ok=True)
    if arguments.only != "sanity":
        insertion_deletion(classifier, data, out, arguments.some, arguments.few)
    if arguments.only != "insertion_deletion":
        sanity(classifier, data, out)
