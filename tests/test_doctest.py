"""The examples in docstrings: each is run, and every function on the page of the library has one.

They begin after the lines of code that book/api.md shows, which are run here as they stand there.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

import thesis_lib as tl
from thesis_lib.pages.entries import named

ROOT = Path(__file__).resolve().parent.parent
API = (ROOT / "book/api.md").read_text("utf-8")
LOOSE = doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF
NEEDS_AN_EXTRA = {"thesis_lib.runs.cluster"}


def documented():
    """{name on the page: function or class}."""
    found, module = {}, ""
    kinds = "currentmodule|autofunction|autoclass|entries"
    for kind, name, short in re.findall(rf"^\.\. ({kinds}):: (\S+)$(\n   :short:)?", API, re.M):
        if kind == "currentmodule":
            module = name
            continue
        if kind == "entries":  # a registry; in short, a line each
            found |= {} if short else {f"{name}[{key!r}]": value for key, value in named(name).items()}
            continue
        full = name if name.startswith("thesis_lib.") else f"{module}.{name}"
        parent, _, last = full.rpartition(".")
        found[full] = getattr(importlib.import_module(parent), last)
    return found


def in_modules():
    """Public functions and classes of all modules, each where it is defined."""
    found = {}
    for info in pkgutil.walk_packages(tl.__path__, "thesis_lib."):
        if info.name in NEEDS_AN_EXTRA:
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == info.name
            if not name.startswith("_") and own and (inspect.isroutine(value) or inspect.isclass(value)):
                found[f"{info.name}.{name}"] = value
    return found


def examples_of(value, name, setup):
    """The doctests of a function, or of a class and its methods. (doctest's own search of a module
    passes over decorated functions.)"""
    module = importlib.import_module(inspect.unwrap(value).__module__)
    tests = doctest.DocTestFinder().find(value, name, False, globs=vars(module) | setup)
    return [test for test in tests if test.examples]


def lacking(names):
    """Those without an example that is run."""
    return [
        name
        for name, value in names.items()
        if not any(
            not example.options.get(doctest.SKIP)
            for test in examples_of(value, name, {})
            for example in test.examples
        )
    ]


@pytest.fixture(scope="module")
def setup():
    """What the page's own lines of code define."""
    matplotlib.use("Agg")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", API, re.S)), names)
    return names


@pytest.mark.parametrize("name", [n for n, v in in_modules().items() if examples_of(v, n, {})])
def test_examples(name, setup, capsys):
    with matplotlib.rc_context():
        for test in examples_of(in_modules()[name], name, setup):
            report = []
            result = doctest.DocTestRunner(optionflags=LOOSE).run(test, out=report.append)
            assert not result.failed, "".join(report)
    plt.close("all")


def test_every_documented_function_has_an_example():
    # What they hold is seen in the example of the function that returns them, or in every metric's file.
    without = {f"thesis_lib.metrics.{name}" for name in ("InsertionDeletion", "Rounds", "Metric", "Column")}
    assert set(lacking(documented())) == without


def test_the_page_lists_everything_public():
    """What `tl.` exports, every method, and the public functions of kernels, report and plots."""
    there = {id(inspect.unwrap(value)) for value in documented().values()}
    wanted = {f"tl.{name}": getattr(tl, name) for name in tl.__all__}
    # Other libraries' methods and the makers of interactive figures have pages of their own.
    elsewhere = {tl.peers, tl.explore}
    modules = [v for v in wanted.values() if inspect.ismodule(v) and v not in elsewhere]
    wanted = {name: v for name, v in wanted.items() if callable(v)}
    wanted |= {f"METHODS[{name!r}]": method for name, method in tl.METHODS.items()}
    assert len(modules) == 3
    for name, value in in_modules().items():
        if any(name.startswith(f"{module.__name__}.") for module in modules):
            wanted[name] = value
    wanted |= {name: v for name, v in vars(tl.metrics).items() if inspect.isroutine(v) or inspect.isclass(v)}
    assert not [name for name, value in wanted.items() if id(inspect.unwrap(value)) not in there]


def test_the_search_finds_what_is_missing():
    def bare():
        """No example."""

    def skipped():
        """>>> 1 + 1  # doctest: +SKIP
        3
        """

    def good():
        """>>> 1 + 1
        2
        """

    functions = {"bare": bare, "skipped": skipped, "good": good}
    assert lacking(functions) == ["bare", "skipped"]
