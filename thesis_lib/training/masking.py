"""The masking network of real-time saliency: how it was trained, on the features of `vgg19_cutouts`.

python -m thesis_lib.training.masking    # 8 minutes on one core
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from thesis_lib.classifier import Classifier
from thesis_lib.data import cutouts
from thesis_lib.data.models import load_classifier
from thesis_lib.kernels import blur, resize
from thesis_lib.peers.real_time import CLASSIFIER, FILE, Masking, stages
from thesis_lib.training.train import _digest_of_pictures, batches, save_weights

EVEN, SMALL, GONE, POWER = 1e-3, 10.0, 5.0, 0.3  # weights of the loss's terms, and the last one's exponent
# Of the alternative pictures, in standard deviations of ImageNet's pixels. The authors' colours go to 0.73 and their
# noise has 0.24: on such a ground this classifier knows hardly a thing, even when all of the thing is kept.
COLOUR, NOISE = 0.3, 0.03
OTHERS = (
    0.3  # share of the pictures that are asked for a class that they do not show, as in the authors' code
)
PICTURES = 5100
TERMS = ("uneven", "small", "kept", "gone")
SCHEDULE = ((128, 5),)  # epochs at which size


def alternatives(images: Tensor) -> Tensor:
    """What stands in a picture's place where it is hidden: (N, 3, H, W), as `images`.

    By chance, one picture in two: its blurred copy, or one colour with noise on every pixel.
    """
    n = len(images)
    plain = images.new_empty(n, 3, 1, 1).uniform_(-COLOUR, COLOUR) + NOISE * torch.randn_like(images)
    return torch.where(torch.rand(n, 1, 1, 1, device=images.device) < 0.5, blur(images), plain)


def mixed(images: Tensor, masks: Tensor, others: Tensor) -> Tensor:
    """Phi: the picture where the mask is 1, the other where it is 0. masks (N, H, W), the others (N, 3, H, W)."""
    return torch.lerp(others, images, masks[:, None])


def terms(
    clf: Classifier, images: Tensor, classes: Tensor, masks: Tensor, others: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four terms of the loss, (N,) each, for masks M (N, H, W) of pictures X (N, 3, H, W) and classes c (N,).

    - TV(M), the sum of squared differences of neighbours, down and across;
    - AV(M), the mean;
    - -log f_c(Phi(X, M)): the class is still seen in what is kept;
    - f_c(Phi(X, 1 - M))^POWER: and no longer where that is hidden. The small exponent goes after small probabilities.

    >>> from thesis_lib.training.masking import terms
    >>> whole = terms(clf, images, torch.tensor([4]), torch.ones(1, 224, 224), torch.zeros_like(images))
    >>> [round(abs(float(term)), 2) for term in whole[:3]]  # all is kept, and the class is sure
    [0.0, 1.0, 0.0]
    """
    down, across = masks.diff(dim=1), masks.diff(dim=2)
    uneven = down.square().sum((1, 2)) + across.square().sum((1, 2))
    kept, hidden = mixed(images, masks, others), mixed(images, 1 - masks, others)
    logs = clf.network(torch.cat([kept, hidden])).log_softmax(1)
    kept_log, hidden_log = logs.gather(1, classes.repeat(2)[:, None])[:, 0].chunk(2)
    return uneven, masks.mean((1, 2)), -kept_log, (POWER * hidden_log).exp()


def loss_of(parts: Sequence[Tensor], shown: Tensor) -> Tensor:
    """The mean over pictures of EVEN TV(M) + SMALL AV(M) - log f_c(...) + GONE f_c(...)^POWER.

    shown (N,) bool: whether a picture shows the class. Where it does not, the last two are left out: the best mask
    is empty.

    >>> from thesis_lib.training.masking import loss_of
    >>> parts = torch.tensor([[100.0], [0.2], [1.0], [0.5]]).unbind()  # 0.1 + 2 + 1 + 2.5
    >>> [round(float(loss_of(parts, torch.tensor([shown]))), 2) for shown in (True, False)]
    [5.6, 2.1]
    """
    uneven, small, kept, gone = parts
    return (EVEN * uneven + SMALL * small + torch.where(shown, kept + GONE * gone, 0)).mean()


