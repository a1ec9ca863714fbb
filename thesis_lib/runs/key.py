"""What names a run: a digest of all that its rows depend on, and of nothing else.

Code is followed from the methods and metrics through everything that they call, function by function, so
that another method's code, a comment, a docstring or a colour costs nobody a night. What cannot be
read from code and settings (hooks, closures of a network, patched modules) is compared, not hashed:
`behaviour` of two pictures, because rounded numbers differ from machine to machine.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import ModuleType
from typing import Any

import numpy as np
import torch

from thesis_lib.classifier import Classifier
from thesis_lib.metrics.base import METRICS
from thesis_lib.metrics.measure import measure
from thesis_lib.registry import Registry

ALWAYS = ("torch", "torchvision", "kornia")  # their versions are in every key


def sha256(parts: Iterable) -> str:
    """Hex digest of texts and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


# Code


def code(*functions: Any) -> str:
    """Digest of functions and classes with all that they reach in their own package; of other packages
    their versions. The same on Python 3.11 to 3.13.
    """
    found: dict[str, str] = {}
    waiting = list(functions)
    while waiting:
        thing = inspect.unwrap(waiting.pop())
        name = f"{thing.__module__}.{thing.__qualname__}"
        if name in found:
            continue
        if package := _library(thing.__module__):
            found[package] = _version(package)
            continue
        tree = _tree(thing)
        found[name] = _canonical(tree) if isinstance(tree, ast.AST) else tree
        for name, value in _named(tree, thing):
            if isinstance(value, ModuleType):
                if package := _library(value.__name__):
                    found[package] = _version(package)
            elif inspect.isroutine(value) or inspect.isclass(value):
                if getattr(value, "__module__", None):  # not a builtin without a home
                    waiting.append(value)
            elif not isinstance(value, Registry):  # a registry is looked up by name, see `describe`
                found[name] = _plain(value)
    return sha256(f"{name} {found[name]}\n" for name in sorted(found))


def _plain(value):
    """A constant of a module, as far as it has a stable description."""
    try:
        return repr(describe(value))
    except ValueError:
        return type(value).__name__


def _tree(thing):
    """The definition of a function or class; its bare text where that is no statement (lambdas)."""
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the code of {thing!r} cannot be read, so a run cannot be named by it: define it in a "
            "file or in a cell of a notebook"
        ) from error
    try:
        return ast.parse(text).body[0]
    except SyntaxError:
        return text


