"""What is here, what is missing, and the next step: `python -m thesis_lib doctor`.

One line for each part, [OK] or [MISSING]. Nothing is downloaded and no picture is read, so it takes
seconds; a file that is there and damaged shows only when it is used. The real datasets are optional:
the exit status is 1 only where the embedded benchmark, its networks or a package is missing. A library that was
installed without its repository needs neither the benchmark nor what the book is made with.

What there should be stands elsewhere: packages in the metadata of this one, datasets in DATASETS,
networks in NETWORKS, fine-tuned ones in the configurations that make them.
"""

import argparse
import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from thesis_lib.data import DOWNLOADS, REPOSITORY, is_picture
from thesis_lib.data.registry import DATASETS, Dataset

Line = tuple[bool, str, str]  # whether it is there, what it is, the next step
INSTALL = 'make book, which sets up .venv, or pip install -e ".[book]"'
CHECKOUT = "git checkout -- data"
BOOK = (REPOSITORY / "notebooks").is_dir()  # whether the repository is here


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m thesis_lib doctor", description=__doc__)
    parser.add_argument(
        "--data-root", type=Path, nargs="+", action="extend", default=[],
        help="folders of datasets, as `root` of open_dataset is; beside data/downloads",
    )  # fmt: skip
    roots = parser.parse_args(arguments).data_root
    broken = 0
    for title, check, needed in [
        ("Packages", packages, True),
        ("Machine", machine, False),
        ("Packages for single purposes (optional)", extras, False),
        ("Embedded benchmark", embedded, BOOK),
        ("Real datasets (optional)", lambda: datasets(roots), False),
        ("Weights for them (optional)", weights, False),
    ]:
        print(f"\n{title}")
        for ok, text, step in _lines(check):
            print(f"[OK]      {text}" if ok else f"[MISSING] {text}\n          next: {step}")
            broken += needed and not ok
    fine = "The book can be made." if BOOK else "The library can be used."
    print(f"\n{'The embedded part is incomplete.' if broken else fine}")
    return 1 if broken else 0


def _lines(check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    try:
        yield from check()
    except Exception as error:  # half an environment is what this is for
        yield False, f"the rest cannot be checked ({type(error).__name__}: {error})", INSTALL


def packages() -> Iterator[Line]:
    """What is always needed, and where the repository is, what its book is made with."""
    yield True, f"Python {platform.python_version()}, {platform.platform()}", ""
    for extra, name, wanted in _requirements():
        if not extra or (BOOK and extra == "book"):
            yield *_installed(name, wanted), INSTALL


def extras() -> Iterator[Line]:
    for extra, name, wanted in _requirements():
        if extra and not (BOOK and extra == "book"):
            ok, text = _installed(name, wanted)
            step = f'pip install ".[{extra}]" in the repository, if you want it'
            yield ok, text if ok else f"{text}, one of the {extra} packages", step


def _requirements() -> list[tuple[str, str, str]]:
    """(extra or "", package, wanted versions such as ">=2.11") of all that this package declares."""
    found = []
    for line in requires("thesis-lib") or ():
        extra = "".join(re.findall(r"""extra *== *["']([^"']+)""", line))
        try:
            from packaging.requirements import Requirement

            asked = Requirement(line)
            name, wanted = asked.name, str(asked.specifier)
            if asked.marker and not asked.marker.evaluate({"extra": extra}):
                continue  # for other systems or other versions of Python
        except ImportError:  # any version will do then
            name, wanted = re.split(r"[^\w.-]", line)[0], ""
        found.append((extra, name, wanted))
    return found


def _installed(name: str, wanted: str = "") -> tuple[bool, str]:
    try:
        text = f"{name} {version(name)}"
    except PackageNotFoundError:
        return False, name
    try:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(wanted).contains(version(name), prereleases=True):
            return False, f"{text}, which is not {wanted}"
    except ImportError:
        pass
    if name in ("torch", "torchvision", "kornia"):  # those that break when versions disagree
        try:
            importlib.import_module(name)
        except Exception as error:
            return False, f"{text} cannot be imported: {type(error).__name__}: {error}"
    return True, text


def machine() -> Iterator[Line]:
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


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):  # not on every system
        return ""
    return f", {size:.0f} GB of memory"


