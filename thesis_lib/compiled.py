"""Scoring passes by a compiled copy of the network, where the passes to come pay for compiling it.

Inner loops that need neither a graph nor a hook say how many passes they are going to make, and of which
size (`Classifier.compiled`). The copy has the network's own tensors, is kept for as long as the network is
there, and is checked against it at the first batch of each loop. Nothing of it can be seen on the network
or the classifier, nor is it pickled, copied or hashed with them.
"""

import copy
import math
import os
import shutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

# What compiling takes, in seconds, and the share of a pass that it saves: ResNet-50 and EfficientNet-Lite0
# took 11 to 29 s on two cores and then 0.73 of the time, on an H200 3 to 9 s and 0.6.
TAKES = {"cpu": 25.0, "cuda": 8.0}
SAVES = {"cpu": 0.25, "cuda": 0.35}
FEW = 4  # batches: for fewer, to check the copy takes what it saves


@dataclass
class Known:
    """Of a network and one shape of batch: what eager batches took, and the copy."""

    seconds: list[float] = field(default_factory=list)
    copy: Callable | None = None
    state: Any = None  # of the network, when the copy was made
    refused: bool = False


_known: WeakKeyDictionary[nn.Module, dict[tuple, Known]] = WeakKeyDictionary()
_plan: ContextVar["Plan | None"] = ContextVar("plan", default=None)


@dataclass
class Plan:
    """How the full batches of a loop are run: `run`, None until that is decided."""

    network: nn.Module
    shape: tuple[int, int, int]  # images, H, W
    left: int  # batches to come
    always: bool  # whatever it costs
    run: Callable | None = None

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a full batch."""
        self.left -= 1
        return self.run(images) if self.run else self._decide(images)

    def _decide(self, images):
        network = self.network
        known = _known.setdefault(network, {}).setdefault(_form(images), Known())
        if known.refused or not _can_be_compiled(network, images.device):
            self.run = network
        elif (
            known.copy is not None
            and known.state == _state(network)
            and agrees(logits := known.copy(images), network, images)
        ):
            self.run = known.copy
            return logits
        elif self.always or _pays(known.seconds, self.left, images.device):
            # Also where there was a copy, of what the network was before.
            known.copy = None
            self.run = _make(known, network, images, trial=not self.always) or network
        elif len(known.seconds) < 2:  # the first is for caches
            found = []
            known.seconds.append(_seconds(lambda: found.append(network(images)), images.device))
            return found[0]
        else:
            known.copy = None
            self.run = network
        return self.run(images)


@contextmanager
def expecting(
    network: nn.Module, batches: int, shape: tuple[int, int, int], compile: bool | str
) -> Iterator[Plan | None]:
    """Announce full batches of that shape (images, H, W), which `forward` then runs by the copy, if it pays.

    compile: False never, True where it pays, "always" for any `FEW` batches. Within another block that one's
    decision stands. Yields how they are run, None where there is nothing to decide.

    >>> from thesis_lib import compiled
    >>> with compiled.expecting(clf.network, 3, (16, 224, 224), True) as plan:
    ...     print(plan)
    None
    """
    if not compile or os.environ.get("THESIS_COMPILE") == "0" or batches < FEW or _plan.get():
        yield None
        return
    plan = Plan(network, shape, batches, compile == "always")
    token = _plan.set(plan)
    try:
        yield plan
    finally:
        _plan.reset(token)


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """The network's logits of images (N, 3, H, W), by the copy if they are a batch that was announced.

    >>> from thesis_lib import compiled
    >>> with torch.no_grad():
    ...     compiled.forward(clf.network, images).shape
    torch.Size([1, 51])
    """
    plan = _plan.get()
    shape = len(images), *images.shape[-2:]
    if plan is None or plan.network is not network or plan.shape != shape:
        return network(images)
    return plan.forward(images)


def agrees(logits: Tensor, network: nn.Module, images: Tensor) -> bool:
    """Whether logits are those that a network gives of images, but for rounding.

    The first image alone is asked first, which is cheap; all of them where it disagrees, as the logits of
    some networks depend on what else is in the batch.

    >>> from thesis_lib import compiled
    >>> with torch.no_grad():
    ...     compiled.agrees(clf.network(images) + 0.1, clf.network, images)
    False
    """
    return _same(logits[:1], network(images[:1])) or _same(logits, network(images))


def _same(logits, expected):
    """Half of the type's digits are the same, in the spread of the logits.

    Rounding takes two or three digits of a deep network's seven, whatever the order of its sums; what a
    weight decides is worth more. On a GPU float32 may be multiplied as TF32, which has float16's digits.
    """
    kind = logits.dtype
    rounded = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if kind == torch.float32 and logits.is_cuda and rounded:
        kind = torch.float16
    a, b = logits.double().nan_to_num(), expected.double().nan_to_num()
    spread = b.amax() - b.amin() if b.shape[-1] > 1 else b.abs().amax()
    return a.shape == b.shape and bool((a - b).abs().amax() <= math.sqrt(torch.finfo(kind).eps) * spread)


def _pays(seconds, batches, device):
    """Whether compiling takes less than it saves: eager seconds of a batch times batches to come."""
    return len(seconds) > 1 and min(seconds) * batches * SAVES[device.type] > TAKES[device.type]


def _seconds(work, device):
    """What it takes, without waiting for what was asked of a GPU before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _faster(copied, network, images):
    """Whether the copy is, in two rounds."""
    ours, plain = zip(
        *([_seconds(lambda f=f: f(images), images.device) for f in (copied, network)] for _ in range(2)),
        strict=True,
    )
    return min(ours) < min(plain)


