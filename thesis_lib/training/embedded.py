"""Training, which is also fine-tuning: AdamW, one cosine, checkpoints, weights as safetensors.

python -m thesis_lib.training.embedded            # the embedded networks, two hours on 2 cores
"""

import argparse
import copy
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from thesis_lib.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from thesis_lib.data import glyphs, models
from thesis_lib.data.models import WEIGHTS, load_classifier, vgg19_glyphs, vit_glyphs

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


def batches(pixels, labels, batch, sizes, rng, device="cpu", statistics=IMAGENET):
    """One epoch in random order: normalised images and labels. Each batch is resized to a random
    one of `sizes` (the scale jitter of VGG's training) and half of the pictures are mirrored."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)
    order = rng.permutation(len(pixels))
    for start in range(0, len(order) - batch + 1, batch):
        index = np.sort(order[start : start + batch])
        images = torch.from_numpy(pixels[index]).to(device).float() / 255
        size = int(rng.choice(sizes))
        if size != images.shape[-1]:
            images = F.interpolate(images, size=(size, size), mode="area")
        mirrored = torch.from_numpy(rng.random(len(index)) < 0.5).to(device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        yield images, torch.from_numpy(labels[index]).to(device)


def loss_of(logits, labels, multi_label=False, smoothing=0.0, taught=None):
    """Binary cross-entropy summed over classes, or cross-entropy with label smoothing.

    taught: a teacher's logits; cross-entropy to its probabilities is then half of the loss
    (distillation; Hinton et al., 2015, at temperature 1).
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels.float()) * labels.shape[1]
    loss = F.cross_entropy(logits, labels.float().argmax(1), label_smoothing=smoothing)
    return loss if taught is None else (loss + F.cross_entropy(logits, taught.softmax(1))) / 2


def train(
    network, pixels, labels, *, epochs, batch=64, rate=4e-3, sizes=(224,), decay=0.05,
    multi_label=False, smoothing=0.0, bf16=False, teacher=None, checkpoint=None, seed=0, device="cpu", held_out=None,
    statistics=IMAGENET,
):  # fmt: skip
    """Trains `network` in place and returns its curve.

    Args:
        network: maps (N, 3, H, W) normalised images to (N, C) logits.
        pixels: (M, 3, H, W) uint8, in memory or as `decode` maps them. labels: (M, C) bool, one
            True a row unless `multi_label`.
        epochs, batch, rate, decay: AdamW with one cosine down to zero and 100 warm-up steps.
        sizes: the side lengths in pixels that a batch may be resized to.
        smoothing: of the labels; it speeds learning up and keeps probabilities from 1.
        bf16: mixed precision: layers compute in bfloat16, weights and optimiser stay in float32.
            Twice as fast on a GPU of 2020 or later (Ampere) and on processors with AVX512-BF16 or
            AMX; slower on other processors. A GPU without bfloat16 trains in float32 and says so.
        teacher: a network in eval mode to learn from as well, see `loss_of`.
        checkpoint: a file that is written after every epoch; if it is there, training goes on
            from it, to the same weights.
        held_out: (pixels, labels) to measure after every epoch, at the largest of `sizes` up to
            their own.
        statistics: mean and standard deviation of each colour that the network was trained with.

    Returns:
        a list of dicts, one an epoch: epoch, loss, seconds, and score (top-1 or mean average
        precision of `held_out`).

    Raises:
        ValueError: fewer pictures than a batch; or the checkpoint belongs to another training.
        FloatingPointError: loss or gradient are no longer finite.
    """
    if len(pixels) < batch:
        raise ValueError(f"{len(pixels)} pictures do not fill a batch of {batch}")
    if bf16 and not _has_bf16(device):
        warnings.warn(f"{device} does not compute in bfloat16: training in float32", stacklevel=2)
        bf16 = False
    settings = {
        "pictures": list(labels.shape), "epochs": epochs, "batch": batch, "rate": rate,
        "sizes": list(sizes), "decay": decay, "multi_label": multi_label, "smoothing": smoothing,
        "seed": seed,
    }  # fmt: skip
    network.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    steps = max(1, len(pixels) // batch) * epochs
    warm_up = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * s / steps)),
    )
    curve = []
    if checkpoint is not None and Path(checkpoint).exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        before = state.get("settings", {})
        if changed := [k for k in settings if before.get(k, settings[k]) != settings[k]]:
            raise ValueError(
                f"{checkpoint} belongs to a training with other settings: "
                + ", ".join(f"{k} {before[k]}, now {settings[k]}" for k in changed)
                + "; name another checkpoint, or delete it to start anew"
            )
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        curve = state["curve"]
    for epoch in range(len(curve), epochs):
        start, total, seen = time.time(), 0.0, 0
        torch.manual_seed(seed * 1000 + epoch)  # dropout; an epoch is the same after a restart
        rng = np.random.default_rng([seed, epoch])
        bar = tqdm(
            batches(pixels, labels, batch, sizes, rng, device, statistics),
            f"epoch {epoch + 1}/{epochs}", total=len(pixels) // batch, leave=False,
        )  # fmt: skip
        for step, (images, target) in enumerate(bar, start=1):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                logits = network(images)
                if isinstance(logits, tuple):  # GoogLeNet and Inception add auxiliary ones
                    logits = logits[0]
                with torch.no_grad():
                    taught = None if teacher is None else teacher(images).float()
            loss = loss_of(logits.float(), target, multi_label, smoothing, taught)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if not torch.isfinite(loss.detach() + norm):
                kept = f"the state after epoch {epoch} is kept in {checkpoint}"
                raise FloatingPointError(
                    f"epoch {epoch + 1}, step {step}: loss {loss.item()}, norm of the gradient "
                    f"{norm.item()}; "
                    + (kept if checkpoint is not None and epoch else "nothing was saved yet")
                    + ". A lower rate helps, or bf16=False"
                )
            optimiser.step()
            schedule.step()
            total, seen = total + loss.detach() * len(images), seen + len(images)
        curve.append({"epoch": epoch + 1, "bf16": bf16, "loss": float(total) / seen})
        if held_out is not None:
            size = min(max(sizes), held_out[0].shape[-1])
            logits = predict(network, held_out[0], size, device=device, statistics=statistics)
            measure = mean_average_precision if multi_label else top_1
            curve[-1]["score"] = measure(logits, held_out[1])
            network.train()
        told = (f"{k} {curve[-1][k]:.4f}" for k in ("loss", "score") if k in curve[-1])
        print(f"epoch {epoch + 1}/{epochs}:", ", ".join(told), flush=True)
        curve[-1]["seconds"] = round(time.time() - start, 1)
        if checkpoint is not None:
            state = {
                "network": network.state_dict(), "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(), "curve": curve, "settings": settings,
            }  # fmt: skip
            torch.save(state, f"{checkpoint}.new")
            Path(f"{checkpoint}.new").replace(checkpoint)
    network.eval()
    return curve


