"""Rows of numbers for some pictures: every method's maps, and what the metrics say of them."""

import numpy as np
import pandas as pd
import torch

from thesis_lib.experiments.fineness import boundary_distance, effective_resolution
from thesis_lib.experiments.insertion_deletion import insertion_deletion
from thesis_lib.experiments.pointing_game import energy_inside, grow, pointing_game

METRICS = ("insertion_deletion", "pointing_game", "fineness")


def measure(samples, classifier, methods, metrics, step):
    """One row per (picture, class, method), and [id, reason] of what is left out.

    samples: `thesis_lib.data.datasets.Sample`s of one size. methods: name: function. metrics, step
    and the columns: as `thesis_lib.evaluate`. Explained is the predicted class; with
    "pointing_game" each class that the picture has boxes for.
    """
    images = classifier.normalise(torch.stack([sample.pixels for sample in samples]))
    images = classifier.prepare(images)
    probabilities = classifier.probabilities(images)
    predicted = probabilities.argmax(1).tolist()
    pairs, left_out = list(enumerate(predicted)), []
    if "pointing_game" in metrics:
        pairs, left_out = _annotated(samples)
    if not pairs:
        return pd.DataFrame(), left_out
    owners, classes = torch.tensor(pairs, device=images.device).unbind(1)
    images = images[owners]
    common = {
        "id": [samples[k].id for k, _ in pairs],
        "class": [c for _, c in pairs],
        "method": "",
        "probability": _numpy(probabilities[owners, classes]),
        "correct": [c in samples[k].classes for k, c in pairs],
    }
    if "pointing_game" in metrics:
        masks = torch.stack([samples[k].masks[c] for k, c in pairs])
        common |= {
            "first_choice": [c == predicted[k] for k, c in pairs],
            "boxes": _numpy(masks.float().mean((1, 2))),
            "near_boxes": _numpy(grow(masks, 15).float().mean((1, 2))),
        }
    tables = []
    for name, method in methods.items():
        maps = method(classifier, images, classes)
        columns = common | {"method": name}
        if "insertion_deletion" in metrics:
            result = insertion_deletion(classifier, images, maps, classes, step)
            for key in ("insertion", "deletion"):
                columns[key] = list(_numpy(getattr(result, key)))
            for key in ("insertion_auc", "deletion_auc", "overall", "tied"):
                columns[key] = _numpy(getattr(result, key))
        if "pointing_game" in metrics:
            hits, misses = pointing_game(maps, masks)
            columns |= {"hits": _numpy(hits), "misses": _numpy(misses)}
            columns["argmax_hit"] = _numpy(pointing_game(maps, masks, points=1, tolerance=15)[0])
            columns["energy"] = _numpy(energy_inside(maps, masks))
        pixel_masks = [samples[k].pixel_masks.get(c) for k, c in pairs]
        if {"pointing_game", "fineness"} & set(metrics):
            columns["pixel_energy"] = _with_masks(energy_inside, maps, pixel_masks)
        if "fineness" in metrics:
            columns["boundary_distance"] = _with_masks(boundary_distance, maps, pixel_masks)
            columns["effective_resolution"] = effective_resolution(maps)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True), left_out


def _annotated(samples):
    """Pairs (picture, class) that have a mask, and [id, reason] of the others."""
    pairs, left_out = [], []
    for k, sample in enumerate(samples):
        if not sample.masks:
            left_out.append([sample.id, "no annotated class"])
        for c, mask in sample.masks.items():
            if mask.any():
                pairs.append((k, c))
            else:
                left_out.append([sample.id, f"class {c}: its boxes cover no pixel"])
    return pairs, left_out


def _with_masks(measure, maps, masks):
    """measure(maps, masks), NaN where there is no mask."""
    known = [i for i, mask in enumerate(masks) if mask is not None and mask.any()]
    values = np.full(len(masks), np.nan)
    if known:
        values[known] = measure(maps[known].cpu(), torch.stack([masks[i] for i in known]))
    return values


def _numpy(tensor):
    return tensor.cpu().numpy()
