"""Which method for this network: `tl.compare`, and `python -m thesis_lib compare`.

The rows are those of `measure`, the table and the tests those of `report`. Here stands only what is particular to a
comparison on a few pictures: what may be given as pictures, which methods fit, and the sentence.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from thesis_lib.classifier import Classifier
from thesis_lib.data.datasets import Folder, Sample
from thesis_lib.data.models import load_classifier
from thesis_lib.data.pictures import open_image
from thesis_lib.data.registry import DATASETS, open_dataset
from thesis_lib.methods import METHODS
from thesis_lib.methods.open_vit import open_vit
from thesis_lib.metrics import randomize, similarity
from thesis_lib.metrics.measure import measure
from thesis_lib.pages import report
from thesis_lib.runs.job import load

POINTS = 28  # of a curve, a quarter of the thesis's: 1,792 pixels a step at 224 x 224, 54 passes a map
CHUNK = 4  # pictures at once, which bounds the memory
MANY = 512  # channels: VGG19's, the thesis's own network; beyond them Score-CAM has to be asked for
DEAF = 0.9  # a rank correlation: maps that are so alike with a random last layer say little of the class
MARGIN = 0.01  # of over-all: methods within a point of one another are as good as one another


class Comparison(pd.DataFrame):
    """The rows of a comparison, one for each picture and method, and what they say.

    `.verdict` is a sentence, `.table` has a line for each method, `.left_out` the reason for each that has none,
    `.rows` is the same as a plain DataFrame. What is made of it, such as a part of its rows, is plain as well.
    """

    _metadata = ["verdict", "table", "left_out"]  # attributes, and no columns
    verdict: str
    table: pd.DataFrame
    left_out: dict[str, str]

    @property
    def rows(self) -> pd.DataFrame:
        return pd.DataFrame(self)


def compare(
    classifier: Any,
    pictures: Any,
    methods: str | Iterable[str | Callable] | dict[str, Callable] | None = None,
) -> Comparison:
    """Compare methods on a network and some pictures, and say which to use, or that the pictures cannot tell.

    Each map explains the class that the network predicts. Insertion and deletion go in coarse steps, 28 a curve (1,792
    pixels at 224 x 224), so that a map costs 54 passes to judge. Beside them stand the passes and seconds that a map
    takes, how many maps are flat, and the sanity check at the last layer: the rank correlation with the map of a
    network whose last layer is random (a map that explains the network changes). The unit is the picture: intervals
    are bootstraps over pictures, and the p of each pair of methods is corrected by Holm over all pairs, because
    which method is the best is read from the same pictures.

    Args:
        classifier: a Classifier, a name that `load_classifier` knows, or a network, of which a Classifier is made.
        pictures: the name of a dataset, a folder, a list of files, a dataset, or a batch (N, 3, H, W) in [0, 1].
            Files are resized to what the network takes.
        methods: names in METHODS, or functions (by name, in a dict, or as they are). None: the thesis's seven, or for
            a Vision Transformer its three. Score-CAM makes a pass for each channel: where there are more than
            512, it is left out unless it is named. A method that cannot explain the network is left out, and the verdict
            says so.

    Returns:
        a DataFrame with the columns of `tl.evaluate`, but for "correct", which asks for labels, and with seconds, flat
        and sanity (of the maps); with `.verdict`, `.table` and `.left_out`, see `Comparison`. A progress bar estimates the time, unless the
        environment variable TQDM_DISABLE is set.

    Raises:
        FileNotFoundError: nothing at a path, or no picture in a folder.
        KeyError: unknown method or network.
        TypeError: what is no network, no pictures or no method.
        ValueError: no picture, none that can be read, pictures of several sizes, or of one that the network refuses;
            a network without a layer to explain; no method that can explain it.

    >>> found = tl.compare(clf, sample.pixels[None], ["grad_cam", "group_cam"])
    >>> found[["method", "passes"]].values.tolist()
    [['grad_cam', 1.0], ['group_cam', 26.0]]
    >>> found.verdict[:38]
    'n = 1 cannot tell which method to use:'
    """
    functions = {} if methods is None else _functions(methods)
    dataset = _dataset(pictures)  # before the network, which may have to be downloaded
    ids = list(dataset.ids)
    clf = _classifier(classifier).with_compile(False)  # which a few pictures do not repay
    if dataset is not pictures and isinstance(dataset, (Folder, _Files)):
        dataset.size = side_of(clf)
    first = _first(dataset, ids)
    images = clf.normalise(first[None])
    clf.probabilities(images)  # whose error is the network's or the size's, and no method's
    left_out: dict[str, str] = {}
    if methods is None:
        functions = {name: METHODS[name] for name in METHODS.of(family_of(clf, images))}
        channels = clf.features(images)[0].shape[1]
        if "score_cam" in functions and channels > MANY:
            del functions["score_cam"]
            left_out["score_cam"] = (
                f"it makes {channels:,} passes a picture, one for each channel; name it to have it"
            )

    step = math.ceil(first[0].numel() / POINTS)
    random = _random(clf)
    tables: dict[str, list] = {name: [] for name in functions}
    skipped: list[list[str]] = []
    starts = [0, *range(1, len(ids), CHUNK)]  # a picture by itself, so that there is an estimate soon
    with tqdm(total=len(ids), unit="picture", disable=bool(os.environ.get("TQDM_DISABLE"))) as bar:
        for start, end in pairwise([*starts, len(ids)]):
            samples, unread = load(dataset, ids, range(start, end))
            skipped += unread
            _refuse_other_sizes(samples, first)
            for name in list(tables) if samples else []:
                try:
                    tables[name].append(_measured(clf, random, samples, name, functions[name], step))
                except ValueError as error:  # what a method says of a network that it cannot explain
                    left_out[name] = str(error)
                    del tables[name]
            bar.update(end - start)
    if not tables:
        said = dict.fromkeys(left_out.values())  # often the same of all
        raise ValueError(f"no method can explain {clf} on these pictures: {'; '.join(said)}")
    rows = pd.concat([part for parts in tables.values() for part in parts], ignore_index=True)
    compared, pairs = _compared(rows)
    found = Comparison(rows)
    found.table = _readable(rows, compared)
    found.left_out = left_out | dict(skipped)
    found.verdict = " ".join([_verdict(rows, compared, pairs), *_notes(rows, left_out, skipped)])
    return found


# What is given


def _classifier(given):
    if isinstance(given, str):
        return load_classifier(given)
    return given if hasattr(given, "logits") else Classifier(given)


def _functions(methods):
    """{name: function} of names and functions, in a list, a dict or alone."""
    if isinstance(methods, str) or callable(methods):
        methods = [methods]
    if not isinstance(methods, dict):
        called = [m if isinstance(m, str) else getattr(m, "__name__", str(m)) for m in methods]
        methods = dict(zip(called, methods, strict=True))
    found = {name: METHODS[m] if isinstance(m, str) else m for name, m in methods.items()}
    if not found:
        raise ValueError('there is no method to compare: give names, such as ["grad_cam", "msg_cam"]')
    for name, method in found.items():
        if not callable(method):
            raise TypeError(f"the method {name!r} is no function but {method!r}: give one, as tl.METHODS has")
    return found


class _Files:
    """Pictures by their paths."""

    size = 224

    def __init__(self, paths: Sequence[str | Path]):
        self.ids = list(dict.fromkeys(map(str, paths)))
        for path in self.ids:
            if not Path(path).is_file():
                raise FileNotFoundError(f"there is no picture at {path}")

    def __getitem__(self, i: int) -> Sample:
        return Sample(self.ids[i], open_image(self.ids[i], self.size))


class _Batch:
    """Pictures (N, 3, H, W) in [0, 1], called by their position."""

    def __init__(self, pixels: Tensor):
        if pixels.ndim != 4 or not len(pixels):
            shape = " x ".join(map(str, pixels.shape))
            raise ValueError(f"pictures are a batch (N, 3, H, W) in [0, 1] with one at least, not {shape}")
        self.ids, self.pixels = list(map(str, range(len(pixels)))), pixels

    def __getitem__(self, i: int) -> Sample:
        return Sample(self.ids[i], self.pixels[i])


def _dataset(pictures):
    """What has `ids`, and a Sample at each position."""
    if torch.is_tensor(pictures):
        return _Batch(pictures)
    if isinstance(pictures, str) and pictures in DATASETS:
        return open_dataset(pictures)
    if isinstance(pictures, (str, Path)):
        path = Path(pictures).expanduser()
        if path.is_dir():
            return Folder(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no folder {pictures}, and no dataset of this name; there are {', '.join(DATASETS)}"
            )
        return _Files([path])
    if hasattr(pictures, "ids"):
        if not len(pictures.ids):
            raise ValueError("there are no pictures: the dataset is empty")
        return pictures
    if isinstance(pictures, (list, tuple)) and all(isinstance(path, (str, Path)) for path in pictures):
        if not pictures:
            raise ValueError("there are no pictures: the list is empty")
        return _Files(pictures)
    raise TypeError(
        "pictures are the name of a dataset, a folder, a list of files, a dataset or a batch (N, 3, H, W) in [0, 1], "
        f"not {type(pictures).__name__}"
    )


def side_of(clf: Classifier) -> int:
    """The side of the pictures that a network is made for: what timm or torchvision says of it, else 224.

    >>> side_of(vit)
    224
    """
    said = (getattr(clf.network, "pretrained_cfg", None) or {}).get("input_size")
    return said[-1] if said else getattr(clf.network, "image_size", 224)


def family_of(clf: Classifier, images: Tensor) -> str:
    """Which family of methods explains a network: "transformer" where its attention can be opened.

    images: (N, 3, H, W), normalised.

    >>> family_of(clf, images), family_of(vit, images)
    ('convolutional', 'transformer')
    """
    try:
        open_vit(clf, images[:1])
    except ValueError:
        return "convolutional"
    return "transformer"


def _first(dataset, ids):
    """The pixels of the first picture that can be read."""
    for i in range(len(ids)):
        samples, skipped = load(dataset, ids, [i])
        if samples:
            return samples[0].pixels
    raise ValueError(f"none of {len(ids)} pictures can be read; the last: {skipped[0][1]}")


def _refuse_other_sizes(samples, first):
    for sample in samples:
        if sample.pixels.shape != first.shape:
            sizes = (" x ".join(map(str, pixels.shape[1:])) for pixels in (first, sample.pixels))
            raise ValueError(f"the pictures are of several sizes, {' and '.join(sizes)}: make them one")


# What is measured


def _random(clf):
    """The classifier with its last layer at random; None where no layer can be."""
    try:
        return next(randomize(clf, "independent", layers="all"))[1]
    except ValueError:
        return None


def _measured(clf, random, samples, name, method, step):
    """Rows of a method: those of `measure`, and what a map takes, whether it is flat, and its sanity."""
    kept = []

    def watched(clf, images, classes):
        begin = time.perf_counter()
        maps = method(clf, images, classes)
        flat = (maps.amax((1, 2)) == 0).cpu().numpy()  # waits for a GPU
        kept.append((images, classes, maps, flat, (time.perf_counter() - begin) / len(images)))
        return maps

    rows, _ = measure(samples, clf, {name: watched}, ["insertion_deletion"], step)
    ((images, classes, maps, flat, seconds),) = kept
    likeness = math.nan if random is None else similarity(maps, method(random, images, classes))[0]
    return rows.drop(columns="correct").assign(seconds=seconds, flat=flat, sanity=likeness)


# What is made of it


def _compared(rows):
    """`paired_table` of over-all with the best method as its reference, and how many pairs share the 5 %.

    Which is the best is read from the rows, so that p is corrected over all pairs, not over the best one's.
    """
    names = list(rows["method"].drop_duplicates())
    means, passes = (rows.groupby("method")[column].mean() for column in ("overall", "passes"))
    best = min(names, key=lambda name: (-round(means[name], 9), passes[name]))  # of equals the cheapest
    pairs = list(combinations(names, 2))
    p = report.holm([report.signed_rank(report.differences(rows, "overall", *pair)) for pair in pairs])
    table = report.paired_table(rows, "overall", best)
    for pair, value in zip(pairs, p, strict=True):
        if best in pair:
            table.loc[pair[pair[0] == best], "p"] = value
    return table, max(1, len(pairs))


def _verdict(rows, compared, pairs):
    """Which method to use, or that so many pictures cannot tell and how many could."""
    n, best = int(compared["n"].iloc[0]), compared.index[compared["difference"].isna()][0]
    others, passes = compared.drop(index=best), rows.groupby("method")["passes"].mean()
    lead = f"{_title(best)} has the highest over-all score, {_points(compared.loc[best])} %"
    if others.empty:
        return f"{_title(best)} alone was measured: n = {n}, over-all score {_points(compared.loc[best])} %."
    clear = report.is_clear(others)
    within = others[["difference_low", "difference_high"]].abs().max(axis=1) < MARGIN
    equal = list(others.index[~clear & within]) if n >= report.least_n(pairs) else []
    undecided = [name for name in others.index[~clear] if name not in equal]
    cheapest = _title(min([best, *equal, *undecided], key=lambda name: passes[name]))

    def nearest(names):
        row = others.loc[others.loc[names, "mean"].idxmax()]
        behind = _points(-row, "difference", "difference_high", "difference_low")
        return f"{_title(row.name)} is {behind} points behind (p = {row['p']:.2g}, Holm over {pairs} pairs)"

    if undecided:
        if n == 1:
            could = f"One picture has no interval, and {report.least_n(pairs)} are the fewest that could tell"
        else:
            differences = [report.differences(rows, "overall", name, best) for name in undecided]
            needed = max(report.needed(d, pairs, MARGIN) for d in differences)
            many = f"about {max(round(needed), n + 1):,}" if math.isfinite(needed) else "no number of"
            could = f"If differences and spread stay as they are, {many} pictures could tell"
        return (
            f"n = {n} cannot tell which method to use: {lead}, and is not clearly ahead of {_titles(undecided)}; "
            f"{nearest(undecided)}. {could}; until then {cheapest} is the cheapest of these."
        )
    behind = list(others.index[clear])
    text = f"Use {cheapest}: on n = {n} pictures {lead}"
    if equal:
        text += f", {_titles(equal)} within a point of it, and {cheapest} is the cheapest of these"
    if behind:
        text += f"; {_titles(behind)} {'is' if len(behind) == 1 else 'are'} clearly behind, {nearest(behind)}"
    return f"{text}."


def _notes(rows, left_out, skipped):
    """What else to know: maps that do not look at the last layer, and what is not in the table."""
    found = []
    likeness = rows.groupby("method", sort=False)["sanity"].mean()
    if deaf := list(likeness.index[likeness > DEAF]):
        found.append(
            f"With a random last layer the maps of {_titles(deaf)} stay as they are (mean rank correlation above "
            f"{DEAF}): they say little of the class."
        )
    found += [f"{_title(name)} is left out: {why}." for name, why in left_out.items()]
    if skipped:
        found.append(f"{len(skipped)} pictures could not be read, first {skipped[0][0]}: {skipped[0][1]}.")
    return found


def _readable(rows, compared):
    """A line for each method, as text."""
    by = rows.groupby("method")
    table = report.readable(compared).rename(
        columns={"mean [95 %]": "over-all, % [95 %]", "difference [95 %]": "to the best [95 %]"}
    )
    table = table.drop(columns="difference seen")
    for column, title, digits in (
        ("insertion_auc", "insertion, %", 1), ("deletion_auc", "deletion, %", 1), ("passes", "passes a map", 0),
        ("seconds", "seconds a map", 2),
    ):  # fmt: skip
        scale = 100 if column.endswith("auc") else 1
        middle = by[column].median() if column == "seconds" else by[column].mean()  # the first map warms up
        table[title] = [f"{scale * middle[name] + 0.0:,.{digits}f}" for name in table.index]
    table["flat maps"] = by["flat"].sum()
    table["random last layer [95 %]"] = [
        "" if rows.loc[rows["method"] == name, "sanity"].isna().any()
        else "{:.2f} [{:.2f}, {:.2f}]".format(*report.bootstrap_interval(rows.loc[rows["method"] == name, "sanity"]))
        for name in table.index
    ]  # fmt: skip
    return table.rename(index=_title)


def _points(row, mean="mean", low="low", high="high"):
    """A value of a row with its interval, in print: 41.2 [38.0, 44.1]."""
    middle, least, most = (f"{100 * row[column] + 0.0:.1f}" for column in (mean, low, high))
    return f"{middle} [{least}, {most}]"


def _title(name):
    return METHODS[name].title if name in METHODS else name


def _titles(names):
    return " and ".join(filter(None, [", ".join(map(_title, names[:-1])), _title(names[-1])]))