def train_masking(
    clf: Classifier,
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    schedule: tuple[tuple[int, int], ...] = SCHEDULE,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> tuple[Masking, list[dict[str, Any]]]:
    """A masking network for a classifier, which stays as it is, and the curve of its training.

    Args:
        clf: a classifier that has `STAGES`, with softmax.
        pixels: (M, 3, H, W) uint8. labels: (M, C) bool, one True a row.
        schedule: (side in pixels, epochs), one after the other.
        batch, rate: of AdamW; the rate follows a cosine down to zero.
        checkpoint: a file that is written after every epoch; if it is there, training goes on from it, to the same
            weights.

    Returns:
        the network in eval mode, and a list of dicts, one an epoch: epoch, size, the mean loss, its four terms before
        they are weighed, where the class is shown, and seconds.

    Raises:
        ValueError: the checkpoint belongs to a training on other pictures or with other settings.
    """
    torch.manual_seed(seed)
    network, sizes = Masking(labels.shape[1]).to(clf.device), [s for s, n in schedule for _ in range(n)]
    optimiser: Any = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    steps = len(pixels) // batch
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * len(sizes))
    keep: dict[str, Any] = {"network": network, "optimiser": optimiser, "schedule": cosine}
    settings = {
        "sizes": sizes,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "pictures": _digest_of_pictures(pixels, labels),
    }
    curve: list[dict[str, Any]] = []
    if checkpoint is not None and Path(checkpoint).exists():
        state = torch.load(checkpoint, map_location=clf.device, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(
                f"{checkpoint} belongs to another training, {state['settings']}, not {settings}: name another "
                "checkpoint, or delete it to start anew"
            )
        for name, part in keep.items():
            part.load_state_dict(state[name])
        curve = state["curve"]
    for epoch in range(len(curve), len(sizes)):
        start, size, total = time.time(), sizes[epoch], dict.fromkeys(("loss", *TERMS), 0.0)
        torch.manual_seed(seed * 1000 + epoch)  # an epoch is the same after a restart
        rng = np.random.default_rng([seed, epoch])
        drawn = batches(pixels, labels, batch, (size,), rng, clf.device, (clf.mean, clf.std))
        for images, target in tqdm(drawn, f"epoch {epoch + 1}/{len(sizes)}", total=steps, leave=False):
            true = target.float().argmax(1)
            away = torch.randint(1, labels.shape[1], true.shape, device=clf.device)
            shown = torch.rand(len(true), device=clf.device) >= OTHERS
            classes = torch.where(shown, true, (true + away) % labels.shape[1])
            features, _ = stages(clf, images)
            masks = resize(network(features, classes)[:, None], images.shape[-2:])[:, 0]
            parts = terms(clf, images, classes, masks, alternatives(images))
            loss = loss_of(parts, shown)
            seen = loss, *(part[shown].mean() for part in parts)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            cosine.step()
            for name, value in zip(total, seen, strict=True):
                total[name] += value.item()
        means = {name: round(value / steps, 4) for name, value in total.items()}
        curve.append({"epoch": epoch + 1, "size": size} | means)
        print(", ".join(f"{k} {v}" for k, v in curve[-1].items()), flush=True)
        curve[-1]["seconds"] = round(time.time() - start, 1)
        if checkpoint is not None:
            state = {name: part.state_dict() for name, part in keep.items()} | {
                "curve": curve,
                "settings": settings,
            }
            torch.save(state, f"{checkpoint}.new")
            Path(f"{checkpoint}.new").replace(checkpoint)
    return network.eval(), curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", default="_build/training", help="folder for checkpoints")
    arguments = parser.parse_args()
    Path(arguments.checkpoints).mkdir(parents=True, exist_ok=True)
    clf, seed = load_classifier(CLASSIFIER, device="cpu"), 0
    pixels, labels = cutouts.training_arrays(PICTURES, "singles", "train", seed + 7)
    network, curve = train_masking(
        clf, pixels, labels, seed=seed, checkpoint=Path(arguments.checkpoints) / "masking.pt"
    )
    save_weights(network.half(), FILE, architecture="real_time", classifier=CLASSIFIER)
    facts = {
        "command": "python -m thesis_lib.training.masking", "seed": seed, "pictures": PICTURES,
        "torch": torch.__version__, "threads": torch.get_num_threads(), "curves": {"masking": curve},
    }  # fmt: skip
    (FILE.parent / f"training_{FILE.stem}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
