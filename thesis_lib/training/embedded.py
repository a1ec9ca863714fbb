"""The embedded networks: how each was trained.

python -m thesis_lib.training.embedded            # all of them, two hours on 2 cores
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.vision_transformer import VisionTransformer

from thesis_lib.data import glyphs
from thesis_lib.data.models import NETWORKS, WEIGHTS, load_classifier, vgg19_glyphs, vit_glyphs
from thesis_lib.training.train import save_weights, train

Curves = dict[str, list[dict[str, Any]]]  # of each step, as `train` returns them


def fold_batch_norm(network: Any) -> Any:
    """A copy of a `vgg19_glyphs(batch_norm=True)` with every batch norm folded into the
    convolution before it, so that its layers are numbered as VGG19's own. Exact in eval mode."""
    source = copy.deepcopy(network).eval()
    classes = source.classifier[-1].out_features
    plain: Any = vgg19_glyphs(classes, hidden=source.hidden)
    folded, modules = [], list(source.features)
    for module, following in zip(modules, modules[1:] + [None], strict=True):
        if isinstance(module, nn.Conv2d):
            module = fuse_conv_bn_eval(module, following)
        if not isinstance(module, nn.BatchNorm2d):
            folded.append(module)
    plain.features.load_state_dict(nn.Sequential(*folded).state_dict())
    plain.classifier.load_state_dict(source.classifier.state_dict())
    return plain


