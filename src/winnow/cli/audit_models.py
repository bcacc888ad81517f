"""Audit models: transformers' model of MODEL, and a finding on the terminal or in files.   (floor 8 · cli)"""

import argparse
from typing import Any

from winnow.audit.model import open_model
from winnow.audit.report import Cell, Condition, Finding, as_html, as_json, exit_code
from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.cli.show import share, show_json, show_pairs, show_table
from winnow.engine.checkpoint import find_directory
from winnow.engine.tokenizer import Tokenizer


def show_finding(finding: Finding, arguments: argparse.Namespace) -> int:
    """Print the finding, write --html, and return the exit code: 1 where a condition holds or it is void."""
    code = exit_code(finding, [Condition.read(text) for text in arguments.fail_if])
    if arguments.html is not None:
        with replacing(arguments.html) as draft:
            draft.write_text(as_html(finding, show_text=arguments.show_text), encoding="utf-8")
    if arguments.json:
        show_json(as_json(finding, show_text=arguments.show_text))
        return code
    texts = [(piece.name, piece.text if arguments.show_text else "redacted") for piece in finding.recovered]
    controls = finding.controls
    show_pairs(
        f"audit of {finding.subject}",
        [
            ("verdict", finding.headline),
            ("read back whole", share(finding.exact_match)),
            ("tokens read back", share(finding.token_recall)),
            ("planted secret", "found" if controls.planted_found else "not found"),
            ("secret in noise", "found" if controls.noise_found else "none"),
            *((key.replace("_", " "), _shown(value)) for key, value in finding.certificate.items()),
            *((key.replace("_", " "), _shown(value)) for key, value in finding.details.items()),
            *texts,
            ("does not show", finding.does_not_show[0]),
        ],
    )
    for table in finding.tables:
        show_table(table.title, table.columns, [[_shown(cell) for cell in row] for row in table.rows])
    return code


def _shown(cell: Cell) -> str:
    return "-" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def check_report_options(arguments: argparse.Namespace) -> None:
    """Refuse conditions and files that would fail after the work is done. Raises UsageError."""
    for text in arguments.fail_if:
        Condition.read(text)
    if arguments.html is not None and arguments.html.suffix not in (".html", ".htm"):
        raise UsageError(f"--html {arguments.html} does not end in .html; name the file report.html, say.")


def open_transformer(arguments: argparse.Namespace) -> tuple[Any, Tokenizer | None]:
    """Return transformers' model of MODEL in fp32, and the tokenizer where the directory has one.

    Raises ModelError for what transformers cannot open.
    """
    directory = find_directory(arguments.model or "pico", offline=arguments.offline)
    model = open_model(directory)
    try:
        return model, Tokenizer.open(directory)
    except ModelError:
        return model, None
