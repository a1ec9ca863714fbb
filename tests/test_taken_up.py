"""What others need to take this up: workflows, a container, descriptions, licences part by part, links.

Validators by others run where they are installed (`make validate` fetches them); all else is looked at without them.
"""

import csv
import hashlib
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import describe
import links
import pytest
import validate
import yaml
from test_setup import tracked_files

from thesis_lib.data.models import NETWORKS
from thesis_lib.data.registry import DATASETS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in ROOT.glob(".github/workflows/*.yml")
}
PYTHONS = ["3.11", "3.12", "3.13"]


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow):
    return [step["run"] for step in steps(workflow) if "run" in step]


# ---- Workflows


def test_the_workflows_are_those_that_the_readme_needs():
    assert WORKFLOWS.keys() == {"test", "book", "record"}
    block = re.search(r"## Commands\n\n(.*?)\n\n", (ROOT / "README.md").read_text("utf-8"), re.S)[1]
    book, test, record, _ = re.findall(r"^ +(make \w+)", block, re.M)
    assert commands(WORKFLOWS["book"]) == [book] and commands(WORKFLOWS["test"]) == [test]
    assert any("thesis_lib.runs.record" in command for command in commands(WORKFLOWS["record"]))
    assert f"$(PY) -m thesis_lib.runs.{record.split()[1]}" in MAKEFILE


def test_the_tests_run_on_every_python_that_is_promised():
    (job,) = WORKFLOWS["test"]["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def unpinned(text):
    """Actions that are not named by a commit, with the version beside it."""
    return [
        use
        for use in re.findall(r"uses: *(.*)", text)
        if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)
    ]


def test_actions_are_pinned_alike_in_all_workflows():
    assert unpinned("uses: actions/checkout@v6") and unpinned("uses: a/b@" + "0" * 40)
    assert not unpinned("- uses: a/b@" + "0" * 40 + " # v1.2.3")
    pins = {}
    for path in ROOT.glob(".github/workflows/*.yml"):
        text = path.read_text("utf-8")
        assert not unpinned(text), path.name
        for action, pin in re.findall(r"uses: *(.*?)@(.*)", text):
            assert pins.setdefault(action, pin) == pin, f"{action} in {path.name}"


def granted(workflow):
    return {(name, *grant) for name, job in workflow["jobs"].items() for grant in job["permissions"].items()}


def test_permissions_are_the_least():
    """None for a workflow, reading for a job; only the publication may write, and only Pages."""
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {}
        writing = {grant for grant in granted(workflow) if grant[1:] != ("contents", "read")}
        pages = {("publish", "pages", "write"), ("publish", "id-token", "write")}
        assert writing == (pages if name == "book" else set())
        for step in steps(workflow):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}
            assert "${{" not in step.get("run", ""), "what a person types is no part of a command"


def test_the_book_is_published_from_main_alone():
    build, publish = (WORKFLOWS["book"]["jobs"][name] for name in ("build", "publish"))
    assert publish["if"] == "github.ref == 'refs/heads/main'" and publish["needs"] == "build"
    kept, page = (step for step in build["steps"] if "upload" in step.get("uses", ""))
    assert kept["with"]["path"] == page["with"]["path"] == "_build/html" and "if" not in kept
    assert page["if"] == publish["if"]


def test_rows_are_recorded_on_demand_alone():
    assert list(WORKFLOWS["record"][True]) == ["workflow_dispatch"]  # YAML 1.1 reads `on` as true
    assert list(WORKFLOWS["record"][True]["workflow_dispatch"]["inputs"]) == ["part"]


# ---- Container, Binder


def test_the_container_takes_the_lock_and_no_rights():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = re.findall(r"^([A-Z]+) (.*)$", text, re.M)
    done = [word for word, _ in lines]
    assert dict(lines)["FROM"].startswith("python:") and dict(lines)["FROM"].split(":")[1][:4] in PYTHONS
    assert "make .venv/.installed" in dict(lines)["RUN"] and "require-hashes -r requirements.lock" in MAKEFILE
    assert (
        done.index("USER") < done.index("COPY")
        and dict(lines)["USER"].isdecimal()
        and dict(lines)["USER"] != "0"
    )
    assert json.loads(dict(lines)["CMD"]) == ["make", "book"] and "msg-cam make test" in text


