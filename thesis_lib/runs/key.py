"""What names a run: a digest of all that its rows depend on, and of nothing else.

Code is followed from the methods and metrics through everything that they call, function by function, so
that another method's code, a comment, a docstring or a colour costs nobody a night. What cannot be
read from code and settings (hooks, patched modules) is compared, not hashed: `behaviour` of two pictures,
because rounded numbers differ from machine to machine.
"""

import ast
import functools
import importlib
import inspect
import itertools
import json
import linecache
import sys
import sysconfig
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from thesis_lib.classifier import Classifier
from thesis_lib.metrics.base import METRICS
from thesis_lib.metrics.measure import measure
from thesis_lib.registry import Registry
from thesis_lib.runs import syntax
from thesis_lib.runs.files import patiently, sha256

ALWAYS = ("torch", "torchvision", "kornia")  # their versions are in every key


# Code


def code(*things: Any, apart: tuple = ()) -> str:
    """Digest of functions and classes, with all that they reach: our and the caller's code, the constants
    that it names, and of other packages their versions. The same on Python 3.11 to 3.13.

    apart: what is not followed.

    Raises:
        ValueError: code that cannot be read, or that was changed since it was imported.
        OSError: the disk fails.
    """
    found, constants, changed, seen, waiting = set(), {}, set(), {}, list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or any(thing is known for known in apart):
            continue
        seen[id(thing)] = thing  # kept, or another thing might get its id
        text, named, behind = _part(thing)
        found.add(text)
        waiting += behind
        for name, value, is_changed in named:
            if isinstance(value, types.ModuleType):
                package = _library(value.__name__)
                found.add(f"{package or value.__name__} {package and _version(package)}")
            elif _is_code(value) or isinstance(value, Registry):
                waiting.append(value)
            else:
                constants[name] = value, _constant(value, waiting)
                if is_changed:
                    changed |= {name, *_identity(value)}
    for name, (value, text) in constants.items():
        if not changed & {name, *_identity(value)}:  # else it is no constant: a cache, a list of calls
            found.add(f"{name} = {text}")
    return sha256(f"{text}\n" for text in sorted(found))


def _identity(value):
    """What else names a value that may be changed in place."""
    return (
        []
        if isinstance(value, (int, float, complex, str, bytes, tuple, frozenset, type(None)))
        else [id(value)]
    )


def _part(thing):
    """What a thing says of itself, (name, value, whether it changes that) of what it names, and what else
    belongs to it."""
    if isinstance(thing, Registry):  # looked up by a name that only the call knows: any of them
        return "", [], [getattr(entry, "function", entry) for entry in thing.values() if _is_code(entry)]
    name = _name(thing)
    if package := _library(_module(thing)):
        return f"{package} {_version(package)}", [], []
    if inspect.isclass(thing):
        tree, closure, behind = _class(thing)
        scope = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
        values = {k: v for k, v in vars(thing).items() if not k.startswith("__") and _is_plain(v)}
    elif hasattr(thing, "__code__"):
        tree, behind = _function(thing), []
        scope, closure = thing.__globals__, _closure(thing)
        values = [thing.__defaults__, thing.__kwdefaults__]
    else:  # functools.cache and the like; builtins
        return name, [], [x for x in [getattr(thing, "__wrapped__", None)] if x is not None]
    text = f"{name} {_constant(values, behind)} {tree and _canonical(tree)}"
    return text, _named(name, tree, scope, closure) if tree else [], behind


def _is_code(thing):
    """Whether it is followed: a function, a class, an entry with a function."""
    return inspect.isroutine(thing) or inspect.isclass(thing) or callable(getattr(thing, "function", None))


def _constant(value, behind):
    """A constant as text, as far as it has a stable description; code in it goes to `behind`."""
    try:
        return json.dumps(describe(value, behind), sort_keys=True)
    except ValueError:
        return type(value).__name__


def _name(thing):
    """A function's or class's own name, also where `functools.wraps` lent it another one's."""
    own = getattr(thing, "__code__", None)
    qualname = own.co_qualname if own else getattr(thing, "__qualname__", type(thing).__name__)
    return f"{_module(thing)}.{qualname}"


def _module(thing):
    if hasattr(thing, "__code__"):
        return thing.__globals__.get("__name__", "")
    return getattr(thing, "__module__", None) or ""


