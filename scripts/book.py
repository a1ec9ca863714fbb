"""Execute the notebooks with papermill and render the book.

    python scripts/book.py configs/embedded.yaml              what `make book` does
    python scripts/book.py configs/embedded.yaml --update     what `make notebooks` does
    python scripts/book.py configs/full-imagenet.yaml         one notebook on a real dataset

Executed copies live in `_build/NAME/notebooks`, NAME being the configuration's: rendering or
interrupting never changes a tracked file, and a run with other parameters cannot pass for the
committed one. `--update` is for authors: it writes the copies back over `notebooks/`.

A notebook is executed again when its code, its parameters, the files that these name, `thesis_lib`,
`data` or the locked packages change (real datasets are not looked at); after a change of prose alone
the stored outputs move over to the new text. What `_build/embedded` has executed already is taken
from there. Jupyter Book's own cache knows nothing of `thesis_lib`, so it stays off.
"""

import argparse
import copy
import glob
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from papermill.parameterize import parameterize_notebook

from thesis_lib.pages.parameters import declared, faults

ROOT = Path(__file__).resolve().parent.parent
# One text for every machine and Python version, so that a re-execution changes outputs only.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path):
    """A notebook with the metadata that all of ours have."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def parameters_of(notebook):
    """What the notebook's parameters cell declares: {name: (name of its type, default)}."""
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    return declared(tagged[0].source) if tagged else {}


def read_config(path):
    """Parameters `{notebook: {name: value}}`, checked against the notebooks' parameters cells.

    The file has one entry for each notebook, or is flat: parameters of one notebook, which
    `notebook: NAME` among them names. papermill can read a flat file as it stands (`-f`).
    """
    config = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    if isinstance(config, dict) and "notebook" in config:
        config = {config["notebook"]: config}
    if not isinstance(config, dict) or not all(isinstance(p or {}, dict) for p in config.values()):
        raise SystemExit(f"{path}: not parameters of notebooks; compare configs/embedded.yaml")
    for name, parameters in config.items():
        notebook = ROOT / "notebooks" / f"{name}.ipynb"
        if not notebook.exists():
            raise SystemExit(f"{path}: there is no notebook {name} in notebooks/")
        kinds = {key: kind for key, (kind, _) in parameters_of(read(notebook)).items()}
        if found := list(faults(parameters or {}, kinds)):
            raise SystemExit(f"{path}: {name}: " + "; ".join(found))
    return config


def prepare(path, parameters):
    """The notebook as it will be executed: without outputs, and with papermill's extra cell only
    if a parameter differs from its default. Committed outputs come from the defaults, so they carry
    no such cell."""
    notebook = read(path)
    known = parameters_of(notebook)
    changed = {key: value for key, value in parameters.items() if known[key][1] != value}
    if changed:
        notebook.metadata["papermill"] = {}  # papermill takes both of these for granted
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
        notebook = parameterize_notebook(notebook, changed)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if is_injected(cell):
            cell.id = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def is_injected(cell):
    return "injected-parameters" in cell.metadata.get("tags", [])


def is_long(notebook):
    """Whether it runs with parameters of its own: perhaps for a night, not a minute."""
    return any(map(is_injected, notebook.cells))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(paths, text=""):
    """Hash of files, by name and content, and of a text."""
    digest = hashlib.sha256(text.encode())
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(os.path.relpath(path, ROOT).encode() + path.read_bytes())
    return digest.hexdigest()


def code_fingerprint(notebook, parameters):
    """Hash of everything that a notebook's outputs depend on, but for real datasets."""
    # The ledger of claims counts for the pages that name it: what is said there changes no measurement.
    parts = [p for p in (ROOT / "data").iterdir() if p.name not in ("downloads", "claims.csv")]
    data = (
        p
        for part in parts
        for p in [part, *part.rglob("*")]
        if p.suffix != ".md" and p.name != "croissant.json"
    )
    read = [v for name, v in parameters.items() if isinstance(v, str) and name != "out"]
    # Weights, lists of pictures, notebooks whose outputs are read; other texts name no file.
    named = (Path(path) for value in read for path in glob.glob(str(ROOT / value)))
    paths = {ROOT / "requirements.lock", *(ROOT / "thesis_lib").rglob("*.py"), *data, *named}
    return fingerprint(paths, json.dumps([cell.source for cell in code_cells(notebook)]))


