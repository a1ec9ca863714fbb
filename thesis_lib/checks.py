"""What a caller may write: each check returns the value, plain, or says in one sentence what it has to be.

Another kind of thing is a TypeError, a value out of range a ValueError. Whole numbers of NumPy and tensors of
one number are as good as Python's own.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_waiting: ContextVar[list | None] = ContextVar("waiting", default=None)


def whole(value: Any, name: str, low: int | None = None, high: int | None = None) -> int:
    """A whole number from low to high, both included; None: no limit.

    >>> from thesis_lib.checks import whole
    >>> whole(torch.tensor(3), "groups", 1)
    3
    >>> whole(0, "groups", 1)
    Traceback (most recent call last):
    ValueError: groups is a whole number, 1 or more, not 0
    """
    plain, wanted = _plain(value), f"{name} is a whole number{_limits(low, high)}, not {value!r}"
    if not isinstance(plain, numbers.Integral) or isinstance(plain, bool):
        raise TypeError(wanted)
    if not _within(plain, low, high):
        raise ValueError(wanted)
    return int(plain)


def number(value: Any, name: str, low: float | None = None, high: float | None = None) -> Any:
    """A finite number from low to high, both included; None: no limit.

    >>> from thesis_lib.checks import number
    >>> number(70, "theta", 0, 100)
    70
    >>> number(float("nan"), "theta", 0, 100)
    Traceback (most recent call last):
    ValueError: theta is a number, 0 to 100, not nan
    """
    plain, wanted = _plain(value), f"{name} is a number{_limits(low, high)}, not {value!r}"
    if not isinstance(plain, numbers.Real) or isinstance(plain, bool):
        raise TypeError(wanted)
    if not math.isfinite(plain) or not _within(plain, low, high):
        raise ValueError(wanted)
    return plain


def positive(value: Any, name: str, high: float | None = None) -> Any:
    """A finite number above 0, and up to high, which is included; None: no limit.

    >>> from thesis_lib.checks import positive
    >>> positive(0, "share", 1)
    Traceback (most recent call last):
    ValueError: share is a number above 0, 1 or less, not 0
    """
    plain = number(value, name)
    if not (plain > 0 and _within(plain, None, high)):
        upper = "" if high is None else f", {high} or less"
        raise ValueError(f"{name} is a number above 0{upper}, not {value!r}")
    return plain


def one_of(value: Any, name: str, *choices: str) -> str:
    """One of several words.

    >>> from thesis_lib.checks import one_of
    >>> one_of("softmax", "score", "logit", "probability")
    Traceback (most recent call last):
    ValueError: score is "logit" or "probability", not 'softmax'
    """
    there = " or ".join(f'"{choice}"' for choice in choices)
    wanted = f"{name} is {there}, not {value!r}"
    if not isinstance(value, str):
        raise TypeError(wanted)
    if value not in choices:
        raise ValueError(wanted)
    return value


def several(values: Any, name: str, check: Callable, *limits: Any) -> list:
    """A list, range or array with an entry at least, each entry as `check` has it.

    >>> from thesis_lib.checks import several
    >>> several(range(224, 425, 100), "sizes", whole, 1)
    [224, 324, 424]
    >>> several([], "sizes", whole, 1)
    Traceback (most recent call last):
    ValueError: sizes is a list with an entry at least, not []
    """
    wanted = f"{name} is a list with an entry at least, not {values!r}"
    # An iterator would be empty the second time that it is asked, and a dict is no list.
    if (
        isinstance(values, (str, bytes, dict))
        or getattr(values, "ndim", 1) != 1
        or not hasattr(values, "__len__")
    ):
        raise TypeError(wanted)
    if not len(values):
        raise ValueError(wanted)
    return [check(value, f"{name}[{k}]", *limits) for k, value in enumerate(values)]


def checked(**checks: Sequence) -> Callable:
    """Check a method's settings each time it is called, before it computes anything.

    checks: for each setting the check and its limits, such as `groups=(whole, 1)`. They stay with the method
    as `.checks`, so that `check_settings` can be asked before the method is called.

    >>> from thesis_lib.checks import checked, whole
    >>> @checked(groups=(whole, 1, 8))
    ... def method(clf, images, classes=None, *, groups=4):
    ...     return groups
    >>> method(None, None, groups=torch.tensor(2))
    2
    >>> method(None, None, group=2)
    Traceback (most recent call last):
    TypeError: method has no setting 'group'; it has groups
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def method(*args, **settings):
            return function(*args, **check_settings(method, settings))

        method.checks = checks  # type: ignore[attr-defined]
        return method

    return decorate


