"""What is recorded, in its order, and how: `make record`.

    python -m thesis_lib.runs.record             all that is missing, part by part
    python -m thesis_lib.runs.record sanity      the parts of that name

A part's rows go to `data/results/DATASET/NETWORK/TABLE.parquet`, with a JSON of provenance beside it. What is
there already is not measured again; what was interrupted goes on in `runs/`; several processes share
the work. Where the code behind a method has changed, a sample of its rows is measured again: if it agrees, they
are kept, and if not, recorded anew.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from thesis_lib.data import REPOSITORY, missing
from thesis_lib.data.match import match
from thesis_lib.data.models import load_classifier
from thesis_lib.data.registry import open_dataset
from thesis_lib.data.subsets import Subset
from thesis_lib.methods import METHODS, enhance, variants
from thesis_lib.metrics import METRICS
from thesis_lib.metrics.known import known_maps
from thesis_lib.metrics.measure import measure
from thesis_lib.metrics.sanity import sanity_layers
from thesis_lib.peers import METHODS as PEERS
from thesis_lib.peers import real_time
from thesis_lib.runs import files, key
from thesis_lib.runs.agree import disagreements, on_an_edge, shaken
from thesis_lib.runs.evaluate import evaluate
from thesis_lib.runs.job import say

RESULTS = REPOSITORY / "data" / "results"
RUNS = REPOSITORY / "runs"
BLOCK = 50  # pictures after which what was measured is written
SAMPLE = 2  # pictures that are measured again where code has changed


@dataclass(frozen=True)
class Part:
    """One table, or some methods of one.

    Args:
        name: what `make record PART=` calls it.
        dataset, network: names.
        methods: -> {label: method}.
        metrics: names in METRICS.
        table: the file's name.
        pictures: the first so many, or with a minus the last, of which no table makes use; 0 for all.
        step: pixels per point of the curves.
        chunk: pictures a shard; where a metric compares neighbours, they are those of a chunk.
    """

    name: str
    dataset: str
    network: str
    methods: Callable[[], dict[str, Callable]]
    metrics: tuple[str, ...]
    table: str
    pictures: int = 0
    step: int = 896
    chunk: int = 4

    def data(self) -> Any:
        """The part's pictures as a dataset."""
        return Subset(dataset := open_dataset(self.dataset), chosen(dataset.ids, self.pictures))

    @property
    def together(self) -> bool:
        """Whether a row depends on the other pictures of its chunk."""
        return any(METRICS[m].neighbours for m in self.metrics)

    @property
    def file(self) -> Path:
        return RESULTS / self.dataset / self.network / f"{self.table}.parquet"


def chosen(ids: list, count: int) -> list:
    """The first `count` ids; with a minus the last; 0 for all.

    >>> from thesis_lib.runs.record import chosen
    >>> chosen(["a", "b", "c"], 2), chosen(["a", "b", "c"], -1)
    (['a', 'b'], ['c'])
    """
    return list(ids)[count:] if count < 0 else list(ids)[: count or None]


# The plan


def _some(*names):
    return {name: METHODS[name] for name in names}


def _yardsticks():
    return _some("random", "centre")


def _bare(family):
    return _some(*METHODS.of(family))


def _game(family):
    """In scenes every size counts: the class that is asked for is often not the top one."""
    methods = _bare(family)
    gated = {f"{n} gate=prediction": methods[n] for n in ("cameras", "msg_cam") if n in methods}
    for name in ("cameras", "msg_cam"):
        if name in methods:
            methods[name] = partial(methods[name], gate="always")
    return methods | gated | _yardsticks()


def _occurrences():
    """Chapter 3's methods, and two of them enhanced, by both sums over windows."""
    enhanced = windows(["grad_cam", "msg_cam"], "always")
    return _game("convolutional") | {n: m for n, m in enhanced.items() if n.endswith(("enhanced", "mean"))}


