"""Any picture or mask from a file, as tensors."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor


def read_picture(source: str | Path, annotated: tuple[int, int] | None = None) -> Image.Image:
    """Any picture that Pillow reads, whole, as a Pillow image of 8 bits: "RGB", or "RGBA" where it
    has transparent parts.

    A note in the file that it is to be turned (EXIF) is followed, unless the picture as stored has
    the width and height that it was `annotated` at: then the boxes belong to it as stored.

    Raises OSError, with the file's name: no picture, cut off, too large.

    >>> from thesis_lib.data import GLYPHS
    >>> read_picture(GLYPHS / "ILSVRC2012/val/04_telephone/ILSVRC2012_val_00000005.JPEG").size
    (224, 224)
    """
    try:
        with Image.open(source) as image:
            image.load()
            picture = image if image.size == annotated else ImageOps.exif_transpose(image)
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # Pillow's readers raise many kinds of it on broken files
        raise OSError(f"{Path(source).name} is not a readable picture: {error}") from error


def open_image(source: str | Path, size: int, annotated: tuple[int, int] | None = None) -> torch.Tensor:
    """Pixels (3, size, size) float32 in [0, 1] of any picture that Pillow reads, in RGB, resized
    without keeping its shape (thesis 3.4.2).

    Turned as `read_picture` has it. What is transparent has the colour that is stored there.

    Raises OSError, with the file's name: as `read_picture`, or of another size than it was
    annotated at.

    >>> from thesis_lib.data import GLYPHS
    >>> open_image(GLYPHS / "ILSVRC2012/val/04_telephone/ILSVRC2012_val_00000005.JPEG", 112).shape
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
    """The values of a palette or grey PNG, (H, W)."""
    try:
        with Image.open(path) as image:
            return np.array(image)
    except Exception as error:
        raise OSError(f"{path.name} is not a readable mask: {error}") from error
