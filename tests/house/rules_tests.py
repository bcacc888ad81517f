"""Tests cannot pass by accident: each contains a check, and none returns early."""

import ast
from collections.abc import Iterator

from tests.house.source import Source, Violation

CHECKING_CALLS = ("assert_", "check_", "opcheck", "raises", "warns", "fail")


def checks(source: Source) -> Iterator[Violation]:
    """Each `test_*` asserts, expects an error, or calls something named `assert_*` or `check_*`."""
    for node in _tests(source):
        if not any(_is_check(inner) for inner in ast.walk(node)):
            yield source.violation(node, f"{node.name} checks nothing")


def early_returns(source: Source) -> Iterator[Violation]:
    """A hard case is `xfail(reason)` or a skip by hardware, never a silent `return`."""
    for node in _tests(source):
        for inner in _own_statements(node):
            if isinstance(inner, ast.Return):
                yield source.violation(inner, f"{node.name} returns: use pytest.skip or xfail with a reason")


def _tests(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    if source.name.startswith("test_"):
        yield from (node for node in source.function_nodes() if node.name.startswith("test_"))


def _is_check(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name.startswith(CHECKING_CALLS)
    return False


def _own_statements(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of `function` without those of functions defined inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _own_statements(child)