def tidy(outputs):
    """Outputs that are the same at every execution and need no script from another host."""
    tidied = []
    for output in outputs:
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue  # a progress bar: its widget is gone with the kernel
        if output.output_type == "stream" and tidied and tidied[-1].get("name") == output.name:
            tidied[-1].text += output.text  # where a stream is cut depends on timing
        else:
            tidied.append(output)
    return tidied


def give_outputs(notebook, executed):
    """Move the outputs of an execution of the same code into `notebook`."""
    for cell, done in zip(code_cells(notebook), code_cells(executed), strict=True):
        cell.outputs, cell.execution_count = tidy(done.outputs), done.execution_count


def write(notebook, path):
    """Write only a complete file, and only if it says something new."""
    text = nbformat.writes(notebook) + "\n"
    if path.exists() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def use_own_profile():
    """Keep the reader's own IPython start-up files out, and a warning of every kernel's."""
    profile = ROOT / "_build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n", "utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)


class KernelManager(AsyncKernelManager):
    """Jupyter's, but for the end: it interrupts a kernel before it asks it to stop. One that has sent its
    last answer and not yet put the question away reports that, in one build of two:
    `ERROR | KeyboardInterrupt caught in kernel`. A kernel that does not stop is killed after seconds."""

    async def shutdown_kernel(self, now=False, restart=False):
        await self.request_shutdown(restart=restart)
        await self.finish_shutdown(restart=restart)
        await self.cleanup_resources(restart=restart)


def execute(config, work, names=None):
    """Execute the notebooks that changed into `work/notebooks`, two at a time."""
    use_own_profile()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if names:
        paths = [p for p in paths if p.stem in names]
    done, shared = read_log(work), ROOT / "_build" / "embedded"
    lock = Lock()

    def keep(notebook, path, facts):
        with lock:
            write(notebook, work / "notebooks" / path.name)
            done[path.stem] = facts
            (work / "executed.json").write_text(json.dumps(done, indent=1), "utf-8")

    waiting, long = [], False
    for i, path in enumerate(paths, start=1):
        parameters = config.get(path.stem) or {}
        notebook = prepare(path, parameters)
        now = code_fingerprint(notebook, parameters)
        label = f"[{i}/{len(paths)}] {path.stem}:"
        for folder, log in ((work, done), (shared, read_log(shared))):
            stored = folder / "notebooks" / path.name
            if log.get(path.stem, {}).get("fingerprint") == now and stored.exists():
                print(f"{label} code and data unchanged, not executed again", flush=True)
                give_outputs(notebook, nbformat.read(stored, as_version=4))
                keep(notebook, path, log[path.stem])
                break
        else:
            before = done.get(path.stem, {}).get("seconds", 0)
            waiting.append((before, label, notebook, path, now))
            long |= is_long(notebook)

    def compute(item):
        before, label, notebook, path, now = item
        last = f" (it took {before} s last time)" if before else ""
        say(f"{label} executing{last}")
        start = time.monotonic()
        give_outputs(notebook, run(notebook, path, work / "partial" / path.name))
        seconds = round(time.monotonic() - start)
        say(f"{label} done in {seconds} s")
        keep(notebook, path, {"fingerprint": now, "seconds": seconds})

    waiting.sort(key=lambda item: -item[0])  # what took longest first, so that both end together
    # Measured on two cores: two notebooks with a thread each are 1.2 times faster than one with two.
    # A run with parameters of its own has the machine, and its GPU, to itself.
    workers = 1 if long else 2
    if not long:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // workers)))
    pool = ThreadPoolExecutor(workers)
    try:
        for finished in as_completed([pool.submit(compute, item) for item in waiting]):
            finished.result()  # raises what went wrong there; the other one ends first, and is kept
    finally:
        pool.shutdown(cancel_futures=True)
    return paths