WINDOW: dict[str, Any] = {"window": 160, "stride": 32, "cutoff": 28}
SESS_SIZES = [224, 288, 352, 416]
MSG_CAM = {"sizes": [224, 324], "groups": 8}  # inside windows and SESS, where all of it takes long
PHOTO_BASES = ["grad_cam", "grad_cam_plus_plus", "group_cam", "msg_cam"]  # XGrad-CAM is Grad-CAM on Lite0
CNN_BASES = ["grad_cam", "xgrad_cam", "msg_cam"]
VIT_BASES = ["transformer_attribution", "gradient_attention", "grad_cam"]


def windows(names: Sequence[str], gate: str = "prediction") -> dict[str, Callable]:
    """Chapter 4's methods: bare, enhanced by equation 4-8's sum and by the mean, under SESS."""
    settings = {"msg_cam": MSG_CAM | ({} if gate == "prediction" else {"gate": gate})}
    return variants(names, sess_sizes=SESS_SIZES, settings=settings, **WINDOW)


def sizes(count: int, step: int) -> list[int]:
    """Equation 3-2's sizes of a picture of 224 pixels."""
    return [224 + step * t for t in range(count)]


# Chapter 3's ablation: factor: {value: settings of msg_cam}; the first value is the default.
MSG_CAM_FACTORS: dict[str, dict[Any, dict]] = {
    "N": {count: {"sizes": sizes(count, 100)} for count in (8, 1, 2, 4, 6)},
    "step": {pixels: {"sizes": sizes(8, pixels)} for pixels in (100, 25, 50, 75)},
    "groups": {groups: {"groups": groups} for groups in (32, 1, 4, 8, 16, 64)},
    "theta": {theta: {"theta": theta} for theta in (70, 0, 30, 50, 90)},
    "score": {score: {"score": score} for score in ("logit", "probability")},
    "fuse": {masks: {"fuse": masks} for masks in ("denoised", "normalised")},
    "gate": {gate: {"gate": gate} for gate in ("prediction", "always")},
}
# Chapter 4's: factor: {value: settings of enhance}, likewise.
WINDOW_FACTORS: dict[str, dict[Any, dict]] = {
    "window": {side: {"window": side} for side in (160, 96, 128, 192)},
    "stride": {pixels: {"stride": pixels} for pixels in (32, 16, 64)},
    "cutoff": {cycles: {"cutoff": cycles} for cycles in (28, 7, 14, 56, None)},
    "lowpass": {kind: {"lowpass": kind} for kind in ("ideal", "gaussian")},
    "cover": {cover: {"cover": cover} for cover in ("sum", "mean")},
    "weight": {weight: {"weight": weight} for weight in ("probability", "logit")},
    "skip": {share: {"skip": share} for share in (0.0, 0.1, 0.5)},
}


def _changed(factors):
    """{"factor = value": settings} of all values but the first, which is the default."""
    return {
        f"{factor} = {value}": settings
        for factor, values in factors.items()
        for value, settings in list(values.items())[1:]
    }


def varied(method: Callable, factors: dict[str, dict[Any, dict]]) -> dict[str, Callable]:
    """{"default": method, "factor = value": the same with one setting changed}."""
    return {"default": method} | {label: partial(method, **s) for label, s in _changed(factors).items()}


def _msg_cam_ablation():
    return varied(METHODS["msg_cam"], MSG_CAM_FACTORS)


def window_ablation(base: str) -> dict[str, Callable]:
    """{"bare": the base, "default": enhanced, "factor = value": with one setting changed}.

    The enhancer is made by its settings, so that it is varied here and not by `varied`.
    """
    methods = {"bare": METHODS[base], "default": enhance(base, **WINDOW)}
    return methods | {label: enhance(base, **WINDOW | s) for label, s in _changed(WINDOW_FACTORS).items()}


def _readings():
    return {
        "group_cam": METHODS["group_cam"],
        "group_cam score=logit": partial(METHODS["group_cam"], score="logit"),
    }


def _vit_readings():
    attribution = METHODS["transformer_attribution"]
    return {
        "transformer_attribution": attribution,
        "transformer_attribution start_layer=1": partial(attribution, start_layer=1),
    }


SIGNED = ("integrated_gradients", "deeplift", "lrp")  # whose attributions have a sign, so two readings


