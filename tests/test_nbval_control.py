"""Does the comparison with stored outputs compare? A wrong stored output must fail."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import book

ROOT = Path(__file__).resolve().parent.parent


def notebook_that_prints(stored):
    cells = [
        nbformat.v4.new_markdown_cell("# Control", id="title"),
        nbformat.v4.new_code_cell("x = 0.25", id="compute", execution_count=1),
        nbformat.v4.new_code_cell(
            "# NBVAL_CHECK_OUTPUT\nprint(f'mean {x:.3f}', object())",
            id="check",
            execution_count=2,
            outputs=[nbformat.v4.new_output("stream", name="stdout", text=stored)],
        ),
        nbformat.v4.new_code_cell(
            "print('not compared')",
            id="free",
            execution_count=3,
            outputs=[nbformat.v4.new_output("stream", name="stdout", text="something else\n")],
        ),
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata=book.METADATA)


def nbval(folder, *more):
    """Run the command of `make test`, as the Makefile has it, in a folder with notebooks/."""
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    (options,) = (
        line.split("-m pytest", 1)[1].split() for line in makefile.splitlines() if "--nbval-lax" in line
    )
    options = [str(ROOT / o) if o.startswith("tests/") else o for o in options]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", str(ROOT / "pyproject.toml"), *more],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "stored, passes",
    [
        ("mean 0.250 <object object at 0x7f00aa11bb22>\n", True),
        ("mean 0.251 <object object at 0x7f00aa11bb22>\n", False),
    ],
)
def test_stored_output_is_compared(tmp_path, stored, passes):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook_that_prints(stored), tmp_path / "notebooks/control.ipynb")
    run = nbval(tmp_path)
    assert run.returncode == (0 if passes else 1), run.stdout + run.stderr
    assert "1 failed" in run.stdout or passes


def test_every_notebook_is_compared(tmp_path):
    """Whatever its name."""
    names = [f"notebooks/{name}.ipynb" for name in ("03_3_curves", "10_x", "A_1_x", "B_x", "x")]
    (tmp_path / "notebooks").mkdir()
    for name in names:
        nbformat.write(notebook_that_prints("mean"), tmp_path / name)
    said = nbval(tmp_path, "--collect-only", "-n", "0").stdout
    assert all(f"{Path(name).name}::Cell 0" in said for name in names), said
