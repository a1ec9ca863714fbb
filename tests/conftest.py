"""What tests share: one thread, which is faster for small tensors on few cores, and the book's pages."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock

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
