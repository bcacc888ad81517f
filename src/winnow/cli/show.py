"""Show: tables, JSON objects, numbers as people read them.   (floor 8 · cli)"""

import json
import math
import sys
from collections.abc import Mapping, Sequence

from winnow.base import room

quantity = room.quantity


def show_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on standard output; a number that is not finite becomes null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def show_pairs(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a title and one aligned line per pair on standard output."""
    width = max(len(key) for key, _ in pairs)
    print(title)
    for key, value in pairs:
        print(f"  {key:<{width}}  {value}")


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, on_stderr: bool = False
) -> None:
    """Print a table on standard output, or on standard error; columns after the first are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if on_stderr else sys.stdout
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe has no width: nothing is cut there.
    console = Console(file=stream, width=None if stream.isatty() else 240, highlight=False)
    console.print(Text(title), soft_wrap=True)
    console.print(table)


def show_markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title and a Markdown table on standard output; columns after the first are numbers."""
    rule = ["---", *("---:" for _ in columns[1:])]
    print(f"{title}\n")
    for cells in (columns, rule, *rows):
        print(f"| {' | '.join(cells)} |")


def share(value: float | int) -> str:
    """Return a share as a percentage: 13.2 %."""
    return f"{100 * value:.1f} %"


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case _:
            return value
