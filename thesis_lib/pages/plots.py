"""One look for every figure: method colours and names, one colour map for saliency, few plots."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.config import InlineBackend

from thesis_lib.methods import METHODS
from thesis_lib.pages.report import is_clear, typeset

# Methods have the palette of Okabe and Ito, which colour-blind readers tell apart, in their entries.
VARIANT_COLOURS = {"bare": "#555555", "enhanced": "#D55E00", "mean": "#009E73", "SESS": "#0072B2"}
SALIENCY = "inferno"  # even in lightness, hence readable in grey and by the colour-blind
WIDTH = 8  # inches of a full-width figure; 800 pixels at 100 dpi
STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",  # opaque: the same figure on a light and on a dark page
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "thesis",  # the same figure is the same file
    "svg.fonttype": "none",  # text is text: it can be searched and read aloud, and outlines are most of a file
    "font.sans-serif": [
        "DejaVu Sans",
        "Verdana",
        "sans-serif",
    ],  # Verdana is as wide, where a reader lacks the first
}
LARGEST_SVG = 120_000  # characters; a figure of so many lines is smaller as pixels


def use_style() -> None:
    """Set the style for every figure that follows, and in a notebook what is stored of it: lines as SVG, which
    is sharp on every screen, pictures as JPEG, a quarter of PNG's size. Of tables: with minus signs, and intervals that
    stay on one line.

    >>> plots.use_style()
    """
    plt.style.use(STYLE)
    if shell := get_ipython():
        InlineBackend.instance(parent=shell).figure_formats = set()  # none of its own
        shell.display_formatter.mimebundle_formatter.for_type(Figure, _stored)
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, _table)
        shell.display_formatter.formatters["text/plain"].for_type(pd.DataFrame, _in_short)


def _table(frame: pd.DataFrame) -> str:
    """A DataFrame's HTML as it is read: −1 and not -1, `mean [low, high]` on one line, one row less of headings.

    >>> "−1.0\xa0[−2.0,\xa00.5]" in plots._table(pd.DataFrame({"x": ["-1.0 [-2.0, 0.5]"]}))
    True
    >>> plots._table(pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="method"))).count("<tr")
    2
    """

    html = re.sub(r"(?<=<td>)[^<]*(?=</td>)", lambda cell: typeset(cell[0]), frame._repr_html_())
    return re.sub(
        r"<thead>.*?</thead>", lambda head: _together(head[0], frame.index.nlevels), html, flags=re.S
    )


def _together(head, levels):
    """A table's headings with the names of the rows beside those of the columns, and not in a row of their own,
    which is empty but for them."""
    rows = re.findall(r"<tr.*?</tr>", head, re.S)
    cells = [re.findall(r"<th[^>]*>.*?</th>", row, re.S) for row in rows]
    if len(rows) < 2 or any(re.sub("<.*?>", "", c) for c in [*cells[-1][levels:], *cells[-2][:levels]]):
        return head
    row = rows[-2]
    for blank, name in zip(cells[-2][:levels], cells[-1][:levels], strict=True):
        row = row.replace(blank, name, 1)
    return head.replace(rows[-1], "").replace(rows[-2], row)


def _in_short(frame, printer, cycle):
    """A table's plain text, which no page shows: not the whole of it once more."""
    printer.text(f"{len(frame)} rows, {len(frame.columns)} columns")


def _stored(figure, include=None, exclude=None):
    """What a notebook keeps of a figure: {mime type: text}."""
    if not any(axis.images for axis in figure.axes):
        text = _slim(print_figure(figure, "svg", metadata={"Date": None}))
        if len(text) <= LARGEST_SVG:
            return {"image/svg+xml": text}
    # More pixels at less quality: sharper on a screen of twice the density, for a fifth more bytes.
    small = {"quality": 50, "subsampling": "4:2:0", "optimize": True, "progressive": True}
    pixels = print_figure(figure, "jpeg", base64=True, dpi=160, pil_kwargs=small)
    return {"image/jpeg": pixels}