def embedded() -> Iterator[Line]:
    if not BOOK:
        yield False, "pictures, networks and rows of the book", "clone the repository, if you want them"
        return
    for entry in DATASETS.values():
        if entry.embedded:
            ok, text, _ = _dataset(entry, [])
            yield ok, text, CHECKOUT
    from thesis_lib.data.models import NETWORKS, packaged

    for network in NETWORKS.values():
        if network.weights:
            yield *_safetensors(network.weights), CHECKOUT
        elif network.package:
            try:
                ok = bool(packaged(network))
            except ImportError:
                ok = False
            yield ok, f"{network.title}'s weights, in {network.package}", INSTALL


def datasets(roots: list[Path]) -> Iterator[Line]:
    for entry in DATASETS.values():
        if entry.size and not entry.embedded:
            yield _dataset(entry, roots)


def _dataset(entry: Dataset, roots: list[Path]) -> Line:
    """Of the first folder that has its pictures and the first of the files that go with them."""
    places, size = [*roots, entry.folder or DOWNLOADS], entry.size or 0
    wanted = [entry.pictures, *entry.needs[:1]]
    place = next((p for p in places if all(_there(p, part) for part in wanted)), None)
    if place is None:
        return False, entry.title, f"unpack it to {places[-1]} or give --data-root (data/README.md)"
    names = _pictures(place / entry.pictures)
    lacking = [part for part in entry.needs if not _there(place, part)]
    for part in entry.needs:
        if part.endswith(".txt") and part not in lacking:  # splits share a folder
            there = set(names)
            names = [name for name in (place / part).read_text().split() if name in there]
    found = len(names)
    where = "" if entry.embedded else f" at {place}"
    text = f"{entry.title}{where}: {found:,} of {size:,} pictures"
    step = entry.fault(place) if found and entry.fault else ""
    if not step and found > size:
        step = f"there are {found - size:,} pictures too many: are they of this dataset?"
    elif not step and found < size:
        step = f"unpack {entry.title} again: {size - found:,} pictures are not there"
    elif not step and lacking:
        step = f"unpack {entry.title} again: {lacking[0]} is not there"
    return not step, text, step


def _there(place: Path, part: str) -> bool:
    return any((place / either).exists() for either in part.split("|"))


def _pictures(folder: Path) -> list[str]:
    """Pictures in a folder and the folders in it: their names without their endings."""
    walk = os.walk(folder)
    return [Path(name).stem for _, _, names in walk for name in names if is_picture(name)]


def _safetensors(path: Path) -> tuple[bool, str]:
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


def weights() -> Iterator[Line]:
    """Of the networks that torchvision trained, and of those fine-tuned from them."""
    import torch
    from torchvision.models import get_model_weights

    from thesis_lib.data.models import NETWORKS

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    configs = sorted((REPOSITORY / "configs").glob("full-*-finetune.yaml"))
    for name, network in NETWORKS.items():
        if network.weights or network.package:
            continue
        file = get_model_weights(name).DEFAULT.url.rsplit("/", 1)[-1]
        step = f'load_classifier("{name}") once with a network connection, or copy {file} to {folder}'
        yield (folder / file).is_file(), f"torchvision's {name} for ImageNet, {folder / file}", step
        for config in configs:
            import yaml  # of the book's packages

            given = yaml.safe_load(config.read_text("utf-8"))
            out, checkpoints = (given[k].replace(given["network"], name) for k in ("out", "checkpoints"))
            step = f"papermill notebooks/{given['notebook']}.ipynb out.ipynb -f configs/{config.name}"
            if name != given["network"]:
                step += f" -p network {name} -p out {out} -p checkpoints {checkpoints}"
            yield *_safetensors(REPOSITORY / out), step


if __name__ == "__main__":
    raise SystemExit(main())
