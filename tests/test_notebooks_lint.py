"""Rules that every notebook keeps, looked up in the files: nothing is executed here.

`problems` lists what is wrong with one notebook. Each of its rules is seen to fail below.
"""

import ast
import copy
import json
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml
from test_setup import machine_paths

import book
from thesis_lib.pages import explore

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}


def data_of(cell):
    return [output["data"] for output in cell.outputs if "data" in output]


def images_of(cell):
    return [data for data in data_of(cell) if IMAGES & data.keys()]


def explored(cell):
    """Its interactive figures (thesis_lib.pages.explore), as HTML."""
    return [data["text/html"] for data in data_of(cell) if "data-explore=" in data.get("text/html", "")]


def shown_text(output):
    """What nbval compares of an output."""
    if output.output_type == "stream":
        return output.text
    return "".join(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html"))


def is_check(cell):
    return cell.source.startswith("# NBVAL_CHECK_OUTPUT")


def headings(notebook):
    """Level-one headings, outside code blocks, with the number of their cell."""
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"^(```|:::|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
            yield from ((i, line) for line in text.splitlines() if re.match(r"# \S", line))


def figure_names(notebook):
    return [
        cell.metadata["mystnb"]["figure"]["name"]
        for cell in book.code_cells(notebook)
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
    ]


def parameter_problems(cell):
    """papermill documents what is written so: `images: int = 64  # how many pictures`."""
    lines = cell.source.splitlines()
    for node in ast.parse(cell.source).body:
        if not isinstance(node, ast.AnnAssign) or node.value is None:
            yield f"parameters: line {node.lineno} is not `name: type = default  # what`"
        elif "#" not in lines[node.end_lineno - 1][node.end_col_offset :]:
            yield f"parameters: {ast.unparse(node.target)} lacks its comment"


def problems(notebook, size=0):
    """Everything that is wrong with a notebook, one line each."""
    code = book.code_cells(notebook)
    outputs = [output for cell in code for output in cell.outputs]
    found = []

    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel must be python3")
    ids = [cell.get("id") for cell in notebook.cells]
    if notebook.nbformat_minor < 5 or None in ids or len(set(ids)) != len(ids):
        found.append("cell ids must be there and differ (notebook format 4.5)")
    if size > LARGEST:
        found.append(f"{size / 1e6:.2f} MB: at most {LARGEST / 1e6:.0f} MB, so fewer or smaller figures")

    h1 = list(headings(notebook))
    if [i for i, _ in h1] != [0]:
        found.append(f"one level-one heading is needed, in the first cell; found {h1}")

    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for formula in re.findall(r"\$\$(.*?)\$\$", text, re.S):
        if "\\\\" in formula and "\\tag" in formula:  # Sphinx sets it in `split`, which has no tag
            found.append(r"formula with \\ and \tag: put it in \begin{equation}, not in $$")

    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("code cells must have been executed once, in order: make notebooks")
    if any(output.output_type == "error" for output in outputs):
        found.append("an error is stored")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("text on stderr is stored")
    if any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs):
        found.append("a widget is stored; it would need scripts from another host")
    if re.search(
        r"<(script|iframe|object|embed)\b|(src|href)=[\"']https?:[^>]*\.(js|css|png|svg)|url\(https?:",
        "".join(data.get("text/html", "") for cell in code for data in data_of(cell)),
    ):
        found.append("an HTML output holds or loads a script, style or picture from elsewhere")
    if paths := machine_paths(json.dumps(notebook)):
        found.append(f"paths of one machine: {paths[:3]}")
    if any(re.search(r"^\s*([!]|%(pip|conda|mamba|uv)\b)", cell.source, re.M) for cell in code):
        found.append("shell commands and installations do not belong into a notebook")

    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in code):
        found.append("papermill's cell of other parameters is stored")
    if code and len(tagged) != 1:
        found.append("one code cell must be tagged `parameters`")
    for cell in tagged:
        found += parameter_problems(cell)

    checks = [cell for cell in code if is_check(cell)]
    if code and not 2 <= len(checks) <= 4:
        found.append(f"two to four cells must begin with # NBVAL_CHECK_OUTPUT; found {len(checks)}")
    for cell in checks:
        # nbval never compares a cell that was not executed, or the pixels of a picture.
        if not any(shown_text(output).strip() for output in cell.outputs) or images_of(cell):
            found.append(f"check cell {cell.id}: it must print text, and text only")
    for cell in code:
        if not is_check(cell) and "NBVAL_" in cell.source:
            found.append(f"cell {cell.id}: an nbval mark that does not begin its cell, or another mark")

    for cell in code:
        about = cell.metadata.get("mystnb", {})
        lively = explored(cell)
        pictures = images_of(cell) + lively
        for figure in lively:
            if not re.search(r"<img\b[^>]*\balt=\"[^\"]*\w[^\"]*\" src=\"data:image/", figure):
                found.append(f"cell {cell.id}: its interactive figure lacks a still picture with an alt text")
            if len(figure.encode()) > explore.LARGEST:
                found.append(f"cell {cell.id}: an interactive figure of {len(figure)} bytes")
        if not pictures and "figure" in about:
            found.append(f"cell {cell.id}: a caption without a picture")
        if len(pictures) > 1:
            found.append(f"cell {cell.id}: {len(pictures)} pictures share one caption and name")
        if pictures:
            figure = about.get("figure", {})
            if not figure.get("caption", "").strip():
                found.append(f"cell {cell.id}: its picture lacks mystnb.figure.caption")
            if not re.fullmatch(r"fig-[a-z0-9-]+", figure.get("name", "")):
                found.append(f"cell {cell.id}: its picture lacks mystnb.figure.name, fig-something")
            if not lively and not about.get("image", {}).get("alt", "").strip():
                found.append(f"cell {cell.id}: its picture lacks mystnb.image.alt")
    if len(set(figure_names(notebook))) != len(figure_names(notebook)):
        found.append("two figures have one name")
    return found


