"""Sanity check by randomization (thesis 3.4.6; Adebayo et al., NeurIPS 2018)."""

import copy
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import nn

from thesis_lib.checks import one_of, whole
from thesis_lib.classifier import Classifier
from thesis_lib.kernels import min_max
from thesis_lib.metrics.base import METRICS, Column, Rounds
from thesis_lib.metrics.insertion_deletion import check_maps


def randomize(
    clf: Classifier, mode: str = "cascading", seed: int = 0, layers: str = "convolutions"
) -> Iterator[tuple[str, Classifier]]:
    """Yield (layer name, Classifier) with ever more, or other, layers random, output end first.

    "cascading" adds one layer after the other; "independent" randomizes that one layer alone. A
    layer's new parameters come from its own initialiser (`reset_parameters`; MultiheadAttention's
    `_reset_parameters`) and depend on (seed, layer name) only: they are the same in both modes and
    on every device. PyTorch's random state and the given classifier stay as they are. Each
    classifier that is yielded is a copy of its own.

    Parameters of modules without an initialiser stay as trained: a Transformer's class token and
    position embedding, say.

    Args:
        clf: a Classifier.
        mode: "cascading" or "independent".
        seed: int.
        layers: "convolutions" (as the thesis; VGG19 has 16, from features.34 to features.0) or
            "all": every layer with parameters of its own and an initialiser, the linear ones
            included. The order is that of registration, reversed: of an attention first
            "out_proj", then the attention itself, which holds the projections to queries, keys
            and values.

    Raises:
        TypeError, ValueError: for another mode or choice of layers, a seed that is no whole number, or a
            network that has no such layer.

    >>> name, randomized = next(tl.randomize(clf, "cascading"))
    >>> name
    'features.34'
    >>> bool((randomized.logits(images) == clf.logits(images)).any())
    False
    """
    one_of(mode, "mode", "cascading", "independent")
    one_of(layers, "layers", "convolutions", "all")
    seed = whole(seed, "seed")
    return _randomized(clf, mode, seed, _names(clf, layers))


def _names(clf, layers):
    """The layers of that choice, output end first."""
    names = [
        name
        for name, module in clf.network.named_modules()
        if (isinstance(module, nn.Conv2d) if layers == "convolutions" else _resettable(module))
    ]
    if not names:
        raise ValueError(f"the network has no layer to randomize among {layers!r}")
    return names[::-1]


def _randomized(clf, mode, seed, names):
    current = clf
    for name in names:
        current = copy.deepcopy(current if mode == "cascading" else clf)
        _reset(current.network.get_submodule(name), zlib.crc32(f"{seed} {name}".encode()))
        yield name, current


def _resettable(module):
    own = next(module.parameters(recurse=False), None)
    return own is not None and _initialiser(module) is not None


def _initialiser(module):
    # Only these two names: the latter is MultiheadAttention's.
    return getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))


def _reset(module, seed):
    # Drawn on the CPU in the plain memory format, then copied: what is drawn depends on the device
    # and, in older PyTorch, on the format. Initialisers know only the global generator.
    fresh = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _initialiser(fresh)()
    # What is the module's own: MultiheadAttention's initialiser clears its out_proj's bias as well.
    own = {key: value for key, value in fresh.state_dict().items() if "." not in key}
    module.load_state_dict(own, strict=False)