def _closure(function):
    """{name: value} of what a function closes over."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not given a value yet
            continue
    return found


def _named(name, tree, scope, closure):
    """(full name, value, whether it is changed) of what a definition looks up: in its module, in what it
    closes over or imports."""
    within = syntax.imports(tree)
    for path, key, is_changed in _uses(tree):
        owner, last = scope.get("__name__"), path[0]
        if last in within:
            value = _imported(*within[last], scope)
        elif last in closure:
            owner, value = name, closure[last]
        elif last in scope and not last.startswith("__"):
            value = scope[last]
        else:
            continue  # a builtin
        for attribute in path[1:]:
            if not isinstance(value, types.ModuleType) or _library(value.__name__):
                break
            owner, last, value = value.__name__, attribute, getattr(value, attribute, None)
        if isinstance(value, Registry) and key in value:
            value = value[key]
            value = getattr(value, "function", value)
        yield f"{owner}.{last}", value, is_changed
    for package in syntax.imported_by_name(tree):
        yield package, types.ModuleType(package.partition(".")[0]), False


def _imported(level, module, name, scope):
    """What an import within a function binds; packages of others are not imported for it."""
    if not level and _library(module):
        return types.ModuleType(module)
    module = importlib.util.resolve_name("." * level + module, scope.get("__package__"))
    value = importlib.import_module(module)
    if name and not hasattr(value, name):
        return importlib.import_module(f"{module}.{name}")
    return getattr(value, name) if name else value


def _library(module):
    """The package of somebody else's that a module belongs to, or "" for our and the caller's code."""
    return _package(module.partition(".")[0])


@functools.cache
def _package(top):
    if top in ("", "thesis_lib", "__main__"):
        return ""
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", [])), None)
    if found is None:
        spec = importlib.util.find_spec(top) if top not in sys.modules else None
        if spec is None:
            return top  # it is not here
        file = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or []), None)
    if file is None:
        return "python" if top in sys.stdlib_module_names else ""
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return top
    return "python" if Path(file).is_relative_to(sysconfig.get_path("stdlib")) else ""


@functools.cache
def _version(package):
    if package == "python":
        return ""
    for names in (lambda: [package], lambda: packages_distributions()[package]):
        try:
            return ", ".join(version(name) for name in names())
        except (KeyError, PackageNotFoundError):
            continue
    return "unknown"


# Where code stands

_canonical = functools.cache(syntax.canonical)
_uses = functools.cache(lambda tree: tuple(syntax.uses(tree)))
_texts: dict[str, str] = {}  # as it was first read: what runs, whatever an editor does to the file since


def _function(function):
    """The definition of a function or lambda."""
    own = function.__code__
    for fresh in (False, True):
        text = _text(own.co_filename, fresh)
        found = _parsed(text)[0].get((own.co_name, own.co_firstlineno), [])
        if found and _is_current([function], text):
            return _at(own, found)
    raise _unreadable(function, text)


def _at(own, trees):
    """Of several lambdas in a line the one that a code object is made of: the innermost around it."""
    if len(trees) == 1:
        return trees[0]
    places = [p for p in own.co_positions() if None not in p and p[3] > 0]
    around = [
        tree
        for tree in trees
        if all(
            (tree.lineno, tree.col_offset) <= (p[0], p[2])
            and (p[1], p[3]) <= (tree.end_lineno, tree.end_col_offset)
            for p in places
        )
    ]
    if not places or not around:
        return ast.Module(trees, [])  # Python without columns: all of them
    return max(around, key=lambda tree: (tree.lineno, tree.col_offset))


def _class(kind):
    """A class's definition (None where it has none), what its methods close over, and its bases."""
    members = [getattr(member, "fget", getattr(member, "__func__", member)) for member in vars(kind).values()]
    methods = [m for m in map(inspect.unwrap, filter(callable, members)) if hasattr(m, "__code__")]
    methods = [m for m in methods if m.__code__.co_qualname.startswith(f"{kind.__qualname__}.")]
    module = sys.modules.get(kind.__module__)
    closure, behind = {}, [b for b in kind.__bases__ if b is not object]
    for method in methods:
        closure |= _closure(method)
    closure.pop("__class__", None)  # for `super`
    files = [m.__code__.co_filename for m in methods] + [getattr(module, "__file__", None) or ""]
    for file, fresh in itertools.product(dict.fromkeys(files), (False, True)):
        text = _text(file, fresh)
        found = [tree for name, tree in _parsed(text)[1] if name == kind.__qualname__]
        mine = [m for m in methods if m.__code__.co_filename == file]
        if len(found) > 1 and mine:  # defined twice: the one around its methods
            line = mine[0].__code__.co_firstlineno
            found = [tree for tree in found if tree.lineno <= line <= tree.end_lineno]
        if found and _is_current(mine, text):
            return found[-1], closure, behind
        if found and fresh:
            raise _unreadable(kind, text)
    if methods:
        raise _unreadable(kind, "")
    return None, closure, behind


