"""`.. entries:: thesis_lib.METHODS`: a registry on the page of the library, so that an entry needs no line there.

Methods appear with their docstrings; with the option `:short:`, and all else, in a line each. Of a package,
`.. entries:: thesis_lib.metrics`, it is the functions that its `__init__` imports.
"""

import importlib
import inspect
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def told(entry: Any) -> str:
    """What an entry says of itself, in a line of reStructuredText.

    >>> from thesis_lib.pages.entries import told
    >>> told(tl.METHODS["group_cam"])
    'Group-CAM. Zhang et al., arXiv 2103.13859, 2021'
    """
    if inspect.isroutine(entry):
        if hasattr(entry, "title"):
            return f"{entry.title}. {entry.source}"
        return (inspect.getdoc(entry) or "").split("\n\n")[0].replace("\n", " ")
    facts = [entry.title]
    if getattr(entry, "columns", None):
        direction = {1: ", more is better", -1: ", less is better", 0: ""}
        facts += [f"of the {entry.explains} class"]
        facts += [f"``{name}``{direction[column.better]}" for name, column in entry.columns.items()]
    if getattr(entry, "size", None):
        facts += [f"{entry.size:,} pictures"]
    return "; ".join(filter(None, [*facts, *(getattr(entry, k, "") for k in ("source", "licence"))]))


def named(name: str) -> dict[str, Any]:
    """A registry's entries, or the public functions of a package.

    >>> from thesis_lib.pages.entries import named
    >>> "grad_cam" in named("thesis_lib.METHODS"), "pointing_game" in named("thesis_lib.metrics")
    (True, True)
    """
    parent, _, last = name.rpartition(".")
    found = getattr(importlib.import_module(parent), last)
    if inspect.ismodule(found):
        found = {k: v for k, v in vars(found).items() if inspect.isroutine(v) and not k.startswith("_")}
    return dict(found)


class Entries(SphinxDirective):
    """The directive: the name of a registry, and whether in short."""

    required_arguments = 1
    option_spec = {"short": directives.flag}

    def run(self) -> list[Any]:
        lines = []
        for key, entry in named(self.arguments[0]).items():
            if inspect.isroutine(entry) and "short" not in self.options:
                lines += [f".. autofunction:: {entry.__module__}.{key}", ""]
            else:
                lines += [f"- ``{key}``: {told(entry)}"]
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), self.content_offset, node)
        return node.children


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("entries", Entries)
    return {"parallel_read_safe": True}
