"""Python code as text that stays the same while its meaning does, and the names that it looks up.

Needs nothing but `ast`, so that every version of Python can be asked whether it agrees.
"""

import ast
from collections.abc import Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)
_SILENT = ("ctx", "kind", "type_comment", "type_params", "returns", "annotation")
# Functions that import what they are given: `importlib.import_module("captum.attr")`, `peers.library(...)`.
_IMPORTERS = ("library", "_library", "import_module", "__import__")


_CHANGING = set(
    "append extend insert add update setdefault pop popitem remove discard clear appendleft sort reverse".split()
)


# What changes a number


def canonical(tree: ast.AST) -> str:
    """A definition without comments, docstrings, annotations and entries in registries.

    >>> import ast
    >>> from thesis_lib.runs.syntax import canonical
    >>> canonical(ast.parse("def f(x: int = 1): return x  # one"))
    "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')],defaults=[Constant(value=1)]),\
body=[Return(value=Name(id='x'))])])"
    """
    if isinstance(tree, list):
        return f"[{','.join(map(canonical, tree))}]"
    if not isinstance(tree, ast.AST):
        return ascii(tree)  # what `repr` may print depends on the version's Unicode
    inside = ",".join(f"{name}={canonical(value)}" for name, value in _fields(tree))
    return f"{type(tree).__name__}({inside})"


def _fields(node):
    """(name, value) of a node's fields that are not empty and change a number."""
    if isinstance(node, ast.JoinedStr):
        yield "values", _merged(node.values)
        return
    for name, value in ast.iter_fields(node):
        if name in _SILENT:
            continue
        if name == "decorator_list":
            value = [d for d in value if not _is_entry(d)]
        elif isinstance(value, list):
            in_class = isinstance(node, ast.ClassDef)
            value = [_plain(item, in_class) for item in value if not _says_nothing(item, in_class)]
        if name == "format_spec" and value and not _merged(value.values):
            continue  # f"{x:}" is f"{x}"
        if value is not None and value != []:
            yield name, value


def _plain(item, in_class):
    """`x: int = 1` as `x = 1`; in a class it may be a dataclass's field, and stays."""
    if isinstance(item, ast.AnnAssign) and not in_class:
        return ast.Assign(targets=[item.target], value=item.value)
    return item


def _says_nothing(item, in_class):
    """Docstrings and other bare constants; a bare `x: int` outside of a class."""
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant)
    return isinstance(item, ast.AnnAssign) and item.value is None and not in_class


def _is_entry(decorator):
    """`@METHODS.entry(...)` and the like, which describe a function and leave it as it is."""
    function = getattr(decorator, "func", None)
    if not isinstance(function, ast.Attribute) or function.attr != "entry":
        return False
    path = _path(function.value)
    return bool(path) and path[-1].isupper()


def _merged(values):
    """The parts of an f-string; versions differ in where they cut its constant ones."""
    merged = []
    for value in values:
        if isinstance(value, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(merged[-1].value + value.value)
        elif not isinstance(value, ast.Constant) or value.value:
            merged.append(value)
    return merged


# Names


def uses(tree: ast.AST) -> Iterator[tuple[tuple[str, ...], str | None, bool]]:
    """(dotted name, constant subscript or None, whether it is changed) of all that a definition looks up
    outside itself.

    >>> import ast
    >>> from thesis_lib.runs.syntax import uses
    >>> list(uses(ast.parse("lambda x: tl.METHODS['cam'](x) + x.y * np.pi")))
    [(('tl', 'METHODS'), 'cam', False), (('np', 'pi'), None, False)]
    >>> list(uses(ast.parse("seen.append(len(seen))")))
    [(('seen',), None, True), (('len',), None, False), (('seen',), None, False)]
    """
    return _uses(tree, frozenset(), frozenset())


def _uses(node, outer, here):
    """outer: names of the functions around; here: of a class around, which its functions do not see."""
    changed = not isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
    if isinstance(node, ast.Subscript) and (path := _path(node.value)):
        if path[0] not in outer | here:
            text = getattr(node.slice, "value", None)
            yield path, text if isinstance(text, str) else None, changed
        yield from _uses(node.slice, outer, here)
        return
    if path := _path(node):
        if path[0] not in outer | here:
            if len(path) > 1 and (changed or path[-1] in _CHANGING):
                path, changed = path[:-1], True
            yield path, None, changed
        return
    if not isinstance(node, _SCOPES):
        for child in _children(node):
            yield from _uses(child, outer, here)
        return
    inside, around = _inside(node)
    for child in around:
        yield from _uses(child, outer, here)
    own = frozenset(_bound(node, inside))
    if isinstance(node, FUNCTIONS):
        outer, here = outer | own, frozenset()
    elif isinstance(node, ast.ClassDef):
        here = own
    else:
        outer = outer | own
    for child in inside:
        yield from _uses(child, outer, here)


def _path(node):
    """("a", "b", "c") of `a.b.c`, or None."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (path := _path(node.value)):
        return (*path, node.attr)
    return None


def _children(node):
    for _, value in _fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _inside(scope):
    """A scope's parts that see its names, and those that are worked out around it."""
    inside, around = [], []
    for name, value in _fields(scope):
        parts = [
            part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST)
        ]
        (inside if name == "body" or isinstance(scope, _COMPREHENSIONS) else around).extend(parts)
    return inside, around


def _bound(scope, inside):
    """Names that a scope binds itself, except by imports, and except those declared global."""
    names, shared = set(), set()
    if isinstance(scope, FUNCTIONS):
        names = {argument.arg for argument in ast.walk(scope.args) if isinstance(argument, ast.arg)}
    waiting = list(inside)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            shared |= set(node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue  # what it binds inside is its own
        elif isinstance(node, (ast.Lambda, *_COMPREHENSIONS)):
            if not isinstance(node, ast.Lambda):  # `:=` binds around a comprehension
                names |= {n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr)}
            continue
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
        waiting += ast.iter_child_nodes(node)
    return names - shared


def imports(tree: ast.AST) -> dict[str, tuple[int, str, str]]:
    """{name: (level, module, name there or "")} of what a definition imports within.

    >>> import ast
    >>> from thesis_lib.runs.syntax import imports
    >>> imports(ast.parse("import a.b as c; from ..d import e"))
    {'c': (0, 'a.b', ''), 'e': (2, 'd', 'e')}
    """
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:  # `import a.b` binds a
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = 0, whole, ""
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = node.level, node.module or "", alias.name
    return found


def imported_by_name(tree: ast.AST) -> list[str]:
    """Modules that a definition names as text: `importlib.import_module("a.b")`.

    >>> import ast
    >>> from thesis_lib.runs.syntax import imported_by_name
    >>> imported_by_name(ast.parse("peers.library('captum.attr').Lime()"))
    ['captum.attr']
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and (path := _path(node.func)):
            text = getattr(node.args[0], "value", None)
            if path[-1] in _IMPORTERS and isinstance(text, str):
                found.append(text)
    return found


# Finding


def definitions(tree: ast.AST) -> dict[tuple[str, int], list[ast.AST]]:
    """{(name, first line): definitions} of a file, the first line as Python counts it."""
    found: dict[tuple[str, int], list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.setdefault((node.name, line), []).append(node)
    return found


def classes(tree: ast.AST, around: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """(qualified name, definition) of all classes of a file, in their order."""
    for node in ast.iter_child_nodes(tree):
        name = around
        if isinstance(node, ast.ClassDef):
            yield around + node.name, node
            name = f"{around}{node.name}."
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{around}{node.name}.<locals>."
        yield from classes(node, name)
