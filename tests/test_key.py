"""What names a run: each thing that changes numbers gives another key, each thing that does not leaves it.

Code is changed in files as an author would, and imported again.
"""

import ast
import functools
import importlib
import json
import linecache
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import thesis_lib as tl
from thesis_lib.classifier import Classifier
from thesis_lib.metrics.base import METRICS
from thesis_lib.runs import files, key, syntax

# Code

HELPER = '''
"""What the methods call."""

GAIN = 2


def soften(maps):
    return maps / GAIN


def late(maps):
    return maps + 1


def unused(maps):
    return maps - 1
'''

MINE = '''
"""Some methods."""

import functools
import math

import numpy as np
import key_helper
import torch.nn.functional as F
from key_helper import soften as softer

POWER = 3
SIZES = [1, 2]
SHAPES = {"small": (1, 2)}
seen = []
cache = {}
turns = 0


class Base:
    shift = 0.5

    def move(self, x):
        return x + self.shift


class Scale(Base):
    """A callable."""

    factor: float = 2

    def __call__(self, x):
        return self.move(x) * self.factor


SCALE = Scale()


def deep(x):
    return x + 10


def inner(x):
    return deep(x) * SIZES[0] + SHAPES["small"][1]


@functools.cache
def cached(n):
    return n + 5


def decorated(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **settings):
            return function(*args, **settings) * factor

        return wrapper

    return decorate


def make(offset):
    def made(x):
        return x - offset

    return made


made = make(7)
double = lambda x: x * 2; triple = lambda x: x * 3  # two in a line


@decorated(factor=4)
def method(clf, images, classes=None, *, power=POWER):
    """Words."""
    from key_helper import late

    global turns
    turns += 1
    seen.append(len(images))
    cache["last"] = 1
    maps = inner(images.mean(1)) ** power
    maps = SCALE(softer(maps)) + late(made(maps)) + cached(2)
    return F.relu(triple(maps)) * math.pi + np.pi + len(seen) + cache.get("last", 0) + key_helper.GAIN


def looks_up(clf, images, classes=None, name="grad_cam"):
    import thesis_lib as tl

    return tl.METHODS[name](clf, images, classes)


def looks_up_one(clf, images, classes=None):
    import thesis_lib as tl

    return tl.METHODS["grad_cam"](clf, images, classes)


def other(clf, images, classes=None):
    return images.mean(1)
'''