def gallery(network: str = real_time.CLASSIFIER) -> dict[str, Callable]:
    """Chapter 1's methods on VGG: the seven, other libraries', and some with another setting.

    Without CAM, which asks for one linear layer behind global pooling; and, on a network other than the one whose
    masks were learnt, without real-time saliency.
    """
    without = {"cam"} if network == real_time.CLASSIFIER else {"cam", "real_time"}
    methods = _bare("convolutional") | {
        n: m for n, m in PEERS.items() if n not in without and m.family != "transformer"
    }
    methods["smoothgrad noise=0.02"] = partial(methods["smoothgrad"], noise=0.02)
    return methods | {f"{n} reading=positive": partial(methods[n], reading="positive") for n in SIGNED}


def vit_gallery() -> dict[str, Callable]:
    """The same on the Transformer: its own three, others' that read attention, and some of each family that need
    no convolution."""
    methods = _bare("transformer") | {n: m for n, m in PEERS.items() if m.family == "transformer"}
    return methods | {"grad_cam": METHODS["grad_cam"]} | {n: PEERS[n] for n in ("gradient", "occlusion")}


def relatives() -> dict[str, Callable]:
    """Class activation that the thesis does not name, most of it newer than its methods: {name: method}."""
    return {n: m for n, m in PEERS.items() if m.family == "class activation" and not m.thesis}


def _sanity(base):
    return {n: m for n, m in windows([base]).items() if n != base}


def _table_3_2():
    """Without Score-CAM, whose passes for a picture are as many as the layer has channels; it has a part of its own."""
    return {
        name: method for name, method in _bare("convolutional").items() if name != "score_cam"
    } | _yardsticks()


def _judged():
    """Maps of known quality, those that know nothing, and the seven."""
    return known_maps(ORDERED) | _yardsticks() | _bare("convolutional")


def _judged_vit():
    return known_maps(ORDERED) | _yardsticks() | _bare("transformer") | _some("grad_cam")


def _elsewhere():
    """What only a picture with several things has: the mask of another one."""
    return known_maps(["elsewhere"]) | _yardsticks()


