"""What is here, what is missing, and the next step: `python -m thesis_lib.pages.doctor`.

One line for each part, [OK] or [MISSING]. Nothing is downloaded and no picture is read, so it takes
seconds; a file that is there and damaged shows only when it is used. The real datasets are optional:
the exit status is 1 only where the embedded benchmark, its networks or a package is missing.
"""

import argparse
import importlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thesis_lib.data import DOWNLOADS, REPOSITORY, is_picture

PACKAGES = (
    "torch torchvision kornia safetensors numpy pandas pyarrow scipy scikit-image pycocotools "
    "matplotlib seaborn jupyterlab jupyter-book papermill nbval"
).split()
EXTRAS = {"timm": "networks named timm/...", "distributed": 'tl.evaluate(engine="dask")'}
INSTALL = "make book, which sets up .venv, or pip install -e ."

# name, pictures, folder under data/downloads, where the pictures are, what else must be there
DATASETS = [
    ("ILSVRC2012 validation", 50_000, "ILSVRC2012", "val", None),
    ("VOC2007 test", 4_952, "VOC2007", "VOCdevkit/VOC2007/JPEGImages",
     "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
    ("VOC2007 trainval", 5_011, "VOC2007", "VOCdevkit/VOC2007/JPEGImages",
     "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"),
    ("COCO 2014 validation", 40_504, "COCO2014", "val2014",
     "annotations/instances_val2014.json"),
    ("COCO 2014 training", 82_783, "COCO2014", "train2014",
     "annotations/instances_train2014.json"),
]  # fmt: skip


def main(arguments=None):
    """Print the report; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m thesis_lib.pages.doctor", description=__doc__)
    parser.add_argument(
        "--data-root", type=Path, nargs="+", action="extend", default=[],
        help="folders of datasets, as `root` of open_dataset is; beside data/downloads",
    )  # fmt: skip
    roots = parser.parse_args(arguments).data_root
    broken = 0
    for title, check, needed in [
        ("Packages", packages, True),
        ("Machine", machine, False),
        ("Embedded benchmark", embedded, True),
        ("Real datasets (optional)", lambda: datasets(roots), False),
        ("Weights for them (optional)", weights, False),
    ]:
        print(f"\n{title}")
        try:
            lines = list(check())
        except Exception as error:  # half an environment is what this is for
            lines = [(False, f"cannot be checked ({type(error).__name__}: {error})", INSTALL)]
        for ok, text, step in lines:
            print(f"[OK]      {text}" if ok else f"[MISSING] {text}\n          next: {step}")
        broken += needed and not all(ok for ok, _, _ in lines)
    print(f"\n{'The embedded part is incomplete.' if broken else 'The book can be made.'}")
    return 1 if broken else 0


def packages():
    """Each check yields (whether it is there, what it is, the next step)."""
    yield True, f"Python {platform.python_version()}, {platform.platform()}", ""
    for name in PACKAGES:
        yield *_installed(name), INSTALL


def _installed(name):
    try:
        text = f"{name} {version(name)}"
    except PackageNotFoundError:
        return False, name
    if name in ("torch", "torchvision", "kornia"):  # those that break when versions disagree
        try:
            importlib.import_module(name)
        except Exception as error:
            return False, f"{text} cannot be imported: {type(error).__name__}: {error}"
    return True, text


def machine():
    for name, use in EXTRAS.items():
        ok, text = _installed(name)
        yield ok, text if ok else f"{text}, for {use}", f"pip install {name}, if you want it"
    yield True, f"{os.cpu_count()} processor cores{_memory()}", ""
    free = shutil.disk_usage(REPOSITORY).free / 1e9
    yield free > 2, f"{free:.0f} GB of disk free", "free 2 GB for executed notebooks"
    import torch

    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(k)
            yield True, f"GPU {k}: {facts.name}, {facts.total_memory / 1e9:.0f} GB", ""
    else:
        step = "nothing for the embedded benchmark; a whole real dataset wants a GPU with CUDA"
        yield False, "a GPU that PyTorch can use", step


def _memory():
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):  # not on every system
        return ""
    return f", {size:.0f} GB of memory"


def embedded():
    step = "git checkout -- data"
    glyphs = REPOSITORY / "data/glyphs"
    for what, expected, folder, file in [
        ("single objects", 320, "ILSVRC2012/val", ""),
        ("scenes in VOC2007's layout", 256, "VOCdevkit/VOC2007/JPEGImages",
         "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
        ("scenes in COCO2014's layout", 128, "coco/val2014",
         "coco/annotations/instances_val2014.json"),
    ]:  # fmt: skip
        found = _count(glyphs / folder) if (glyphs / file).exists() else 0
        yield found == expected, f"{what}: {found} of {expected} pictures", step
    for name in ("vgg19_glyphs", "vgg19_glyphs_scenes", "vit_glyphs", "vit_glyphs_scenes"):
        yield *_safetensors(REPOSITORY / f"data/weights/{name}.safetensors"), step


def _safetensors(path):
    """Opening one checks its header and its length; no tensor is read."""
    inside = path.relative_to(REPOSITORY)
    if not path.is_file():
        return False, str(inside)
    try:
        from safetensors import safe_open

        with safe_open(path, "pt"):
            return True, str(inside)
    except Exception as error:
        return False, f"{inside}: {error}"


def datasets(roots):
    for name, expected, folder, pictures, file in DATASETS:
        places = [*roots, DOWNLOADS / folder]
        wanted = [pictures, file or pictures]
        place = next((p for p in places if all((p / part).exists() for part in wanted)), None)
        if place is None:
            yield False, name, f"unpack it to {places[-1]} or give --data-root (data/README.md)"
            continue
        if name.startswith("VOC2007"):  # the splits share a folder
            listed = (place / file).read_text().split()
            names = _names(place / pictures)
            found = sum(f"{line}.jpg" in names for line in listed)
        else:
            found = _count(place / pictures)
        step = f"unpack {name} again: {expected - found:,} pictures are not there"
        if found > expected:
            step = f"there are {found - expected:,} pictures too many: are they of this dataset?"
        ok = found == expected
        if ok and name.startswith("VOC2007") and not (place / "VOCdevkit/VOC2007/Annotations").is_dir():
            ok, step = False, f"unpack {name} again: VOCdevkit/VOC2007/Annotations is not there"
        if name.startswith("ILSVRC2012") and found and (problem := _without_classes(place)):
            ok, step = False, problem
        yield ok, f"{name} at {place}: {found:,} of {expected:,} pictures", step


def _names(folder):
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _count(folder):
    """Pictures by their names, in a folder and the folders in it."""
    return sum(is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _without_classes(place):
    """What to do about a tree of ILSVRC2012 whose pictures cannot be told apart, or nothing."""
    kit = place / "ILSVRC2012_devkit_t12/data"
    if all((kit / f).exists() for f in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")):
        return None
    with os.scandir(place / "val") as entries:
        folders = sum(entry.is_dir() and entry.name[0] != "." for entry in entries)
    if folders == 1000:
        return None
    return f"{folders:,} of 1,000 class folders: unpack ILSVRC2012_devkit_t12.tar.gz beside val/"


def weights():
    import torch
    from torchvision.models import VGG19_Weights, ViT_B_16_Weights

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for network, its in (("vgg19", VGG19_Weights), ("vit_b_16", ViT_B_16_Weights)):
        file = its.DEFAULT.url.rsplit("/", 1)[-1]
        step = f'load_classifier("{network}") once with a network connection, or copy {file} to {folder}'
        yield (folder / file).is_file(), f"torchvision's {network} for ImageNet, {folder / file}", step
        for data, year in (("voc", 2007), ("coco", 2014)):
            tuned = f"runs/{network}_{data}{year}"
            step = f"papermill notebooks/A_2_finetuning.ipynb out.ipynb -f configs/full-{data}-finetune.yaml"
            if network != "vgg19":
                step += f" -p network {network} -p out {tuned}.safetensors -p checkpoints {tuned}"
            yield *_safetensors(REPOSITORY / f"{tuned}.safetensors"), step


if __name__ == "__main__":
    raise SystemExit(main())
