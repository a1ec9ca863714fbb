"""Executing and rendering: what is executed again, and what the pages look like.

The pages are built from the committed outputs, every warning an error; test_browser.py opens them.
"""

import ast
import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

import book
from thesis_lib.runs import record

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = re.compile(r"^(https?:)?//", re.I)
LOADING = {
    "stylesheet",
    "preload",
    "modulepreload",
    "prefetch",
    "icon",
    "shortcut",
    "manifest",
    "preconnect",
}


# Executing


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one notebook, whose output differs with every execution."""
    for folder in ("notebooks", "thesis_lib", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "requirements.lock").touch()
    (tmp_path / "thesis_lib/kernels.py").write_text("x = 1")
    cells = [
        nbformat.v4.new_markdown_cell("# Toy", id="title"),
        nbformat.v4.new_code_cell("n: int = 3  # number", id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import sys, time\nfrom tqdm.auto import tqdm\n"
            "for i in tqdm(range(n)):\n    print(i, time.time_ns(), flush=True)",
            id="work",
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/toy.ipynb")
    monkeypatch.setattr(book, "ROOT", tmp_path)
    return tmp_path


def executed(project, parameters=None):
    book.execute({"toy": parameters}, project / "work")
    return nbformat.read(project / "work/notebooks/toy.ipynb", as_version=4)


def rewrite(project, before, after):
    path = project / "notebooks/toy.ipynb"
    path.write_text(path.read_text("utf-8").replace(before, after), "utf-8")


def test_only_what_changed_is_executed_again(project):
    first = executed(project)
    assert first.metadata == book.METADATA
    assert [cell.execution_count for cell in book.code_cells(first)] == [1, 2]
    (output,) = first.cells[2].outputs  # one stream, and no progress bar
    assert output.name == "stdout" and len(output.text.splitlines()) == 3

    assert executed(project) == first
    rewrite(project, "# Toy", "# Better")
    better = executed(project)
    assert better.cells[0].source == "# Better" and better.cells[2] == first.cells[2]

    (project / "thesis_lib/kernels.py").write_text("x = 2")
    again = executed(project)
    assert again.cells[2].outputs != first.cells[2].outputs


def test_outputs_are_stored_only_beside_their_code(project):
    path, work = project / "notebooks/toy.ipynb", project / "work"
    first = executed(project)
    rewrite(project, "# Toy", "# Better")  # edited while it ran
    book.update([path], work)
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].source == "# Better" and stored.cells[2] == first.cells[2]
    before = path.read_bytes()
    book.update([path], work)
    assert path.read_bytes() == before
    rewrite(project, "time_ns()", "time()")
    with pytest.raises(SystemExit, match="code was changed meanwhile"):
        book.update([path], work)


def test_other_parameters_and_failures(project):
    other = executed(project, {"n": 1})
    with pytest.raises(SystemExit, match="parameters are not its defaults"):
        book.update([project / "notebooks/toy.ipynb"], project / "work")
    assert [cell.id for cell in other.cells] == [
        "title",
        "parameters",
        "injected-parameters",
        "work",
    ]
    assert len(other.cells[3].outputs[0].text.splitlines()) == 1
    rewrite(project, "import sys, time", "import nothing_such")
    with pytest.raises(SystemExit, match="nothing_such(.|\\n)*toy failed"):
        executed(project)
    assert nbformat.read(project / "work/notebooks/toy.ipynb", as_version=4) == other


def test_two_at_a_time_and_one_that_fails_loses_nothing(project):
    toy = (project / "notebooks/toy.ipynb").read_text("utf-8")
    for name in ("bad", "slow"):
        (project / f"notebooks/{name}.ipynb").write_text(toy, "utf-8")
    wait = "while not (there := [*Path('..').glob('started-*')])[1:]: time.sleep(0.1)"
    begin = "from pathlib import Path; Path(f'../started-{time.time_ns()}').touch()"
    for name, end in ("bad", "1 / 0"), ("slow", "time.sleep(3)"), ("toy", "time.sleep(0)"):
        path = project / f"notebooks/{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[2].source = f"import time\n{begin}\n{wait}\n{end}"
        nbformat.write(notebook, path)
    with pytest.raises(SystemExit, match="bad failed"):  # bad and slow waited for one another
        book.execute({}, project / "work")
    assert (project / "work/notebooks/slow.ipynb").exists()
    assert "slow" in book.read_log(project / "work")


def test_the_log_of_a_good_build_holds_no_error(project, capfd):
    """A kernel that is slow to put its last question away: Jupyter would interrupt it there."""
    slow = (
        "import inspect, time\nhandlers = get_ipython().kernel.shell_handlers\n"
        "answer = handlers['kernel_info_request']\n"
        "async def slowly(*question):\n"
        "    if inspect.isawaitable(sent := answer(*question)):\n        await sent\n"
        "    time.sleep(1)\n"
        "handlers['kernel_info_request'] = slowly"
    )
    for name in ("first", "toy"):
        path = project / f"notebooks/{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(slow)]), path)
    book.execute({}, project / "work")
    log = "".join(capfd.readouterr())
    assert log.count("done in") == 2
    assert not re.search("error|interrupt|traceback|warning", log, re.I), log


def test_what_the_embedded_book_has_executed_is_taken_from_there(project):
    book.execute({}, project / "_build/embedded")
    first = nbformat.read(project / "_build/embedded/notebooks/toy.ipynb", as_version=4)
    assert executed(project) == first
    assert executed(project, {"n": 1}) != first
    (project / "thesis_lib/kernels.py").write_text("x = 2")
    assert executed(project).cells[2].outputs != first.cells[2].outputs


def test_what_a_notebook_depends_on(project):
    notebook = book.read(project / "notebooks/toy.ipynb")
    for folder in ("data/downloads", "data/subsets", "runs"):
        (project / folder).mkdir()

    def fingerprint(**parameters):
        return book.code_fingerprint(notebook, parameters)

    before = fingerprint(), fingerprint(weights="runs/w.pt")
    for large in ("data/downloads/picture.jpg", "runs/w.pt"):
        (project / large).write_text("a real dataset, or the rows and weights of a night")
        assert fingerprint() == before[0]
    assert fingerprint(weights="runs/w.pt") != before[1]
    (project / "data/claims.csv").write_text("id,status")  # only for pages that name it
    assert fingerprint() == before[0] and fingerprint(ledger="data/claims.csv") != before[0]
    (project / "data/subsets/few.csv").write_text("id")
    assert fingerprint() != before[0]

    reading = fingerprint(stored="notebooks/t[o]*.ipynb")  # a page that reads other pages' outputs
    rewrite(project, "# Toy", "# Better")
    assert fingerprint(stored="notebooks/t[o]*.ipynb") != reading


def test_only_a_run_with_parameters_of_its_own_shows_its_progress(project, capfd):
    rewrite(project, "import sys, time", "import os, sys, time")
    rewrite(project, "tqdm.auto", "tqdm")
    rewrite(project, "tqdm(range(n))", "tqdm(range(n), disable=bool(os.environ['TQDM_DISABLE']))")
    first = executed(project)
    assert not [o for o in first.cells[2].outputs if o.get("name") == "stderr"]
    assert "3/3" not in capfd.readouterr().err
    executed(project, {"n": 1})
    assert "1/1" in capfd.readouterr().err


# Rendering


class Page(HTMLParser):
    """What one page loads, links to, and can be linked at."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.images, self.search_bars = [], [], set(), [], 0
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside = tag
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "link" and LOADING & set(attrs.get("rel", "").split()):
            self.loads.append(attrs["href"])
        elif tag != "a" and attrs.get("src"):
            self.loads.append(attrs["src"])
        self.loads += [part.split()[0] for part in (attrs.get("srcset") or "").split(",") if part.strip()]
        if tag == "img":
            self.images.append(attrs)
        self.search_bars += "search-button-field" in attrs.get("class", "")

    def handle_data(self, data):
        if self.inside == "style":
            self.loads += loaded_by_css(data)


