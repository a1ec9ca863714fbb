"""Parameters that a notebook does not declare are refused, by real papermill, before anything runs."""

import re

import nbformat
import papermill
import pytest

import book
from thesis_lib.pages.parameters import check_parameters, declared, faults

KINDS = {"images": "int", "share": "float", "data_root": "str", "progress": "bool", "shown": "list"}


def test_values_that_fit():
    given = {"images": 3, "share": 1, "data_root": "", "progress": True, "shown": [1, 2]}
    assert not list(faults(given, KINDS)) and not list(faults({"share": 0.5}, KINDS))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", 3, "there is no parameter 'image': did you mean 'images'?"),
        ("data-root", "x", "there is no parameter 'data-root': did you mean 'data_root'?"),
        ("images", "3", "images must be of type int, not '3'"),
        ("images", 3.0, "images must be of type int, not 3.0"),
        ("images", True, "images must be of type int, not True"),
        ("share", True, "share must be of type float, not True"),
        ("share", "half", "share must be of type float, not 'half'"),
        ("data_root", None, "data_root must be of type str, not None"),
        ("data_root", 2012, "data_root must be of type str, not 2012"),
        ("progress", 1, "progress must be of type bool, not 1"),
        ("shown", "1, 2", "shown must be of type list, not '1, 2'"),
    ],
)
def test_faults(name, value, message):
    assert list(faults({name: value, "images": 3} | {name: value}, KINDS)) == [message]


def test_declared():
    source = "n: int = 3  # how many\n# a comment\nshown: list[int] = [1, 2]  # which\n"
    assert declared(source) == {"n": ("int", 3), "shown": ("list", [1, 2])}


def test_nothing_happens_outside_of_a_notebook():
    assert check_parameters() is None


@pytest.fixture
def toy(tmp_path):
    """execute(parameters): a notebook whose last cell leaves a file behind, whether it did."""
    declared = (
        'notebook: str = "toy"  # which notebook\nimages: int = 64  # how many\nshare: float = 0.5  # part'
    )
    sources = [
        "import thesis_lib as tl",
        declared,
        "tl.check_parameters()\nopen('ran', 'w').write(f'{images} {share}')",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=book.METADATA)
    nbformat.write(notebook, tmp_path / "toy.ipynb")

    def execute(parameters):
        papermill.execute_notebook(
            tmp_path / "toy.ipynb", tmp_path / "out.ipynb", parameters, kernel_name="python3",
            progress_bar=False, cwd=tmp_path,
        )  # fmt: skip
        return (tmp_path / "ran").read_text()

    execute.ran = lambda: (tmp_path / "ran").exists()
    return execute


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"notebook": "toy", "imges": 3, "share": "all"},
            "no parameter 'imges': did you mean 'images'?\n- share must be of type float",
        ),
        (
            {"notebook": "toi", "imges": 3},
            "these parameters are for the notebook toi, not for toy",
        ),
    ],
)
def test_papermill_is_stopped_before_anything_runs(toy, parameters, message):
    with pytest.raises(papermill.PapermillExecutionError, match=re.escape(message)):
        toy(parameters)
    assert not toy.ran()


def test_papermill_runs_with_what_is_declared(toy):
    assert toy({"notebook": "toy", "images": 3, "share": 1}) == "3 1"
    assert toy({}) == "64 0.5"
