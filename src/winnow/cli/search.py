"""winnow search: which pairs of vectors are heavy.   (floor 8 · cli)"""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np

from winnow.base.arrays import map_array, write_array
from winnow.base.errors import UsageError
from winnow.base.files import replacing
from winnow.base.progress import Progress
from winnow.cli.failures import say
from winnow.cli.show import quantity, show_json, show_pairs
from winnow.search import Pairs, heavy_pairs

SHOWN = 20  # pairs on the terminal


def run(arguments: argparse.Namespace) -> int:
    """Search B, or A against B, and print the pairs or write them to --out."""
    out: Path | None = arguments.out
    if out is not None and out.suffix not in (".csv", ".npy"):
        raise UsageError(f"--out {out} ends in neither .csv nor .npy; name the file pairs.csv, say.")
    first, second = arguments.a or arguments.b, arguments.b if arguments.a else None
    bars: list[Progress] = []

    def watch(done: int, total: int) -> None:
        bars[:] = bars or [Progress("searched", total, quiet=arguments.quiet)]
        bars[0].update(done)

    pairs = heavy_pairs(
        map_array(first),
        None if second is None else map_array(second),
        rho=arguments.rho,
        method=arguments.method,
        recall=arguments.recall,
        rng=arguments.seed,
        max_pairs=arguments.max_pairs,
        group_size=arguments.group_size,
        width=arguments.width,
        threads=arguments.threads,
        progress=watch,
    )
    if not arguments.quiet:
        for note in pairs.report.notes:
            say(note)
    if out is not None:
        _write(out, pairs)
    if arguments.json:
        listed = [] if out is not None else [list(pair) for pair in _rows(pairs)]
        show_json({"found": len(pairs), "pairs": listed, "report": asdict(pairs.report)})
        return 0
    _show(pairs, out)
    return 0


def _rows(pairs: Pairs) -> list[tuple[int, int, int | float]]:
    return list(zip(pairs.i.tolist(), pairs.j.tolist(), pairs.product.tolist(), strict=True))


def _write(out: Path, pairs: Pairs) -> None:
    """Write columns i, j, product: text, or a structured array."""
    if out.suffix == ".csv":
        with replacing(out) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("i", "j", "product"))
            writer.writerows(_rows(pairs))
        return
    kinds = [("i", np.int64), ("j", np.int64), ("product", pairs.product.dtype)]
    table = np.empty(len(pairs), dtype=kinds)
    table["i"], table["j"], table["product"] = pairs.i, pairs.j, pairs.product
    write_array(out, table)


def _show(pairs: Pairs, out: Path | None) -> None:
    report = pairs.report
    low, high = report.recall_interval
    measured = f"{report.recall:.4f}, 95 % interval {low:.4f} to {high:.4f}, {report.canaries} canaries"
    rows = [
        ("pairs", str(len(pairs))),
        ("method", report.method),
        ("recall", measured if report.canaries else "nothing is left out"),
        ("plan", report.plan),
        ("compared whole", str(report.candidates)),
        ("multiply-adds", f"{report.multiply_adds:.3g}"),
        ("memory", quantity(report.bytes)),
        ("seconds", f"{report.seconds:.3g}"),
    ]
    show_pairs("heavy pairs", rows)
    if out is not None:
        print(f"written to {out}")
        return
    for i, j, product in _rows(pairs)[:SHOWN]:
        print(f"{i} {j} {product:.6g}")
    if len(pairs) > SHOWN:
        print(f"and {len(pairs) - SHOWN} more; --out FILE.csv or --json has them all")
