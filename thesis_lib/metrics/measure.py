"""Rows of numbers for some pictures: every method's maps, and what the metrics say of them."""

from collections.abc import Callable, Iterable

import pandas as pd
import torch

from thesis_lib.classifier import Classifier
from thesis_lib.counts import counting
from thesis_lib.metrics.base import METRICS, Rounds


def measure(
    samples: list, classifier: Classifier, methods: dict[str, Callable], metrics: Iterable[str], step: int
) -> tuple[pd.DataFrame, list]:
    """One row per (picture, class, method), and [id, reason] of what is left out.

    samples: `Sample`s of one size. methods: name: function, or a map of the truth (`metrics.known`). metrics: names in
    METRICS; one of them that explains annotated classes, or those with a mask, decides for all. Every row has the columns id, class, method,
    probability (of the class on the intact picture), correct (the picture is labelled with it), those
    of the metrics, and what it cost, averaged over these pictures: passes (forward passes of the
    method), area (the same in passes of 224 x 224 pixels), spent (with what the metrics took).
    """
    images = classifier.normalise(torch.stack([sample.pixels for sample in samples]))
    images = classifier.prepare(images)
    probabilities = classifier.probabilities(images)
    predicted = probabilities.argmax(1)
    pairs, left_out = list(enumerate(predicted.tolist())), []
    explained = {METRICS[name].explains for name in metrics}
    if explained & {"annotated", "masked"}:
        pairs, left_out = _annotated(samples, exactly="masked" in explained)
    if not pairs:
        return pd.DataFrame(), left_out
    owners, classes = torch.tensor(pairs, device=images.device).unbind(1)
    rounds = Rounds(
        classifier, images[owners], classes, [samples[k] for k, _ in pairs], predicted[owners], step
    )
    common = {
        "id": [samples[k].id for k, _ in pairs],
        "class": [c for _, c in pairs],
        "method": "",
        "probability": probabilities[owners, classes].cpu().numpy(),
        "correct": [c in samples[k].classes for k, c in pairs],
    }
    tables = []
    for name, method in methods.items():
        columns = common | {"method": name}
        with counting() as spent:
            with counting() as own:
                of_truth = getattr(method, "of_truth", False)
                maps = method(rounds) if of_truth else method(classifier, rounds.images, classes)
            for metric in metrics:
                columns |= METRICS[metric].function(rounds, method, maps)
        unit = len(pairs) * 224 * 224
        columns |= {
            "passes": own["forward images"] / len(pairs),
            "area": own["forward pixels"] / unit,
            "spent": spent["forward pixels"] / unit,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True), left_out


def _annotated(samples, exactly=False):
    """Pairs (picture, class) that have boxes, or an exact mask, and [id, reason] of the others."""
    pairs, left_out = [], []
    for k, sample in enumerate(samples):
        masks = sample.pixel_masks if exactly else sample.masks
        if not masks:
            left_out.append([sample.id, "no class with an exact mask" if exactly else "no annotated class"])
        for c, mask in masks.items():
            if mask.any():
                pairs.append((k, c))
            else:
                what = "mask covers" if exactly else "boxes cover"
                left_out.append([sample.id, f"class {c}: its {what} no pixel"])
    return pairs, left_out
