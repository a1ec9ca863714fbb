"""The house's style: ruff's rules and format, and types (what pyproject.toml asks of each).

`.pre-commit-config.yaml` has git ask the same before each commit.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "ruff-check": ["ruff", "check", "--no-cache"],
    "ruff-format": ["ruff", "format", "--check", "--no-cache"],
    "mypy": ["mypy"],
}
# What each of them refuses, in a file that the others let pass.
FAULTS = {
    "ruff-check": "import os\n",
    "ruff-format": "x = [1,2]\n",
    "mypy": "def half(n: int) -> str:\n    return n // 2\n",
}


def run(*command):
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_style(name):
    done = run(*COMMANDS[name])
    assert done.returncode == 0, done.stdout + done.stderr


def not_annotated(source):
    """Public functions and methods of a module that leave an argument or what they return unsaid."""
    found = []
    for node in ast.parse(source).body:
        for f in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"):
                taken = [
                    a
                    for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)
                    if a.arg not in ("self", "cls")
                ]
                if f.returns is None or any(a.annotation is None for a in taken):
                    found.append(f.name)
    return found


def test_public_functions_say_what_they_take_and_return():
    files = {path: path.read_text("utf-8") for path in (ROOT / "thesis_lib").rglob("*.py")}
    assert not {str(path): names for path, source in files.items() if (names := not_annotated(source))}
    assert not_annotated("def half(n): pass\nclass A:\n    def b(self): pass\ndef _own(n): pass") == [
        "half",
        "b",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_finds_its_fault(name, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(FAULTS[name], "utf-8")
    settings = ["--config" if "ruff" in name else "--config-file", str(ROOT / "pyproject.toml")]
    for other, command in COMMANDS.items():
        if ("ruff" in other) == ("ruff" in name):
            done = run(*command, *settings, str(bad))
            assert done.returncode == (1 if other == name else 0), done.stdout + done.stderr


def test_git_asks_the_same_without_a_network():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [r["repo"] for r in repositories] == ["local"]
    hooks = {hook["id"]: hook["entry"] for hook in repositories[0]["hooks"]}
    assert hooks.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        subcommand = " ".join(word for word in command if not word.startswith("-"))
        assert hooks[name].startswith(f".venv/bin/python -m {subcommand}")