ORDERED = ("moved", "blurred", "coarser")
CNN, VIT = "vgg19_cutouts", "vit_cutouts"
PHOTOGRAPHS, LITE0 = "photographs", "efficientnet_lite0"
CURVES, GAME = ("insertion_deletion",), ("pointing_game", "fineness")
BOTH = ("insertion_deletion", "fineness")
MEASURES = ("judged", "removals")
PLAN = [
    Part("photographs", PHOTOGRAPHS, LITE0, _table_3_2, CURVES, "insertion_deletion", 0, 448),
    Part("score_cam", PHOTOGRAPHS, LITE0, lambda: {"score_cam": METHODS["score_cam"]}, CURVES,
         "insertion_deletion", 250, 448),
    Part("relatives", PHOTOGRAPHS, LITE0, relatives, CURVES, "relatives", 400, 896),
    Part("borders", PHOTOGRAPHS, LITE0, lambda: _some("grad_cam", "centre"), ("sharp_borders",), "borders"),
    Part("borders", "cutouts", CNN, lambda: _some("grad_cam", "centre"), ("sharp_borders",), "borders"),
    Part("canvases", PHOTOGRAPHS, LITE0, lambda: _some("grad_cam", "group_cam"), ("canvases",), "canvases", 100,
         1792),
    Part("canvases", "cutouts", CNN, lambda: _some("grad_cam", "group_cam"), ("canvases",), "canvases", 100, 1792),
    Part("main", "cutouts", CNN, lambda: _bare("convolutional") | _yardsticks(), BOTH, "insertion_deletion"),
    Part("main", "cutouts", VIT, lambda: _bare("transformer") | {"grad_cam": METHODS["grad_cam"]} | _yardsticks(),
         BOTH, "insertion_deletion"),
    Part("scenes", "cutouts_scenes", f"{CNN}_scenes", lambda: _game("convolutional"), GAME, "pointing_game"),
    Part("occurrences", "cutouts_occurrences", f"{CNN}_scenes", _occurrences, ("occurrences", "fineness"),
         "occurrences"),
    Part("sanity", "cutouts", CNN, lambda: _bare("convolutional"), ("sanity",), "sanity", 16, chunk=2),
    Part("sanity", "cutouts", VIT, lambda: _bare("transformer"), ("sanity",), "sanity", 16, chunk=2),
    Part("windows", PHOTOGRAPHS, LITE0, lambda: windows(PHOTO_BASES), CURVES, "windows", 400, 896),
    Part("windows", "cutouts", CNN, lambda: windows(CNN_BASES), BOTH, "windows", 100, 1792),
    Part("windows", "cutouts", VIT, lambda: windows(VIT_BASES), BOTH, "windows", 100, 1792),
    Part("windows", "cutouts_scenes", f"{CNN}_scenes", lambda: windows(CNN_BASES[:2], "always"), GAME, "windows"),
    Part("windows", "cutouts_scenes", f"{VIT}_scenes", lambda: windows(VIT_BASES), GAME, "windows"),
    Part("windows", "cutouts", CNN, lambda: _sanity("grad_cam"), ("sanity",), "sanity", 16, chunk=2),
    Part("windows", "cutouts", VIT, lambda: _sanity("transformer_attribution"), ("sanity",), "sanity", 16, chunk=2),
    Part("gallery", "cutouts", CNN, gallery, BOTH, "gallery", 8, 3584),
    Part("gallery", "cutouts", VIT, vit_gallery, BOTH, "gallery", 8, 3584),
    Part("ablation_photographs", PHOTOGRAPHS, LITE0, lambda: window_ablation("grad_cam"), CURVES, "window_ablation",
         -100, 1792),
    Part("judges", "cutouts", CNN, _judged, ("judged",), "judged", 100, 448, chunk=2),
    Part("judges", "cutouts", CNN, _judged, ("removals",), "removals", 100, 448, chunk=2),
    Part("judges_networks", "cutouts_scenes", f"{CNN}_scenes", _elsewhere, MEASURES, "judged", 100, 448, chunk=2),
    Part("judges_networks", "cutouts", VIT, _judged_vit, MEASURES, "judged", 100, 448, chunk=2),
    Part("ablation", "cutouts", CNN, _msg_cam_ablation, CURVES, "ablation", -100, 1792),
    Part("ablation", "cutouts", CNN, lambda: window_ablation("grad_cam"), BOTH, "window_ablation", -100, 1792),
    Part("ablation", "cutouts", VIT, lambda: window_ablation("transformer_attribution"), BOTH, "window_ablation",
         -100, 1792),
    Part("ablation", "cutouts", CNN, _readings, CURVES, "readings", -100, 1792),
    Part("ablation", "cutouts", VIT, _vit_readings, CURVES, "readings", -100, 1792),
]  # fmt: skip


# Tables


def recorded(dataset: str, network: str, metric: str) -> pd.DataFrame:
    """Recorded rows, as `evaluate` returns them; what was measured how is in `.attrs["provenance"]`.

    Args:
        dataset, network: names; metric: the table's name, such as "insertion_deletion".

    Raises:
        FileNotFoundError: nothing is recorded under these names; it says what is.

    >>> rows = tl.recorded("cutouts", "vgg19_cutouts", "insertion_deletion")
    >>> sorted(rows["method"].unique())[:3]
    ['cameras', 'centre', 'grad_cam']
    """
    file = RESULTS / dataset / network / f"{metric}.parquet"
    if not file.exists():
        there = ", ".join(f"{d} {n} {t}" for d, n, t in tables())
        if not there:
            raise FileNotFoundError(missing("data/results, which holds the recorded rows,"))
        raise FileNotFoundError(f"no rows are recorded for {dataset} {network} {metric}; there are: {there}")
    rows = pq.read_table(file).to_pandas()
    rows.attrs["provenance"] = json.loads(file.with_suffix(".json").read_text("utf-8"))
    return rows


def tables() -> list[tuple[str, str, str]]:
    """(dataset, network, table) of all recorded tables."""
    return sorted((f.parts[-3], f.parts[-2], f.stem) for f in RESULTS.glob("*/*/*.parquet"))


