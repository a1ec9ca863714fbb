"""What the library does with every classification network of torchvision and timm: `make sweep`.

    python scripts/sweep.py                               the networks that have no row yet
    python scripts/sweep.py --again swin_t timm/hiera     these anew, by network or by timm's module
    python scripts/sweep.py --again                       all of them anew

torchvision's are all taken, of timm's the smallest with classes of each of its modules; at the size of picture that each is
made for, with random weights, one after the other. A network gets a row in `data/sweep.csv`:

    outcome     "explained"; "refused", where `sentence` says what to do; "error", where the library broke
    layer, features, layout   what is explained: its name, K x h x w, how the network itself lays that out
    depth       percent of the network's modules that are done when the layer is
    difference  of Grad-CAM from one by plain back-propagation that does not use the library, at most
    place       where a change of the picture changes the features: "there", where it was made, "elsewhere", or
                "everywhere" alike, so that nothing can be told

A row of the installed version stays as it is, and each is written as soon as it is there: what was stopped goes on.
"""

import argparse
import gc
import math
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock, Timeout
from torch import Tensor, nn

import thesis_lib as tl
from thesis_lib.data.models import build
from thesis_lib.runs.files import replace

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "data" / "sweep.csv"
COLUMNS = (
    "network library version module parameters size outcome layer depth features layout difference place sentence"
).split()
LONGEST = 200  # characters of a sentence
PARTS = 4  # of the picture, down and across, that are changed one at a time
FAINT = 0.3  # of the logarithm: how much more the features of a part answer to it than to others, at least
CHANCE = 2  # of them may answer elsewhere, of random weights; cells in a wrong order move six or more


def versions() -> dict[str, str]:
    """Of the two libraries, without what names the build ("+cu132")."""
    return {name: version(name).split("+")[0] for name in ("torchvision", "timm")}


def modules() -> Iterator[tuple[str, str]]:
    """(library, module) of all that is looked at; of torchvision a module is one network."""
    for name in torchvision.models.list_models(module=torchvision.models):
        yield "torchvision", name
    for name in timm.list_modules():
        yield "timm", name


def network_of(library: str, module: str) -> tuple[str, int]:
    """The network that stands for a module, and its parameters: the smallest one, if any has classes one that has.

    They are counted without memory being taken for them.

    >>> network_of("torchvision", "squeezenet1_1")
    ('squeezenet1_1', 1235496)
    """
    names = [module] if library == "torchvision" else [f"timm/{n}" for n in timm.list_models(module=module)]
    found = []
    for name in names:
        try:
            with torch.device("meta"):
                network = build(name)
        except NotImplementedError:  # some compute their widths with tensors
            network = build(name)
        count = sum(p.numel() for p in network.parameters())
        found.append((getattr(network, "num_classes", 1) == 0, count, name))
    _, count, name = min(found)
    return name, count


def own_size(name: str, network: Any) -> int:
    """Side in pixels of the pictures that a network is made for."""
    if name.startswith("timm/"):
        return network.pretrained_cfg["input_size"][-1]
    # vit_h_14 is built for another size than that of its best weights.
    cropped = torchvision.models.get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]
    return getattr(network, "image_size", cropped)


