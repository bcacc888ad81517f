"""Shapes: the letters of tensor annotations are those of base/shapes.py."""

import ast
import re
from collections.abc import Iterator

from tests.house.source import Source, Violation
from winnow.base.shapes import LETTERS

ARRAYS = re.compile(r"^(Float|BFloat|Int|UInt|Bool|Num|Shaped|Real|Inexact|Integer|Complex)\d*$")


def letters(source: Source) -> Iterator[Violation]:
    """An axis is a letter of the table, alone or with a qualifier (`E_half`), or a lower-case word."""
    for node in ast.walk(source.tree):
        shape = _shape(node)
        for name in re.findall(r"[A-Za-z_]\w*", shape):
            letter, _, qualifier = name.partition("_")
            if name != name.lower() and (letter not in LETTERS or qualifier != qualifier.lower()):
                yield source.violation(node, f"axis {name} of {shape!r} is not in base/shapes.py: use a word")


def _shape(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and ARRAYS.match(node.value.id):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
        if len(parts) == 2 and isinstance(parts[1], ast.Constant) and isinstance(parts[1].value, str):
            return parts[1].value
    return ""
