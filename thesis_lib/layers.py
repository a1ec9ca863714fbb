"""The layers of a network: which one is explained, what it gives, and eval mode for all of them.

Shapes: feature maps (N, K, h, w), tokens (N, L, K), images of (H, W) pixels.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NOT_EXPLAINED = (  # as the last layer: they make nothing of their own
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
    nn.Flatten,
)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is back in its own mode.

    >>> network = torch.nn.Sequential(torch.nn.Dropout()).train()
    >>> with eval_mode(network):
    ...     network.training, network[0].training
    (False, False)
    >>> network.training, network[0].training
    (True, True)
    """
    # The flags directly: `eval()` may be overridden to do more, and then not be undone.
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def read_maps(output: Tensor, size: Sequence[int]) -> Tensor:
    """What a layer made of images of `size` (H, W) as feature maps (N, K, h, w).

    Maps are themselves; of tokens, those of the image, laid out on it (`token_grid`).

    Raises:
        ValueError: an output that is neither, or tokens that do not fit the image.

    >>> read_maps(torch.zeros(2, 197, 64), (224, 224)).shape
    torch.Size([2, 64, 14, 14])
    """
    if torch.is_tensor(output) and output.ndim == 4:
        return output
    if not torch.is_tensor(output) or output.ndim != 3:
        raise ValueError("it gives neither feature maps nor tokens")
    first, grid = token_grid(output.shape[1], size)
    return output[:, first:].mT.unflatten(2, grid)


def write_maps(maps: Tensor, output: Tensor) -> Tensor:
    """The inverse of `read_maps`: the output with these maps (N, K, h, w) in place of its own.

    What precedes an image's tokens stays as it is, and so does the type.

    >>> tokens = torch.rand(2, 197, 64)
    >>> write_maps(read_maps(tokens, (224, 224)), tokens).equal(tokens)
    True
    """
    maps = maps.to(output.dtype)
    if output.ndim == 4:
        return maps
    tokens = maps.flatten(2).mT
    return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)


def token_grid(length: int, size: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """How a Transformer's `length` tokens lie on an image of `size` (H, W): (first, (h, w)).

    The grid has the image's shape; `first` tokens (class, distillation, registers) precede it.

    >>> token_grid(197, (224, 224))
    (1, (14, 14))
    """
    height, width = size
    for first in range(min(length, 8)):
        h = round(math.sqrt((length - first) * height / width))
        w = (length - first) // max(h, 1)
        if h * w == length - first and h * width == w * height:
            return first, (h, w)
    raise ValueError(f"{length} tokens do not form a grid on an image of {height} x {width}")


def find_layer(network: nn.Module, size: int = 224) -> str:
    """Name of the last convolutional layer's output: what CAM methods explain.

    In a ViT it is the first norm of the last block: behind it only the class token is read, so
    the tokens of the image have no gradient.

    Runs one black image of size x size and takes the last module that ran once, with feature
    maps larger than 1 x 1 that are neither pooled nor dropped out nor one for each class (as in
    SqueezeNet's classifier); of modules with the same output, the innermost.

    Raises:
        ValueError: no such layer, or a network that refuses the image: name the layer yourself.

    >>> find_layer(clf.network), find_layer(vit.network)
    ('features.35', 'encoder.layers.encoder_layer_5.ln_1')
    """
    norms = [name for name, _ in network.named_modules() if name.endswith((".ln_1", ".norm1"))]
    if norms and (hasattr(network, "class_token") or hasattr(network, "cls_token")):
        return norms[-1]  # torchvision's name, and timm's
    conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        raise ValueError("the network has no convolution: name the layer to explain")
    image = conv.weight.new_zeros(1, conv.in_channels, size, size)
    calls = []  # (name, output, version) in the order of completion

    def recorder(name):
        # The version tells an output from itself after an in-place operation.
        return lambda module, args, output: calls.append(
            (name, output, output._version if torch.is_tensor(output) else 0)
        )

    handles = [m.register_forward_hook(recorder(n)) for n, m in network.named_modules() if n]
    try:
        with eval_mode(network), torch.inference_mode(False), torch.no_grad():
            classes = network(image).shape[-1]
    except Exception as error:
        raise ValueError(f"an image of {size} x {size} fails ({error}): name the layer") from error
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(name for name, _, _ in calls)
    makers: dict[tuple[int, int], list] = {}  # output -> the modules that returned it, innermost first
    for name, output, version in calls:
        if torch.is_tensor(output) and output.ndim == 4 and min(output.shape[-2:]) > 1:
            makers.setdefault((id(output), version), []).append((name, output))
    for modules in reversed(makers.values()):
        first, output = modules[0]
        once = [name for name, _ in modules if times[name] == 1]
        pooled = isinstance(network.get_submodule(first), NOT_EXPLAINED)
        if once and not pooled and output.shape[1] != classes:
            return once[0]
    raise ValueError("the network has no feature maps larger than 1 x 1: name the layer")
