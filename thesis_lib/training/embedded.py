"""The embedded networks: how each was trained on the cut-outs.

python -m thesis_lib.training.embedded                # all four, three hours on 2 cores
python -m thesis_lib.training.embedded vit_cutouts    # one of them
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

from thesis_lib.data import cutouts
from thesis_lib.data.models import NETWORKS, WEIGHTS, load_classifier, vgg19_cutouts, vit_cutouts
from thesis_lib.training.train import save_weights, train

Curves = dict[str, list[dict[str, Any]]]  # of each step, as `train` returns them
HELD_OUT = 612  # pictures of unseen backgrounds, twelve a class


def fold_batch_norm(network: Any) -> Any:
    """A copy of a `vgg19_cutouts(batch_norm=True)` with every batch norm folded into the
    convolution before it, so that its layers are numbered as VGG19's own. Exact in eval mode."""
    source = copy.deepcopy(network).eval()
    classes = source.classifier[-1].out_features
    plain: Any = vgg19_cutouts(classes, hidden=source.hidden)
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


def arrays(kind: str, pictures: int, seed: int, redrawn: int = 0) -> dict[str, Any]:
    """Training pictures of a kind and the held-out ones, as arguments of `train`; `redrawn` draws others to train
    on."""
    pixels, labels = cutouts.training_arrays(pictures, kind, "train", seed + redrawn)
    held_out = cutouts.training_arrays(HELD_OUT, kind, "validation", seed)
    return {"pixels": pixels, "labels": labels, "held_out": held_out}


def train_vgg(folder: Path, weights: Path, pictures: int, seed: int, bf16: bool) -> Curves:
    """`vgg19_cutouts` from nothing; returns its curves.

    1. features with a pooled linear head at 96 to 128 pixels (VGG's own head does not start);
    2. VGG's 7x7 head behind them, at 128 to 320 pixels;
    3. once more at 224 to 448, so that enlarged pictures are known, and without label smoothing, so that the
       network may be certain.
    Batch norm is folded in before saving.
    """
    data = arrays("singles", pictures, seed) | {"bf16": bf16}
    torch.manual_seed(seed)
    network: Any = vgg19_cutouts(batch_norm=True)
    pooled = nn.Sequential(
        network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(cutouts.classes()))
    )
    curves = {}
    curves["pooled head"] = train(
        pooled, **data, epochs=8, sizes=(96, 112, 128), seed=seed, smoothing=0.05, checkpoint=folder / "1.pt"
    )
    curves["7x7 head"] = train(
        network, **data, epochs=4, rate=2e-3, sizes=(128, 160, 224, 320), seed=seed + 1, smoothing=0.05,
        checkpoint=folder / "2.pt",
    )  # fmt: skip
    curves["7x7 head, enlarged"] = train(
        network, **data, epochs=1, rate=1e-3, sizes=(224, 320, 448), seed=seed + 2, checkpoint=folder / "3.pt"
    )
    save_embedded(fold_batch_norm(network), weights, "vgg19_cutouts")
    return curves


def train_vit(folder: Path, weights: Path, pictures: int, seed: int, bf16: bool) -> Curves:
    """`vit_cutouts`, with `vgg19_cutouts` of `weights` as teacher; returns its curves.

    1. at 96 to 144 pixels, where a step costs a quarter;
    2. at 144 to 224 pixels.
    """
    data = arrays("singles", pictures, seed, redrawn=1) | {"bf16": bf16}
    data["teacher"] = load_classifier(
        "vgg19_cutouts", weights / "vgg19_cutouts.safetensors", device="cpu"
    ).network
    torch.manual_seed(seed)
    network = vit_cutouts()
    curves = {}
    curves["small"] = train(
        AnySize(network), **data, epochs=8, rate=2e-3, sizes=(96, 112, 128, 144), seed=seed + 5,
        smoothing=0.05, checkpoint=folder / "5.pt",
    )  # fmt: skip
    curves["full size"] = train(
        AnySize(network), **data, epochs=3, rate=2e-3, sizes=(144, 176, 224), seed=seed + 6,
        checkpoint=folder / "6.pt",
    )  # fmt: skip
    save_embedded(network, weights, "vit_cutouts")
    return curves


def fine_tune(name: str, folder: Path, weights: Path, pictures: int, seed: int, bf16: bool) -> Curves:
    """`name` for scenes, one logit a class, from the network of `weights` that knows singles; returns its curve."""
    single = name.removesuffix("_scenes")
    network: Any = load_classifier(single, weights / f"{single}.safetensors", device="cpu").network
    network.requires_grad_(True)
    data = arrays("scenes", pictures // 2, seed)
    learner = AnySize(network) if isinstance(network, VisionTransformer) else network
    curve = train(
        learner, **data, epochs=6, rate=5e-4, sizes=(160, 224, 320), seed=seed + 3, multi_label=True, bf16=bf16,
        checkpoint=folder / f"{name}.pt",
    )  # fmt: skip
    save_embedded(network, weights, name)
    return {"scenes": curve}


def save_embedded(network: nn.Module, weights: Path, name: str) -> None:
    """Save what was trained as `name`, a key of NETWORKS, where `load_classifier` finds it: in half precision,
    which is enough for weights."""
    save_weights(
        copy.deepcopy(network).half(), weights / f"{name}.safetensors",
        architecture=name.removesuffix("_scenes"), categories=cutouts.categories(),
        activation="sigmoid" if NETWORKS[name].multi_label else "softmax",
    )  # fmt: skip


RECIPES: dict[str, Callable[..., Curves]] = {"vgg19_cutouts": train_vgg, "vit_cutouts": train_vit}


def train_embedded(
    name: str,
    folder: str | Path,
    weights: Path = WEIGHTS,
    pictures: int = 10_200,
    seed: int = 0,
    bf16: bool = False,
) -> None:
    """Train an embedded network and record how, as `training_NAME.json`, in `weights`.

    Checkpoints go to `folder`. "vit_cutouts" learns from "vgg19_cutouts", and those of scenes from those of
    singles, which have to be in `weights`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = (folder, weights, pictures, seed, bf16)
    curves = RECIPES[name](*settings) if name in RECIPES else fine_tune(name, *settings)
    facts = {
        "command": f"python -m thesis_lib.training.embedded {name}" + (" --bf16" if bf16 else ""),
        "seed": seed, "pictures": pictures, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "curves": curves,
    }  # fmt: skip
    (weights / f"training_{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    names = [name for name, network in NETWORKS.items() if network.weights]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=names, help=f"among {', '.join(names)}; all")
    parser.add_argument("--checkpoints", default="_build/training", help="folder for checkpoints")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, see train()")
    arguments = parser.parse_args()
    for name in arguments.networks:
        train_embedded(name, arguments.checkpoints, bf16=arguments.bf16)


if __name__ == "__main__":
    main()
