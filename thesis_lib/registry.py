"""Entries by name: what there is to know of a method, a metric, a dataset or a network, next to its code."""

import difflib
from typing import Any


class UnknownName(KeyError, ValueError):
    """No entry has that name."""

    __str__ = Exception.__str__  # KeyError would put the sentence in quotes


class Registry(dict[str, Any]):
    """A dict that says, of an unknown name, which names there are and which one may have been meant."""

    def __init__(self, kind: str):
        self.kind = kind

    def __missing__(self, name: str) -> Any:
        close = difflib.get_close_matches(str(name), self, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise UnknownName(f"no {self.kind} is called {name!r}; {hint} {', '.join(self)}")