def _slim(svg: str) -> str:
    """An SVG on one line, a third smaller: without what only says how it was made, in hundredths of a point.

    >>> plots._slim("<svg> <!-- x -->\\n <path d='M 10.123456 -3.5'/> </svg>")
    "<svg><path d='M 10.12 -3.5'/></svg>"
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # to which nothing refers
    return re.sub(r">\s+<", "><", " ".join(svg.split()))


def class_name(category: str) -> str:
    """What a reader calls a class: its name without the WNID in front.

    >>> plots.class_name("n01843383-toucan")
    'toucan'
    """
    return re.sub(r"^n\d{8}-", "", category)


def name(method: str) -> str:
    """How a method is called in text; one that is not registered stands for itself. What is behind the
    first space is a variant's own: "grad_cam enhanced".

    >>> plots.name("msg_cam"), plots.name("grad_cam enhanced"), plots.name("mine")
    ('MSG-CAM', 'Grad-CAM enhanced', 'mine')
    """
    base, _, variant = method.partition(" ")
    title = METHODS[base].title if base in METHODS else base
    return f"{title} {variant}".strip()


def colour(method: str) -> str:
    """A method's colour through the whole book; grey for one that is not registered.

    >>> plots.colour("msg_cam"), plots.colour("mine")
    ('#D55E00', '#888888')
    """
    return METHODS[method].colour if method in METHODS else "#888888"


def line(method: str) -> str:
    """A method's line style, which repeats the distinction without colour.

    >>> plots.line("msg_cam"), plots.line("mine")
    ('-', '-')
    """
    return METHODS[method].line if method in METHODS else "-"


def _line(method):
    return {"color": colour(method), "linestyle": line(method)}


def _array(x):
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)


def picture(pixels: Any) -> np.ndarray:
    """Pixels (3, H, W) in [0, 1], array or tensor, as (H, W, 3) for imshow.

    >>> plots.picture(sample.pixels).shape
    (224, 224, 3)
    """
    return _array(pixels).clip(0, 1).transpose(1, 2, 0)


def overlay(pixels: Any, saliency: Any, weight: float = 0.5) -> np.ndarray:
    """A map (H, W) in [0, 1] in colour over its picture (3, H, W), as (H, W, 3).

    >>> plots.overlay(sample.pixels, tl.METHODS["grad_cam"](clf, images)[0]).shape
    (224, 224, 3)
    """
    colours = plt.get_cmap(SALIENCY)(_array(saliency))[..., :3]
    return (1 - weight) * picture(pixels) + weight * colours


def show_maps(pixels: Any, maps: dict[str, Any], titles: Sequence[str] | None = None) -> Figure:
    """A grid: one row per picture, the picture itself and then its map by every method.

    `pixels` is (N, 3, H, W) in [0, 1]; `maps` maps a method (or any title) to (N, H, W);
    `titles` (N,) name the rows, the class for instance. Returns the figure.

    >>> plots.use_style()
    >>> maps = {"grad_cam": tl.METHODS["grad_cam"](clf, images)}
    >>> figure = plots.show_maps(sample.pixels[None], maps)
    >>> [axis.get_title() for axis in figure.axes]
    ['picture', 'Grad-CAM']
    """
    rows, columns = len(pixels), 1 + len(maps)
    side = WIDTH / columns
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * side + 0.3), squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for row in range(rows):
        images = [picture(pixels[row])] + [overlay(pixels[row], m[row]) for m in maps.values()]
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        if titles is not None:
            axes[row, 0].set_ylabel(titles[row], fontsize=9)
    for axis, title in zip(axes[0], ["picture", *map(name, maps)], strict=True):
        axis.set_title(title.replace(" ", "\n"), fontsize=9 if columns > 5 else 11)
    return figure


def curves(
    axis: Axes, fractions: Any, by_method: dict[str, Any], title: str = "", areas: bool = True
) -> None:
    """Insertion or deletion curves of one picture (or means) in one panel.

    `by_method` maps a method to its curve (T,); `areas` adds the area under each to the legend.

    >>> import matplotlib.pyplot as plt
    >>> _, axis = plt.subplots()
    >>> plots.curves(axis, [0, 0.5, 1], {"grad_cam": [0, 1, 1]})
    >>> axis.get_legend().get_texts()[0].get_text()
    'Grad-CAM 75.0'
    """
    fractions = _array(fractions)
    for method, curve in by_method.items():
        curve = _array(curve)
        area = f" {100 * np.trapezoid(curve, fractions):.1f}" if areas else ""
        axis.plot(fractions, curve, label=name(method) + area, **_line(method))
    axis.set(xlim=(0, 1), ylim=(0, 1.02), title=title, ylabel="probability")
    axis.legend()


def intervals(axis: Axes, table: pd.DataFrame, label: str = "", reference: str | None = None) -> None:
    """Mean and 95 % interval of each method, from `thesis_lib.pages.report.paired_table`.

    `reference` names the method whose mean is drawn as a line to compare with.

    >>> import matplotlib.pyplot as plt
    >>> _, axis = plt.subplots()
    >>> table = pd.DataFrame({"mean": [0.5], "low": [0.4], "high": [0.6]}, index=["msg_cam"])
    >>> plots.intervals(axis, table, "over-all")
    >>> axis.get_yticklabels()[0].get_text()
    'MSG-CAM'
    """
    for y, (method, row) in enumerate(table.iterrows()):
        width = np.maximum(0, [[row["mean"] - row["low"]], [row["high"] - row["mean"]]])  # rounding
        axis.errorbar(row["mean"], y, xerr=width, fmt="o", capsize=4, color=colour(method))
    if reference is not None:
        axis.axvline(table.loc[reference, "mean"], color=colour(reference), linewidth=1, zorder=0)
    axis.set_yticks(range(len(table)), [name(method) for method in table.index])
    axis.set_xlabel(label)
    if not axis.yaxis_inverted():  # panels that share it have one axis between them
        axis.invert_yaxis()


def forest(axis: Axes, table: pd.DataFrame, scale: float = 100, label: str = "") -> None:
    """Differences of each base method's variants to the bare method, with 95 % intervals.

    `table` is indexed by (method, variant): one value of `thesis_lib.pages.report.variants_table`.
    Filled: clear (`thesis_lib.pages.report.is_clear`); hollow: not.

    >>> import matplotlib.pyplot as plt
    >>> table = report.variants_table(in_windows, ["overall"])
    >>> _, axis = plt.subplots()
    >>> plots.forest(axis, table.loc["overall"], label="over-all, difference")
    >>> axis.get_yticklabels()[0].get_text()
    'Grad-CAM'
    """
    table = table.dropna(subset=["difference"])
    clear = is_clear(table)
    methods = list(table.index.unique("method"))
    variants = list(table.index.unique("variant"))
    for (method, variant), row in (scale * table).iterrows():
        y = methods.index(method) + 0.3 * (variants.index(variant) - (len(variants) - 1) / 2)
        mean, low, high = row["difference"], row["difference_low"], row["difference_high"]
        colour = VARIANT_COLOURS.get(variant, "#888888")
        axis.errorbar(
            mean, y, xerr=np.maximum(0, [[mean - low], [high - mean]]), capsize=3, color=colour,
            fmt="os^D"[variants.index(variant) % 4], markersize=5,
            markerfacecolor=colour if clear[method, variant] else "white",
            label=variant if method == methods[0] else None,
        )  # fmt: skip
    axis.axvline(0, color=VARIANT_COLOURS["bare"], linewidth=1.2, zorder=0)
    axis.set_yticks(range(len(methods)), [name(method) for method in methods])
    axis.set(xlabel=label, ylim=(len(methods) - 0.5, -0.5))


def confidence(axis: Axes, table: pd.DataFrame, label: str = "") -> None:
    """Mean by confidence bin and method, from `thesis_lib.pages.report.confidence_table`.

    The ticks carry the number of images in each bin.

    >>> import matplotlib.pyplot as plt
    >>> _, axis = plt.subplots()
    >>> plots.confidence(axis, report.confidence_table(rows, "overall"))
    >>> axis.get_xticklabels()[-1].get_text()
    '>=0.9999\\nn=1'
    """
    for method, part in table.groupby("method", sort=False):
        style = _line(method) | {"marker": "o", "markersize": 4}
        axis.plot(part["bin"], part["mean"], label=name(method), **style)
    axis.set_xticks(part["bin"], part["label"] + "\nn=" + part["n"].astype(str), fontsize=8)
    axis.set(xlabel="probability of the predicted class", ylabel=label)
    axis.legend(ncols=2)