def check_settings(method: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, plain, that a method is to be called with, or what is wrong with them.

    Of a `functools.partial` its own settings as well. Names must be among those that the method takes, values
    as its `checked` has them; the default is always fine.

    Raises:
        TypeError, ValueError: see the module.

    >>> from thesis_lib.checks import check_settings
    >>> check_settings(tl.METHODS["msg_cam"], {"sizes": range(224, 325, 100)})
    {'sizes': [224, 324]}
    """
    if isinstance(method, functools.partial):
        return check_settings(method.func, {**method.keywords, **settings})
    parameters = inspect.signature(method).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    checks = getattr(method, "checks", {})
    found = {}
    for name, value in settings.items():
        if name not in parameters and not takes_any:
            there = ", ".join(list(parameters)[3:]) or "none"  # behind classifier, images and classes
            called = getattr(method, "__name__", type(method).__name__)
            raise TypeError(f"{called} has no setting {name!r}; it has {there}")
        fine = name not in checks or (name in parameters and value is parameters[name].default)
        found[name] = value if fine else checks[name][0](value, name, *checks[name][1:])
    return found


def require(fine: Tensor, error: Callable[[], Exception]) -> None:
    """Raise error() unless fine, a bool on any device; within `at_the_end`, at its end.

    >>> from thesis_lib.checks import require
    >>> require(torch.tensor(False), lambda: ValueError("not fine"))
    Traceback (most recent call last):
    ValueError: not fine
    """
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append((fine, error))
    elif not fine:
        raise error()


def is_finite(x: Tensor) -> Tensor:
    """Whether all of x is finite, a bool on its device: its extremes tell, which is one look at each number.

    >>> from thesis_lib.checks import is_finite
    >>> [bool(is_finite(torch.tensor([0.0, value]))) for value in (1, float("nan"), float("inf"))]
    [True, False, False]
    """
    return torch.stack(x.aminmax()).isfinite().all() if x.numel() else x.new_ones((), dtype=torch.bool)


@contextmanager
def at_the_end() -> Iterator[None]:
    """Look at all that is required within together, at the end: each look makes a GPU wait.

    Of blocks within one another the outermost looks. What fails within may do so because of what was not
    looked at, which then is raised.

    >>> from thesis_lib.checks import at_the_end, require
    >>> with at_the_end():
    ...     require(torch.tensor(False), lambda: ValueError("not fine"))
    ...     print("first")
    Traceback (most recent call last):
    ValueError: not fine
    """
    if _waiting.get() is not None:
        yield
        return
    waiting: list[tuple[Tensor, Callable]] = []
    token = _waiting.set(waiting)
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as within:
        _look(waiting, within)
        raise
    finally:
        _waiting.reset(token)
    _look(waiting)


def _look(waiting, cause=None):
    if waiting and not torch.stack([fine for fine, _ in waiting]).all():
        raise next(error() for fine, error in waiting if not fine) from cause


class NoSuchOutput(IndexError):
    """A class that a network has no output for."""


def has_outputs(classes: Sequence[int]) -> Callable:
    """A forward hook of a network that asks, in each pass, whether it has an output for each of these classes.

    To index the outputs does not ask: -1 is the last one then, and a GPU stops for good beyond the last.

    Raises:
        NoSuchOutput: it has not.

    >>> from thesis_lib.checks import has_outputs
    >>> has_outputs([3, 7])(None, (), torch.zeros(1, 7))
    Traceback (most recent call last):
    thesis_lib.checks.NoSuchOutput: class [3, 7] is out of range: 7 classes, 0 to 6
    """

    def hook(network, args, logits):
        n = logits.shape[1]
        if not all(0 <= c < n for c in classes):
            raise NoSuchOutput(f"class {list(classes)} is out of range: {n} classes, 0 to {n - 1}")

    return hook


def _plain(value):
    """Python's own number of NumPy's, or of a tensor or array of no dimension."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _within(value, low, high):
    return (low is None or value >= low) and (high is None or value <= high)


def _limits(low, high):
    if high is not None:
        return f", {low} to {high}"
    return "" if low is None else f", {low} or more"