def loaded_by_css(text):
    return re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)", text)


def from_elsewhere(addresses):
    return [address for address in addresses if ELSEWHERE.match(address)]


def broken_links(pages):
    """Links between pages (path -> Page) whose file or anchor is missing."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.exists() or (
                url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids
            ):
                broken.append(f"{path.name}: {link}")
    return broken


@pytest.fixture(scope="module")
def pages(site):
    found = {
        path: Page(path.read_text("utf-8")) for path in site.rglob("*.html") if "_static" not in path.parts
    }
    assert len(found) > 10
    return found


def test_nothing_is_loaded_from_elsewhere(site, pages):
    found = {path.name: bad for path, page in pages.items() if (bad := from_elsewhere(page.loads))}
    for path in site.rglob("*.css"):
        if bad := from_elsewhere(loaded_by_css(path.read_text("utf-8"))):
            found[path.name] = bad
    assert not found


def test_no_inline_script_names_another_host(pages):
    for path in pages:
        scripts = re.findall(r"<script[^>]*>(.*?)</script>", path.read_text("utf-8"), re.S)
        assert not re.search(r"[\"'](https?:)?//[^\"']*\.js", "".join(scripts)), path.name


def test_formulas_are_set_by_our_mathjax(site, pages):
    with_formulas = [path for path in pages if 'class="math' in path.read_text("utf-8")]
    assert site / "book/notation.html" in with_formulas
    for path in with_formulas:
        (script,) = [load for load in pages[path].loads if "mathjax" in load]
        assert (path.parent / urlsplit(script).path).resolve().is_file()
    assert list((site / "_static/mathjax/output/chtml/fonts/woff-v2").glob("*.woff"))


def test_pictures_have_alternative_texts(pages):
    assert not [
        (path.name, image.get("src"))
        for path, page in pages.items()
        for image in page.images
        if not (image.get("alt") or "").strip()
    ]


def test_one_search_bar(pages):
    listed = book.pages(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8")))
    counts = {
        path.stem: page.search_bars
        for path, page in pages.items()
        if path.stem in {Path(p).name for p in listed}
    }
    assert counts and set(counts.values()) == {1}, counts


def test_links_between_pages_hold(pages):
    assert not broken_links(pages)


def test_no_cell_failed(pages):
    for path in pages:
        assert "Traceback (most recent call last)" not in path.read_text("utf-8"), path.name


def test_every_reference_of_the_thesis_is_listed(site):
    text = (site / "book/references.html").read_text("utf-8")
    numbers = [int(n) for n in re.findall(r"<tr[^>]*><td><p>(\d+)</p></td>", text)]
    assert numbers == list(range(1, 30))
    entries = (ROOT / "book/references.bib").read_text("utf-8").split("% Cited by this book")[0]
    assert len(re.findall(r"^@", entries, re.M)) == 29


def test_decisions_name_what_is_recorded():
    """Each effect in data/decisions.csv is a call over labels that the plan records, or says that there is none."""
    with open(ROOT / "data/decisions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    planned = {}
    for part in record.PLAN:
        planned.setdefault(f"{part.dataset}/{part.network}/{part.table}", set()).update(part.methods())
    calls = 0
    for row in rows:
        assert row["effect"].endswith(")") or row["effect"] in ("", "not recorded"), row
        assert not re.search(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", " ".join(row.values())), (
            f"an interval is typed: {row}"
        )
        for call in re.findall(r"\w+\(.*?\)", row["effect"]):
            calls += 1
            call = ast.parse(call, mode="eval").body
            table, *arguments = map(ast.literal_eval, call.args)
            labels = {"effect": arguments[:2], "level": arguments[1:2]}[call.func.id]
            assert set(labels) <= planned[table], f"{table} has not all of {labels}"
        for page in row["page"].split():
            assert (ROOT / f"notebooks/{page}.ipynb").exists(), page
    assert len(rows) > 20 and calls > 20


# The looks themselves, tried out


def test_the_looks_find_what_they_look_for(tmp_path):
    bad = Page(
        '<link rel="stylesheet" href="https://x.org/a.css"><script src="//x.org/b.js"></script>'
        "<img src='c.png'><style>p {background: url('http://x.org/d.png')}</style>"
        "<a href='#gone'>x</a><a href='no.html'>y</a>"
    )
    assert from_elsewhere(bad.loads) == [
        "https://x.org/a.css",
        "//x.org/b.js",
        "http://x.org/d.png",
    ]
    assert "alt" not in bad.images[0]
    path = tmp_path / "page.html"
    path.touch()
    assert broken_links({path: bad}) == ["page.html: #gone", "page.html: no.html"]
    good = Page(
        '<a id="here" href="#here">x</a><a href="https://x.org">y</a><link rel="canonical" href="https://x.org">'
    )
    assert not broken_links({path: good}) and not from_elsewhere(good.loads)


def test_the_buttons_of_a_published_book(tmp_path):
    """What _config.yml holds as a comment, for the day when there is a public repository."""
    marked = re.compile(r"^( +)# (repository_\w+|use_repository_button|launch_buttons): ", re.M)
    config, count = marked.subn(r"\1\2: ", (ROOT / "_config.yml").read_text("utf-8"))
    assert count == 4
    (tmp_path / "_config.yml").write_text(config.replace("OWNER/NAME", "them/theirs"), "utf-8")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/toy\n")
    shutil.copytree(ROOT / "book/_static", tmp_path / "book/_static")
    (tmp_path / "book/references.bib").touch()
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Toy"), nbformat.v4.new_code_cell("1 + 1")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=book.METADATA)
    nbformat.write(notebook, tmp_path / "notebooks/toy.ipynb")
    book.render(tmp_path, tmp_path)
    page = Page((tmp_path / "_build/html/notebooks/toy.html").read_text("utf-8"))
    assert "https://colab.research.google.com/github/them/theirs/blob/main/notebooks/toy.ipynb" in page.links
    assert "https://github.com/them/theirs" in page.links
    assert not from_elsewhere(page.loads)


def test_a_warning_stops_the_rendering(tmp_path):
    (tmp_path / "book/_static").mkdir(parents=True)
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text("utf-8"), "utf-8")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (tmp_path / "book/references.bib").touch()
    (tmp_path / "book/intro.md").write_text("# Title\n\n{ref}`nowhere`\n")
    with pytest.raises(SystemExit, match="Rendering failed"):
        book.render(tmp_path, tmp_path)
