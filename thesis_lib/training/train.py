"""Training, which is also fine-tuning: AdamW, one cosine, checkpoints, weights as safetensors."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from thesis_lib.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from thesis_lib.data import models
from thesis_lib.data.models import load_classifier
from thesis_lib.training import precision

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each colour
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)


def batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    batch: int,
    sizes: Sequence[int],
    rng: Any,
    device: str | torch.device = "cpu",
    statistics: Statistics = IMAGENET,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    multi_label: bool = False,
    smoothing: float = 0.0,
    taught: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy summed over classes, or cross-entropy with label smoothing.

    taught: a teacher's logits; cross-entropy to its probabilities is then half of the loss
    (distillation; Hinton et al., 2015, at temperature 1).
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels.float()) * labels.shape[1]
    loss = F.cross_entropy(logits, labels.float().argmax(1), label_smoothing=smoothing)
    return loss if taught is None else (loss + F.cross_entropy(logits, taught.softmax(1))) / 2


def train(
    network: nn.Module,
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch: int = 64,
    rate: float = 4e-3,
    sizes: Sequence[int] = (224,),
    decay: float = 0.05,
    multi_label: bool = False,
    smoothing: float = 0.0,
    bf16: bool = False,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    statistics: Statistics = IMAGENET,
) -> list[dict[str, Any]]:
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
            from it, to the same weights. It holds digests of pictures (of 256 of them), labels,
            starting weights and teacher, so that it is no other training's.
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
    bf16 = precision.settled(bf16, device)
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        settings = {
            "pictures": _digest_of_pictures(pixels, labels), "starting weights": _digest(network),
            "teacher": _digest(teacher), "epochs": epochs, "batch": batch, "rate": rate,
            "sizes": list(sizes), "decay": decay, "multi_label": multi_label,
            "smoothing": smoothing, "bf16": bf16, "seed": seed,
            "held-out pictures": held_out and _digest_of_pictures(*held_out),
            "statistics": [list(map(float, values)) for values in statistics],
        }  # fmt: skip
    network.to(device).to(memory_format=torch.channels_last).train()
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
        before = dict.fromkeys(settings, "not recorded") | state.get("settings", {})
        if changed := [k for k in settings if before[k] != settings[k]]:
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
        start, seen = time.time(), 0
        total: Any = 0.0  # a tensor, so that no step waits for the device
        torch.manual_seed(seed * 1000 + epoch)  # dropout; an epoch is the same after a restart
        rng = np.random.default_rng([seed, epoch])
        bar = tqdm(
            batches(pixels, labels, batch, sizes, rng, device, statistics),
            f"epoch {epoch + 1}/{epochs}", total=len(pixels) // batch, leave=False,
        )  # fmt: skip
        for step, (images, target) in enumerate(bar, start=1):
            with precision.mixed(device, bf16):
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


def _digest_of_pictures(pixels, labels):
    """Shape, and a digest of all labels and of at most 256 pictures, evenly spaced: the pixels of
    all of COCO take a minute to read."""
    some = np.linspace(0, len(pixels) - 1, min(len(pixels), 256)).astype(int)
    content = hashlib.sha256(np.ascontiguousarray(labels).tobytes())
    content.update(np.ascontiguousarray(pixels[some]).tobytes())
    return f"{'x'.join(map(str, pixels.shape))} {content.hexdigest()[:12]}"


def _digest(network):
    """Of the names and values of all weights; None of no network."""
    if network is None:
        return None
    content = hashlib.sha256()
    for name, value in network.state_dict().items():
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()[:12]


@torch.inference_mode()
def predict(
    network: nn.Module,
    pixels: np.ndarray,
    size: int = 224,
    batch: int = 16,
    device: str | torch.device = "cpu",
    statistics: Statistics = IMAGENET,
) -> np.ndarray:
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


def top_1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose strongest logit is the class of the picture."""
    return float((logits.argmax(1) == labels.argmax(1)).mean())


def average_precisions(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under each class's precision-recall steps, (C,); NaN for a class that does not occur."""
    precisions = np.full(labels.shape[1], np.nan)
    for c in np.flatnonzero(labels.any(0)):
        hits = labels[np.argsort(-logits[:, c], kind="stable"), c]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        precisions[c] = precision[hits].mean()
    return precisions


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `average_precisions` over the classes that occur."""
    return float(np.nanmean(average_precisions(logits, labels)))


def mean_average_precision_interval(
    logits: np.ndarray, labels: np.ndarray, seed: int = 0, n: int = 1000
) -> tuple[float, float, float]:
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
    low, high = np.quantile(means, [0.025, 0.975])
    return mean_average_precision(logits, labels), float(low), float(high)


def new_head(
    name: str, categories: Sequence[str], weights: str | Path | None = None, seed: int = 0
) -> Classifier:
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
        # torchvision's ViTs have positions for one size.
        side = getattr(source.network, "image_size", None)
        network = models.build(name, classes=len(categories), side=side)
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


def save_weights(network: nn.Module, path: str | Path, **facts: Any) -> None:
    """safetensors, with what a reader of the file needs in its metadata: architecture, categories,
    activation ("softmax" or "sigmoid")."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    save_file(tensors, str(path), facts)