def _named(tree, thing):
    """(full name, value) of what a definition names in its module, and in modules named there."""
    if not isinstance(tree, ast.AST):
        return
    scope = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
    if inspect.isfunction(thing):
        scope = thing.__globals__
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in _walk(tree):
        if isinstance(node, ast.Name) and node.id in scope and node.id not in own:
            yield f"{thing.__module__}.{node.id}", scope[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = scope.get(node.value.id)
            if isinstance(module, ModuleType) and hasattr(module, node.attr):
                yield f"{module.__name__}.{node.attr}", getattr(module, node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name):
                    yield f"{node.module}.{alias.name}", getattr(module, alias.name)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "library":
            for argument in node.args:  # `peers.library("captum.attr")`
                if isinstance(argument, ast.Constant):
                    yield argument.value, importlib.import_module(argument.value.split(".")[0])


def _library(module):
    """The package that a module of somebody else's belongs to, or "" for our code and the caller's."""
    top = module.partition(".")[0]
    if top in ("thesis_lib", "__main__") or top in sys.stdlib_module_names - {"__main__"}:
        return "" if top in ("thesis_lib", "__main__") else "python"
    return top if top in _installed() else ""


@functools.cache
def _installed():
    return packages_distributions()


def _version(package):
    if package == "python":
        return ""
    try:
        return version(_installed()[package][0])
    except (KeyError, PackageNotFoundError):
        return "unknown"


def _walk(node):
    """As `ast.walk`, without what changes no number: annotations, and entries in registries."""
    yield node
    for child in _children(node):
        yield from _walk(child)


def _children(node):
    for _, value in _fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _fields(node):
    for field, value in ast.iter_fields(node):
        if field in ("ctx", "kind", "type_comment", "type_params", "returns", "annotation"):
            continue
        if field == "decorator_list":
            value = [d for d in value if not _is_entry(d)]
        if field == "body" and isinstance(value, list) and _is_docstring(node, value):
            value = value[1:]
        if value is not None and value != []:
            yield field, value


def _is_entry(decorator):
    """`@METHODS.entry(...)` and the like: they describe."""
    function = getattr(decorator, "func", None)
    return isinstance(function, ast.Attribute) and function.attr == "entry"


def _is_docstring(node, body):
    first = body[0] if body else None
    return (
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )


def _canonical(node):
    """A syntax tree as text that does not depend on the version of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ",".join(f"{name}={_canonical(value)}" for name, value in _fields(node))
    return f"{type(node).__name__}({fields})"


# Settings


def describe(value: Any) -> Any:
    """What tells a method and its settings from others, in this process and in the next, for JSON.

    Of a function its code with all that it reaches, its defaults and what it closes over; of
    tensors and arrays their values.

    Raises ValueError for what has no stable description.
    """
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _values(torch.as_tensor(value))
    if isinstance(value, torch.nn.Module):
        return describe_network(value)
    if inspect.isfunction(value):
        function = inspect.unwrap(value)
        both = dict.fromkeys((value, function))  # a set would have another order in each process
        inside = [cell.cell_contents for f in both for cell in f.__closure__ or ()]
        inside = [x for x in inside if x is not function]
        inside += [function.__defaults__, function.__kwdefaults__]
        name = f"{value.__module__}.{value.__qualname__}"
        return [name, code(function)[:16], describe(inside)]
    if " at 0x" in repr(value):
        raise ValueError(
            f"{value!r} has no stable description: give methods as functions, and their settings "
            "as plain values by functools.partial"
        )
    return repr(value)


def _values(tensor):
    """A tensor's type, shape and bytes, digested."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256([f"{tensor.dtype} {tuple(tensor.shape)}", flat.view(torch.uint8).numpy().tobytes()])


def describe_network(network: torch.nn.Module) -> dict:
    """A network's weights, and the types and plain settings of its modules."""
    state = network.state_dict().items()
    weights = itertools.chain.from_iterable((name, _values(tensor)) for name, tensor in state)
    modules = []
    for name, module in network.named_modules():
        kind = type(module)
        settings = {
            key: describe(item)
            for key, item in sorted(vars(module).items())
            if key != "training" and not key.startswith("_") and _is_plain(item)
        }
        own = "" if _library(kind.__module__) else code(kind)
        modules.append(f"{name} {kind.__module__}.{kind.__qualname__} {settings} {own}")
    return {"weights": sha256(weights), "modules": sha256(modules)}


def _is_plain(value):
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    plain = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Tensor, np.ndarray)
    return isinstance(value, plain)


def describe_classifier(clf: Classifier) -> dict:
    """What of a classifier changes its maps; `batch` is not among it."""
    return {
        "name": clf.name,
        "layer": clf.layer,
        "activation": clf.activation,
        "normalisation": [list(map(float, clf.mean)), list(map(float, clf.std))],
        "dtype": str(clf.dtype),
        "device": clf.device.type,
        **describe_network(clf.network),
    }


def describe_metrics(metrics: Iterable[str]) -> dict:
    """{metric: its code, and the class that it explains}."""
    found = {name: METRICS[name] for name in sorted(metrics)}
    return {name: [code(m.function)[:16], m.explains] for name, m in found.items()}


def loop() -> str:
    """Digest of the code that turns pictures, maps and metrics into rows."""
    return code(measure, Classifier)[:16]


def versions() -> dict[str, str]:
    return {name: version(name) for name in ALWAYS}


# Pictures, and what the network makes of them


def picture(sample: Any) -> str:
    """Digest of a picture and of what is known of it."""
    parts = [sample.pixels.numpy().tobytes(), repr(sample.classes)]
    for masks in (sample.masks, sample.pixel_masks):
        for c, mask in masks.items():
            parts += [str(c), mask.numpy().tobytes()]
    return sha256(parts)[:16]


def behaviour(clf: Classifier, samples: list) -> list:
    """Logits and channel means of the explained layer, for each picture: what `agrees` compares."""
    found = []
    for sample in samples:
        images = clf.normalise(sample.pixels[None])
        try:
            features, logits = clf.features(images)
            means = features[0].float().mean((-2, -1)).tolist()
        except ValueError:  # a layer that no CAM can explain; attention methods can
            logits, means = clf.logits(images), []
        found.append({"logits": logits[0].float().tolist(), "features": means})
    return found


def agrees(a: list, b: list, tolerance: float = 1e-3) -> bool:
    """Whether two `behaviour`s are the same but for rounding."""
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        for key in ("logits", "features"):
            x, y = np.array(one[key]), np.array(other[key])
            if x.shape != y.shape:
                return False
            if x.size and np.abs(x - y).max() > tolerance * max(1, np.abs(x).max()):
                return False
    return True
