"""What a reader of a page meets first."""

import nbformat
import pytest
from docutils import nodes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.application import Sphinx

from thesis_lib.pages.opening import join


def cell(source, *tags, text=""):
    outputs = [new_output("display_data", {"text/markdown": text})] if text else []
    return new_code_cell(source, metadata={"tags": ["hide-input", *tags]}, outputs=outputs)


CELLS = [
    new_markdown_cell("# Title\n\n**Question.** Which?\n\n**Answer.** This one.\n\nThis page follows."),
    cell("first = 1"),
    cell("second = 2", "parameters"),
    cell("verdict()", "opening", text="The verdict."),
    cell("third = 3"),
    new_markdown_cell("## Section"),
    cell("fourth = 4"),
    cell("show()", text="A table."),
    cell("draw()", "opening", text="A figure."),
    new_markdown_cell("The end."),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The tree of a small notebook's page."""
    folder = tmp_path_factory.mktemp("opening")
    (folder / "conf.py").write_text(
        "extensions = ['myst_nb', 'thesis_lib.pages.opening']\nnb_execution_mode = 'off'\n", "utf-8"
    )
    nbformat.write(new_notebook(cells=CELLS), folder / "index.ipynb")
    out = folder / "out"
    app = Sphinx(folder, folder, out, out, "html", status=None, warning=None)
    app.build()
    return app.env.get_doctree("index")


def blocks(section):
    """What stands in a section, in order: its text, and of a cell "code" and "output"."""
    found = []
    for node in section.children:
        if isinstance(node, nodes.paragraph):
            found.append(node.astext())
        for part in getattr(node, "children", []):
            kind = part.get("nb_element", "") if isinstance(part, nodes.container) else ""
            if kind == "cell_code_source":
                found.append("code: " + " ".join(child.astext() for child in part.children))
            elif kind == "cell_code_output":
                found.append("output")
    return found


def test_verdict_and_figure_stand_behind_the_answer_and_code_in_one_fold(page):
    first, second = list(page.findall(nodes.section))
    assert blocks(first) == [
        "Question. Which?",
        "Answer. This one.",
        "output",
        "output",
        "This page follows.",
        "code: first = 1 second = 2 verdict() third = 3",
    ]
    assert blocks(second) == ["code: fourth = 4 show()", "output", "code: draw()", "The end."]


def test_a_moved_output_and_its_code_know_each_other(page):
    named = [n for n in page.findall(nodes.container) if any(c.startswith("opening-") for c in n["classes"])]
    assert len(named) == 4
    for name in ("opening-0", "opening-1"):
        both = [n.children[0]["nb_element"] for n in named if name in n["classes"]]
        assert sorted(both) == ["cell_code_output", "cell_code_source"]


def test_cells_that_show_something_are_not_joined():
    def made(code, output):
        node = nodes.container("", hide_mode="input", classes=["cell"])
        node += nodes.container("", nodes.literal_block(code, code), nb_element="cell_code_source")
        if output:
            node += nodes.container("", nb_element="cell_code_output")
        return node

    section = nodes.section(
        "", made("a", True), made("b", False), nodes.paragraph("", "text"), made("c", True)
    )
    join(section)
    assert len(section.children) == 4