def test_the_container_leaves_out_what_git_does():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()}
    left_out = {
        line.removeprefix("**/").strip("/")
        for line in (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    }
    assert ignored - left_out == {"*.tmp", ".DS_Store"}
    assert not left_out & {path.relative_to(ROOT).parts[0] for path in tracked_files()}


def test_binder_installs_as_make_does():
    script = (ROOT / "binder/postBuild").read_text("utf-8")
    assert (ROOT / "binder/postBuild").stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", ROOT / "binder/postBuild"]).returncode == 0
    for words in ("--require-hashes -r requirements.lock", "--no-deps --no-build-isolation -e ."):
        assert words in script and words in MAKEFILE.replace("--quiet ", "")
    found = subprocess.run(
        ["bash", "-c", re.search(r"\$\((sed .*?)\)", script)[1]], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", found) and f"UV_VERSION := {found}" in MAKEFILE
    assert (ROOT / "binder/runtime.txt").read_text("utf-8").strip().removeprefix("python-") in PYTHONS


# ---- Versions, authors


def test_one_version_everywhere():
    version, date = describe.release()
    assert PROJECT["version"] == str(CITATION["version"]) == version
    assert str(CITATION["date-released"]) == date
    headings = re.findall(r"^## (\S+), (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    numbers = [tuple(map(int, number.split("."))) for number, _ in headings]
    assert numbers == sorted(numbers, reverse=True) and [d for _, d in headings] == sorted(
        (d for _, d in headings), reverse=True
    )


def test_a_codecheck_finds_its_files_and_no_invented_person():
    """https://codecheck.org.uk/spec/config/2.0/, as far as authors can fill it."""
    text = (ROOT / "codecheck.yml").read_text("utf-8")
    check = yaml.safe_load(text)
    assert "\n---\n" in text and check["version"] == "https://codecheck.org.uk/spec/config/2.0/"
    for item in check["manifest"]:
        assert item.keys() == {"file", "comment"} and (ROOT / item["file"]).is_file(), item
    assert check["paper"]["title"] == CITATION["title"]
    assert check["paper"]["authors"] == CITATION["authors"] == PROJECT["authors"]
    assert CITATION["references"][0]["doi"] in check["paper"]["reference"]
    assert check.keys() == {"version", "manifest", "paper"}, "the rest is a codechecker's"


# ---- Licences


def test_every_file_has_a_licence_and_every_row_a_file():
    names = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    assert not [name for name in names if describe.licence(name) is None]
    assert describe.licence("vendored/a.js") is None
    table = describe.licences()
    for entry in table:
        assert any(name.startswith(entry) or ("*" in entry and fnmatch(name, entry)) for name in names), entry


def test_folders_with_a_licence_text_have_their_own_row():
    """What is added with a licence of its own cannot go under that of the folder around it."""
    texts = [p.relative_to(ROOT) for p in tracked_files() if re.match(r"(LICEN[CS]E|COPYING|NOTICE)", p.name)]
    assert len(texts) == 3
    for text in texts:
        if len(text.parts) > 1:
            assert f"{text.parent.as_posix()}/" in describe.licences(), text


# How a text begins, or a table names it.
SIGNS = {
    "data/photographs/": ("data/photographs/LICENSE", "creativecommons.org/licenses/by/2.0/", "CC-BY-2.0"),
    "data/cutouts/": ("data/cutouts/COPYING", "Version 2, June 1991", "GPL-2.0-only"),
    "thesis_lib/": ("LICENSE", "MIT License", "MIT"),
}


@pytest.mark.parametrize("folder", SIGNS)
def test_the_table_says_what_the_texts_say(folder):
    file, words, name = SIGNS[folder]
    assert words in (ROOT / file).read_text("utf-8") and describe.licence(folder) == name


def test_the_table_says_what_the_registries_say():
    called = {"CC BY 2.0": "CC-BY-2.0", "GPL-2": "GPL-2.0-only"}
    found = 0
    for entry in DATASETS.values():
        if entry.embedded:
            folder = entry.folder.relative_to(ROOT).as_posix()
            assert describe.licence(f"{folder}/") == called[entry.licence], entry.title
            found += 1
    for entry in NETWORKS.values():
        weights = getattr(entry, "weights", None)
        if weights and Path(weights).is_relative_to(ROOT):
            assert describe.licence(Path(weights).relative_to(ROOT).as_posix()) == called[entry.licence], (
                entry.title
            )
            found += 1
    assert found >= 9
    assert PROJECT["license"] == CITATION["license"] == describe.licence("thesis_lib/x.py")
    with (ROOT / "data/cutouts/backgrounds.csv").open(encoding="utf-8") as file:
        assert {row["licence"] for row in csv.DictReader(file)} == {"CC0", "public domain"}
    assert describe.licence("data/cutouts/backgrounds/a.jpg") == "CC0-1.0 OR LicenseRef-public-domain"


# ---- Descriptions


@pytest.mark.parametrize("name", describe.FILES)
def test_descriptions_are_those_of_today(name):
    assert (ROOT / name).read_text("utf-8") == describe.written(describe.FILES[name]()), "run make describe"


def test_the_crate_names_files_that_exist_and_no_address_of_its_own():
    graph = {e["@id"]: e for e in json.loads((ROOT / "ro-crate-metadata.json").read_text("utf-8"))["@graph"]}
    root = graph["./"]
    assert graph["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert {"name", "description", "datePublished", "license"} <= root.keys() and "url" not in root
    for part in root["hasPart"]:
        entity = graph[part["@id"]]
        path = ROOT / part["@id"]
        assert path.is_dir() if entity["@type"] == "Dataset" else path.is_file(), part

    def mentioned(value):
        if isinstance(value, dict):
            yield from [value["@id"]] if value.keys() == {"@id"} else map_all(value.values())
        elif isinstance(value, list):
            yield from map_all(value)

    def map_all(values):
        return (name for value in values for name in mentioned(value))

    beyond = {"https://w3id.org/ro/crate/1.1"}
    assert {*map_all(graph.values())} - beyond <= graph.keys()
    assert all("description" in graph[f"data/{name}/"] for name in ("photographs", "cutouts", "weights"))


@pytest.mark.parametrize("folder", ["photographs", "cutouts"])
def test_a_croissant_names_files_and_columns_that_exist(folder):
    home = ROOT / "data" / folder
    made = json.loads((home / "croissant.json").read_text("utf-8"))
    sources, sets = {}, 0
    for file in made["distribution"]:
        if file["@type"] == "cr:FileObject":
            data = (home / file["contentUrl"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            sources[file["@id"]] = data.decode("utf-8").splitlines()[0].split(",")
        else:
            sources[file["@id"]] = [path.name for path in home.glob(file["includes"])]
            sets += len(sources[file["@id"]])
    assert sets == (858 if folder == "photographs" else 2 * (204 + 102) + 34 + 51)
    for records in made["recordSet"]:
        fields = {field["@id"]: field["source"] for field in records["field"]}
        assert all(key["@id"] in fields for key in records["key"])
        for source in fields.values():
            inside = sources[source.get("fileObject", source.get("fileSet"))["@id"]]
            assert inside and source["extract"].get("column", inside[0]) in inside


@pytest.mark.parametrize(
    "folder, name, number", [("photographs", "photographs", 858), ("cutouts", "scenes_coco", 34)]
)
def test_a_croissant_is_read_by_its_library(folder, name, number):
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant: make validate fetches it")
    dataset = mlcroissant.Dataset(jsonld=str(ROOT / "data" / folder / "croissant.json"))
    found = list(dataset.records(name))
    assert len(found) == number and found[0][f"{name}/picture"].size == (224, 224)


# ---- Validators, spelling


def installed(packages, command):
    if command[0] == "python":
        return all(importlib.util.find_spec({"pillow": "PIL"}.get(p, p)) for p in packages.split())
    return shutil.which(command[0]) or Path(sys.executable).with_name(command[0]).exists()


@pytest.mark.parametrize("name", [name for name in validate.COMMANDS if name not in validate.NETWORK])
def test_validators_agree(name):
    packages, command = validate.COMMANDS[name]
    if not installed(packages, command):
        pytest.skip(f"needs {packages}: make validate fetches it")
    beside = Path(sys.executable).with_name(command[0])
    done = validate.run([str(beside) if beside.exists() else command[0], *command[1:]])
    assert done.returncode == 0, done.stdout + done.stderr


def test_validators_look_at_what_is_there():
    assert len(validate.WORKFLOWS) == len(WORKFLOWS) == 3
    assert validate.COMMANDS.keys() > validate.NETWORK
    assert "import torch" in validate.notebooks() and "Saliency" in validate.notebooks()
    named = {
        word
        for _, command in validate.COMMANDS.values()
        for word in command
        if "/" in word and " " not in word
    }
    assert named and all((ROOT / word).exists() for word in named)


# ---- Links


def test_addresses_are_found_where_people_write_them(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(
        "See [a](https://a.org/x_(y)), <https://b.org/>. Not https://github.com/OWNER/NAME."
    )
    (tmp_path / "book/r.bib").write_text("  doi = {10.1/x_1-2},\n  howpublished = {arXiv:1804.00097}\n")
    cells = [{"source": ["[c](https://c.org/d)\n"], "outputs": [{"text": "https://never.org"}]}]
    (tmp_path / "notebooks/n.ipynb").write_text(json.dumps({"cells": cells}))
    assert links.addresses(tmp_path) == {
        "https://a.org/x_(y)": ["README.md"],
        "https://b.org/": ["README.md"],
        "https://doi.org/10.1/x_1-2": ["book/r.bib"],
        "https://arxiv.org/abs/1804.00097": ["book/r.bib"],
        "https://c.org/d": ["notebooks/n.ipynb"],
    }


def test_the_addresses_of_this_book():
    found = links.addresses()
    assert len(found) > 50 and "README.md" in found["https://doi.org/10.1109/ICME55011.2023.00061"]
    for suffix in (".md", ".bib", ".ipynb", ".py"):
        assert any(name.endswith(suffix) for files in found.values() for name in files), suffix


class Host(http.server.BaseHTTPRequestHandler):
    """/200 answers so, and likewise any number; /shy knows no HEAD."""

    def do_GET(self):
        self.send_response(200 if self.path == "/shy" else int(self.path[1:]))
        self.end_headers()

    def do_HEAD(self):
        if self.path == "/shy":
            self.send_response(405)
            self.end_headers()
        else:
            self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    """On this machine: no test calls the network."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "paths, status, words",
    [
        (["200", "shy"], 0, "2 addresses, 0 gone"),
        (["200", "403"], 0, "refuses programs (403), look yourself"),
        (["200", "404"], 1, "GONE (404)"),
        (["200", "http://127.0.0.1:9/"], 1, "1 gone"),
        (["http://127.0.0.1:9/", "http://127.0.0.1:9/x"], 2, "no network here, so nothing was checked"),
    ],
)
def test_addresses_are_tried(host, monkeypatch, capsys, paths, status, words):
    there = [path if "://" in path else f"{host}/{path}" for path in paths]
    monkeypatch.setattr(links, "addresses", lambda: {address: ["page.md"] for address in there})
    assert links.main([]) == status
    assert words in capsys.readouterr().out


# ---- make gpu


def test_make_gpu_does_what_it_says(tmp_path):
    """In a copy of the Makefile alone: without a GPU its commands are only looked at."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-n", "gpu"], cwd=tmp_path, capture_output=True, text=True, check=True)
    ask, test, bench, verify = re.findall(r"^\.venv/bin/python (?!-c|-m pip|-m venv)(.*)$", done.stdout, re.M)
    for command in (ask, verify):
        assert importlib.util.find_spec(re.match(r"-m (\S+)", command)[1])
    assert "doctor" in ask and re.fullmatch(r"-m thesis_lib.runs.verify --minutes \d+ ?", verify)
    assert test == "-m pytest -q tests/test_cuda.py" and (ROOT / "tests/test_cuda.py").is_file()
    options = re.findall(r"--[a-z]+", bench)
    said = (ROOT / bench.split()[0]).read_text("utf-8")
    assert "--quick" in options and all(f'add_argument("{option}"' in said for option in options)
