"""The networks of the cut-outs: how each is trained.

python -m thesis_lib.training.cutouts            # all of them, some hours on 2 cores
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thesis_lib.data import cutouts
from thesis_lib.data.models import WEIGHTS, load_classifier, vgg19_cutouts, vit_cutouts
from thesis_lib.training.embedded import AnySize, Curves, fold_batch_norm, main, train_and_record
from thesis_lib.training.train import save_weights, train

HELD_OUT = 612  # pictures of unseen backgrounds, twelve a class


def train_cnns(folder: Path, weights: Path, pictures: int, scenes: int, seed: int, bf16: bool) -> Curves:
    """`vgg19_cutouts` and `vgg19_cutouts_scenes` from nothing; returns their curves.

    1. features with a pooled linear head at 96 to 128 pixels (VGG's own head does not start);
    2. VGG's 7x7 head behind them, at 128 to 320 pixels;
    3. once more at 224 to 448, so that enlarged pictures are known, and without label smoothing, so that the
       network may be certain;
    4. the network of step 2 fine-tuned on scenes, one logit a class.
    Batch norm is folded in before saving.
    """
    held_out = cutouts.training_arrays(HELD_OUT, "singles", "validation", seed)
    pixels, labels = cutouts.training_arrays(pictures, "singles", "train", seed)
    torch.manual_seed(seed)
    network: Any = vgg19_cutouts(batch_norm=True)
    pooled = nn.Sequential(
        network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, labels.shape[1])
    )
    curves = {}
    curves["pooled head"] = train(
        pooled, pixels, labels, epochs=8, sizes=(96, 112, 128), seed=seed, smoothing=0.05, bf16=bf16,
        checkpoint=folder / "1.pt", held_out=held_out,
    )  # fmt: skip
    curves["7x7 head"] = train(
        network, pixels, labels, epochs=4, rate=2e-3, sizes=(128, 160, 224, 320), seed=seed + 1,
        smoothing=0.05, bf16=bf16, checkpoint=folder / "2.pt", held_out=held_out,
    )  # fmt: skip
    of_scenes = copy.deepcopy(network)
    curves["7x7 head, enlarged"] = train(
        network, pixels, labels, epochs=1, rate=1e-3, sizes=(224, 320, 448), seed=seed + 2, bf16=bf16,
        checkpoint=folder / "3.pt", held_out=held_out,
    )  # fmt: skip
    save(fold_batch_norm(network), weights, "vgg19_cutouts")
    del pixels, labels
    held_out = cutouts.training_arrays(HELD_OUT, "scenes", "validation", seed)
    pixels, labels = cutouts.training_arrays(scenes, "scenes", "train", seed)
    curves["scenes"] = train(
        of_scenes, pixels, labels, epochs=4, rate=1e-3, sizes=(160, 224, 320), seed=seed + 3, multi_label=True,
        bf16=bf16, checkpoint=folder / "4.pt", held_out=held_out,
    )  # fmt: skip
    save(fold_batch_norm(of_scenes), weights, "vgg19_cutouts_scenes")
    return curves


def train_vits(folder: Path, weights: Path, pictures: int, scenes: int, seed: int, bf16: bool) -> Curves:
    """`vit_cutouts` and `vit_cutouts_scenes`, with `vgg19_cutouts` as teacher; returns their curves.

    1. at 96 to 144 pixels, where a step costs a quarter;
    2. at 144 to 240 pixels;
    3. the same fine-tuned on scenes, without a teacher.
    """
    held_out = cutouts.training_arrays(HELD_OUT, "singles", "validation", seed)
    pixels, labels = cutouts.training_arrays(pictures, "singles", "train", seed + 1)
    teacher = load_classifier("vgg19_cutouts", weights / "vgg19_cutouts.safetensors", device="cpu").network
    torch.manual_seed(seed)
    network = vit_cutouts()
    curves = {}
    curves["small"] = train(
        AnySize(network), pixels, labels, epochs=24, rate=2e-3, sizes=(96, 112, 128, 144), seed=seed + 5,
        smoothing=0.05, bf16=bf16, teacher=teacher, checkpoint=folder / "5.pt", held_out=held_out,
    )  # fmt: skip
    curves["full size"] = train(
        AnySize(network), pixels, labels, epochs=12, rate=2e-3, sizes=(144, 176, 208, 240), seed=seed + 6,
        bf16=bf16, teacher=teacher, checkpoint=folder / "6.pt", held_out=held_out,
    )  # fmt: skip
    save(network, weights, "vit_cutouts")
    del pixels, labels
    held_out = cutouts.training_arrays(HELD_OUT, "scenes", "validation", seed)
    pixels, labels = cutouts.training_arrays(scenes, "scenes", "train", seed)
    curves["scenes"] = train(
        AnySize(network), pixels, labels, epochs=10, rate=1e-3, sizes=(144, 176, 208, 240), seed=seed + 7,
        multi_label=True, bf16=bf16, checkpoint=folder / "7.pt", held_out=held_out,
    )  # fmt: skip
    save(network, weights, "vit_cutouts_scenes")
    return curves


def save(network: nn.Module, weights: Path, name: str) -> None:
    """Save what was trained as `name` where `load_classifier` finds it, in half precision, which is enough for
    weights."""
    save_weights(
        copy.deepcopy(network).half(), weights / f"{name}.safetensors",
        architecture=name.removesuffix("_scenes"), categories=cutouts.categories(),
        activation="sigmoid" if name.endswith("_scenes") else "softmax",
    )  # fmt: skip


def train_networks(
    family: str,
    folder: str | Path,
    weights: Path = WEIGHTS,
    pictures: int = 10_200,
    scenes: int = 5_100,
    seed: int = 0,
    bf16: bool = False,
) -> None:
    """Train the networks of a family, "cnn" or "vit", and record how in `weights`.

    Checkpoints go to `folder`; a "vit" learns from the "cnn" that is in `weights`.
    """
    families = {"cnn": train_cnns, "vit": train_vits}
    command = f"python -m thesis_lib.training.cutouts {family}"
    record = f"training_cutouts_{family}.json"
    train_and_record(families[family], command, record, folder, weights, pictures, scenes, seed, bf16)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], train_networks)
