"""Exports: what a package offers is written once, sorted, and equal to what it holds."""

import ast
import re
from collections.abc import Iterator

from tests.house.source import Source, Violation

SHAPELESS = {"utils", "util", "helpers", "helper", "common", "manager", "handler", "process", "misc", "data2"}


def file_name(source: Source) -> Iterator[Violation]:
    """No file or folder is named after nothing in particular."""
    for part in source.path.removesuffix(".py").split("/"):
        if part in SHAPELESS:
            yield source.violation(1, f"`{part}` says nothing about what is inside")


def exports(source: Source) -> Iterator[Violation]:
    """`__all__` is sorted (constants, classes, functions) and equals the public names of the file.

    Public are the names that the file defines and, in an `__init__.py`, those it takes from its own
    package without using them itself. An `__init__.py` with public names must have an `__all__`.
    """
    listed = _dunder_all(source)
    public = _public_names(source)
    if listed is None:
        if source.name == "__init__.py" and public:
            yield source.violation(1, f"no __all__, but public names: {', '.join(sorted(public))}")
        return
    node, names = listed
    if names != sorted(set(names), key=_isort_key):
        yield source.violation(node, "__all__ is not sorted: constants, then classes, then functions")
    for name in sorted(public - set(names)):
        yield source.violation(node, f"{name} is public but not in __all__")
    for name in sorted(set(names) - _bound_names(source)):
        yield source.violation(node, f"{name} is in __all__ but not defined")


def _isort_key(name: str) -> tuple[int, list[tuple[int, str]]]:
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def _dunder_all(source: Source) -> tuple[ast.Assign, list[str]] | None:
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return node, list(ast.literal_eval(node.value))
    return None


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.If | ast.Try):
        return [name for inner in node.body for name in _defined(inner)]
    return []


def _imported(source: Source) -> dict[str, str]:
    """Bound name -> the module it is taken from, for imports at module level."""
    found = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node.module or "." for alias in node.names}
    return found


def _public_names(source: Source) -> set[str]:
    names = {name for node in source.tree.body for name in _defined(node)}
    if source.name == "__init__.py":
        own = ".".join(source.module)
        used = {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}
        taken = {n for n, module in _imported(source).items() if (module + ".").startswith((own + ".", "."))}
        names |= taken - used
    return {name for name in names if not name.startswith("_")}


def _bound_names(source: Source) -> set[str]:
    names = {name for node in source.tree.body for name in _defined(node)} | set(_imported(source))
    for node in source.tree.body:  # winnow/__init__.py keeps its verbs in a table: name -> where it lives
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            names |= {
                k.value for k in node.value.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)
            }
    return names