class AnySize(nn.Module):
    """A torchvision ViT that takes pictures of any size while it learns: the table of positions is
    resized bilinearly. At the ViT's own size it computes what the ViT computes."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vit, encoder = self.vit, self.vit.encoder
        side = vit.image_size // vit.patch_size
        tokens = vit.conv_proj(images)
        grid = encoder.pos_embedding[:, 1:].mT.unflatten(2, (side, side))
        tokens = tokens + F.interpolate(grid, tokens.shape[-2:], mode="bilinear")
        first = (vit.class_token + encoder.pos_embedding[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens.flatten(2).mT], 1)
        return vit.heads(encoder.ln(encoder.layers(encoder.dropout(tokens)))[:, 0])


def train_cnns(folder: Path, weights: Path, pictures: int, scenes: int, seed: int, bf16: bool) -> Curves:
    """`vgg19_glyphs` and `vgg19_glyphs_scenes` from nothing; returns their curves.

    1. features with a pooled linear head at 96 and 112 pixels (VGG's own head does not start);
    2. VGG's 7x7 head behind them, at 128 to 256 pixels;
    3. once more at 192 to 320 pixels without label smoothing, so that the network may be certain;
    4. the network of step 2 fine-tuned on scenes, one logit a class.
    Batch norm is folded in before saving.
    """
    held_out = glyphs.training_arrays(600, seed, "validation")
    pixels, labels = glyphs.training_arrays(pictures, seed)
    torch.manual_seed(seed)
    network: Any = vgg19_glyphs(batch_norm=True)
    pooled = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 20))
    curves = {}
    curves["pooled head"] = train(
        pooled, pixels, labels, epochs=8, sizes=(96, 112), seed=seed, smoothing=0.05, bf16=bf16,
        checkpoint=folder / "1.pt", held_out=held_out,
    )  # fmt: skip
    curves["7x7 head"] = train(
        network, pixels, labels, epochs=6, rate=2e-3, sizes=(128, 160, 192, 224, 256),
        seed=seed + 1, smoothing=0.05, bf16=bf16, checkpoint=folder / "2.pt", held_out=held_out,
    )  # fmt: skip
    of_scenes = copy.deepcopy(network)
    curves["7x7 head, unsmoothed"] = train(
        network, pixels, labels, epochs=1, rate=1e-3, sizes=(192, 224, 320), seed=seed + 3,
        bf16=bf16, checkpoint=folder / "4.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(fold_batch_norm(network), weights, "vgg19_glyphs")
    del pixels, labels
    held_out = glyphs.training_arrays(600, seed, "validation", objects=3)
    pixels, labels = glyphs.training_arrays(scenes, seed, objects=3)
    curves["scenes"] = train(
        of_scenes, pixels, labels, epochs=3, rate=1e-3, sizes=(128, 160, 192, 224), seed=seed + 2,
        multi_label=True, bf16=bf16, checkpoint=folder / "3.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(fold_batch_norm(of_scenes), weights, "vgg19_glyphs_scenes")
    return curves


def train_vits(folder: Path, weights: Path, pictures: int, scenes: int, seed: int, bf16: bool) -> Curves:
    """`vit_glyphs` and `vit_glyphs_scenes`, with `vgg19_glyphs` as teacher; returns their curves.

    1. at 96 to 144 pixels, where a step costs a quarter;
    2. at 112 to 240 pixels;
    3. on as many other pictures, of which a ViT needs more than a CNN;
    4. the network of step 3 fine-tuned on scenes, without a teacher.
    """
    held_out = glyphs.training_arrays(600, seed, "validation")
    pixels, labels = glyphs.training_arrays(pictures, seed)
    teacher = load_classifier("vgg19_glyphs", weights / "vgg19_glyphs.safetensors", device="cpu")
    torch.manual_seed(seed)
    network = vit_glyphs()
    curves = {}
    curves["small"] = train(
        AnySize(network), pixels, labels, epochs=24, rate=2e-3, sizes=(96, 112, 128, 144),
        seed=seed + 4, smoothing=0.05, bf16=bf16, teacher=teacher.network,
        checkpoint=folder / "5.pt", held_out=held_out,
    )  # fmt: skip
    curves["full size"] = train(
        AnySize(network), pixels, labels, epochs=10, rate=2e-3, sizes=(112, 144, 176, 208, 240),
        seed=seed + 5, bf16=bf16, teacher=teacher.network,
        checkpoint=folder / "6.pt", held_out=held_out,
    )  # fmt: skip
    del pixels, labels
    pixels, labels = glyphs.training_arrays(pictures, seed + 1)
    curves["other pictures"] = train(
        AnySize(network), pixels, labels, epochs=6, rate=1.5e-3, sizes=(144, 176, 208, 240),
        seed=seed + 7, bf16=bf16, teacher=teacher.network,
        checkpoint=folder / "8.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(network, weights, "vit_glyphs")
    del pixels, labels
    held_out = glyphs.training_arrays(600, seed, "validation", objects=3)
    pixels, labels = glyphs.training_arrays(scenes, seed, objects=3)
    curves["scenes"] = train(
        AnySize(network), pixels, labels, epochs=10, rate=2e-3, sizes=(128, 160, 192, 224),
        seed=seed + 6, multi_label=True, bf16=bf16, checkpoint=folder / "7.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(network, weights, "vit_glyphs_scenes")
    return curves


def save_embedded(network: nn.Module, weights: Path, name: str) -> None:
    """Save what was trained as `name`, a key of NETWORKS, where `load_classifier` finds it."""
    save_weights(
        network, weights / f"{name}.safetensors", architecture=name.removesuffix("_scenes"),
        categories=list(glyphs.CLASSES),
        activation="sigmoid" if NETWORKS[name].multi_label else "softmax",
    )  # fmt: skip


def train_embedded(
    family: str,
    folder: str | Path,
    weights: Path = WEIGHTS,
    pictures: int = 12_000,
    scenes: int = 8_000,
    seed: int = 0,
    bf16: bool = False,
) -> None:
    """Train a family of embedded networks, "cnn" or "vit", and record how in `weights`.

    Checkpoints go to `folder`; a "vit" learns from the "cnn" that is in `weights`.
    """
    families = {"cnn": train_cnns, "vit": train_vits}
    command = f"python -m thesis_lib.training.embedded {family}"
    record = f"training_{family}.json"
    train_and_record(families[family], command, record, folder, weights, pictures, scenes, seed, bf16)


def train_and_record(
    train_family: Callable[..., Curves],
    command: str,
    record: str,
    folder: str | Path,
    weights: Path,
    pictures: int,
    scenes: int,
    seed: int,
    bf16: bool,
) -> None:
    """Train with checkpoints in `folder`, and write the curves, and what they were made by, as `record` in `weights`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": command + (" --bf16" if bf16 else ""),
        "seed": seed, "pictures": pictures, "scenes": scenes, "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "curves": train_family(folder, weights, pictures, scenes, seed, bf16),
    }  # fmt: skip
    (weights / record).write_text(json.dumps(facts, indent=1) + "\n")


def main(description: str, train_one: Callable[..., None]) -> None:
    """The command line of a module that trains families of networks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("families", nargs="*", default=["cnn", "vit"], help="cnn, vit; both")
    parser.add_argument("--checkpoints", default="_build/training", help="folder for checkpoints")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, see train()")
    arguments = parser.parse_args()
    for family in arguments.families:
        train_one(family, arguments.checkpoints, bf16=arguments.bf16)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], train_embedded)