def blobs(n: int, size: int) -> Tensor:
    """Smooth random images (n, 3, size, size) with some grain, about normalised; always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 7, 7, generator=generator)
    grain = torch.randn(n, 3, size, size, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic") * 1.5 + 0.3 * grain


def liven(network: nn.Module, images: Tensor) -> None:
    """In place: random weights behind which signals neither vanish nor explode.

    Untrained networks hold weights of zero (heads, the ends of residual branches), with which nothing depends on a layer.
    """
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif not name.endswith("bias") and parameter.abs().max() < 0.1:
            nn.init.ones_(parameter)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in norms:  # their statistics are those of these images
        module.momentum, module.training = 1, True
    with torch.no_grad():
        network(images)
    network.eval()


def literal_layout(shape: tuple[int, ...]) -> str:
    """How one square picture's features (1, ...) are laid out: whichever axes are a square are the picture's.

    >>> literal_layout((1, 512, 7, 7)), literal_layout((1, 7, 7, 512)), literal_layout((1, 197, 192))
    ('channels first', 'channels last', '1 + 14 x 14 tokens')
    """
    first, last = (shape[-2] == shape[-1], shape[1] == shape[2]) if len(shape) == 4 else (False, False)
    if first != last:
        return "channels first" if first else "channels last"
    if len(shape) == 3:
        side = math.isqrt(shape[1])
        return f"{shape[1] - side**2} + {side} x {side} tokens"
    raise AssertionError(f"features of the shape {shape} have no layout that is known here")


def literal_grad_cam(network: nn.Module, layer: str, image: Tensor, target: int) -> tuple[Tensor, str]:
    """Grad-CAM (H, W) of one image (1, 3, H, W), by plain back-propagation through all of the network, and the layout."""
    kept = []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)
        return output.clone()  # what is behind may work in place

    with network.get_submodule(layer).register_forward_hook(keep):
        network(image.clone().requires_grad_())[0, target].backward()
    (output,) = kept
    features, gradients, layout = output.detach()[0], output.grad[0], literal_layout(output.shape)
    if layout == "channels last":
        features, gradients = features.permute(2, 0, 1), gradients.permute(2, 0, 1)
    elif layout != "channels first":
        side = math.isqrt(len(features))
        features, gradients = (x[-(side**2) :].T.reshape(-1, side, side) for x in (features, gradients))
    total = sum(g.mean() * f for f, g in zip(features, gradients, strict=True)).clamp(min=0)
    total = F.interpolate(total[None, None], image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return (total - total.min()) / (total.max() - total.min()).clamp(min=1e-30), layout


def compared(clf: tl.Classifier, images: Tensor) -> tuple[float, str]:
    """Grad-CAM beside the literal one, of classes whose maps are not flat: greatest difference, and the layout."""
    order = clf.logits(images).argsort(1, descending=True)
    for rank in range(min(20, order.shape[1])):
        classes = order[:, rank]
        pairs = [
            literal_grad_cam(clf.network, clf.layer, images[i : i + 1], int(c)) for i, c in enumerate(classes)
        ]
        maps = torch.stack([m for m, _ in pairs])
        if (maps.amax((1, 2)) > 0).all():
            ours = tl.METHODS["grad_cam"](clf, images, classes)
            return float((ours - maps).abs().max()), pairs[0][1]
    raise AssertionError("the literal Grad-CAM of every class is flat")


def placed(clf: tl.Classifier, image: Tensor) -> tuple[str, str]:
    """Whether features lie where the picture does: "there", "elsewhere" or "everywhere", and a sentence.

    Each of 4 x 4 parts of the image (1, 3, H, W) is changed, one at a time. The features of that part, or of one beside
    it, should be those that answer most, beyond what they answer to the other changes.
    """
    side, parts = image.shape[-1], [divmod(i, PARTS) for i in range(PARTS**2)]
    changed = image.repeat(len(parts), 1, 1, 1)
    for one, part in zip(changed, parts, strict=True):
        rows, columns = (slice(round(k * side / PARTS), round((k + 1) * side / PARTS)) for k in part)
        one[:, rows, columns] = 1 - one[:, rows, columns]
    features = clf.features(torch.cat([image, changed]))[0]
    answers = (features[1:] - features[:1]).abs().sum(1, keepdim=True)
    answers = F.adaptive_avg_pool2d(answers, PARTS).flatten(1)  # (changed part, part that answers)
    answers = answers / answers.amax(1, keepdim=True).clamp(min=torch.finfo(answers.dtype).tiny)
    answers = answers.clamp(
        min=1e-3
    ).log()  # less is no answer: rounding, and what residual branches of 1e-6 add
    answers = answers - answers.mean(0)
    if answers.amax(1).min() < FAINT:
        return "everywhere", "a change of any part of the picture is felt in all features alike"
    most = [parts[i] for i in answers.argmax(1).tolist()]
    astray = sum(
        max(abs(a - b) for a, b in zip(*pair, strict=True)) > 1 for pair in zip(parts, most, strict=True)
    )
    if astray <= CHANCE:
        return "there", ""
    return "elsewhere", f"{astray} of {len(parts)} parts of the picture have their features elsewhere"


def depth(network: nn.Module, layer: str, image: Tensor) -> int:
    """Percent of the network's modules without parts that have run when the layer has; for one image (1, 3, H, W)."""
    done: list[bool] = []  # one for each: whether it came after the layer
    reached: list[bool] = []
    handles = [
        module.register_forward_hook(lambda *_: done.append(bool(reached)))
        for module in network.modules()
        if not list(module.children())
    ]
    handles.append(network.get_submodule(layer).register_forward_hook(lambda *_: reached.append(True)))
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return round(100 * done.count(False) / len(done))