def misplaced(root):
    """Pages that the table of contents lists not at all, twice, or without a file."""
    listed = Counter(book.pages(yaml.safe_load((root / "_toc.yml").read_text("utf-8"))))
    files = [*(root / "notebooks").glob("*.ipynb"), *(root / "book").glob("*.md")]
    there = {path.relative_to(root).with_suffix("").as_posix() for path in files}
    return sorted(page for page in listed.keys() | there if listed[page] != 1 or page not in there)


# The rules, applied


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    found = problems(nbformat.read(path, as_version=4), path.stat().st_size)
    assert not found, "\n".join(["", *found])


def test_figure_names_are_unique_in_the_book():
    names = [name for path in NOTEBOOKS for name in figure_names(nbformat.read(path, as_version=4))]
    assert sorted(set(names)) == sorted(names)


def test_table_of_contents_lists_every_page_once_and_no_other():
    assert not misplaced(ROOT)
    assert {p.stem for p in NOTEBOOKS} == {p.stem for p in ROOT.glob("notebooks/**/*.ipynb")}, (
        "in a subfolder"
    )


# The rules, tried out


def code_cell(number, source, outputs=(), **metadata):
    return {
        "cell_type": "code",
        "id": f"c{number}",
        "execution_count": number,
        "source": source,
        "outputs": list(outputs),
        "metadata": metadata,
    }


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def displayed(**data):
    kinds = {
        "png": "image/png",
        "html": "text/html",
        "plain": "text/plain",
        "widget": "application/vnd.jupyter.widget-view+json",
    }
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {kinds[k]: v for k, v in data.items()},
    }


LIVELY = '<div class="explore" data-explore="x" data-figure=\'{}\'><img alt="A map." src="data:image/png;base64,AAAA"></div>'


def good_notebook():
    figure = {
        "figure": {"caption": "A map.", "name": "fig-map"},
        "image": {"alt": "A bright spot on a bird."},
    }
    return nbformat.from_dict(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": book.METADATA,
            "cells": [
                {
                    "cell_type": "markdown",
                    "id": "m",
                    "metadata": {},
                    "source": "# Title · 标题\n\n```\n# no heading\n```",
                },
                code_cell(1, "n: int = 3  # how many\nname: str = 'x'  # which", tags=["parameters"]),
                code_cell(2, "# NBVAL_CHECK_OUTPUT\nprint(1)", [printed("1\n")]),
                code_cell(3, "# NBVAL_CHECK_OUTPUT\nprint(2)", [printed("2\n")]),
                code_cell(4, "plot()", [displayed(png="AAAA", plain="<Figure size 1x1>")], mystnb=figure),
                code_cell(
                    5,
                    "explore()",
                    [displayed(html=LIVELY)],
                    mystnb={"figure": figure["figure"] | {"name": "fig-b"}},
                ),
            ],
        }
    )


