"""What tests share: one thread, which is faster for small tensors on few cores, and the book's pages."""

import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The folder of the book's pages, built from the stored outputs, every warning an error.

    Built once: test processes beside one another (pytest-xdist) share a folder, and wait.
    """
    import book

    shared = tmp_path_factory.getbasetemp()
    source = (shared if worker_id == "master" else shared.parent) / "rendered"
    with FileLock(f"{source}.lock"):
        if not (source / "done").exists():
            source.mkdir(exist_ok=True)
            book.stage(source, ROOT / "notebooks")
            book.render(source, source)
            (source / "done").touch()
    return (source / "_build/html").resolve()


@pytest.fixture(scope="module")  # no longer: an event loop runs as long, and other tests need their own
def browser():
    """Chromium or Chrome; a test that asks for it is skipped where there is none."""
    if not BROWSER:
        pytest.skip("needs chromium or google-chrome on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


def pytest_collection_modifyitems(items):
    """Files that take minutes come first, so that two processes end together.

    Coverage looks at the first case of each test only: to trace them all takes a third more time.
    """
    items.sort(key=lambda item: item.get_closest_marker("minutes") is None)
    seen = set()
    for item in items:
        name = item.nodeid.split("[")[0]
        if name in seen:
            item.add_marker("no_cover")
        seen.add(name)