def _has_bf16(device):
    """CUDA imitates bfloat16 on older GPUs, slowly and without convolutions in it."""
    if torch.device(device).type != "cuda":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)


@torch.inference_mode()
def predict(network, pixels, size=224, batch=16, device="cpu", statistics=IMAGENET):
    """Logits (M, C) as a numpy array, of uint8 pixels (M, 3, H, W) resized to `size`, the network
    in eval mode."""
    network.eval()
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in statistics)
    out = []
    for start in range(0, len(pixels), batch):
        images = torch.from_numpy(pixels[start : start + batch]).to(device).float() / 255
        images = F.interpolate(images, size=(size, size), mode="area")
        images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        out.append(network(images).float().cpu())
    return torch.cat(out).numpy()


def top_1(logits, labels):
    """Share of pictures whose strongest logit is the class of the picture."""
    return float((logits.argmax(1) == labels.argmax(1)).mean())


def average_precisions(logits, labels):
    """Area under each class's precision-recall steps, (C,); NaN for a class that does not occur."""
    precisions = np.full(labels.shape[1], np.nan)
    for c in np.flatnonzero(labels.any(0)):
        hits = labels[np.argsort(-logits[:, c], kind="stable"), c]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        precisions[c] = precision[hits].mean()
    return precisions


def mean_average_precision(logits, labels):
    """Mean of `average_precisions` over the classes that occur."""
    return float(np.nanmean(average_precisions(logits, labels)))


def mean_average_precision_interval(logits, labels, seed=0, n=1000):
    """Mean average precision and its 95 % percentile bootstrap interval over pictures: (mean, low,
    high). A resample's mean is over the classes that occur in it."""
    orders = [np.argsort(-scores, kind="stable") for scores in logits.T]
    generator, means = np.random.default_rng(seed), []
    for _ in range(n):
        drawn = generator.integers(len(labels), size=len(labels))
        times = np.bincount(drawn, minlength=len(labels))
        precisions = []
        for c, order in enumerate(orders):  # sorted once: a resample only repeats pictures
            ranked, hits = times[order], times[order] * labels[order, c]
            if hits.any():
                precision = np.cumsum(hits) / np.maximum(1, np.cumsum(ranked))
                precisions.append(np.average(precision, weights=hits))
        means.append(np.mean(precisions))
    return mean_average_precision(logits, labels), *map(float, np.quantile(means, [0.025, 0.975]))


