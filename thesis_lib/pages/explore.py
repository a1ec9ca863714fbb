"""Interactive figures: a still picture, and the data with which a page's script makes it move.

`figure` returns HTML without a script. In the rendered book, `book/_static/explore.js` reads its data and
puts controls in the place of the still picture; JupyterLab shows the still picture.

What a reader may never ask for is not in the page: a photograph's maps and curves lie in a file of their own in
`FOLDER`, which the script loads when the photograph is chosen. `scripts/explorer.py` makes these files.
"""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from thesis_lib.data import REPOSITORY
from thesis_lib.pages.plots import SALIENCY, picture

LARGEST = 300_000  # bytes of one figure or file: a page of five still loads at once on a phone
FOLDER = REPOSITORY / "book/_static/explore"


def _bytes(x):
    """Values in [0, 1], or uint8 as they are, as uint8."""
    x = np.asarray(x)
    return x if x.dtype == np.uint8 else (255 * x.clip(0, 1)).round().astype(np.uint8)


def _address(save, kind, **settings):
    """The `data:` address of what `save`, Pillow's or matplotlib's, writes."""
    file = io.BytesIO()
    save(file, format=kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def photograph(pixels: Any) -> str:
    """Pixels (3, H, W) in [0, 1], array or tensor, as a JPEG's `data:` address."""
    return _address(Image.fromarray(_bytes(picture(pixels))).save, "jpeg", quality=88, subsampling=0)


def grey(maps: Any) -> str:
    """Maps (..., H, W), in [0, 1] or uint8, one below the other in a grey picture's `data:` address.

    Nothing but the rounding to 256 levels is lost (WebP's lossless kind): `levels` reads the values back.
    """
    values = _bytes(maps.cpu() if hasattr(maps, "cpu") else maps)
    image = Image.fromarray(values.reshape(-1, values.shape[-1]))
    return _address(image.save, "webp", lossless=True, quality=100, method=6)


def levels(address: str) -> np.ndarray:
    """The pixels (H, W) of a grey picture's `data:` address, uint8.

    >>> levels(grey(np.eye(2)))
    array([[255,   0],
           [  0, 255]], dtype=uint8)
    """
    image = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    return np.asarray(image.convert("L"))


def steps(saliency: Any, ranks: Any) -> list[int]:
    """What a file keeps of a map beside its ranks: the mean level, 0 to 255, of each step's pixels, of the first to
    be replaced first.

    saliency: (H, W) in [0, 1]. ranks: (H, W) integers, the step of each pixel.

    >>> steps(np.array([[1, 0.5], [0, 0.5]]), np.array([[0, 0], [1, 1]]))
    [192, 64]
    """
    ranks, levels = np.ravel(ranks), _bytes(saliency).ravel()
    return (np.bincount(ranks, levels) / np.bincount(ranks)).round().astype(int).tolist()


def drawn(method: dict) -> np.ndarray:
    """A stored method's map (H, W), uint8: each pixel at the mean level of its step.

    >>> drawn({"steps": [192, 64], "ranks": grey(np.array([[0, 0], [1, 1]], np.uint8))})
    array([[192, 192],
           [ 64,  64]], dtype=uint8)
    """
    return np.array(method["steps"], np.uint8)[levels(method["ranks"])]


def dozen(rows: pd.DataFrame, first: int = 50) -> list[str]:
    """Twelve of the first pictures with rows of all methods, at even steps of how much the methods disagree.

    rows: the rows of insertion and deletion of some methods. Disagreement is the standard deviation of the
    methods' over-all scores on a picture; the pictures with the least and the most are among the twelve, in
    this order.
    """
    scores = rows.pivot(index="id", columns="method", values="overall").dropna()
    known = [name for name in rows["id"].unique() if name in scores.index][:first]
    order = scores.loc[known].std(axis=1).sort_values(kind="stable").index
    return list(order[np.linspace(0, len(order) - 1, 12).round().astype(int)])


def save(name: str, data: dict, folder: Path = FOLDER) -> None:
    """Write a picture's data for the script, which a page that was opened from a disk can load too.

    Raises ValueError above 300 kB.
    """
    text = f"explorePicture({json.dumps(name)}, {json.dumps(data, separators=(',', ':'))});\n"
    _small(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.js").write_text(text, "utf-8")


def load(name: str, folder: Path = FOLDER) -> dict:
    """What `save` wrote."""
    text = (folder / f"{name}.js").read_text("utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def _small(text):
    if len(text.encode()) > LARGEST:
        raise ValueError(
            f"{len(text.encode())} bytes: an interactive figure, or a picture's file, has at most {LARGEST}"
        )


def figure(kind: str, data: dict, still: Figure, alt: str) -> HTML:
    """An interactive figure as the result of a notebook's cell.

    kind: which part of explore.js draws it. data: what that part needs, for JSON; the colours of
    saliency are added. still: the matplotlib figure that stands there without a script; it is
    closed. alt: what that picture shows, in words.

    Raises ValueError above 300 kB.
    """
    source = _address(still.savefig, "jpeg", pil_kwargs={"quality": 80})
    plt.close(still)
    colours = (255 * plt.get_cmap(SALIENCY)(np.arange(256))[:, :3]).round().astype(np.uint8)
    text = json.dumps(data | {"colours": colours.tobytes().hex()}, separators=(",", ":"))
    # In single quotes, because JSON is full of double ones.
    text = text.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
    result = (
        f'<div class="explore" data-explore="{html.escape(kind)}" data-figure=\'{text}\'>'
        f'<img alt="{html.escape(alt)}" src="{source}"></div>'
    )
    _small(result)
    return HTML(result)