def look(name: str) -> dict[str, Any]:
    """The columns of a row from `size` on that this machine finds for a network.

    >>> look("squeezenet1_1")["layer"]
    'features.12'
    """
    gc.collect()  # the network before this one, where it holds itself in a circle
    row: dict[str, Any] = {"outcome": "explained", "sentence": ""}
    try:
        clf = tl.load_classifier(name, weights="random", device="cpu")
        row |= {"size": own_size(name, clf.network), "layer": clf.layer}
        images = blobs(2, row["size"])
        # With stronger weights an untrained Transformer mixes everything; with those drawn, some others do.
        row["place"], row["sentence"] = placed(clf, images[:1])
        liven(clf.network, images)
        if row["place"] == "everywhere":
            row["place"], row["sentence"] = placed(clf, images[:1])
        row["depth"] = depth(clf.network, clf.layer, images[:1])
        row["features"] = "x".join(map(str, clf.features(images)[0].shape[1:]))
        row["difference"], row["layout"] = compared(clf, images)
    except ValueError as error:
        row |= {"outcome": "refused", "sentence": str(error)}
    except Exception as error:  # what nobody should see
        row |= {"outcome": "error", "sentence": f"{type(error).__name__}: {error}"}
    if len(row["sentence"]) > LONGEST or "\n" in row["sentence"]:  # no sentence
        row |= {"outcome": "error", "sentence": " ".join(row["sentence"].split())[:LONGEST]}
    return row


def read() -> pd.DataFrame:
    """The table, every value as text but `parameters` and `difference`; "" and NaN where there is none."""
    if not TABLE.exists():
        return pd.DataFrame(columns=COLUMNS)
    kinds = dict.fromkeys(COLUMNS, str) | {"parameters": int, "difference": float}
    return pd.read_csv(TABLE, dtype=kinds, keep_default_na=False, na_values={"difference": [""]})


def sweep(again: list[str] | None = None) -> None:
    """Look at each network that has no row of the installed version, and at those that are named.

    Args:
        again: networks or modules; an empty list for all.

    Raises:
        ValueError: no such network or module.
    """
    rows = {(row["library"], row["module"]): row for row in read().to_dict("records")}
    todo, installed = list(modules()), versions()
    names = {part for key, row in rows.items() for part in (key[1], row["network"])}
    if unknown := set(again or []) - names - {module for _, module in todo}:
        raise ValueError(f"no row and no module is called {', '.join(sorted(unknown))}; see {TABLE.name}")
    rows = {k: rows[k] for k in todo if k in rows and rows[k]["version"] == installed[k[0]]}
    for i, key in enumerate(todo, 1):
        library, module = key
        wanted = again is not None and (
            not again or module in again or rows.get(key, {}).get("network") in again
        )
        if key in rows and not wanted:
            continue
        start = time.monotonic()
        name, parameters = network_of(library, module)
        row = {"network": name, "library": library, "version": installed[library], "module": module}
        rows[key] = row | {"parameters": parameters} | look(name)
        table = pd.DataFrame([rows[k] for k in todo if k in rows], columns=COLUMNS)
        whole = ["size", "depth"]  # where a row has none, pandas would make floats of all
        table[whole] = table[whole].apply(pd.to_numeric).astype("Int64")
        replace(TABLE, lambda path: table.to_csv(path, index=False, float_format="%.1e"))  # noqa: B023
        print(
            f"{i}/{len(todo)} {name} ({parameters / 1e6:.1f} M, {time.monotonic() - start:.0f} s):",
            *(str(rows[key].get(c, "")) for c in COLUMNS[6:]),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", nargs="*", metavar="NAME", help="these anew; without a name all of them")
    (ROOT / "_build").mkdir(exist_ok=True)
    warnings.simplefilter("ignore")  # of libraries, about networks that nobody will use
    try:
        with FileLock(ROOT / "_build" / "sweep.lock", timeout=0):
            sweep(parser.parse_args().again)
    except Timeout:
        raise SystemExit("another sweep is running in this folder: wait until it is done") from None
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
