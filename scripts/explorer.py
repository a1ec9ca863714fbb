"""The photographs of page 00_explore: twelve, with all methods' maps and curves, a file each.

    python scripts/explorer.py            # writes what is missing of book/_static/explore/
    python scripts/explorer.py --anew     # all of them

`explore.dozen` chooses the photographs, from recorded rows. Scores and curves are the rows'; the maps are made here
(half a minute a photograph, nearly all of it Score-CAM's). The window enhancer has no rows on photographs: its curves
are measured here.
"""

import argparse
import base64
from pathlib import Path

import torch
from tqdm import tqdm

import thesis_lib as tl
from thesis_lib import explore, kernels
from thesis_lib.pages.plots import class_name

DATASET, NETWORK, STEP = "photographs", "efficientnet_lite0", 448
ENHANCED = {f"grad_cam enhanced, {cover}": tl.enhance("grad_cam", cover=cover) for cover in ("sum", "mean")}


def rows_of_all():
    """The recorded rows of the seven methods."""
    rows = tl.recorded(DATASET, NETWORK, "insertion_deletion")
    return rows[rows["method"].isin(tl.METHODS.convolutional)]


def picture(data, classifier, rows, name):
    """What the page shows of one photograph."""
    k = list(data.ids).index(name)
    images = classifier.normalise(data[k].pixels[None].to(classifier.device))
    c = int(classifier.predict(images))
    maps, curves = {}, {}
    for label in tl.METHODS.convolutional:
        maps[label] = tl.METHODS[label](classifier, images, c)
        curves[label] = rows.set_index(["id", "method"]).loc[name, label]
    for label, method in ENHANCED.items():
        maps[label] = method(classifier, images, c)
        found = tl.insertion_deletion(classifier, images, maps[label], c, STEP)._asdict()
        curves[label] = {column: found[column][0] for column in found if found[column].shape[:1] == (1,)}
    # In steps: at point t, those below t are replaced.
    ranks = {
        label: (kernels.rank_pixels(maps[label]) // STEP).view(maps[label].shape)[0].cpu() for label in maps
    }
    blurred = classifier.denormalise(kernels.blur(images))[0].clamp(0, 1).cpu()
    side = images.shape[-1] * images.shape[-2]
    return {
        "category": class_name(classifier.categories[c]),
        "truth": data.rows[k]["name"],
        "probability": round(float(classifier.probabilities(images)[0, c]), 3),
        "author": data.rows[k]["author"],
        "picture": "data:image/jpeg;base64," + base64.b64encode(Path(data.paths[k]).read_bytes()).decode(),
        "blurred": explore.photograph(blurred),
        "fractions": [round(min(STEP * t, side) / side, 4) for t in range(len(curves["grad_cam"]["insertion"]))],
        "methods": {
            label: {
                "steps": explore.steps(saliency[0].cpu(), ranks[label]),
                "ranks": explore.grey(ranks[label].to(torch.uint8)),
                "insertion": [round(float(p), 3) for p in curves[label]["insertion"]],
                "deletion": [round(float(p), 3) for p in curves[label]["deletion"]],
                **{s: round(float(curves[label][s]), 4) for s in tl.METRICS["insertion_deletion"].better},
            }
            for label, saliency in maps.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files of page 00_explore.")
    parser.add_argument("--anew", action="store_true", help="also those that are there")
    anew = parser.parse_args().anew
    rows = rows_of_all()
    data, classifier = tl.open_dataset(DATASET), tl.load_classifier(NETWORK, device="cpu")
    wanted = explore.dozen(rows)
    for file in explore.FOLDER.glob("*.js"):
        if anew or file.stem not in wanted:
            file.unlink()
    for name in tqdm([name for name in wanted if not (explore.FOLDER / f"{name}.js").exists()]):
        explore.save(name, picture(data, classifier, rows, name))


if __name__ == "__main__":
    main()
