"""Floors and reading order: who may import whom, and in which order a package is read."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.house.source import FLOORS, Source, Violation

LABEL = re.compile(r"^\S.*\.   \(floor (\d) · (\w+)\)$")
ENTRY = re.compile(r"^[\w*-]+(\.py|\.cpp|\.hpp|/)$")
ROOT_FOLDER = "cli"  # winnow/__init__.py stands on the top floor: it offers the verbs of all the others


def label(source: Source) -> Iterator[Violation]:
    """Line 1 of the module docstring ends with the floor and the package it stands on."""
    folder = source.folder or ROOT_FOLDER
    wanted = f"{FLOORS.get(folder, '?')} · {folder}"
    match = LABEL.match((ast.get_docstring(source.tree, clean=False) or "").split("\n")[0])
    if match is None or f"{match[1]} · {match[2]}" != wanted:
        yield source.violation(1, f"line 1 must read `Title: what it is.   (floor {wanted})`")


@dataclass(frozen=True)
class Import:
    """One imported thing: the module it comes from and the name taken, '' for `import a.b`."""

    line: int
    module: tuple[str, ...]
    name: str


def imports(source: Source) -> Iterator[Import]:
    package = source.module if source.name == "__init__.py" else source.module[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, tuple(alias.name.split(".")), "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = base + tuple((node.module or "").split(".") if node.module else ())
            for alias in node.names:
                yield Import(node.lineno, module, alias.name)


def floors(source: Source) -> Iterator[Violation]:
    """Imports go strictly downward, by public names; `server` never sees `studies`, only `cli` does."""
    here = source.folder or ROOT_FOLDER
    for found in imports(source):
        if found.module[:1] != ("winnow",):
            continue
        path = (*found.module[1:], found.name) if found.name else found.module[1:]
        there = path[0] if path else ""
        if there == source.folder:
            continue
        if there not in FLOORS:
            yield source.violation(found.line, f"`{'.'.join(found.module)}.{found.name}` has no floor")
        elif FLOORS[there] >= FLOORS[here] and source.folder:
            yield source.violation(
                found.line,
                f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]}): only downward",
            )
        elif there == "studies" and here != "cli":
            yield source.violation(found.line, "studies is imported by cli only")
        elif any(part.startswith("_") for part in path):
            yield source.violation(found.line, f"`{'.'.join(path)}` is private to {there}")


def listed(init: Source) -> list[str]:
    """The files that a package's docstring lists, in reading order; `simd_*.hpp` stands for several.

    An entry is a line of names, two or more spaces, and what they are. ruff takes the indentation away
    where nothing else stands in the docstring, so it may be 4 or 0.
    """
    entries = []
    for line in (ast.get_docstring(init.tree, clean=False) or "").split("\n")[1:]:
        indent = len(line) - len(line.lstrip())
        names = line.strip().split("  ")[0].split()
        if indent in (0, 4) and all(ENTRY.match(name) for name in names):
            entries += names
    return entries


def complete(init: Source, present: list[str]) -> Iterator[Violation]:
    """The docstring lists every file of the package, each once, and nothing that is not there."""
    entries = listed(init)
    for name in sorted(present):
        times = sum(fnmatchcase(name, entry) for entry in entries)
        if times != 1:
            how = "is listed twice" if times else "is not listed in the package's docstring"
            yield init.violation(1, f"{name} {how}")
    for entry in entries:
        if not any(fnmatchcase(name, entry) for name in present):
            yield init.violation(1, f"{entry} is listed but does not exist")


def reading_order(source: Source, packages: dict[tuple[str, ...], Source]) -> Iterator[Violation]:
    """A file imports only what its own package's docstring lists above it."""
    for found in imports(source):
        if len(source.module) < 2 or found.module[:2] != source.module[:2]:
            continue
        target = (*found.module, found.name)
        if not _is_module(target, packages):
            target = found.module
        message = _out_of_order(source, target, packages)
        if message:
            yield source.violation(found.line, message)


def _is_module(path: tuple[str, ...], packages: dict[tuple[str, ...], Source]) -> bool:
    init = packages.get(path[:-1])
    return path in packages or (init is not None and f"{path[-1]}.py" in listed(init))


def _out_of_order(
    source: Source, target: tuple[str, ...], packages: dict[tuple[str, ...], Source]
) -> str | None:
    """Compare both at the deepest package they share; its `__init__` stands below all its files."""
    is_init = source.name == "__init__.py"
    depth = 0
    while depth < min(len(source.module), len(target)) and source.module[depth] == target[depth]:
        depth += 1
    package = source.module[:depth]
    if package == source.module and is_init:
        return None
    if package == target:
        return f"imports its own package {'.'.join(target)}: a cycle"
    if target == source.module:
        return "imports itself"
    if package not in packages:
        return None  # a missing __init__.py is reported by its own test
    entries = listed(packages[package])
    mine, other = (_position(entries, path[depth]) for path in (source.module, target))
    if other is None or mine is None or other < mine:
        return None  # a file that is not listed is reported by `complete`
    return f"{'.'.join(target)} is not listed above {'.'.join(source.module)} in {'.'.join(package)}"


def _position(entries: list[str], name: str) -> int | None:
    files = (f"{name}.py", f"{name}/")
    return next((i for i, entry in enumerate(entries) if any(fnmatchcase(f, entry) for f in files)), None)