NEW = [
    ("return deep(x)", "return 2 * deep(x)"),
    ("return x + 10", "return x + 11"),
    ("POWER = 3", "POWER = 4"),
    ("SIZES = [1, 2]", "SIZES = [2, 2]"),
    ('"small": (1, 2)', '"small": (1, 3)'),
    ("shift = 0.5", "shift = 0.6"),
    ("factor: float = 2", "factor: float = 3"),
    ("self.move(x) *", "self.move(x) /"),
    ("return x + self.shift", "return x - self.shift"),
    ("return n + 5", "return n + 6"),
    ("**settings) * factor", "**settings) / factor"),
    ("@decorated(factor=4)", "@decorated(factor=5)"),
    ("made = make(7)", "made = make(8)"),
    ("return x - offset", "return x + offset"),
    ("lambda x: x * 3", "lambda x: x * 4"),
    ("* math.pi", "* math.e"),
    ("F.relu", "F.gelu"),
    ("return maps / GAIN", "return GAIN / maps"),
    ("GAIN = 2", "GAIN = 3"),
    ("return maps + 1", "return maps + 2"),
    ("from key_helper import late\n\n", "from key_helper import unused as late\n\n"),
]
SAME = [
    ('"""Words."""', '"""Other words,\n\n    more of them."""'),
    ('    """Words."""\n', ""),
    ('"""A callable."""', '"""Another."""\n    "and a note"'),
    ("return deep(x)", "# a comment\n\n    return (deep(x))"),
    ("def deep(x):", "def deep(x: float) -> float:"),
    ("    def move(self, x):", "    def move(self, x: 'np.ndarray'):"),
    ("    maps = inner(", "    maps: object = inner("),
    ("factor: float = 2", "factor: int = 2"),
    ("return images.mean(1)", "return images.amax(1)"),
    ("def other(", "def another(clf, images, classes=None):\n    return images\n\n\ndef other("),
    ("double = lambda x: x * 2", "double = lambda x: x * 20"),
    ("return maps - 1", "return maps - 2"),
    ("import functools\nimport math\n", "import math\nimport functools\n"),
    ("seen = []", "seen = [1, 2]"),
    ("cache = {}", "cache = {'first': 1}"),
    ("turns = 0", "turns = 5"),
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(old, new): the module of methods with this change in it or in its helper, imported anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(old="", new=""):
        assert not old or MINE.count(old) + HELPER.count(old) == 1, old
        for name, text in (("key_helper", HELPER), ("key_mine", MINE)):
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("key_mine")

    yield write
    for name in ("key_helper", "key_mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old, new", NEW, ids=[new for _, new in NEW])
def test_code_that_a_method_calls_is_in_its_key(written, old, new):
    before = key.describe(written().method)
    assert key.describe(written().method) == before
    assert key.describe(written(old, new).method) != before


@pytest.mark.parametrize("old, new", SAME, ids=[new for _, new in SAME])
def test_what_changes_no_number_is_not(written, old, new):
    assert key.describe(written().method) == key.describe(written(old, new).method)


def test_a_file_that_a_method_names_counts_by_what_is_in_it(tmp_path):
    """Weights that are trained anew, under the same name."""
    file = tmp_path / "weights"

    def method(clf, images, classes=None):
        return file.read_bytes()

    absent = key.describe(method)
    file.write_bytes(b"first")
    first, given = key.describe(method), key.describe(functools.partial(method, file))
    file.write_bytes(b"second")
    assert len({str(told) for told in (absent, first, key.describe(method))}) == 3
    assert key.describe(functools.partial(method, file)) != given
    file.write_bytes(b"first")
    assert key.describe(method) == first


def test_what_a_method_notes_is_not(written):
    mine = written()
    before = key.describe(mine.method)
    mine.method(None, torch.rand(2, 3, 4, 4))
    assert mine.seen and mine.turns and mine.cache
    assert key.describe(mine.method) == before
    mine.SIZES.append(3)  # nothing that it reaches writes to this one
    assert key.describe(mine.method) != before


def test_methods_that_are_looked_up_by_name(written, monkeypatch):
    """By a name in the code: that one's code; by one that only the call knows: any of them."""
    mine = written()
    for function, follows in ((mine.looks_up, True), (mine.looks_up_one, False)):
        before = key.describe(function)
        monkeypatch.setitem(tl.METHODS, "later", mine.other)
        assert (key.describe(function) != before) == follows
        monkeypatch.delitem(tl.METHODS, "later")
        monkeypatch.setitem(tl.METHODS, "grad_cam", mine.other)
        assert key.describe(function) != before
        monkeypatch.undo()


def test_a_file_that_was_changed_since_it_was_imported(written, tmp_path):
    """What runs is what was imported: the new text does not name it."""
    mine = written()
    file = tmp_path / "key_mine.py"
    file.write_text(file.read_text().replace("return deep(x)", "return 3 * deep(x)"))
    with pytest.raises(ValueError, match="inner was changed since it was imported: start Python again"):
        key.describe(mine.method)
    importlib.reload(mine)
    before = key.describe(mine.method)
    # Once it is read, an editor changes nothing in a process that goes on.
    file.write_text("a new file that is no code")
    assert key.describe(mine.method) == before


def test_code_that_cannot_be_read(written):
    space = {}
    exec("def method(clf, images, classes=None):\n    return images.mean(1)\n", space)
    with pytest.raises(ValueError, match="cannot be read, so a run cannot be named by it"):
        key.describe(space["method"])


def test_cells_of_a_notebook(monkeypatch):
    """Functions, lambdas, classes with and without methods, constants: of the module __main__."""
    main = sys.modules["__main__"]

    def cell(number, text):
        name = f"<ipython-input-{number}>"
        linecache.cache[name] = len(text), None, text.splitlines(True), name
        exec(compile(text, name, "exec"), space)

    def method(power=2, body="x ** POWER", k=1):
        cell(
            1,
            f"POWER = {power}\nclass Plain:\n    k = {k}\nclass Own(Plain):\n    def f(self, x): return {body}",
        )
        cell(2, "def method(clf, images, classes=None):\n    return Own().f(images.mean(1)) * Plain.k")
        cell(3, "short = lambda clf, images, classes: method(clf, images, classes)")
        return [key.describe(space[name]) for name in ("method", "short")]

    space = vars(main)
    for name in ("POWER", "Plain", "Own", "method", "short"):
        monkeypatch.delitem(space, name, raising=False)
    first = method()
    assert method() == first
    for change in ({"power": 3}, {"body": "x * POWER"}, {"k": 2}):
        again = method(**change)
        assert again[0] != first[0] and again[1] != first[1]
    for name in ("POWER", "Plain", "Own", "method", "short"):
        space.pop(name)


SNIPPET = r'''
@METHODS.entry("title", colour="#123456")
@explainer(share=2)
async def f(a: int, /, b: "str" = 1.5, *rest: int, c=lambda x, y=-2: x ** y, **more) -> dict[str, int]:
    """Words."""
    text = f"{{{a!r:>{b:}}}}" f"and {a=} {b:{c}.{a}f}" "tail" f"{more['k']:}" f'{"x" "y"}'
    count: int = 3
    nothing: str
    if (n := len(rest)) > 1_000 and not (more.get("k") or 1e400):
        z = rest[*a, 1:2, ...]
    match a:
        case {"k": [1, *others], **left} if others:
            return b"\xff" @ left
        case Point(x=0 | -1 as y) | None:
            pass
        case -1.5 + 2j:
            ...
    try:
        async with g(a) as h, i:
            [await j async for j in h if j]
    except* (OSError, ValueError) as errors:
        raise errors.exceptions[0] from None
    else:
        del z
    finally:
        print(*rest, sep="\xe9Ᲊ🫨", **more)
    return {**more, "s": {*rest}}, (yield), [q for (q, _), w in rest for r in w], not a < b <= c is None
'''


def test_the_digest_of_a_snippet_in_every_version_of_python():
    """The same number on Python 3.11, 3.12 and 3.13, with all that they write differently."""
    tree = ast.parse(SNIPPET)
    assert files.sha256([syntax.canonical(tree)])[:16] == "6b04a2421123f2f3"
    bare = (
        SNIPPET.replace('    """Words."""\n', "")
        .replace(": int = 3", " = 3")
        .replace("-> dict[str, int]", "")
    )
    bare = bare.replace('title", colour="#123456', 'other", colour="#654321').replace(
        "    nothing: str\n", ""
    )
    assert syntax.canonical(ast.parse(bare)) == syntax.canonical(tree)


def test_syntax_needs_nothing_but_ast():
    tree = ast.parse(Path(syntax.__file__).read_text("utf-8"))
    modules = [n.names[0].name if isinstance(n, ast.Import) else n.module for n in ast.walk(tree)
               if isinstance(n, (ast.Import, ast.ImportFrom))]  # fmt: skip
    assert modules == ["ast", "collections.abc"]


def test_names_are_looked_up_as_python_does():
    tree = ast.parse("""
def f(x, y=DEFAULT):
    import a.b
    from . import helper as h
    blur = 1
    def g(blur: Annotated) -> Annotated:
        return blur + K + x
    class C(Base):
        k = 3
        def m(self):
            return k + C.k
    t: Annotated = [p for p in q if (w := p)]
    del w
    try:
        pass
    except Error as e:
        e
    match x:
        case [*more, {"k": v, **others}]:
            more, v, others
    global counter
    counter += 1
    STATE["k"] = 1
    LIST.append(2)
    obj.k = 3
    return a.b.c(blur), h.x, REG["one"], REG[x], (lambda z: z + free)(1)
""")
    found = list(syntax.uses(tree))
    read = {".".join(path) + (f"[{at}]" if at else "") for path, at, changed in found if not changed}
    written = {".".join(path) for path, at, changed in found if changed}
    assert read == {
        "DEFAULT", "K", "Base", "k", "q", "Error", "a.b.c", "h.x", "REG[one]", "REG", "free",
    }  # fmt: skip
    assert written == {"counter", "STATE", "LIST", "obj"}


def test_no_method_or_metric_changes_its_own_key():
    """None keeps in a module what would name the next run otherwise."""

    def described():
        methods = {name: key.describe(method) for name, method in tl.METHODS.items()}
        return methods, key.describe_metrics(METRICS), key.loop()

    before = described()
    assert json.loads(json.dumps(before)) == json.loads(json.dumps(described()))
    clf, images = convolutional(), torch.rand(2, 3, 32, 32)
    for name in tl.METHODS.convolutional:
        settings = {"sizes": [32, 40]} if name in ("cameras", "msg_cam") else {}
        tl.METHODS[name](clf, images, **settings)
    tl.enhance("grad_cam", window=16, stride=8, cutoff=6)(clf, images)
    assert described() == before


# Settings


def method(clf, images, classes=None, power=1, means=None):
    return images.abs().mean(1) ** power


class Callable:
    def __init__(self, power):
        self.power = power

    def __call__(self, clf, images, classes=None):
        return method(clf, images, classes, self.power)

    def bound(self, clf, images, classes=None):
        return self(clf, images, classes)


def closure(power):
    return lambda clf, images, classes: method(clf, images, classes, power)


def recursive(depth):
    def again(clf, images, classes=None, left=depth):
        return again(clf, images, classes, left - 1) if left else images.mean(1)

    return again


made = [lambda clf, images, classes, p=p: method(clf, images, classes, p) for p in (1, 2)]
nested = functools.partial(functools.partial(method, power=2), means=[1])
DIFFERENT = {
    "plain": lambda: method,
    "closure": lambda: closure(1),
    "closure, other value": lambda: closure(2),
    "default": lambda: made[0],
    "default, other value": lambda: made[1],
    "lambda": lambda: lambda clf, images, classes: images[:, 0],
    "lambda, other code": lambda: lambda clf, images, classes: images[:, 1],
    "recursive": lambda: recursive(1),
    "recursive, deeper": lambda: recursive(2),
    "object": lambda: Callable(1),
    "object, other value": lambda: Callable(2),
    "bound": lambda: Callable(1).bound,
    "bound, other value": lambda: Callable(2).bound,
    "partial": lambda: functools.partial(method, power=2),
    "partial of partial": lambda: nested,
    "tensor": lambda: functools.partial(method, means=torch.arange(3.0)),
    "tensor, other value": lambda: functools.partial(method, means=torch.arange(3.0) + 1e-7),
    "tensor, other shape": lambda: functools.partial(method, means=torch.arange(3.0)[None]),
    "tensor, other type": lambda: functools.partial(method, means=torch.arange(3.0).double()),
    "array": lambda: functools.partial(method, means=np.arange(3)),
    "array, other value": lambda: functools.partial(method, means=np.arange(1, 4)),
    "large array": lambda: functools.partial(method, means=np.zeros(5000)),
    "large array, one other value": lambda: functools.partial(method, means=np.eye(1, 5000, 2500)[0]),
    "array of objects": lambda: functools.partial(method, means=np.array([1, "a"], object)),
    "list of tensors": lambda: functools.partial(method, means=[torch.zeros(2)]),
    "list of tensors, other value": lambda: functools.partial(method, means=[torch.ones(2)]),
    "set": lambda: functools.partial(method, means={"a", "b"}),
    "set, other": lambda: functools.partial(method, means={"a", "c"}),
    "number": lambda: functools.partial(method, means=1),
    "text": lambda: functools.partial(method, means="1"),
    "truth": lambda: functools.partial(method, means=True),
    "by number": lambda: functools.partial(method, means={1: 2}),
    "by text": lambda: functools.partial(method, means={"1": 2}),
    "function": lambda: functools.partial(method, means=torch.relu),
    "function, other": lambda: functools.partial(method, means=torch.tanh),
    "own function": lambda: functools.partial(method, means=closure),
    "class": lambda: functools.partial(method, means=nn.ReLU),
    "class, other": lambda: functools.partial(method, means=nn.GELU),
    "module": lambda: functools.partial(method, means=nn.Linear(1, 1, bias=False).requires_grad_(False)),
    "classifier": lambda: functools.partial(method, means=convolutional()),
    "entry": lambda: tl.METHODS["grad_cam"],
    "entry, other": lambda: tl.METHODS["msg_cam"],
    "enhanced": lambda: tl.enhance("grad_cam", window=16, stride=8),
    "enhanced, other window": lambda: tl.enhance("grad_cam", window=20, stride=8),
    "enhanced, other method": lambda: tl.enhance("xgrad_cam", window=16, stride=8),
    "sess": lambda: tl.sess("grad_cam", [32, 40]),
    "sess, other sizes": lambda: tl.sess("grad_cam", [32, 48]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_descriptions_differ_where_settings_do():
    found = {}
    for name, maker in DIFFERENT.items():
        torch.manual_seed(0)
        text = json.dumps(key.describe(maker()), sort_keys=True)
        torch.manual_seed(0)
        assert json.dumps(key.describe(maker()), sort_keys=True) == text, name
        assert " at 0x" not in text
        assert text not in found.values(), f"{name} is as {[n for n, t in found.items() if t == text]}"
        found[name] = text


def test_descriptions_are_the_same_where_settings_are():
    def one(**settings):
        return json.dumps(key.describe(functools.partial(method, **settings)), sort_keys=True)

    assert one(power=np.float64(0.5)) == one(power=0.5)
    assert one(power=np.int32(2)) == one(power=2)
    assert one(power=1, means=2) == one(means=2, power=1)
    assert one(means={"a": 1, "b": 2}) == one(means={"b": 2, "a": 1})
    transposed = torch.arange(6.0).view(2, 3).T
    assert one(means=transposed) == one(means=transposed.contiguous())
    assert one(means=torch.ones(2, requires_grad=True)) == one(means=torch.ones(2))
    assert key.describe(functools.partial(functools.partial(method, power=2), means=[1])) == key.describe(
        functools.partial(method, power=2, means=[1])
    )


@pytest.mark.parametrize("value", [object(), iter([]), [object()], {"a": object()}, torch.Generator()])
def test_what_has_no_stable_description_is_refused(value):
    with pytest.raises(ValueError, match="no stable description"):
        key.describe(functools.partial(method, power=value))


def test_settings_of_another_process():
    """Another seed of hashes, other imports first: the same descriptions."""
    script = (
        "import scipy.stats, json, torch; import test_key; from thesis_lib.runs import key;"
        "names = ['closure', 'set', 'array', 'bound', 'entry', 'enhanced', 'function', 'partial of partial'];"
        "print(json.dumps([key.describe(test_key.DIFFERENT[n]()) for n in names], sort_keys=True))"
    )
    paths = [str(Path(__file__).parent), str(files.LIBRARY.parent)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = ["closure", "set", "array", "bound", "entry", "enhanced", "function", "partial of partial"]
    ours = json.loads(json.dumps([key.describe(DIFFERENT[n]()) for n in names], sort_keys=True))
    theirs = json.loads(run.stdout)
    # pytest rewrites this file's asserts, not its methods.
    assert theirs == ours


def versions_of(monkeypatch, package):
    """As if that package had been updated."""
    real = key.version
    monkeypatch.setattr(key, "version", lambda name: "99" if name == package else real(name))
    key._version.cache_clear()


@pytest.fixture
def fresh_versions():
    yield
    key._version.cache_clear()


def test_versions(monkeypatch, fresh_versions):
    """Of a peer's library where a peer's method is measured; of scipy in every metric that uses it."""
    pytest.importorskip("captum")
    pytest.importorskip("torchcam")
    lime, cam, grad_cam = (tl.peers.METHODS["lime"], tl.peers.METHODS["ss_cam"], tl.METHODS["grad_cam"])

    def described():
        return [key.describe(m) for m in (lime, cam, grad_cam)], key.describe_metrics(METRICS), key.versions()

    before = described()
    versions_of(monkeypatch, "captum")
    after = described()
    assert [a == b for a, b in zip(after[0], before[0], strict=True)] == [False, True, True]
    assert after[1:] == before[1:]
    monkeypatch.undo()
    versions_of(monkeypatch, "scipy")
    after = described()
    changed = {name for name in METRICS if after[1][name] != before[1][name]}
    assert {"fineness", "sanity"} <= changed and "insertion_deletion" not in changed
    monkeypatch.undo()
    versions_of(monkeypatch, "torch")
    assert key.versions() != before[2]


def test_a_metric_is_named_by_its_code_and_not_by_its_words(written, monkeypatch):
    from dataclasses import replace

    entry = METRICS["fineness"]
    before, loop = key.describe_metrics(["fineness"]), key.loop()
    words = {"title": "other words", "columns": {}, "source": "nobody"}
    monkeypatch.setitem(METRICS, "fineness", replace(entry, **words))
    assert key.describe_metrics(["fineness"]) == before
    monkeypatch.setitem(METRICS, "fineness", replace(entry, explains="annotated"))
    assert key.describe_metrics(["fineness"]) != before
    monkeypatch.setitem(METRICS, "fineness", replace(entry, function=written().other))
    assert key.describe_metrics(["fineness"]) != before
    assert key.loop() == loop  # another metric's code is nothing to the others


# Networks


def convolutional(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    return Classifier(nn.Sequential(*layers), layer="1", name="small")


class Scale(nn.Module):
    def __init__(self, k=1.0, private=1.0, sizes=(1,), function=torch.relu, constant=1.0, hidden=None):
        super().__init__()
        self.k, self._private, self.sizes, self.function, self.hidden = k, private, sizes, function, hidden
        self.register_buffer("constant", torch.tensor(constant), persistent=False)

    def forward(self, x):
        return x * self.k


class Shift(Scale):
    def forward(self, x):
        return x + self.k


def network(first, seed=0):
    return nn.Sequential(first, convolutional(seed).network)


def normalise(mean):
    from torchvision.transforms import v2

    return v2.Normalize([mean, 0.5, 0.5], [1.0, 1.0, 1.0])


def patched(factor):
    module = Scale()
    module.forward = lambda x: x * factor
    return module


shared, alone = Scale(2.0), Scale(1.0)
NETWORKS = {
    "first": lambda: network(Scale()),
    "other weights": lambda: network(Scale(), seed=1),
    "a number": lambda: network(Scale(0.3)),
    "a private number": lambda: network(Scale(private=2.0)),
    "a list": lambda: network(Scale(sizes=[2])),
    "a function": lambda: network(Scale(function=torch.tanh)),
    "own function": lambda: network(Scale(function=closure(1))),
    "own function, other value": lambda: network(Scale(function=closure(2))),
    "a buffer that is not saved": lambda: network(Scale(constant=2.0)),
    "modules in a list": lambda: network(Scale(hidden=[Scale(3.0)])),
    "modules in a list, other": lambda: network(Scale(hidden=[Scale(4.0)])),
    "another class": lambda: network(Shift()),
    "means": lambda: network(normalise(0.5)),
    "other means": lambda: network(normalise(0.4)),
    "pooling": lambda: network(nn.AvgPool2d(3, 1, 1)),
    "pooling of another kind": lambda: network(nn.MaxPool2d(3, 1, 1)),
    "pooling of another size": lambda: network(nn.AvgPool2d(5, 1, 2)),
    "once": lambda: nn.Sequential(convolutional().network, shared, alone),
    "twice": lambda: nn.Sequential(convolutional().network, shared, shared, alone),
    "three times": lambda: nn.Sequential(convolutional().network, shared, shared, shared, alone),
    "a patched pass": lambda: network(patched(2)),
    "a patched pass, other value": lambda: network(patched(3)),
    "another type": lambda: network(Scale()).double(),
}  # fmt: skip


def test_networks_differ_where_they_compute_other_things():
    found = {}
    for name, maker in NETWORKS.items():
        text = json.dumps(key.describe_network(maker()))
        assert json.dumps(key.describe_network(maker())) == text, name
        assert text not in found.values(), f"{name} is as {[n for n, t in found.items() if t == text]}"
        found[name] = text


def test_networks_are_the_same_where_they_compute_the_same():
    before = key.describe_network(network(Scale()))
    for other in (
        network(Scale()).train(),
        network(Scale()).requires_grad_(False),
        network(Scale()).to(memory_format=torch.channels_last),
        network(Scale(0.5 + 0.5)),
    ):
        assert key.describe_network(other) == before
    used = network(Scale())
    used(torch.rand(1, 3, 8, 8)).sum().backward()
    assert key.describe_network(used) == before
    clf = Classifier(network(Scale()))
    assert key.describe_classifier(clf.with_batch(3)) == key.describe_classifier(clf)


def test_the_library_of_a_network_is_named_with_its_version(monkeypatch, fresh_versions):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t").eval()
    before, own = key.describe_network(net), key.describe_network(network(Scale()))
    versions_of(monkeypatch, "timm")
    assert key.describe_network(net) != before and key.describe_network(network(Scale())) == own


def test_a_classifier_that_reads_the_network_in_another_way():
    class Halved(Classifier):
        def probabilities(self, images):
            return super().probabilities(images) / 2

    net = convolutional().network
    variants = [
        Classifier(net, layer="1"),
        Classifier(net, layer="0"),
        Classifier(net, layer="1", activation="sigmoid"),
        Classifier(net, layer="1", mean=(0.5, 0.5, 0.5)),
        Classifier(net, layer="1", std=(0.5, 0.5, 0.5)),
        Halved(net, layer="1"),
    ]
    texts = [json.dumps(key.describe_classifier(clf)) for clf in variants]
    assert len(set(texts)) == len(texts)
    tensors = Classifier(net, layer="1", mean=torch.tensor([0.5, 0.5, 0.5]))
    assert json.dumps(key.describe_classifier(tensors)) == texts[3]


# Pictures and behaviour


def test_pictures_differ_by_pixels_classes_and_masks():
    from thesis_lib.data.datasets import Sample

    pixels, mask = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    one = mask.clone()
    one[0, 0] = True
    samples = [
        Sample("a", pixels),
        Sample("a", pixels + 1e-6),
        Sample("a", pixels.transpose(1, 2)),
        Sample("a", pixels.reshape(3, 4, 16)),
        Sample("a", pixels, (1,)),
        Sample("a", pixels, (1,), {1: mask}),
        Sample("a", pixels, (1,), {1: one}),
        Sample("a", pixels, (1,), {2: one}),
        Sample("a", pixels, (1,), {}, {1: one}),
        Sample("a", pixels, (1,), {1: one}, {1: one}),
    ]
    assert len({key.picture(sample) for sample in samples}) == len(samples)
    assert key.picture(Sample("b", pixels.clone())) == key.picture(samples[0])


def test_behaviour_is_compared_within_a_thousandth():
    def is_as(a, b):
        return key.agrees([{"logits": a, "features": [1.0]}], [{"logits": b, "features": [1.0]}])

    assert is_as([10.0, -3.0], [10.009, -3.009]) and not is_as([10.0, -3.0], [10.0, -3.011])
    assert is_as([0.01, 0.0], [0.010009, 0.0]) and not is_as([0.01, 0.0], [0.01002, 0.0])
    assert is_as([0.0, 0.0], [0.0, 1e-7])
    assert not is_as([1.0], [1.0, 1.0]) and not is_as([1.0], [math.nan]) and not is_as([math.nan], [1.0])
    assert not key.agrees([], [{"logits": [], "features": []}])
