"""The set-up: what is declared in one place agrees with what is declared in another."""

import re
import subprocess
import tomllib
from pathlib import Path

import papermill
import pytest
import torch
import torchvision
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def requirements():
    extras = PROJECT["optional-dependencies"].values()
    return [*PROJECT["dependencies"], *(r for extra in extras for r in extra)]


def package(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()


def tracked_files():
    """Files that git tracks, or would track; all files where there is no git."""
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [p for name in names if name and (p := ROOT / name).is_file()]


def machine_paths(text):
    """Absolute paths that hold on one machine only."""
    return re.findall(
        r"(?:/(?:tmp|work|root)/[A-Za-z.]|/home/[a-z]|/Users/[A-Za-z]|[A-Z]:\\\\?Users|site-packages/)\S*",
        text,
    )


def test_environment_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    (pip,) = (item["pip"] for item in environment if isinstance(item, dict))
    assert sorted(pip) == sorted([*requirements(), "-e ."])
    assert f"python{PROJECT['requires-python']}" in environment


def test_lock_covers_every_dependency():
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.M))
    assert {package(r) for r in requirements()} <= locked.keys()
    assert locked["jupyter-book"] == "1.0.4.post1"
    assert "setuptools" in locked, "the editable install builds without isolation"


def test_lock_names_no_index_and_hashes_all():
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock)
    entries = re.split(r"\n(?=[a-z0-9])", lock)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry.split("\n")[0])


def test_the_asked_for_packages_are_there():
    wanted = "jupyterlab jupyter-book torch torchvision kornia matplotlib seaborn papermill nbval"
    assert set(wanted.split()) <= {package(r) for r in requirements()}


def test_the_library_needs_nothing_of_the_book():
    book = PROJECT["optional-dependencies"]["book"]
    assert {"matplotlib", "jupyterlab"} <= {package(r) for r in book}
    assert not {package(r) for r in PROJECT["dependencies"]} & {package(r) for r in book}


def test_jupyter_book_is_release_1():
    import jupyter_book

    assert jupyter_book.__version__.startswith("1.")


def test_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "title", "message", "authors", "license"} <= citation.keys()
    assert str(citation["version"]) == PROJECT["version"]
    assert any(r.get("doi") == "10.1109/ICME55011.2023.00061" for r in citation["references"])


def test_licences():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "MIT License" in text and "CC BY 4.0" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations_name_parameters_that_exist(path):
    import book

    book.read_config(path)


def test_configurations_of_full_runs_are_flat():
    """papermill reads them as they stand, and rows of a night are not where `make clean` cleans."""
    full = [path for path in CONFIGS if path.stem.startswith("full-")]
    assert full
    for path in full:
        parameters = yaml.safe_load(path.read_text("utf-8"))
        assert (ROOT / f"notebooks/{parameters['notebook']}.ipynb").exists(), path.stem
        assert f"-f configs/{path.name}" in path.read_text("utf-8")
        assert Path(parameters["out"]).parts[0] == "runs", path.stem


def test_embedded_configuration_holds_the_defaults():
    """So that the committed notebooks are what `make book` executes, without an injected cell."""
    import book

    config = yaml.safe_load((ROOT / "configs/embedded.yaml").read_text("utf-8"))
    assert sorted(config) == sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
    changed = {}
    for name, parameters in config.items():
        for cell in book.prepare(ROOT / "notebooks" / f"{name}.ipynb", parameters).cells:
            if cell.id == "injected-parameters":
                changed[name] = cell.source
    assert not changed, "configs/embedded.yaml differs from the notebooks' defaults"