def _text(file, fresh=False):
    """The text of a file, or of a notebook's cell; "" where there is none."""
    if not file or not Path(file).is_file():
        return "".join(linecache.getlines(file))
    if fresh or file not in _texts:
        _texts[file] = patiently(lambda: _read(file))
    return _texts[file]


def _read(file):
    with tokenize.open(file) as opened:
        return opened.read()


@functools.cache
def _parsed(text):
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a cell with magic, a file that is being edited
        return {}, []
    return syntax.definitions(tree), list(syntax.classes(tree))


def _is_current(functions, text):
    """Whether functions are made of this text. A module that is loaded in some other way (pytest
    rewrites tests) and a notebook's cell are believed."""
    for function in functions:
        module = sys.modules.get(_module(function))
        file = function.__code__.co_filename
        if type(getattr(module, "__loader__", None)) is not SourceFileLoader or module.__file__ != file:
            continue
        if function.__code__ not in _compiled(text, file):
            return False
    return True


@functools.cache
def _compiled(text, file):
    """All code objects of a file."""
    found, waiting = set(), [compile(text, file, "exec", dont_inherit=True)]
    while waiting:
        found.add(own := waiting.pop())
        waiting += [constant for constant in own.co_consts if isinstance(constant, types.CodeType)]
    return found


def _unreadable(thing, text):
    if text:
        return ValueError(f"the code of {_name(thing)} was changed since it was imported: start Python again")
    return ValueError(
        f"the code of {thing!r} cannot be read, so a run cannot be named by it: define it in a file or "
        "in a cell of a notebook"
    )


# Settings


def describe(value: Any, behind: list | None = None, _around: tuple = ()) -> Any:
    """What tells a method and its settings from others, in this process and in the next, for JSON.

    Of a function its name, the digest of its code with all that it reaches, what it closes over and its
    defaults; of tensors and arrays a digest of their values; of an object its class and attributes.

    behind: a list to which code is added, to be followed by the caller; None follows it here.

    Raises:
        ValueError: for what has no stable description, and as `code`.
    """
    if id(value) in _around:
        return "..."  # in itself
    inner = functools.partial(describe, behind=behind, _around=(*_around, id(value)))
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(inner(key)): inner(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(inner(item), sort_keys=True) for item in value)
    if isinstance(value, np.generic):
        return inner(value.item())
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return inner(value.tolist()) if value.dtype == np.dtype(object) else _values(value)
    if isinstance(value, torch.nn.Module):
        return describe_network(value, behind, _around)
    if isinstance(value, Classifier):
        return describe_classifier(value)
    if isinstance(value, types.ModuleType):
        package = _library(value.__name__)
        return [value.__name__, _version(package) if package else ""]
    if inspect.ismethod(value):
        return [inner(value.__self__), inner(value.__func__)]
    # What `checked` puts around a method refuses settings and changes none.
    while _module(value) == "thesis_lib.checks" and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    if inspect.isroutine(value) or inspect.isclass(value):
        return _describe_code(value, behind, inner)
    if isinstance(value, PurePath):  # constants with the folder of a checkout are not to tell it
        name = str(value) if behind is None else value.name
        # A file that code names is read by it, as weights are: what is in it counts.
        return [name, sha256([value.read_bytes()])] if isinstance(value, Path) and value.is_file() else name
    kind = type(value)
    if not _library(kind.__module__) and kind.__module__ != "builtins" and hasattr(value, "__dict__"):
        return [_describe_code(kind, behind, inner), inner(vars(value))]
    if " at 0x" in repr(value):
        raise ValueError(
            f"{value!r} has no stable description: give methods as functions, and their settings "
            "as plain values by functools.partial"
        )
    return repr(value)


def _describe_code(thing, behind, inner):
    """Of a function or class its name, its code, and what it closes over with its defaults."""
    if behind is not None:
        behind.append(thing)
        return _name(thing)
    settings = []
    if hasattr(thing, "__code__") and not _library(_module(thing)):
        changed = {path[0] for path, _, is_changed in _uses(_function(thing)) if is_changed}
        closure = {name: value for name, value in _closure(thing).items() if name not in changed}
        settings = [inner(closure), inner(thing.__defaults__), inner(thing.__kwdefaults__)]
    elif hasattr(thing, "__wrapped__"):
        settings = [inner(thing.__wrapped__)]
    elif inspect.isbuiltin(thing) and _is_plain(thing.__self__):
        settings = [inner(thing.__self__)]  # "abc".find
    return [_name(thing), code(thing)[:16], settings]


