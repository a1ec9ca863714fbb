"""Real-time saliency, which no library has: a small network, trained once, draws a classifier's mask in one pass."""

import functools
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from thesis_lib.classifier import Classifier, resolve_classes
from thesis_lib.data.models import WEIGHTS, read_weights
from thesis_lib.kernels import resize
from thesis_lib.methods.base import explainer
from thesis_lib.peers.base import PEERS

CLASSIFIER = "vgg19_cutouts"  # whose features it reads
STAGES = ("features.17", "features.26", "features.35")  # 56x56, 28x28 and 14x14 of a 224 pixel picture
WIDTHS = (32, 64, 64)  # their channels
FILE = WEIGHTS / f"real_time_{CLASSIFIER}.safetensors"


def stages(clf: Classifier, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Features of a classifier's `STAGES`, (N, K, h, w) float32 each, the largest maps first, and its logits (N, C).

    One forward pass a full batch, without a graph.

    >>> from thesis_lib.peers.real_time import stages
    >>> [tuple(features.shape) for features in stages(clf, images)[0]]
    [(1, 32, 56, 56), (1, 64, 28, 28), (1, 64, 14, 14)]
    """
    found: dict[str, list[Tensor]] = {name: [] for name in STAGES}
    with ExitStack() as hooks:
        for name, outputs in found.items():
            module = clf.network.get_submodule(name)
            # Copies: layers behind may work in place.
            keep = functools.partial(lambda into, _, __, output: into.append(output.clone()), outputs)
            hooks.enter_context(module.register_forward_hook(keep))
        _, logits = clf.features(images)
    return [torch.cat(outputs).float() for outputs in found.values()], logits


def feature_filter(features: Tensor, embeddings: Tensor) -> Tensor:
    """Y = X sigmoid(X . C_c) at each place: features that do not belong to class c fade.

    features X (N, K, h, w), embeddings C_c (N, K) of the classes asked for -> (N, K, h, w).

    >>> from thesis_lib.peers.real_time import feature_filter
    >>> feature_filter(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 0.0]])).flatten().tolist()
    [0.5, 0.5]
    """
    return features * torch.einsum("nkhw,nk->nhw", features, embeddings).sigmoid()[:, None]


class Masking(nn.Module):
    """The network that draws masks: the coarsest stage, filtered by the class, then up through the finer ones.

    At each step up the maps are enlarged bilinearly, joined to those of the next stage, and two convolutions
    follow; the authors use pixel shuffling and residual blocks, and more of them. The mask is
    |C_0| / (|C_0| + |C_1|) of the two channels C that come last, which reaches 0 and 1 more easily than a sigmoid.

    Args:
        classes: of the classifier. inner: channels after each step up.
    """

    def __init__(self, classes: int, inner: int = 32):
        super().__init__()
        self.embeddings = nn.Embedding(classes, WIDTHS[-1])
        nn.init.normal_(self.embeddings.weight, std=WIDTHS[-1] ** -0.5)
        incoming = (WIDTHS[-1], *[inner] * (len(WIDTHS) - 2))
        self.steps = nn.ModuleList(
            nn.Sequential(_block(wide + lateral, inner), _block(inner, inner))
            for wide, lateral in zip(incoming, WIDTHS[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(inner, 2, 1)

    def forward(self, features: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Masks (N, h, w) in [0, 1], h x w of the largest maps, for one class (N,) each, of what `stages` gives."""
        *finer, top = features
        x = feature_filter(top, self.embeddings(classes))
        for step, lateral in zip(self.steps, reversed(finer), strict=True):
            x = step(torch.cat([resize(x, lateral.shape[-2:]), lateral], 1))
        shown, hidden = self.last(x).abs().unbind(1)
        return shown / (shown + hidden + 1e-6)


def _block(wide, narrow):
    return nn.Sequential(nn.Conv2d(wide, narrow, 3, padding=1), nn.GroupNorm(4, narrow), nn.ReLU())


@functools.cache
def _trained(device):
    state, _ = read_weights(FILE)
    network = Masking(len(state["embeddings.weight"]))
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)


@PEERS.entry("Real-time saliency", family="perturbation", source="Dabkowski and Gal, NIPS 2017")
@explainer()
def real_time(clf: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Real-time image saliency (Dabkowski and Gal, 2017): the mask that a trained network draws at once.

    `Masking` reads the classifier's features and the class that is asked for; `thesis_lib.training.masking` trained
    it so that a small, even mask keeps the class, and the picture without what is under it does not. One pass
    forward; no gradients. That training is short: asked for a class that the picture does not show, the network still
    draws nearly the mask of the one that it does. The authors train the classes' embeddings beforehand, and longer.

    Raises:
        ValueError: another classifier than the one whose features it was trained on.
    """
    if clf.name == CLASSIFIER and FILE.exists():
        network = _trained(clf.device)
        features, logits = stages(clf, images)
        if logits.shape[1] == network.embeddings.num_embeddings:
            return network(features, resolve_classes(classes, logits))
    raise ValueError(
        "real-time saliency needs a masking network trained on the classifier's features: there is one for "
        f"{CLASSIFIER} and its classes, by `python -m thesis_lib.training.masking`, and none for {clf!r}"
    )
