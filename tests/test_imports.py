"""Imports in thesis_lib point downwards only, from a layer to the ones below it, and form no circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import thesis_lib

ROOT = Path(__file__).resolve().parent.parent
# Bottom to top. thesis_lib/__init__.py imports nothing until it is asked.
LAYERS = (
    "checks counts registry kernels compiled layers classifier data methods metrics peers runs training pages __main__ compare"
).split()
FRONT = {**thesis_lib._HOMES, **thesis_lib._MODULES}  # tl.NAME -> its module


def imported(path, root):
    """The files under `root` (the library's folder) that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            # `from thesis_lib.runs import key` names a file; `from thesis_lib.methods import METHODS` does not
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *parts = name.split(".")
            if top == "thesis_lib":
                if parts and not any((root / parts[0]).with_suffix(s).exists() for s in ("", ".py")):
                    parts = [*FRONT.get(parts[0], "").split("."), *parts[1:]]
                yield home(root, parts)


def home(root, parts):
    """The file in which a dotted name of the library is at home."""
    path = root.joinpath(*parts)
    while not (path.with_suffix(".py").exists() or (path / "__init__.py").exists()):
        path = path.parent
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def layer(path, root):
    return path.relative_to(root).with_suffix("").parts[0]


def faults(root):
    """Imports that point upwards, through the front, or in a circle; one line each."""
    graph = {path: set(imported(path, root)) for path in sorted(root.rglob("*.py"))}
    front = root / "__init__.py"
    found = []
    for path, targets in graph.items():
        name = path.relative_to(root).as_posix()
        if path != front and layer(path, root) not in LAYERS:
            found.append(f"{name}: no layer of this name is known")
            continue
        for target in sorted(targets - {path}):
            if target == front:
                found.append(f"{name} imports thesis_lib, the front of all")
            elif path != front and LAYERS.index(layer(target, root)) > LAYERS.index(layer(path, root)):
                found.append(f"{name} imports {target.relative_to(root).as_posix()}, which is above it")
    try:
        graphlib.TopologicalSorter({p: t - {p} for p, t in graph.items()}).prepare()
    except graphlib.CycleError as error:
        circle = [path.relative_to(root).as_posix() for path in error.args[1]]
        found.append("a circle: " + " > ".join(circle))
    return found


def test_imports_point_downwards_and_form_no_circle():
    assert not faults(ROOT / "thesis_lib")


def test_every_layer_is_there():
    there = {path.stem for path in (ROOT / "thesis_lib").iterdir()}
    assert set(LAYERS) - {"__main__", "layers"} <= there


TREE = {
    "__init__.py": "",
    "kernels.py": "import torch",
    "methods/__init__.py": "from thesis_lib.methods.cam import grad_cam",
    "methods/cam.py": "from thesis_lib.kernels import resize",
    "runs/__init__.py": "",
    "runs/key.py": "from thesis_lib.methods import METHODS",
    "runs/job.py": "import thesis_lib.kernels\nfrom thesis_lib.runs import key",
}


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"kernels.py": "from thesis_lib.methods.cam import f"}, "kernels.py imports methods/cam.py, which"),
        (
            {"kernels.py": "def f():\n    from thesis_lib import runs"},
            "kernels.py imports runs/__init__.py, wh",
        ),
        ({"kernels.py": "import thesis_lib.runs.job as j"}, "kernels.py imports runs/job.py, which is above"),
        (
            {"methods/cam.py": "from thesis_lib import evaluate"},
            "methods/cam.py imports runs/__init__.py, wh",
        ),
        ({"methods/cam.py": "import thesis_lib as tl"}, "methods/cam.py imports thesis_lib, the front"),
        ({"methods/cam.py": "from thesis_lib.methods import METHODS"}, "a circle"),
        ({"runs/key.py": "def f():\n    from thesis_lib.runs.job import g"}, "a circle: runs/"),
        ({"extra.py": ""}, "extra.py: no layer of this name"),
    ],
)
def test_each_fault_is_found(tmp_path, change, fault):
    for name, text in {**TREE, **change}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    found = faults(tmp_path)
    assert any(fault in line for line in found) if fault else not found, found
