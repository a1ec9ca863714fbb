"""A network that knows pictures with pieces missing, as IDSDS and F-Fidelity ask for.

python -m thesis_lib.training.pieces vgg19_cutouts    # minutes on one core

The weights are no part of the repository. What they are good for:

    clf = tl.load_classifier("vgg19_cutouts", weights="_build/training/vgg19_cutouts_pieces.safetensors")
    rows = tl.evaluate("cutouts", clf, tl.METHODS, metrics=("removals",), limit=100)
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thesis_lib.classifier import IMAGENET_MEAN
from thesis_lib.data import cutouts
from thesis_lib.data.models import load_classifier
from thesis_lib.metrics.pieces import cells
from thesis_lib.training.embedded import HELD_OUT
from thesis_lib.training.train import save_weights, train


def without_pieces(
    pixels: np.ndarray,
    rng: Any,
    cell: float = 0.25,
    strewn: float = 0.25,
    grid: int = 4,
    beta: float = 0.1,
    side: int = 7,
) -> np.ndarray:
    """A copy of pictures (N, 3, H, W) uint8, some with pieces in the mean colour of ImageNet.

    Of each picture by chance: one cell of the grid is missing (Hesse et al., 2024), with probability `cell`; each block
    of side x side pixels with probability up to beta (Zheng et al., 2025), with probability `strewn`; or nothing.

    >>> from thesis_lib.training.pieces import without_pieces
    >>> white = np.full((2, 3, 8, 8), 255, np.uint8)
    >>> (without_pieces(white, np.random.default_rng(0), cell=1, strewn=0)[:, 0] < 255).sum((1, 2)).tolist()
    [4, 4]
    """
    count, _, height, width = pixels.shape
    mean = np.round(255 * np.array(IMAGENET_MEAN)).astype(np.uint8)[:, None]
    grids, found = cells(height, width, grid).numpy(), pixels.copy()
    for picture, chance in zip(found, rng.random(count), strict=True):
        if chance < cell:
            gone = grids[rng.integers(len(grids))]
        elif chance < cell + strewn:
            blocks = rng.random((-(-height // side), -(-width // side))) < rng.uniform(0, beta)
            gone = blocks.repeat(side, 0).repeat(side, 1)[:height, :width]
        else:
            continue
        picture[:, gone] = mean
    return found


def accuracy(network: Any, pixels: np.ndarray, labels: np.ndarray) -> float:
    """The share of pictures (N, 3, H, W) uint8 whose class, (N, C) bool, a Classifier names.

    >>> from thesis_lib.training.pieces import accuracy
    >>> pixels = (sample.pixels[None] * 255).byte().numpy()
    >>> accuracy(clf, pixels, np.eye(51, dtype=bool)[[sample.classes[0]]])
    1.0
    """
    images = (
        network.normalise(torch.from_numpy(some).float() / 255)
        for some in np.array_split(pixels, len(pixels) // 64 + 1)
    )
    named = torch.cat([network.predict(some) for some in images]).cpu().numpy()
    return float((named == labels.argmax(1)).mean())


def fine_tune(
    name: str, file: Path, pictures: int = 2560, epochs: int = 2, seed: int = 0
) -> dict[str, float]:
    """Fine-tune an embedded network of singles and save it; returns its accuracy on held-out pictures.

    Of the network as it is and afterwards, on pictures that are whole and on such with one cell missing.

    >>> from thesis_lib.training.pieces import fine_tune
    >>> fine_tune("vgg19_cutouts", Path("mine.safetensors"))  # doctest: +SKIP
    {'whole, before': 0.95, 'a cell missing, before': 0.93, 'whole': 0.95, 'a cell missing': 0.94}
    """
    clf = load_classifier(name, device="cpu")
    pixels, labels = cutouts.training_arrays(pictures, "singles", "train", seed)
    held_out, truth = cutouts.training_arrays(HELD_OUT, "singles", "validation", seed)
    missing = without_pieces(held_out, np.random.default_rng(seed), cell=1, strewn=0)

    def seen():
        return {"whole": accuracy(clf, held_out, truth), "a cell missing": accuracy(clf, missing, truth)}

    before = {f"{what}, before": value for what, value in seen().items()}
    clf.network.requires_grad_(True)
    for epoch in range(epochs):  # other pieces in each
        rng = np.random.default_rng((seed, epoch + 1))
        train(
            clf.network,
            without_pieces(pixels, rng),
            labels,
            epochs=1,
            rate=2e-4 / (epoch + 1),
            seed=seed + epoch,
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(clf.network, file, architecture=name, categories=cutouts.categories(), activation="softmax")
    return before | seen()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "network", nargs="?", default="vgg19_cutouts", choices=["vgg19_cutouts", "vit_cutouts"]
    )
    parser.add_argument("--folder", default="_build/training", help="where the weights go")
    given = parser.parse_args()
    file = Path(given.folder) / f"{given.network}_pieces.safetensors"
    print(fine_tune(given.network, file), file)


if __name__ == "__main__":
    main()
