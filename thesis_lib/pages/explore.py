"""Interactive figures: a still picture, and the data with which a page's script makes it move.

`figure` returns HTML without a script. In the rendered book, `book/_static/explore.js` reads its data and
puts controls in the place of the still picture; JupyterLab shows the still picture.
"""

import base64
import html
import io
import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from thesis_lib.pages.plots import SALIENCY, picture

LARGEST = 300_000  # bytes of one figure: a page of five still loads at once on a phone


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
    """Maps (..., H, W), in [0, 1] or uint8, one below the other in a grey PNG's `data:` address.

    Nothing but the rounding to 256 levels is lost: the script reads the values back.
    """
    values = _bytes(maps.cpu() if hasattr(maps, "cpu") else maps)
    image = Image.fromarray(values.reshape(-1, values.shape[-1]))
    return _address(image.save, "png", optimize=True)


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
    if len(result) > LARGEST:
        raise ValueError(f"{len(result)} bytes: an interactive figure has at most {LARGEST}")
    return HTML(result)