def similarity(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How alike two sets of maps are: (spearman, ssim), two arrays (N,) in [-1, 1].

    Both compare absolute values. Spearman's rank correlation is over all pixels, equal values
    sharing their mean rank; it is 0 where either map is flat, as a flat map ranks nothing. SSIM is
    of min-maxed maps, with the Gaussian window of its authors (sigma 1.5).

    Args:
        a, b: (N, H, W) each, finite, both sides of 11 pixels or more, as wide as SSIM's window.

    Raises:
        TypeError, ValueError: for what is no such map, or two of different sizes.

    >>> from thesis_lib.metrics import similarity
    >>> maps = tl.METHODS["grad_cam"](clf, images)
    >>> [round(float(value), 6) for (value,) in similarity(maps, maps)]
    [1.0, 1.0]
    """
    a, b = check_maps(a), check_maps(b)
    if a.shape != b.shape:
        raise ValueError(f"both must be (N, H, W), not {tuple(a.shape)} and {tuple(b.shape)}")
    if min(a.shape[1:]) < 11:
        raise ValueError(
            f"maps of {a.shape[1]} x {a.shape[2]} are too small for SSIM: 11 pixels a side or more"
        )
    a, b = (maps.cpu().double().abs() for maps in (a, b))
    ranks = [rankdata(maps.flatten(1).numpy(), axis=1) for maps in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    spread = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    spearman = np.divide((x * y).sum(1), spread, out=np.zeros(len(a)), where=spread > 0)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(min_max(a).numpy(), min_max(b).numpy(), strict=True)
    return spearman, np.array([structural_similarity(*p, data_range=1, **window) for p in pairs])


STAGES = 8  # at most so many networks of each kind are tried
# How layers are made random: mode and choice of layers of `randomize`.
KINDS = {
    "convolutions": ("cascading", "convolutions"),  # the thesis's
    "cascading": ("cascading", "all"),
    "independent": ("independent", "all"),
}


def _chosen(count):
    """Which of so many networks are tried: the first, the last, and some evenly between them."""
    step = -(-count // STAGES)
    return sorted({*range(0, count, step), count - 1})


def sanity_layers(clf: Classifier) -> dict[str, list[str]]:
    """{kind: names of the layers after which `sanity` compares maps}, output end first.

    >>> from thesis_lib.metrics.sanity import sanity_layers
    >>> sanity_layers(clf)["convolutions"][:2]
    ['features.34', 'features.30']
    """
    found = {}
    for kind, (_, layers) in KINDS.items():
        names = _names(clf, layers)
        found[kind] = [names[k] for k in _chosen(len(names))]
    return found


def _column(kind, what):
    titles = {"spearman": "rank correlation", "ssim": "SSIM", "flat": "flat"}
    return {f"{kind}_{what}": Column(f"{titles[what]}, {kind}", tolerance=0.02, scale=1)}


@METRICS.entry(
    "sanity check",
    chinese="合理性检验",
    source="Adebayo et al., NeurIPS 2018; thesis 3.4.6",
    neighbours=True,
    columns={
        "flat": Column("flat map", tolerance=0),
        "other_spearman": Column(
            "rank correlation with another picture's map", tolerance=0.02, scale=1, optional=True
        ),
        "other_ssim": Column("SSIM with another picture's map", tolerance=0.02, scale=1, optional=True),
        **{
            key: column
            for kind in KINDS
            for what in ("spearman", "ssim", "flat")
            for key, column in _column(kind, what).items()
        },
    },
)
def sanity_rows(rounds: Rounds, method: Callable, maps: torch.Tensor) -> dict:
    """How alike the map and those of networks with random layers are.

    For each kind of `KINDS` a list with an entry for each of `sanity_layers`. "other" is the
    likeness to the map of the next picture of the chunk, NaN where there is none.
    """
    found = {"flat": _flat(maps)}
    alone = len({sample.id for sample in rounds.samples}) < max(2, len(rounds.samples))
    for what, values in zip(("spearman", "ssim"), similarity(maps, maps.roll(-1, 0)), strict=True):
        found[f"other_{what}"] = np.full(len(maps), np.nan) if alone else values
    for kind, (mode, layers) in KINDS.items():
        chosen, stages = _chosen(len(_names(rounds.classifier, layers))), []
        for k, (_, random) in enumerate(randomize(rounds.classifier, mode, layers=layers)):
            if k in chosen:
                others = method(random, rounds.images, rounds.classes)
                stages.append((*similarity(maps, others), _flat(others)))
        for what, lines in zip(("spearman", "ssim", "flat"), zip(*stages, strict=True), strict=True):
            found[f"{kind}_{what}"] = list(np.stack(lines, 1))
    return found


def _flat(maps):
    return (maps.amax((1, 2)) == 0).cpu().numpy()
