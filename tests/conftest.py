"""What tests share: one thread, which is faster for small tensors on few cores, and the book's pages."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the book's pages, built from the stored outputs, every warning an error."""
    import book

    source = tmp_path_factory.mktemp("book").resolve()
    book.stage(source, ROOT / "notebooks")
    return book.render(source, source).parent
