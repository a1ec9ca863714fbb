"""Any picture or mask from a file, as tensors."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.functional import pil_to_tensor

from thesis_lib.data import is_picture


def pictures_below(folder: str | Path) -> list[Path]:
    """Files that are pictures by their names, in `folder` and all folders in it, sorted.

    Links to folders are followed. A folder that several ways lead to counts once, where it really
    is if that is below `folder` too: rows of one picture under two names would make n too large,
    and a link to a folder around it would never end. Hidden folders and macOS's __MACOSX are none.

    Raises OSError where a folder cannot be listed: its pictures would be missing without a word.

    >>> from thesis_lib.data import CUTOUTS
    >>> len(pictures_below(CUTOUTS / "ILSVRC2012/val"))
    204
    """

    def fail(error):
        raise error

    found, seen, starts = [], set(), [Path(folder)]
    for start in starts:  # grows by the links on the way, so that they come after real folders
        for here, folders, files in os.walk(start, onerror=fail):
            if (real := os.path.realpath(here)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
            starts += [link for name in folders if (link := Path(here, name)).is_symlink()]
            found += [Path(here, name) for name in files if is_picture(name)]
    return sorted(found)


def read_picture(source: str | Path, annotated: tuple[int, int] | None = None) -> Image.Image:
    """Any picture that Pillow reads, whole, as a Pillow image of 8 bits: "RGB", or "RGBA" where it
    has transparent parts.

    A note in the file that it is to be turned (EXIF) is followed, unless the picture as stored has
    the width and height that it was `annotated` at: then the boxes belong to it as stored.

    Greys of 16 or 32 bits become 8: white is 255 where no value is above it, else 65,535; of
    floating-point numbers it is 1, else 255.

    Raises OSError, with the file's name: no picture, cut off, too large; greys beyond these, or so
    dark that another value must be white (12 bits in a file of 16).

    >>> from thesis_lib.data import CUTOUTS
    >>> read_picture(CUTOUTS / "ILSVRC2012/val/n01843383/ILSVRC2012_val_00000005.JPEG").size
    (224, 224)
    """
    try:
        with Image.open(source) as image:
            image.load()
            picture = image if image.size == annotated else ImageOps.exif_transpose(image)
            if picture.mode[0] in "IF":  # more than 8 bits, which Pillow would clip at 255
                grey = _grey(np.asarray(picture))
                if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF says that 0 is white
                    grey = 255 - grey  # Pillow sees to it for 8 bits only
                picture = Image.fromarray(grey)
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except UnidentifiedImageError as error:
        raise OSError(
            f"{Path(source).name} is not a readable picture: it is damaged, or of a kind that Pillow does "
            "not know, such as HEIC; then convert it to PNG or JPEG"
        ) from error
    except Exception as error:  # Pillow's readers raise many kinds of it on broken files
        raise OSError(f"{Path(source).name} is not a readable picture: {error}") from error


def _grey(values):
    """Greys (H, W) of 16 or 32 bits as uint8. Files do not say which value is white: int32 arrays are
    saved with values of 8, 12 and 16 bits, float32 ones with 0 to 1 and 0 to 255."""
    low, high = values.min(), values.max()  # NaN, which is below no white, where there is one
    floats = values.dtype.kind == "f"
    white = next((w for w in ((1, 255) if floats else (255, 65535)) if high <= w), None)
    # No value above a sixteenth of white: that is another white, not a dark picture. (14 bits in a file
    # of 16 cannot be told from a dark one. Nothing but 0 is black whatever white is.)
    if white is None or low < 0 or 0 < high < white / 16:
        raise ValueError(
            f"its values go from {low:g} to {high:g}, which does not say what white is: "
            "save it with 8 bits, 0 for black and 255 for white"
        )
    return (values >> 8 if white == 65535 else np.rint(values * (255 / white))).astype(np.uint8)


def open_image(source: str | Path, size: int, annotated: tuple[int, int] | None = None) -> torch.Tensor:
    """Pixels (3, size, size) float32 in [0, 1] of any picture that Pillow reads, in RGB, resized
    without keeping its shape (thesis 3.4.2).

    Turned as `read_picture` has it. What is transparent has the colour that is stored there.

    Raises OSError, with the file's name: as `read_picture`, or of another size than it was
    annotated at.

    >>> from thesis_lib.data import CUTOUTS
    >>> open_image(CUTOUTS / "ILSVRC2012/val/n01843383/ILSVRC2012_val_00000005.JPEG", 112).shape
    torch.Size([3, 112, 112])
    """
    picture = read_picture(source, annotated).convert("RGB")
    if annotated and picture.size != annotated:
        raise OSError(
            f"{Path(source).name} has {picture.width} x {picture.height} pixels, "
            f"but was annotated at {annotated[0]} x {annotated[1]}"
        )
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return pil_to_tensor(resized).float() / 255


def resize_mask(mask: np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
    """A mask (H, W) as (size, size) bool: each pixel takes the nearest one's value."""
    image = Image.fromarray(np.asarray(mask, np.uint8))
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.NEAREST)) > 0)


def box_mask(
    boxes: Iterable[tuple[float, float, float, float]], width: int, height: int, size: int
) -> torch.Tensor:
    """Union of boxes (x0, y0, x1, y1; pixels, 0-based, the far edge exclusive) on a size x size
    grid: a pixel belongs to a box that holds its centre. A box of no area holds none."""
    x = (torch.arange(size) + 0.5) * width / size
    y = (torch.arange(size) + 0.5) * height / size
    mask = torch.zeros(size, size, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
    return mask


def read_indices(path: Path) -> np.ndarray:
    """The values of a palette or grey PNG, (H, W).

    Raises OSError, with the file's name: no picture, or one of colours.
    """
    try:
        with Image.open(path) as image:
            if len(image.getbands()) > 1:
                raise ValueError(f"it has colours ({image.mode}), and a mask has one number a pixel")
            return np.array(image)
    except Exception as error:
        raise OSError(f"{path.name} is not a readable mask: {error}") from error
