"""Audit of timing: whether pico's active neurons, or its token times, tell one book from the others.

    python -m benchmarks.audit_timing active  --heldout DIR
    python -m benchmarks.audit_timing latency --heldout DIR       on a quiet machine

Prompts are pieces of the books in HELDOUT, one book a topic. Each is measured as the engine is and with
constant work. Each part writes its own half of audit-timing.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.audit_texts import books_of
from benchmarks.recorded import RESULTS, THREADS, machine, record, winnow_json

TOPICS, PROMPTS = 3, 80
NAMES = {"": "as it is", "constant_work_": "constant work"}


def measured(signal: str, books: Sequence[Path]) -> dict:
    """Return the AUC of the topic that is told apart best, with and without constant work."""
    texts = [word for book in books[:TOPICS] for word in ("--text", f"{book.stem}={book}")]
    found = winnow_json(
        *("audit", "timing", "pico", *texts, "--signal", signal, "--prompts", str(PROMPTS)),
        *("--threads", str(THREADS)),
    )
    held = found["certificate"]
    rows = [
        {
            "signal": signal,
            "engine": name,
            "topics": TOPICS,
            "prompts": TOPICS * PROMPTS,
            "auc": held[f"{prefix}auc"],
            "auc_low": held[f"{prefix}auc_low"],
            "auc_high": held[f"{prefix}auc_high"],
        }
        for prefix, name in NAMES.items()
    ]
    return {"rows": rows, "tables": found["tables"], "controls": found["controls"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Write one half of audit-timing.json, the other as it was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("signal", choices=("active", "latency"))
    parser.add_argument("--heldout", type=Path, required=True, help="a folder of .txt books")
    arguments = parser.parse_args(argv)
    target = RESULTS / "audit-timing.json"
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    half = measured(arguments.signal, books_of(arguments.heldout))
    now = machine()
    is_void = not half["controls"]["planted_found"] or half["controls"]["noise_found"]
    result = before | {"machine": now, arguments.signal: {"machine": now} | half}
    record("audit-timing", result | ({"void": True} if is_void else {}))


if __name__ == "__main__":
    main()
