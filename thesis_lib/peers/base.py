"""What all adapters share: their registry, their libraries, and a copy of the network to work on."""

import copy
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from thesis_lib.checks import check_settings, has_outputs, one_of
from thesis_lib.classifier import Classifier
from thesis_lib.methods.base import Methods, explainer
from thesis_lib.registry import UnknownName

# `family` is here the thesis's own, of section 1.2: "backpropagation", "class activation" or
# "perturbation"; or "transformer", for what reads attention. `thesis` is whether the thesis names the method.
PEERS = Methods("method of another library")


def library(module: str) -> ModuleType:
    """A module of a library that thesis_lib does without, such as "captum.attr".

    Write the name where the call stands: a run's key looks there for the libraries whose versions
    it depends on (`thesis_lib.runs.key`).

    Raises ImportError, which says how to install it, where the library is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ImportError(
            f'{package} is not installed; it comes with the extra "peers": pip install -e ".[peers]"'
        ) from error


def library_class(module: ModuleType, name: str) -> type:
    """A library's class, or which ones there are."""
    found = getattr(module, str(name), None)
    if not inspect.isclass(found):
        there = ", ".join(key for key, value in vars(module).items() if inspect.isclass(value))
        raise UnknownName(f"{module.__name__} has no class {name!r}; it has {there}")
    return found


def lend(clf: Classifier) -> Classifier:
    """The classifier with a copy of its network that a library may hook and change.

    The copy is in eval mode; its parameters need no gradients, and nothing works in place.
    """
    lent = copy.copy(clf)
    lent.network = copy.deepcopy(clf.network).eval().requires_grad_(False)
    for module in lent.network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return lent


def peer(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a method of a function (lent classifier, image (1, 3, H, W), class (1,)) -> (1, h, w).

    The method takes (classifier, images, classes=None, **settings) and returns maps (N, H, W) in
    [0, 1], as those of `thesis_lib.METHODS`; a flat or non-finite map becomes zero and is counted.
    Settings are checked (`thesis_lib.checks.checked`), images have to be finite, classes have to exist.
    """

    @explainer()
    @functools.wraps(function)
    def method(clf, images, classes=None, **settings):
        settings = check_settings(function, settings)
        classes = clf.predict(images) if classes is None else classes
        devices, maps = [clf.device] if clf.device.type == "cuda" else [], []
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum says each time that it sets hooks
            lent = lend(clf)
            lent.network.register_forward_hook(has_outputs(classes.tolist()))
            for image, target in zip(images.split(1), classes.split(1), strict=True):
                with torch.random.fork_rng(devices):
                    torch.manual_seed(0)
                    # Copies: autograd refuses what the caller's inference_mode made.
                    one = function(lent, image.clone(), target.clone(), **settings)
                maps.append(torch.as_tensor(one, device=clf.device).detach().to(clf.dtype))
        return torch.cat(maps)

    return method


def pixelwise(attribute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a method of a function (lent classifier, image, class) -> attributions (1, 3, H, W).

    The method has one setting more. reading: "absolute", the largest absolute value over the
    colours (Simonyan et al., 2014); or "positive", the sum over the colours where it is above 0,
    which is what speaks for the class.
    """

    @functools.wraps(attribute)
    def method(clf, image, target, reading="absolute", **settings):
        colours = attribute(clf, image, target, **settings)
        return colours.abs().amax(1) if reading == "absolute" else colours.sum(1).relu()

    signature = inspect.signature(attribute)
    reading = inspect.Parameter("reading", inspect.Parameter.KEYWORD_ONLY, default="absolute")
    parameters = [*signature.parameters.values(), reading]
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    method.checks = getattr(attribute, "checks", {}) | {"reading": (one_of, "absolute", "positive")}  # type: ignore[attr-defined]
    return peer(method)


def probability(clf: Classifier, target: Tensor) -> Callable[[Tensor], Tensor]:
    """The function images (n, 3, H, W) -> probabilities (n,) of one class (1,)."""
    return lambda images: clf.scores(images, target.expand(len(images)), "probability")