def write(file: Path, rows: pd.DataFrame, provenance: dict) -> None:
    """A table and its provenance. Curves, most of its bytes, are for drawing: in hundredths; areas are kept as measured."""
    columns, curves = {}, []
    for name in rows:
        values = rows[name].tolist()
        if isinstance(values[0], (list, np.ndarray)):
            flags = np.asarray(values[0]).dtype.kind == "b"
            lists = [np.asarray(v) if flags else np.float16(np.round(v, 2)) for v in values]
            columns[name] = pa.array(lists, pa.list_(pa.bool_() if flags else pa.float16()))
            if not flags:
                curves.append(name)
        else:
            values = rows[name].astype(np.float32) if rows[name].dtype == np.float64 else rows[name]
            columns[name] = pa.Array.from_pandas(values)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Bytes of the same rank lie together, and are packed hard: two fifths less, and all rows are in the repository.
    packed: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 19,
        "use_byte_stream_split": [f"{name}.list.element" for name in curves],
        "use_dictionary": [name for name in columns if name not in curves],
    }
    files.replace(file, lambda path: pq.write_table(pa.table(columns), path, **packed))
    text = json.dumps(provenance, indent=1) + "\n"
    files.replace(file.with_suffix(".json"), lambda path: path.write_text(text, "utf-8"))


def without_code(described: Any) -> Any:
    """What `key.describe` says, less its digests of code: the settings."""
    if isinstance(described, list):
        return ["" if _is_digest(item) else without_code(item) for item in described]
    if isinstance(described, dict):
        return {name: "" if _is_digest(item) else without_code(item) for name, item in described.items()}
    return described


def _is_digest(item):
    """`key.describe` cuts digests of code to 16 digits, and those of values not."""
    return isinstance(item, str) and re.fullmatch("[0-9a-f]{16}", item) is not None


# Recording


def facts(part: Part, classifier: Any, methods: dict[str, Callable]) -> dict:
    """What a table's rows of each label depend on, besides the pictures."""
    described = key.describe_classifier(classifier)
    described.pop("device")
    described["modules"] = described["modules"][:16]  # code: another PyTorch's are checked, not recorded anew
    common = {
        "metrics": key.describe_metrics(part.metrics),
        "classifier": described,
        "step": part.step,
        "chunk": part.chunk if part.together else None,
        "loop": key.loop(),
    }
    return {label: common | {"method": key.describe(method)} for label, method in methods.items()}


def record(part: Part) -> None:
    """Measure what of a part is missing, `BLOCK` pictures at a time, each of which is written at once."""
    classifier, methods = load_classifier(part.network), part.methods()
    data = match(part.data(), classifier)
    now = facts(part, classifier, methods)
    layers = sanity_layers(classifier) if "sanity" in part.metrics else None
    rows, provenance = _table(part)
    missing: dict[tuple, dict[str, Callable]] = {}  # ids: methods that lack them
    for label, method in methods.items():
        known = provenance["methods"].get(label)
        there = set()
        if (
            known
            and known["facts"] != now[label]
            and without_code(known["facts"]) == without_code(now[label])
        ):
            if _agrees(part, data, classifier, label, method, rows):
                known |= {"facts": now[label], "layers": layers}
                write(part.file, rows, provenance)
                say(f"{part.file.stem}, {label}: the code has changed, the rows have not")
        if known and known["facts"] == now[label]:
            there = {*rows.loc[rows["method"] == label, "id"], *known["left_out"]}
        if lacking := tuple(i for i in data.ids if i not in there):
            missing.setdefault(tuple(data.ids) if part.together else lacking, {})[label] = method
    title = f"{part.name}: {part.dataset} {part.network} {part.table}"
    if not missing:
        say(f"{title}: recorded already")
    for ids, some in missing.items():
        say(f"{title}: {', '.join(some)}, {len(ids)} of {len(data)} pictures")
        block = len(ids) if part.together else BLOCK
        for start in range(0, len(ids), block):
            begin = time.monotonic()
            few = Subset(data, list(ids[start : start + block]))
            new = evaluate(
                few, classifier, some, RUNS, metrics=part.metrics, step=part.step, chunk=part.chunk
            )
            _add(part, data, new, {label: now[label] for label in some}, layers)
            minutes = (time.monotonic() - begin) / 60
            say(f"{title}: {min(start + block, len(ids))} of {len(ids)} pictures, {minutes:.1f} minutes")


