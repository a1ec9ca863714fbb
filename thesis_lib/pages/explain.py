"""One picture explained: `python -m thesis_lib explain`. The page for a reader's own picture shows more."""

import time
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from thesis_lib.classifier import Classifier
from thesis_lib.data.models import load_classifier
from thesis_lib.data.pictures import read_picture
from thesis_lib.kernels import resize
from thesis_lib.methods import METHODS
from thesis_lib.pages.compare import family_of, side_of

# Matplotlib's inferno, as the book has it, at 0, 0.2, ..., 1: the library without the book needs no Matplotlib.
COLOURS = np.array([(0, 0, 3), (65, 9, 103), (147, 37, 103), (220, 80, 57), (251, 164, 10), (252, 254, 164)])
USUAL = {"convolutional": "msg_cam", "transformer": "transformer_attribution"}


def explain(
    picture: str | Path,
    network: str | Classifier = "efficientnet_lite0",
    method: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Save a picture with a method's map in colour over it, and say what was explained and where it is.

    The network sees the picture's central square, at the size that it is made for; the map explains the class that
    it predicts. Nothing is written over: where the file is there, the name gets a number, cat-2.png.

    Args:
        picture: a file.
        network: a name that `load_classifier` knows, or a Classifier.
        method: a name in METHODS; None: MSG-CAM, of a Vision Transformer transformer attribution.
        out: the file to write; None: picture and method, such as cat-msg_cam.png, in the current folder.

    Raises:
        FileNotFoundError: no picture, or no folder for the result.
        OSError: no readable picture.
        ValueError: an unknown network or method, or a method that cannot explain the network; a kind of file that
            Pillow does not write.

    >>> import tempfile
    >>> from thesis_lib.data import PHOTOGRAPHS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     said = explain(PHOTOGRAPHS / "8b7a5446dae48ac1.jpg", clf, "grad_cam", f"{folder}/fly.png")
    >>> said.startswith("Grad-CAM explains ")
    True
    """
    picture = Path(picture).expanduser()
    if not picture.is_file():
        raise FileNotFoundError(f"there is no picture at {picture}")
    if out and Path(out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{out} has no ending of a picture, such as .png")
    if out and not Path(out).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(out).parent} to write {Path(out).name} to")
    whole = read_picture(picture)
    if whole.mode == "RGBA":  # transparent parts
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    if method is not None:
        METHODS[method]  # before the network, which may have to be downloaded
    clf = load_classifier(network) if isinstance(network, str) else network

    side, short = side_of(clf), min(whole.size)
    left, top = (whole.width - short) // 2, (whole.height - short) // 2
    square = (left, top, left + short, top + short)
    seen = whole.resize((side, side), Image.Resampling.BILINEAR, box=square)
    image = clf.normalise(pil_to_tensor(seen)[None].float() / 255)
    probabilities = clf.probabilities(image)[0]
    method = method or USUAL[family_of(clf, image)]
    begin = time.perf_counter()
    saliency = METHODS[method](clf, image)
    values = resize(saliency[None], (short, short))[0, 0].cpu().clamp(0, 1)
    seconds = time.perf_counter() - begin

    whole.paste(Image.blend(whole.crop(square), Image.fromarray(in_colour(values.numpy())), 0.5), (left, top))
    file = _free(Path(out or f"{picture.stem}-{method}.png"))
    whole.save(file)
    c = int(probabilities.argmax())
    named = clf.categories[c] if clf.categories else f"class {c}"
    flat = " The map is flat: it finds nothing." if not saliency.any() else ""
    return f"{METHODS[method].title} explains {named}, probability {probabilities[c]:.2f}, in {seconds:.1f} s: {file}.{flat}"


def in_colour(values: np.ndarray) -> np.ndarray:
    """Values (H, W) in [0, 1] as colours (H, W, 3), uint8.

    >>> in_colour(np.array([[0.0, 0.1, 1.0]])).tolist()
    [[[0, 0, 3], [32, 4, 53], [252, 254, 164]]]
    """
    places = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, places, channel) for channel in COLOURS.T], -1).astype(np.uint8)


def _free(path):
    """The path, or where something is there, one with a number."""
    others = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    return next(file for file in chain([path], others) if not file.exists())
