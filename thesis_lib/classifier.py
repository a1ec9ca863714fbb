"""F: a network and its explained layer. Scores, features, and gradients in one forward pass."""

import copy
import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from thesis_lib.checks import NoSuchOutput, is_finite, one_of, require, whole
from thesis_lib.compiled import Plan, expecting, forward
from thesis_lib.counts import count
from thesis_lib.layers import find_layer, float_tensor, layout, read_maps, undisturbed, write_maps

Classes: TypeAlias = int | Sequence[int] | Tensor | None  # None: the predicted ones
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Classifier:
    """A network that maps images (N, 3, H, W), normalised, to logits (N, C).

    The network is explained in eval mode and comes back as it was given: parameters,
    requires_grad, hooks and the mode of each module. Frozen networks, no_grad, inference_mode,
    autocast (which is off inside) and several threads (which wait for each other) are fine, and so is
    a network in a wrapper, as DataParallel. One that was compiled is run as it was before. A network in
    bfloat16 or float16 computes in its own type, but what goes in and comes out, and all that is
    made of it, is float32.

    Args:
        network: a module that maps (N, 3, H, W) to (N, C).
        layer: name of the explained layer; None finds it (`find_layer`).
        name: how it is called where it is printed.
        categories: names of the classes, None where they have none.
        mean, std: of the pixels, one number for each channel, for `normalise`.
        activation: "softmax", or "sigmoid" for a multi-label network, or one with a single output.
        batch: images of up to 224 x 224 pixels in a forward pass, larger ones in proportion fewer.
            None: 16 on the CPU, where larger passes are slower, 4 with depthwise convolutions, 128 elsewhere.
        compile: whether passes without a graph run a compiled copy of the network (`thesis_lib.compiled`): True where
            it pays, "always" in every loop of some full batches, False never; nor where the environment
            variable THESIS_COMPILE is 0.

    Raises:
        ValueError: another activation, no such layer, a batch below 1, a scripted network.
        TypeError: a network that is no nn.Module.

    >>> import torchvision
    >>> mine = tl.Classifier(torchvision.models.squeezenet1_1(num_classes=7))
    >>> mine
    Classifier(SqueezeNet, layer='features.12')
    >>> mine.probabilities(images).shape
    torch.Size([1, 7])
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str | None = None,
        name: str = "",
        categories: Sequence[str] | None = None,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
        activation: str = "softmax",
        batch: int | None = None,
        compile: bool | str = True,
    ):
        one_of(activation, "activation", "softmax", "sigmoid")
        if not isinstance(network, nn.Module):
            raise TypeError(f"a network is a torch.nn.Module, not {type(network).__name__}")
        if any(isinstance(m, torch.jit.ScriptModule) for m in network.modules()):
            raise ValueError(
                "a scripted or traced network hides its layers: give the nn.Module that torch.jit made it of"
            )
        self.network, self.name, self.categories = network, name, categories
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.activation = activation
        # What passes have shown, for copies too: sizes of images, the layer's layout, logits looked at.
        self._seen: dict[str, Any] = {"sizes": set()}
        self._batch = None if batch is None else _at_least_one(batch)
        self.compile = _when(compile)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        # On the CPU twice as fast in batches (benchmarks, case "floor").
        self._format = torch.channels_last if convolutions else torch.contiguous_format
        # Filters of single channels wait for memory: of few pictures, what they read stays in the CPU's caches.
        self._depthwise = any(m.groups == m.in_channels > 1 for m in convolutions)
        self.layer = find_layer(network) if layer is None else layer
        names = [n for n, _ in network.named_modules() if n]
        if self.layer not in names:
            raise ValueError(
                f"the network has no layer {layer!r}; its last ones are {', '.join(names[-12:])}"
            )

    def __repr__(self) -> str:
        return f"Classifier({self.name or type(self.network).__name__}, layer={self.layer!r})"

    @property
    def device(self) -> torch.device:
        return float_tensor(self.network).device

    @property
    def dtype(self) -> torch.dtype:
        """The float type of images, features and logits."""
        own = float_tensor(self.network).dtype
        return torch.float32 if own.itemsize < 4 else own

    @property
    def batch(self) -> int:
        default = 128 if self.device.type != "cpu" else 4 if self._depthwise else 16
        return self._batch or default

    def with_batch(self, batch: int) -> Self:
        """The same classifier, the same network, with another `batch`."""
        other = copy.copy(self)
        other._batch = _at_least_one(batch)
        return other

    def with_compile(self, compile: bool | str) -> Self:
        """The same classifier, the same network, with another `compile`."""
        other = copy.copy(self)
        other.compile = _when(compile)
        return other

    def compiled(self, passes: int, size: Sequence[int]) -> AbstractContextManager[Plan | None]:
        """Announce a loop of passes without a graph, on images of size (H, W).

        Where it pays for so many, its full batches run a compiled copy of the network, equal but for
        rounding; smaller ones, and the few before that is known, run the network as it is, which is not to
        change meanwhile. Of blocks within one another the outermost decides.

        >>> with clf.compiled(10, (224, 224)):
        ...     clf.scores(images, torch.tensor([4])).shape
        torch.Size([1])
        """
        n, (height, width) = self.full_batch(size), size
        return expecting(self.network, passes // n, (n, height, width), self.compile)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [0, 1] to what the network takes.

        Raises:
            ValueError: pixels that are whole numbers, or go far beyond 1, as those of 0 to 255 do.

        >>> grey = torch.full((1, 3, 2, 2), 0.5)
        >>> clf.denormalise(clf.normalise(grey)).allclose(grey)
        True
        """
        if not torch.is_tensor(pixels) or not pixels.is_floating_point():
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            raise ValueError(f"pixels are a float tensor in [0, 1], not {kind}: divide 0 to 255 by 255")
        wrong = "pixels lie in [0, 1], not up to {:g}: divide 0 to 255 by 255"
        require(
            ~(pixels > 2).any(), lambda: ValueError(wrong.format(pixels.amax()))
        )  # enlarging may overshoot
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    @staticmethod
    def _channels(values, like):
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]

    def prepare(self, images: Tensor) -> Tensor:
        """Images checked, on the network's device and in its float type."""
        shape = tuple(getattr(images, "shape", ()))
        if not torch.is_tensor(images) or len(shape) != 4 or not images.is_floating_point():
            raise ValueError(
                "images are a float tensor (N, channels, H, W), as `normalise` returns; not "
                f"{type(images).__name__} {shape} {getattr(images, 'dtype', '')}"
            )
        if images.numel() == 0:
            raise ValueError(f"there are no images in a tensor of shape {shape}")
        images = images.detach().to(self.device, self.dtype)
        # Autograd refuses what the caller's inference_mode made, but takes a copy.
        return images.clone() if images.is_inference() else images

    def targets(self, classes: Any, n: int) -> Tensor | None:
        """classes as int64 (n,) on the network's device; None stays None, the predicted ones."""
        if classes is None:
            return None
        wrong = "classes are None, one class index or one index for each image"
        try:
            classes = torch.as_tensor(classes, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{wrong}, not {classes!r}") from error
        if classes.is_floating_point() or classes.dtype == torch.bool or classes.ndim > 1:
            raise TypeError(wrong)
        if classes.ndim == 1 and len(classes) != n:
            raise ValueError(f"{len(classes)} classes for {n} images")
        return classes.long().expand(n).clone()  # a copy for autograd, as in `prepare`

    def passes(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Runs the network, one full batch after the other, each when it is asked for.

        In eval mode and without a graph. The logits are not checked: to look at them would make
        each pass wait for the GPU.

        Args:
            images: (N, 3, H, W), normalised.

        Yields:
            the images of a pass (n, 3, H, W), checked and on the network's device, and their
            logits (n, C).

        Raises:
            ValueError: images that are no float tensor of that shape, or that the network refuses.

        >>> three = images.expand(3, -1, -1, -1)
        >>> [(len(part), logits.shape[1]) for part, logits in clf.with_batch(2).passes(three)]
        [(2, 51), (1, 51)]
        """
        for part in self._split(self.prepare(images)):
            with torch.inference_mode():
                logits = self._forward(part)
            yield part, logits.clone()  # outside: an ordinary tensor again

    def logits(self, images: Tensor) -> Tensor:
        """F before the activation: (N, 3, H, W) -> (N, C).

        Raises:
            ValueError: images that are no float tensor of that shape; logits that are not finite.

        >>> clf.logits(images).shape
        torch.Size([1, 51])
        """
        images = self.prepare(images)
        with self.compiled(len(images), images.shape[-2:]):
            logits = _finite(torch.cat([logits for _, logits in self.passes(images)]))
        if "logits" not in self._seen:
            self._seen["logits"] = True
            self._warn_of_probabilities(logits)
        return logits

    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax (or sigmoid) of the logits: (N, 3, H, W) -> (N, C).

        >>> round(float(clf.probabilities(images).sum()), 3)
        1.0
        """
        return self._activate(self.logits(images))

    def predict(self, images: Tensor) -> Tensor:
        """The class of the largest logit: (N, 3, H, W) -> (N,).

        >>> clf.categories[int(clf.predict(images))]
        'n01843383-toucan'
        """
        return self.logits(images).argmax(1)

    def scores(self, images: Tensor, classes: Tensor, score: str = "logit") -> Tensor:
        """F_c: the logit or probability of one class (N,) of each image -> (N,).

        For the inner loops: no check of the classes or the logits (each would wait for the GPU).
        """
        logits = torch.cat([logits for _, logits in self.passes(images)])
        return self.score_of(logits, classes, score)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features A (N, K, h, w) of the explained layer, and the logits (N, C).

        >>> features, logits = clf.features(images)
        >>> features.shape
        torch.Size([1, 64, 14, 14])
        """
        found = []

        def keep(output):
            found.append(output.clone())  # layers behind may work in place
            return output

        with torch.inference_mode():
            logits = [self._forward(part, keep) for part in self._split(self.prepare(images))]
        # Outside, where they are ordinary tensors again.
        return torch.cat(found).contiguous(), _finite(torch.cat(logits))

    def features_and_gradients(
        self, images: Tensor, classes: Classes = None, score: str = "logit"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features A and gradients G = dF_c/dA of the explained layer (equation 3-1).

        One forward pass. The graph starts at the explained layer, so only the layers behind it
        are differentiated, and no parameter gets a gradient.

        Args:
            images: (N, 3, H, W), normalised.
            classes: None (the predicted ones), one index, or (N,) indices.
            score: F_c is the "logit" or the "probability" of the class.

        Returns:
            features (N, K, h, w), gradients (N, K, h, w), logits (N, C), classes (N,).

        Raises:
            ValueError: the scores do not depend on the layer; or as `logits`.
            IndexError: a class out of range.

        >>> features, gradients, logits, classes = clf.features_and_gradients(images)
        >>> gradients.shape, classes.tolist()
        (torch.Size([1, 64, 14, 14]), [4])
        """
        # Also for what gradient checkpoints run again on the way back.
        with torch.inference_mode(False), undisturbed(self.network):
            parts = self._split(self.prepare(images))
            classes = self.targets(classes, len(images))
            targets = [None] * len(parts) if classes is None else classes.split(len(parts[0]))
            results = [self._differentiate(p, t, score) for p, t in zip(parts, targets, strict=True)]
        features, gradients, logits, classes = map(torch.cat, zip(*results, strict=True))
        return features, gradients, _finite(logits), resolve_classes(classes, logits)

    def _differentiate(self, images, targets, score):
        """`features_and_gradients` of one pass, whose checks would each wait for the GPU."""
        leaf = None

        def cut(output):
            nonlocal leaf
            leaf = output.detach().requires_grad_()
            torch.set_grad_enabled(True)  # for the layers behind
            return leaf.clone()  # layers behind may work in place: not on the leaf

        logits = self._forward(images, cut)
        classes = logits.argmax(1) if targets is None else targets
        with torch.enable_grad():
            total = self.score_of(logits, classes.clamp(0, logits.shape[1] - 1), score).sum()
        gradients = None
        if total.requires_grad:
            (gradients,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if gradients is None:
            raise ValueError(
                f"the scores do not depend on layer {self.layer!r}, or the network switches "
                "gradients off behind it: name another"
            )
        return leaf.detach().contiguous(), gradients.contiguous(), logits.detach(), classes

    def _split(self, images):
        """Images in parts of one forward pass each."""
        return images.split(self.full_batch(images.shape[-2:]))

    def full_batch(self, size: Sequence[int]) -> int:
        """Images of that size (H, W) in a full batch, which bounds memory.

        >>> clf.with_batch(16).full_batch((448, 448))
        4
        """
        return max(1, min(self.batch, self.batch * 224 * 224 // math.prod(size)))

    def _forward(self, images, hook=None):
        """One pass in eval mode; hook: output of the explained layer -> its replacement."""
        count("forward images", len(images))
        count("forward pixels", len(images) * images.shape[-2] * images.shape[-1])
        # no_grad also restores the mode where the hook switches it on.
        size = tuple(images.shape[1:])
        with undisturbed(self.network), self._hooked(hook, images.shape), torch.no_grad():
            try:
                images = images.to(float_tensor(self.network).dtype, memory_format=self._format)
                run = self.network if hook else functools.partial(forward, self.network)
                logits = self._checked(run(images))
                self._seen["sizes"].add(size)
                return logits
            except NoSuchOutput:
                raise
            except (AssertionError, IndexError, RuntimeError) as error:
                # A `view` in the network may want the plain order of pixels: once, try that.
                if self._format != torch.channels_last or "view size" not in str(error):
                    if size in self._seen["sizes"] or _of_the_device(error):
                        raise
                    shape = " x ".join(map(str, size[1:]))  # many networks take one size only
                    raise ValueError(f"the network refuses images of {shape}: {error}") from error
        self._format = torch.contiguous_format
        return self._forward(images, hook)

    def _checked(self, logits):
        """Logits (N, C), as far as their shape tells, in the documented type."""
        if not torch.is_tensor(logits) or logits.ndim != 2:
            raise TypeError("the network must return logits: one tensor (N, classes)")
        if logits.shape[1] == 1 and self.activation == "softmax":
            raise ValueError(
                'the network has one output, and a softmax over one number is 1: use activation="sigmoid"'
            )
        if self.categories is not None and len(self.categories) != logits.shape[1]:
            raise ValueError(f"{len(self.categories)} categories for a network of {logits.shape[1]} outputs")
        return logits.to(self.dtype)

    def _warn_of_probabilities(self, logits):
        """Of a network that ends in a softmax or sigmoid: a second one would flatten every score."""
        if (logits < 0).any() or (logits > 1).any():
            return
        many = logits.numel() > 20  # a few may lie there by chance
        if (self.activation == "sigmoid" and many) or torch.allclose(
            logits.sum(1), logits.new_ones(()), atol=1e-3
        ):
            warnings.warn(
                f"the network's outputs look like probabilities, and get another {self.activation}: give the "
                "network without its last one, so that it returns logits",
                stacklevel=3,
            )

    @contextmanager
    def _hooked(self, hook, shape):
        calls = 0

        def replace(module, args, output):
            nonlocal calls
            calls += 1
            if calls > 1:
                raise ValueError(f"layer {self.layer!r} runs more than once: name another")
            try:
                kind = self._layout(getattr(output, "shape", ()), shape)
                maps = read_maps(output, shape, kind)
            except ValueError as error:
                raise ValueError(f"layer {self.layer!r} cannot be explained: {error}") from error
            return write_maps(hook(maps.to(self.dtype)), output, kind)

        if hook is None:
            yield
            return
        with self.network.get_submodule(self.layer).register_forward_hook(replace):
            yield
        if calls == 0:
            raise ValueError(f"layer {self.layer!r} does not run in a forward pass: name another")

    def _layout(self, shape, images):
        """How the layer's output lies on the images: of one size, for all sizes to come."""
        found = layout(shape, images)
        if "layout" not in self._seen:
            self._seen["layout"] = found
            if found == "channels first" and len({*shape[1:]}) == 1 and shape[1] > 1:
                warnings.warn(
                    f"the {' x '.join(map(str, shape[1:]))} maps of layer {self.layer!r} can be read two ways: "
                    "the channels are taken to be first",
                    stacklevel=2,
                )
        return self._seen["layout"]

    def _activate(self, logits):
        return logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid()

    def score_of(self, logits: Tensor, classes: Tensor, score: str = "logit") -> Tensor:
        """F_c of logits (N, C): the "logit" or "probability" of one class (N,) of each -> (N,).

        >>> clf.score_of(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
        tensor([2.])
        """
        one_of(score, "score", "logit", "probability")
        scores = self._activate(logits) if score == "probability" else logits
        return scores.gather(1, classes[:, None])[:, 0]


def _of_the_device(error):
    """Whether an error is about the device and its memory, not about the images."""
    kinds = torch.OutOfMemoryError, torch.AcceleratorError, NotImplementedError
    return isinstance(error, kinds) or any(
        word in str(error) for word in ("ALLOC_FAILED", "CUDA", "out of memory")
    )


def _when(compile):
    if isinstance(compile, bool):
        return compile
    return one_of(compile, "compile, unless True or False,", "always")


def _at_least_one(batch):
    batch = whole(batch, "batch")
    if batch < 1:
        raise ValueError(f"batch is the number of images in a pass, at least 1, not {batch}")
    return batch


def refuse_nan(images: Tensor) -> None:
    """Raises ValueError for images that are not finite: no map or curve of them means anything.

    >>> from thesis_lib.classifier import refuse_nan
    >>> refuse_nan(torch.tensor([0.0, float("nan")]))
    Traceback (most recent call last):
    ValueError: the images hold NaN or infinity: leave those pictures out
    """
    wrong = "the images hold NaN or infinity: leave those pictures out"
    require(is_finite(images), lambda: ValueError(wrong))


def _finite(logits):
    wrong = "the network's logits are not finite: check its weights, and that the images are finite and normalised"
    require(is_finite(logits), lambda: ValueError(wrong))
    return logits


def resolve_classes(classes: Tensor | None, logits: Tensor) -> Tensor:
    """The explained classes (N,): None is the predicted ones; others must exist (IndexError).

    >>> resolve_classes(None, torch.tensor([[0.1, 0.7, 0.2]]))
    tensor([1])
    """
    if classes is None:
        return logits.argmax(1)
    n = logits.shape[1]
    require(
        ((classes >= 0) & (classes < n)).all(),
        lambda: IndexError(f"class {classes.tolist()} is out of range: {n} classes, 0 to {n - 1}"),
    )
    return classes