def say(line):
    """Print a line in one piece: two threads that `print` write theirs into one another."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read_log(work):
    """What was executed there, by notebook: its fingerprint and the seconds that it took."""
    log = work / "executed.json"
    return json.loads(log.read_text("utf-8")) if log.exists() else {}


def run(notebook, path, partial):
    """Execute a copy of a prepared notebook; as far as it comes it lies at `partial`.

    With parameters of its own it may run for a night: what it says of its progress is passed on.
    With the defaults it says nothing, and its outputs are the same at every execution.
    """
    long = is_long(notebook)
    partial.parent.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "" if long else "1"  # the kernel inherits it
    # Where there is a compiler of CUDA's and no GPU, PyTorch says so in the middle of a page.
    os.environ.setdefault("TORCH_LOGS", "-torch.utils.cpp_extension")
    try:
        executed = papermill.execute_notebook(
            copy.deepcopy(notebook),
            partial,
            cwd=path.parent,
            kernel_name="python3",
            kernel_manager_class=KernelManager,
            progress_bar=not long and sys.stderr.isatty(),
            stderr_file=sys.stderr if long else None,
        )
    except papermill.PapermillExecutionError as error:
        raise SystemExit(f"{error}\n{path.stem} failed; as far as it came: {partial}") from None
    partial.unlink()
    return executed


def update(paths, work):
    """Write the outputs of an execution into the notebooks that they belong to."""
    for path in paths:
        notebook = prepare(path, {})
        executed = nbformat.read(work / "notebooks" / path.name, as_version=4)
        if [cell.source for cell in code_cells(notebook)] != [c.source for c in code_cells(executed)]:
            raise SystemExit(
                f"{path.stem}: not stored, because its code was changed meanwhile, or because the"
                " parameters are not its defaults"
            )
        give_outputs(notebook, executed)
        write(notebook, path)


def stage(work, notebooks=None):
    """Lay the book's prose beside the executed notebooks; return all that the pages are made of."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, work / name)
    shutil.copytree(ROOT / "book", work / "book", dirs_exist_ok=True)
    if notebooks:
        shutil.copytree(notebooks, work / "notebooks", dirs_exist_ok=True)
    return [
        work / "_config.yml",
        work / "_toc.yml",
        *work.glob("book/**/*"),
        *work.glob("notebooks/*"),
    ]


def pages(toc):
    """The files that a table of contents names, in its order."""
    if isinstance(toc, dict):
        return [v for k in ("root", "file") if (v := toc.get(k))] + pages(list(toc.values()))
    return [page for part in toc for page in pages(part)] if isinstance(toc, list) else []


def title(path):
    """The first heading of a Markdown file or of a notebook, without its markup."""
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    else:
        text = path.read_text("utf-8")
    return re.sub(r"[`*$]", "", re.search(r"^# (.+)$", text, re.M)[1]).strip()


def render(work, output):
    """Build the pages of `work` in `output/_build/html`, every warning an error; return index.html.

    Jupyter Book 2 would exit with 0 without making one page, hence the looks at the result.
    """
    import jupyter_book

    if not jupyter_book.__version__.startswith("1."):
        raise SystemExit(f"Jupyter Book 1 is needed, not {jupyter_book.__version__}: make clean-all book")
    index = output / "_build" / "html" / "index.html"
    shutil.rmtree(index.parent, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", work]
    # --all: a page that is not read again does not repeat its warnings.
    command += ["--path-output", output, "--all", "-W", "-n", "--keep-going", "-q"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if run.returncode or not index.exists():
        raise SystemExit("Rendering failed: see the warnings above")
    for name in pages(yaml.safe_load((work / "_toc.yml").read_text("utf-8"))):
        source = next(p for s in (".md", ".ipynb") if (p := work / f"{name}{s}").exists())
        heading = re.search(r"<h1>(.*?)</h1>", (index.parent / f"{name}.html").read_text("utf-8"), re.S)
        if not heading or title(source) not in html.unescape(re.sub(r"<[^>]+>", "", heading[1])):
            raise SystemExit(f"{name}.html lacks its title {title(source)!r}")
    return index


def main():
    parser = argparse.ArgumentParser(description="Execute the notebooks with papermill and render the book.")
    parser.add_argument("config", type=Path, help="papermill parameters, for example configs/embedded.yaml")
    parser.add_argument(
        "--update", action="store_true", help="write the executed notebooks back, render nothing"
    )
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="with --update: these notebooks only")
    arguments = parser.parse_args()
    start, work = time.monotonic(), ROOT / "_build" / arguments.config.stem
    config = read_config(arguments.config)
    work.mkdir(parents=True, exist_ok=True)
    paths = execute(config, work, arguments.only)
    if arguments.update:
        update(paths, work)
        return
    output = ROOT if arguments.config.stem == "embedded" else work
    index, log = output / "_build" / "html" / "index.html", work / "rendered.txt"
    now = fingerprint(stage(work))
    if index.exists() and log.exists() and log.read_text("utf-8") == now:
        print("pages unchanged, not rendered again")
    else:
        print("rendering the pages with Jupyter Book", flush=True)
        render(work, output)
        log.write_text(now, "utf-8")
    print(f"done in {(time.monotonic() - start) / 60:.1f} minutes\nopen {index}")


if __name__ == "__main__":
    main()