def test_the_configuration_that_the_book_shows_is_accepted(tmp_path):
    import book

    text = (ROOT / "book/reproduce.md").read_text("utf-8")
    (tmp_path / "shown.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1], "utf-8")
    assert book.read_config(tmp_path / "shown.yaml")


def test_ci_is_executable():
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_no_large_files():
    large = [
        f"{p.relative_to(ROOT)}: {p.stat().st_size / 1e6:.1f} MB"
        for p in tracked_files()
        if p.stat().st_size > 5e6
    ]
    assert not large


def test_no_paths_of_one_machine():
    text = ".py .md .ipynb .yml .yaml .toml .cfg .csv .json .cff .bib".split()
    found = {}
    for path in tracked_files():
        inside = path.relative_to(ROOT)
        if path.suffix in text and inside.parts[0] != "tests":  # tests make such paths up
            if paths := machine_paths(path.read_text("utf-8")):
                found[str(inside)] = paths[:3]
    assert not found


def test_the_search_for_machine_paths_finds_them():
    for text in [
        "/tmp/" + "x.py",
        "/home/" + "ann/data",
        "lib/site-" + "packages/torch",
        "/Users/" + "Ann",
    ]:
        assert machine_paths(text), text
    assert not machine_paths("data/cutouts/scenes and https://doi.org/10.1109/tmp")


def test_configuration_with_a_wrong_name_or_type_is_refused(tmp_path, monkeypatch):
    import book

    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": "p",
                "metadata": {"tags": ["parameters"]},
                "source": "n: int = 3  # how many\nnotebook: str = 'toy'  # which",
                "outputs": [],
                "execution_count": None,
            }
        ],
        "metadata": book.METADATA,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/toy.ipynb").write_text(book.json.dumps(notebook))
    monkeypatch.setattr(book, "ROOT", tmp_path)
    config = tmp_path / "c.yaml"
    for text, message in [
        ("toy: {m: 4}", "no parameter 'm'"),
        ("toy: {n: many}", "type int"),
        ("toy: {n: true}", "type int"),
        ("toy: 4", "compare configs/embedded.yaml"),
        ("{notebook: toy, m: 4}", "no parameter 'm'"),
        ("{notebook: tay, n: 4}", "no notebook tay"),
        ("tay: {n: 4}", "no notebook tay"),
    ]:
        config.write_text(text)
        with pytest.raises(SystemExit, match=message):
            book.read_config(config)
    config.write_text("toy: {n: 4}")
    assert book.read_config(config) == {"toy": {"n": 4}}
    config.write_text("{notebook: toy, n: 4}")
    assert book.read_config(config) == {"toy": {"notebook": "toy", "n": 4}}
    prepared = book.prepare(tmp_path / "notebooks/toy.ipynb", {"n": 4})
    assert [cell.id for cell in prepared.cells] == ["p", "injected-parameters"]
    assert len(book.prepare(tmp_path / "notebooks/toy.ipynb", {"n": 3}).cells) == 1
    assert papermill.inspect_notebook(str(tmp_path / "notebooks/toy.ipynb"))["n"]["help"] == "how many"


def code_block(path):
    (block,) = re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.S)
    return block


def test_readme_code_runs(monkeypatch):
    """As printed, on a small network in the place of the one that would be downloaded."""

    def small(weights):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=4),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 5),
        )

    monkeypatch.setattr(torchvision.models, "resnet50", small)
    names = {"pictures": torch.rand(2, 3, 64, 64, generator=torch.manual_seed(0))}
    exec(code_block(ROOT / "README.md"), names)
    assert names["maps"].shape == (2, 64, 64) and names["scores"].overall.shape == (2,)
    assert code_block(ROOT / "book/intro.md") == code_block(ROOT / "README.md")


def test_readme_points_at_files_that_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    prose = re.sub(r"```.*?```", "", readme, flags=re.S)
    local = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if "://" not in link]
    assert local and not [link for link in local if not (ROOT / link).exists()]
    assert len(readme.splitlines()) < 120


def test_the_style_sheet_closes_what_it_opens():
    """One brace too few, and all rules behind it hold on a phone only."""
    depth = 0
    for line in (ROOT / "book/_static/book.css").read_text("utf-8").splitlines():
        assert not line.startswith("@media") or depth == 0, line
        depth += line.count("{") - line.count("}")
    assert depth == 0
