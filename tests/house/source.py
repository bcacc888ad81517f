"""What the house rules read: source files, and violations printed as `path:line: rule`."""

import ast
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = {
    "base": 0,
    "kernels": 1,
    "linalg": 2,
    "search": 3,
    "attention": 4,
    "optim": 4,
    "engine": 5,
    "audit": 5,
    "train": 5,
    "studies": 6,
    "server": 7,
    "cli": 8,
}
MADE = {"build", "dist", "htmlcov", "__pycache__"}  # folders that tools write, dotted ones but .ci aside


@dataclass(frozen=True)
class Violation:
    """One broken rule at one place."""

    path: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}"


@dataclass(frozen=True)
class Source:
    """One text file: its path from the repository root, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def in_src(self) -> bool:
        return self.path.startswith("src/winnow/")

    @property
    def in_tests(self) -> bool:
        return self.path.startswith("tests/")

    @property
    def module(self) -> tuple[str, ...]:
        """`src/winnow/base/rng.py` -> ("winnow", "base", "rng"); a package's `__init__` is the package."""
        parts = self.path.removeprefix("src/").removesuffix(".py").split("/")
        return tuple(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def folder(self) -> str:
        """The package on its floor: `base`; `` for `winnow/__init__.py`."""
        return self.module[1] if len(self.module) > 1 else ""

    def violation(self, line: int | ast.AST, rule: str) -> Violation:
        number = line if isinstance(line, int) else getattr(line, "lineno", 1)
        return Violation(self.path, number, rule)

    def function_nodes(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def public_functions(self) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
        """Yield (function, is_method) for what a user can reach: no underscore on the way to it."""
        yield from _public(self.tree.body, is_method=False)


def _public(body: list[ast.stmt], *, is_method: bool):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") or (is_method and node.name.startswith("__")):
                yield node, is_method
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, is_method=True)
        elif isinstance(node, ast.If | ast.Try):
            yield from _public(node.body, is_method=is_method)


def files(*suffixes: str, below: str = "") -> list[Path]:
    """Every file of the repository with one of `suffixes` (all when none is given), sorted."""
    found = []
    for folder, folders, names in os.walk(ROOT / below):
        folders[:] = [f for f in folders if f == ".ci" or not (f.startswith(".") or f in MADE)]
        kept = [name for name in names if name != ".git"]  # a file in a linked work tree
        found += [Path(folder) / name for name in kept if not suffixes or name.endswith(suffixes)]
    return sorted(found)


def load(path: Path) -> Source:
    return Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def python(below: str = "") -> list[Source]:
    return [load(path) for path in files(".py", below=below)]


Rule = Callable[[Source], Iterable[Violation]]


def assert_none(violations: Iterable[Violation]) -> None:
    """Fail with one `path:line: rule` per line."""
    found = sorted(violations, key=lambda v: (v.path, v.line, v.rule))
    assert not found, "\n" + "\n".join(map(str, found))


def assert_caught(rule: Rule, path: str, text: str, *, line: int = 1, says: str) -> None:
    """The negative control: `rule` must find exactly the planted fault, on its line."""
    found = list(rule(Source(path, text)))
    assert [(v.line, says in v.rule) for v in found] == [(line, True)], f"planted one fault, found {found}"


def assert_passes(rule: Rule, path: str, text: str) -> None:
    """The positive control: `rule` must not cry wolf."""
    assert_none(rule(Source(path, text)))
