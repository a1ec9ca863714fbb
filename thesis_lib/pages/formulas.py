"""MathJax beside the book's pages, so that formulas need no network: of the package sphinx-mathjax-offline, which would
copy all of its 23 MB, what these pages load. An extension of Sphinx.
"""

import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any

NEEDED = ("mathjax/tex-mml-chtml.js", "mathjax/output/chtml/fonts/woff-v2/*.woff")


def copy(app: Any) -> None:
    """Copy it into the site's `_static`."""
    for file in files("sphinx-mathjax-offline") or []:
        if any(file.match(f"static/{pattern}") for pattern in NEEDED):
            target = Path(app.outdir) / "_static" / Path(*file.parts[file.parts.index("static") + 1 :])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", copy)
    return {"parallel_read_safe": True}