def change(cell, **values):
    """A change of one cell of the good notebook."""
    return lambda notebook: notebook.cells[cell].update(nbformat.from_dict(values))


BROKEN = {
    "kernel must be python3": lambda nb: nb.metadata.kernelspec.update(name="conda-env-x"),
    "cell ids": change(3, id="c2"),
    "level-one heading is needed": change(0, source="## Title"),
    "in the first cell": change(0, source="# Title\n\n# Another"),
    "formula with": change(0, source="# Title\n\n$$\na \\\\ b \\tag{3-8}\n$$"),
    "executed once, in order": change(3, execution_count=None),
    "an error is stored": change(
        4, outputs=[{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    ),
    "text on stderr": change(4, outputs=[printed("50%|##", name="stderr")]),
    "a widget is stored": change(4, outputs=[displayed(widget={}, plain="0%")]),
    "script, style or picture from elsewhere": change(
        4, outputs=[displayed(html='<img src="https://x.org/a.png">')]
    ),
    "holds or loads a script": change(4, outputs=[displayed(html="<script>1</script>")]),
    "paths of one machine": change(3, outputs=[printed("/home/" + "ann/data\n")]),
    "do not belong into a notebook": change(4, source="!pip install torch"),
    "shell commands and installations": change(4, source="x = 1\n%pip install torch"),
    "must be tagged `parameters`": change(1, metadata={}),
    "line 1 is not `name: type": change(1, source="n = 3  # how many"),
    "n lacks its comment": change(1, source="n: int = 3"),
    "cell of other parameters": change(4, metadata={"tags": ["injected-parameters"]}),
    "begin with # NBVAL_CHECK_OUTPUT; found 1": change(3, source="print(2)"),
    "check cell c3: it must print text": change(3, outputs=[]),
    "c3: it must print text, and text only": change(
        3, outputs=[displayed(png="AAAA", plain="<Figure size 1x1>")]
    ),
    "does not begin its cell": change(4, source="plot()\n# NBVAL_CHECK_OUTPUT"),
    "caption without a picture": change(4, outputs=[]),
    "2 pictures share one caption": change(4, outputs=[displayed(png="A"), displayed(png="B")]),
    "lacks mystnb.figure.caption": change(
        4, metadata={"mystnb": {"image": {"alt": "x"}, "figure": {"name": "fig-a"}}}
    ),
    "lacks mystnb.figure.name": change(
        4, metadata={"mystnb": {"image": {"alt": "x"}, "figure": {"caption": "a"}}}
    ),
    "lacks mystnb.image.alt": change(4, metadata={"mystnb": {"figure": {"caption": "a", "name": "fig-a"}}}),
    "c5: its picture lacks mystnb.figure.caption": change(5, metadata={}),
    "lacks a still picture with an alt": change(5, outputs=[displayed(html=LIVELY.replace("A map.", " "))]),
    "c5: its interactive figure lacks a still": change(
        5, outputs=[displayed(html=LIVELY.replace("<img", "<b"))]
    ),
    "an interactive figure of 3": change(5, outputs=[displayed(html=LIVELY.replace("{}", "x" * 300_000))]),
    "two figures have one name": lambda nb: nb.cells.append(copy.deepcopy(nb.cells[4])),
}


def test_a_good_notebook_passes():
    assert problems(good_notebook(), size=LARGEST) == []


@pytest.mark.parametrize("message", BROKEN)
def test_each_rule_finds_its_fault(message):
    notebook = good_notebook()
    BROKEN[message](notebook)
    assert any(message in problem for problem in problems(notebook)), problems(notebook)


def test_a_page_that_is_not_listed_once_is_found(tmp_path):
    for name in ("notebooks/B_x.ipynb", "notebooks/0_y.ipynb", "book/intro.md", "book/more.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    chapters = [{"file": f"notebooks/{name}"} for name in ("0_y", "0_y", "gone")]
    toc = {"root": "book/intro", "chapters": chapters}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc), "utf-8")
    assert misplaced(tmp_path) == ["book/more", "notebooks/0_y", "notebooks/B_x", "notebooks/gone"]


def test_a_large_notebook_is_found():
    assert any("at most 1 MB" in problem for problem in problems(good_notebook(), size=LARGEST + 1))