def new_head(name, categories, weights=None, seed=0):
    """A multi-label classifier to fine-tune: `load_classifier(name, weights)` with a new last
    layer, one output for each of `categories`, drawn with `seed`.

    It is the network that `load_classifier(name, file)` makes of a file saved from it. A network
    that has just these categories keeps its last layer, for it knows them.

    Returns:
        a Classifier with activation "sigmoid", on the CPU, its parameters free to be trained.
    """
    source = load_classifier(name, weights, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.build(name, classes=len(categories))
    state = network.state_dict()
    head = models.head_of(name, network).rpartition(".")[0]
    keep_head = list(source.categories or ()) == list(categories)
    for key, value in source.network.state_dict().items():
        belongs = key in state and state[key].shape == value.shape  # auxiliary heads may not fit
        if belongs and (keep_head or not key.startswith(f"{head}.")):
            state[key] = value
    network.load_state_dict(state)
    return Classifier(
        network.to(memory_format=torch.channels_last), layer=source.layer, name=name,
        categories=list(categories), mean=source.mean, std=source.std, activation="sigmoid",
    )  # fmt: skip


def fold_batch_norm(network):
    """A copy of a `vgg19_glyphs(batch_norm=True)` with every batch norm folded into the
    convolution before it, so that its layers are numbered as VGG19's own. Exact in eval mode."""
    source = copy.deepcopy(network).eval()
    plain = vgg19_glyphs(hidden=source.hidden)
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

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, images):
        vit, encoder = self.vit, self.vit.encoder
        side = vit.image_size // vit.patch_size
        tokens = vit.conv_proj(images)
        grid = encoder.pos_embedding[:, 1:].mT.unflatten(2, (side, side))
        tokens = tokens + F.interpolate(grid, tokens.shape[-2:], mode="bilinear")
        first = (vit.class_token + encoder.pos_embedding[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens.flatten(2).mT], 1)
        return vit.heads(encoder.ln(encoder.layers(encoder.dropout(tokens)))[:, 0])


def save_weights(network, path, **facts):
    """safetensors, with what a reader of the file needs in its metadata: architecture, categories,
    activation ("softmax" or "sigmoid")."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    save_file(tensors, str(path), facts)


def train_cnns(folder, weights, pictures, scenes, seed, bf16):
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
    network = vgg19_glyphs(batch_norm=True)
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
    save_embedded(fold_batch_norm(network), weights, "vgg19_glyphs", "softmax")
    del pixels, labels
    held_out = glyphs.training_arrays(600, seed, "validation", objects=3)
    pixels, labels = glyphs.training_arrays(scenes, seed, objects=3)
    curves["scenes"] = train(
        of_scenes, pixels, labels, epochs=3, rate=1e-3, sizes=(128, 160, 192, 224), seed=seed + 2,
        multi_label=True, bf16=bf16, checkpoint=folder / "3.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(fold_batch_norm(of_scenes), weights, "vgg19_glyphs_scenes", "sigmoid")
    return curves


def train_vits(folder, weights, pictures, scenes, seed, bf16):
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
    save_embedded(network, weights, "vit_glyphs", "softmax")
    del pixels, labels
    held_out = glyphs.training_arrays(600, seed, "validation", objects=3)
    pixels, labels = glyphs.training_arrays(scenes, seed, objects=3)
    curves["scenes"] = train(
        AnySize(network), pixels, labels, epochs=10, rate=2e-3, sizes=(128, 160, 192, 224),
        seed=seed + 6, multi_label=True, bf16=bf16, checkpoint=folder / "7.pt", held_out=held_out,
    )  # fmt: skip
    save_embedded(network, weights, "vit_glyphs_scenes", "sigmoid")
    return curves


def save_embedded(network, weights, name, activation):
    save_weights(
        network, weights / f"{name}.safetensors", architecture=name.removesuffix("_scenes"),
        categories=list(glyphs.CLASSES), activation=activation,
    )  # fmt: skip


def train_embedded(family, folder, weights=WEIGHTS, pictures=12_000, scenes=8_000, seed=0, bf16=False):
    """Train a family of embedded networks, "cnn" or "vit", and record how in `weights`.

    Checkpoints go to `folder`; a "vit" learns from the "cnn" that is in `weights`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    curves = {"cnn": train_cnns, "vit": train_vits}[family](folder, weights, pictures, scenes, seed, bf16)
    record = {
        "command": f"python -m thesis_lib.training.embedded {family}{' --bf16' if bf16 else ''}",
        "seed": seed, "pictures": pictures, "scenes": scenes, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "curves": curves,
    }  # fmt: skip
    (weights / f"training_{family}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=["cnn", "vit"], help="cnn, vit; both")
    parser.add_argument("--checkpoints", default="_build/training", help="folder for checkpoints")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, see train()")
    arguments = parser.parse_args()
    for family in arguments.families:
        train_embedded(family, arguments.checkpoints, bf16=arguments.bf16)
