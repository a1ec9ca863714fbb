"""A notebook's parameters: are the values that were passed for it ones that it declares?

papermill logs an unknown name and goes on, and puts a value of the wrong type in as it is. A run of
a night would then end with the default's numbers, or late in an error.
"""

import ast
import difflib
import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
}


def declared(source: str) -> dict[str, tuple[str, Any]]:
    """What a parameters cell declares, `name: type = default` each: {name: (type's name, default)}.

    Raises ValueError where a default is not a plain value.

    >>> from thesis_lib.pages.parameters import declared
    >>> declared("images: int = 64  # how many")
    {'images': ('int', 64)}
    """
    return {
        node.target.id: (ast.unparse(node.annotation).split("[")[0], ast.literal_eval(node.value))
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and node.value
    }


def faults(given: dict[str, Any], kinds: dict[str, str]) -> Iterator[str]:
    """What is wrong with values {name: value} for parameters {name: name of its type}, as sentences.

    A whole number will do for a float; True and False are no numbers.

    >>> from thesis_lib.pages.parameters import faults
    >>> list(faults({"image": 8}, {"images": "int"}))
    ["there is no parameter 'image': did you mean 'images'?"]
    """
    for name, value in given.items():
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=1, cutoff=0)
            hint = f": did you mean {close[0]!r}?" if close else ""
            yield f"there is no parameter {name!r}{hint}"
        elif kinds[name] in TYPES and (
            not isinstance(value, TYPES[kinds[name]]) or (isinstance(value, bool) and kinds[name] != "bool")
        ):
            yield f"{name} must be of type {kinds[name]}, not {value!r}"


def check_parameters() -> None:
    """In a notebook, behind its cell of parameters: refuse what papermill put in and is not declared.

    Declared is what the notebook has annotated so far (`images: int = 64`). A parameter `notebook`
    names the notebook that the values are for. Does nothing where nothing was put in.

    Raises ValueError that lists unknown names, each with the closest known one, and wrong types.

    >>> tl.check_parameters()  # outside of a notebook nothing was put in
    """
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    injected = next((cell for cell in reversed(cells) if cell.startswith("# Parameters\n")), None)
    if injected is None:
        return
    targets = [t for node in ast.parse(injected).body for t in getattr(node, "targets", [])]
    given = {target.id: shell.user_ns[target.id] for target in targets}
    kinds = {name: kind.__name__ for name, kind in shell.user_ns["__annotations__"].items()}
    own = re.search(r"^notebook: str = ['\"](.+?)['\"]", "\n".join(cells), re.M)
    if "notebook" in given and (not own or own[1] != given["notebook"]):
        here = f", not for {own[1]}" if own else ""
        raise ValueError(f"these parameters are for the notebook {given['notebook']}{here}")
    if found := list(faults(given, kinds)):
        raise ValueError("\n- ".join(["parameters refused, nothing was run:", *found]))