def _add(part, data, new, now, layers):
    """Write new rows of some labels into the part's table, in place of those of the same pictures, if any,
    or of all, where they are of other settings or code."""
    manifest = files.manifest(Path(new.attrs["run"]))
    left_out = [name for name, _ in manifest["skipped"] + manifest["failed"]]
    rows, provenance = _table(part)  # another process may have written meanwhile
    order = list(dict.fromkeys([*rows["method"], *now]))
    grown = [k for k in now if provenance["methods"].get(k, {}).get("facts") == now[k]]
    replaced = rows["method"].isin(list(now))
    rows = rows[~replaced | rows["method"].isin(grown) & ~rows["id"].isin([*new["id"], *left_out])]
    rows = pd.concat([rows, new]) if len(rows) else new
    ranks = [
        rows["method"].map({label: k for k, label in enumerate(order)}),
        rows["id"].map({name: k for k, name in enumerate(data.ids)}),
    ]
    rows = rows.iloc[np.lexsort(ranks[::-1])].reset_index(drop=True)
    for label in now:
        known = provenance["methods"][label] if label in grown else {"left_out": [], "device": ""}
        devices = {*manifest["devices"], *filter(None, known["device"].split("; "))}
        provenance["methods"][label] = {
            "facts": now[label],
            "pictures": int(rows.loc[rows["method"] == label, "id"].nunique()),
            "left_out": sorted({*known["left_out"], *left_out}),
            "layers": layers,
            "command": f"make record PART={part.name}",
            "commit": manifest["commit"],
            "device": "; ".join(sorted(devices)),
            "versions": key.versions(),
            "date": datetime.date.today().isoformat(),
        }
    write(part.file, rows, provenance)


def _table(part):
    """The rows and the provenance that are there, or empty ones."""
    if part.file.exists():
        rows = recorded(part.dataset, part.network, part.table)
        return rows, rows.attrs.pop("provenance")
    empty = {"dataset": part.dataset, "network": part.network, "table": part.table, "methods": {}}
    return pd.DataFrame(columns=["method", "id"]), empty


def _agrees(part, data, classifier, label, method, rows):
    """Whether the rows of some pictures come out as they are recorded."""
    known = {*rows.loc[rows["method"] == label, "id"]}  # of a table that is not whole, not all of the data
    there = [i for i, name in enumerate(data.ids) if name in known]
    if not there:
        return False
    few = [data[there[k]] for k in np.linspace(0, len(there) - 1, SAMPLE).astype(int)]
    if part.together:
        few = [data[i] for i in range(min(part.chunk, len(data)))]
    old = rows[(rows["method"] == label) & rows["id"].isin([sample.id for sample in few])]

    def again(seed=None):
        some = [shaken(sample, seed) for sample in few]
        return measure(some, classifier, {label: method}, part.metrics, part.step)[0]

    new = again()
    wrong = disagreements(old, new, part.metrics)
    return not len(wrong) or on_an_edge(again, new, wrong, part.metrics)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thesis_lib.runs.record", description="Record rows.")
    names = list(dict.fromkeys(part.name for part in PLAN))
    parser.add_argument("parts", nargs="*", help=f"among {', '.join(names)}; without any, all")
    parser.add_argument(
        "--pack",
        metavar="FILE",
        help="at the end all of data/results in FILE.tar, to bring home from elsewhere",
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(names):
        parser.error(f"no part is called {', '.join(unknown)}: there are {', '.join(names)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ.pop("TQDM_DISABLE", None)
    for part in PLAN:
        if not given.parts or part.name in given.parts:
            record(part)
    if given.pack:
        say(f"packed: {shutil.make_archive(given.pack, 'tar', RESULTS)}")


if __name__ == "__main__":
    main()
