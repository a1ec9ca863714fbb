"""The layers of a network: which one is explained, what it gives, and how the network runs meanwhile.

Shapes: feature maps (N, K, h, w), or with their channels last (N, h, w, K); tokens (N, L, K); images of
(H, W) pixels.
"""

import functools
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

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
_one_at_a_time = threading.RLock()  # of the process: networks may share layers


def float_tensor(network: nn.Module) -> Tensor:
    """The first float parameter or buffer of a network, which has its type and device; else a zero on the CPU.

    >>> from thesis_lib.layers import float_tensor
    >>> float_tensor(torch.nn.Linear(2, 3).double()).dtype
    torch.float64
    """
    tensors = chain(network.parameters(), network.buffers())  # none is looked at beyond the first
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """A network as it is documented to run: in eval mode, in its own float type, as its code says.

    Autocast is off and what torch.compile made is not used (hooks do not reach into it); other threads
    wait, since a network that is being explained has hooks. Afterwards everything is as it was, each
    module in its own mode. May be nested.

    >>> from thesis_lib.layers import undisturbed
    >>> network = torch.nn.Sequential(torch.nn.Dropout()).train()
    >>> with undisturbed(network):
    ...     network.training, network[0].training
    (False, False)
    >>> network.training, network[0].training
    (True, True)
    """
    with _one_at_a_time, ExitStack() as stack:
        kind = float_tensor(network).device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and to load it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # The flags directly: `eval()` may be overridden to do more, and then not be undone.
        training = [module for module in network.modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def runs_undisturbed(function: Callable) -> Callable:
    """For a function whose first argument is a classifier: all of it runs with the network `undisturbed`.

    >>> from thesis_lib.layers import runs_undisturbed
    >>> @runs_undisturbed
    ... def training(clf):
    ...     return clf.network.training
    >>> training(clf)
    False
    """

    @functools.wraps(function)
    def run(clf, *given, **settings):
        with undisturbed(clf.network):
            return function(clf, *given, **settings)

    return run


def layout(shape: Sequence[int], images: Sequence[int]) -> str:
    """How the output of a layer lies on the images: "channels first", "channels last" or "tokens".

    Feature maps have the images' shape, to two cells. Where they can be read both ways, the channels are
    first, unless only the other way has the images' shape exactly.

    Args:
        shape: of the output.
        images: (N, channels, H, W), their shape.

    Raises:
        ValueError: an output that is neither, that has not one entry for each image, or whose cells
            are not laid out as the image is.

    >>> from thesis_lib.layers import layout
    >>> layout((2, 7, 7, 768), (2, 3, 224, 224)), layout((2, 197, 64), (2, 3, 224, 224))
    ('channels last', 'tokens')
    """
    if len(shape) not in (3, 4):
        raise ValueError("it gives neither feature maps nor tokens")
    if shape[0] != images[0]:
        raise ValueError(f"it gives {shape[0]} maps for {images[0]} images")
    height, width = images[-2:]
    if len(shape) == 3:
        token_grid(shape[1], (height, width))
        return "tokens"

    def misfit(h, w):  # in cells
        return abs(h * width - w * height) / max(height, width)

    first, last = misfit(*shape[2:]), misfit(*shape[1:3])
    if first <= 2 and not last == 0 < first:
        return "channels first"
    if last <= 2:
        return "channels last"
    raise ValueError(
        f"its output, {' x '.join(map(str, shape[1:]))}, is not laid out as an image of {height} x {width}"
    )


def read_maps(output: Tensor, images: Sequence[int], kind: str) -> Tensor:
    """What a layer made of images of that shape (N, channels, H, W), as feature maps (N, K, h, w).

    kind: its `layout`. Of tokens, those of the image, laid out on it (`token_grid`).

    >>> from thesis_lib.layers import read_maps
    >>> read_maps(torch.zeros(2, 197, 64), (2, 3, 224, 224), "tokens").shape
    torch.Size([2, 64, 14, 14])
    >>> read_maps(torch.zeros(2, 7, 14, 64), (2, 3, 224, 448), "channels last").shape
    torch.Size([2, 64, 7, 14])
    """
    if kind == "channels first":
        return output
    if kind == "channels last":
        return output.permute(0, 3, 1, 2)
    first, grid = token_grid(output.shape[1], images[-2:])
    return output[:, first:].mT.unflatten(2, grid)


def write_maps(maps: Tensor, output: Tensor, kind: str) -> Tensor:
    """The inverse of `read_maps`: the output with these maps (N, K, h, w) in place of its own.

    What precedes an image's tokens stays as it is, and so does the type.

    >>> from thesis_lib.layers import write_maps
    >>> tokens = torch.rand(2, 197, 64)
    >>> write_maps(read_maps(tokens, (2, 3, 224, 224), "tokens"), tokens, "tokens").equal(tokens)
    True
    """
    maps = maps.to(output.dtype)
    if kind == "channels first":
        return maps
    if kind == "channels last":
        return maps.permute(0, 2, 3, 1)
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


def find_layer(network: nn.Module, size: int | tuple[int, int] | None = None) -> str:
    """Name of the last layer whose output still lies on the image: what CAM methods explain.

    Of a CNN its last feature maps, of a Transformer its last tokens behind a norm. In a ViT this is the
    first norm of the last block: behind it only the class token is read, so that the tokens of the
    image decide nothing.

    Runs two images of noise and goes back from the end. A layer is passed over that runs more than once,
    gives other than one output for each image, does not have the image's layout (`layout`), has a single
    cell, only pools or drops out, has a channel for each class (as in SqueezeNet's classifier), or does not
    matter: with NaN in the image's cells, the logits stay finite. Of modules with the same output it
    names the innermost.

    Args:
        network: maps (N, channels, H, W) to logits.
        size: H and W of the images; None for the sizes that the network says of itself, else 224.

    Raises:
        ValueError: no such layer, or a network that refuses the images: name the layer yourself.

    >>> find_layer(clf.network), find_layer(vit.network)
    ('features.35', 'encoder.layers.encoder_layer_5.ln_1')
    """
    sizes = _sizes(network) if size is None else [(size, size) if isinstance(size, int) else size]
    with undisturbed(network), torch.inference_mode(False), torch.no_grad():
        images, calls, classes = _recorded(network, sizes)
        times = Counter(name for name, _, _ in calls)
        makers: dict[tuple[int, int], list] = {}  # output -> the modules that returned it, innermost first
        for name, output, version in calls:
            makers.setdefault((id(output), version), []).append((name, output))
        for modules in reversed(makers.values()):
            name, output = modules[0]
            once = [n for n, _ in modules if times[n] == 1]
            if not once or isinstance(network.get_submodule(name), NOT_EXPLAINED):
                continue
            try:
                kind = layout(output.shape, images.shape)
            except ValueError:
                continue
            maps = read_maps(output, images.shape, kind)
            if kind == "tokens" and not _behind_a_norm(network, [n for n, _ in modules]):
                continue
            if min(maps.shape[-2:]) == 1 or maps.shape[1] == classes:
                continue
            if _matters(network, once[0], images, kind):
                return once[0]
    raise ValueError(
        "the network has no layer with maps larger than 1 x 1 that its scores depend on: name it"
    )


def _behind_a_norm(network, names):
    """Whether modules that return the same tokens, innermost first, are a norm, or a block before one that
    is switched off (timm puts an Identity in its place)."""
    modules = [network.get_submodule(name) for name in names]
    norms = [
        "norm" in f"{n.rpartition('.')[2]} {type(m).__name__}".lower()
        for n, m in zip(names, modules, strict=True)
    ]
    return norms[0] or (any(norms) and any(modules[0].children()))


def _sizes(network):
    """The sizes of images that a network says it is made for, (H, W), and 224 x 224."""
    said = []
    for module in network.modules():
        said += [getattr(module, "img_size", None), getattr(module, "image_size", None)]  # timm, torchvision
    for module in network.modules():
        said.append((getattr(module, "pretrained_cfg", None) or {}).get("input_size"))
    found = []
    for value in said:
        value = (value, value) if isinstance(value, int) else value
        if isinstance(value, (tuple, list)) and len(value) > 1 and all(isinstance(v, int) for v in value):
            found.append(tuple(value[-2:]))
    return list(dict.fromkeys([*found, (224, 224)]))


def _recorded(network, sizes):
    """Two images, what each module returned of them as (name, output, version), and the number of classes."""
    conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = dict.fromkeys([3, conv.in_channels if conv else 3])
    first = None
    for size in sizes:
        for k in channels:
            noise = torch.rand(2, k, *size, generator=torch.Generator().manual_seed(0))
            images, calls = noise.to(float_tensor(network)), []

            def recorder(name, calls=calls):
                def keep(module, args, output):
                    if torch.is_tensor(output) and output.ndim in (3, 4):
                        # The version tells an output from itself after an in-place operation.
                        calls.append((name, output, output._version))

                return keep

            handles = [m.register_forward_hook(recorder(n)) for n, m in network.named_modules() if n]
            try:
                return images, calls, network(images).shape[-1]
            except Exception as error:  # networks refuse images in many ways
                first = first or (size, error)
            finally:
                for handle in handles:
                    handle.remove()
    size, cause = first
    said = str(cause) or type(cause).__name__  # an assertion may say nothing
    raise ValueError(f"an image of {size[0]} x {size[1]} fails ({said}): name the layer") from cause


def _matters(network, name, images, kind):
    """Whether logits change with a layer's cells: NaN there comes through, whatever the weights."""

    def spoil(module, args, output):
        return write_maps(torch.full_like(read_maps(output, images.shape, kind), torch.nan), output, kind)

    with network.get_submodule(name).register_forward_hook(spoil):
        logits = network(images)
    return logits.is_meta or not logits.isfinite().all()