def _can_be_compiled(network, device):
    """Hooks may do anything, and so may a `forward` of a module's own; wrappers for several GPUs are not
    one network. Without a compiler for C++ there is nothing to be said: everything works as before."""
    own = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return (
        device.type in TAKES
        and shutil.which(os.environ.get("CXX", own)) is not None
        and not _has_any_global_hook()
        and not any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) or hasattr(m, "device_ids")
            for m in network.modules()
        )
    )


def _form(images):
    return tuple(images.shape), images.stride(), images.dtype, images.device


def _state(network):
    """What changes when a module or a tensor of a network is another one, or is changed in place.

    Changes behind PyTorch's back (`.data`, settings of modules) are left to `agrees`.
    """
    tensors = chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    )
    modules = [(name, id(m), type(m)) for name, m in network.named_modules(remove_duplicate=False)]
    return modules, [
        (name, t.data_ptr(), None if t.is_inference() else t._version, t.dtype, t.shape, t.stride())
        for name, t in tensors
    ]


def _make(known, network, images, trial):
    """The copy, or None where there can be none, or where it is of no use. trial: it must be faster."""
    first = not any(k.refused for k in _known[network].values())
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):  # a network that draws numbers draws the same afterwards
        network(images)  # first: what it says of the images is no fault of the copy
        state = _state(network)
        try:
            copied = compile_copy(network)
            fine = agrees(copied(images), network, images)
            said = "gives other logits than the network"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways
            cause = getattr(error, "inner_exception", error)  # what PyTorch wraps
            words = (str(cause).strip() or "it says no more").splitlines()[0]
            fine, said = False, f"cannot be made ({type(cause).__name__}: {words})"
        if fine and trial and not _faster(copied, network, images):
            fine = first = False
    if fine:
        known.copy, known.state = copied, state
        return copied
    known.refused = True
    if first:
        warnings.warn(
            f"a compiled copy of {type(network).__name__} {said}: it runs as it is. compile=False does not try.",
            stacklevel=2,
        )
    return None


def compile_copy(network: nn.Module) -> Callable:
    """A function that does what a network does in eval mode, without gradients, compiled when it is first called.

    It is made for the shape of that first batch, and compiled once: whatever later needs another program
    (another number of threads, say) is run without one. On the CPU float32 weights are frozen into it: a change
    of the network does not reach it. (Of other types oneDNN, which packs them, does not know all.)

    >>> from thesis_lib import compiled
    >>> compiled.compile_copy(clf.network)  # doctest: +ELLIPSIS
    <function ...>
    """
    # Parameters without gradients, but with the memory of the network's own.
    with torch.inference_mode(False), torch.no_grad():
        own: dict[int, Any] = {id(p): nn.Parameter(p.detach(), False) for p in network.parameters()}
        own |= {id(b): b.detach() for b in network.buffers()}
        copied = copy.deepcopy(network, own)

    def forward(images):
        return copied(images)

    # Code of its own: PyTorch counts how often a piece of code is compiled, and at some time gives up.
    forward = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__
    )
    program = torch.compile(forward, dynamic=False, fullgraph=True)
    stance = "default"

    def run(images):
        nonlocal stance
        # The same kind of tensor each time, or it would be compiled anew.
        images = images if images.is_inference() or not torch.is_inference_mode_enabled() else images.clone()
        if stance == "default":
            from torch._inductor import config

            frozen = images.device.type == "cpu" and images.dtype == torch.float32
            with torch.compiler.set_stance(stance), config.patch(freezing=frozen):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # hints for who compiles by hand
                    logits = program(images)
            stance = "eager_on_recompile"
            return logits
        with torch.compiler.set_stance(stance):
            return program(images)

    return run