def _values(value):
    """A tensor's or an array's type, shape and bytes, digested."""
    head = f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, torch.Tensor):
        value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        value = value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        value = value.view(torch.uint8).numpy()
    return sha256([head, memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))])


# What each module has; and where a network started from, which its weights say better.
_OF_ALL_MODULES = {*vars(torch.nn.Module()), "pretrained_cfg", "default_cfg"}


def describe_network(network: torch.nn.Module, behind: list | None = None, _around: tuple = ()) -> dict:
    """A network's parameters and buffers, and the types, code and settings of its modules."""
    tensors = itertools.chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    )
    weights = [f"{name} {_values(tensor)}\n" for name, tensor in tensors]
    modules, kinds = [], []
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        kinds.append(kind)
        settings = {}
        for key in sorted(vars(module).keys() - _OF_ALL_MODULES):
            try:
                settings[key] = describe(vars(module)[key], kinds, (*_around, id(network)))
            except ValueError:  # a lock, a stream: `behaviour` sees what it does
                settings[key] = type(vars(module)[key]).__name__
        modules.append(f"{name} {_name(kind)} {json.dumps(settings)}\n")
    if behind is None:
        modules.append(code(*kinds))
    else:
        behind += kinds
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
        "kind": [_name(type(clf)), code(type(clf))[:16]],
        "layer": clf.layer,
        "activation": clf.activation,
        "normalisation": [list(map(float, clf.mean)), list(map(float, clf.std))],
        "dtype": str(clf.dtype),
        "device": clf.device.type,
        **describe_network(clf.network),
    }


def describe_metrics(metrics: Iterable[str]) -> dict:
    """{metric: its code and settings, and the class that it explains}."""
    found = {name: METRICS[name] for name in sorted(set(metrics))}
    return {name: [describe(m.function), m.explains] for name, m in found.items()}


def loop() -> str:
    """Digest of the code that turns pictures, maps and metrics into rows."""
    return code(measure, Classifier, apart=(METRICS,))[:16]


def library(methods: dict[str, Callable]) -> list:
    """Digests of this library's code as a run uses it, for workers to compare; None for a method whose
    code this machine cannot read: it came by itself, from a notebook."""
    digests: list = [loop(), describe_metrics(METRICS)]
    for method in methods.values():
        try:
            digests.append(describe(method))
        except ValueError:
            digests.append(None)
    return digests


def versions() -> dict[str, str]:
    """{package: version} of those that are in every key."""
    return {name: version(name) for name in ALWAYS}


# Pictures, and what the network makes of them


def picture(sample: Any) -> str:
    """Digest of a picture and of what is known of it."""
    parts = [_values(sample.pixels), repr(sample.classes)]
    for name in ("masks", "pixel_masks", "things"):
        parts += [f" {name} {c} {_values(mask)}" for c, mask in getattr(sample, name, {}).items()]
    return sha256(parts)[:16]


def behaviour(clf: Classifier, samples: list) -> list[dict]:
    """Logits and channel means of the explained layer, for each picture: what `agrees` compares."""
    return [{"logits": logits, "features": means} for logits, means in _passes(clf, samples)]


def _passes(clf, samples) -> Iterator[tuple[list, list]]:
    for sample in samples:
        images = clf.normalise(sample.pixels[None])
        try:
            features, logits = clf.features(images)
            yield logits[0].float().tolist(), features[0].float().mean((-2, -1)).tolist()
        except (ValueError, IndexError):  # a layer that no CAM can explain; attention methods can
            try:
                yield clf.logits(images)[0].float().tolist(), []
            except (ValueError, IndexError):  # a picture that the network refuses
                yield [], []


def agrees(a: list[dict], b: list[dict], tolerance: float = 1e-3) -> bool:
    """Whether two `behaviour`s are the same but for rounding: within that share of the greatest value."""
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        for key in ("logits", "features"):
            x, y = np.array(one[key], float), np.array(other[key], float)
            if x.shape != y.shape:
                return False
            if x.size and not np.abs(x - y).max() <= tolerance * max(1e-3, np.abs(x).max()):
                return False
    return True
