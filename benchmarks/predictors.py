"""Predictors: every kind, lookahead and target on the bundled models, judged on a book that no plan has seen.

    python -m benchmarks.predictors BOOKS [--models pico pico-llama] [--out NAME]

BOOKS is a folder of .txt books, of which a part of each second one is calibrated on. Each row is one plan:
what it was calibrated for, and what it does on windows from all over the unseen book, counted in fp32.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from benchmarks.recorded import BOOK, THREADS, machine, record

from winnow.engine import Engine, load
from winnow.engine.checkpoint import bundled
from winnow.engine.generate import torch_threads
from winnow.engine.sparsity import CalibrationOptions, Lookahead, Plan, calibrate, windows
from winnow.engine.sparsity.frontier import bytes_read, mlp_bytes
from winnow.engine.sparsity.heldout import HeldOut

Asked = Literal["svd", "low-rank", "gate", "auto"]
TARGETS = (0.0004, 0.001, 0.005, 0.02)
CHARACTERS = 1500  # from the middle of each second book
JUDGED_WINDOWS = 32  # of the unseen book, evenly spread
SLACK = 1.2  # what other text may cost, in units of the target


def texts_of(engine: Engine, books: Path) -> list[torch.Tensor]:
    """Return the windows to calibrate on."""
    begin, found = engine.tokenizer.encode(""), []
    for path in sorted(books.glob("*.txt"))[::2]:
        text = path.read_text(encoding="utf-8")
        start = len(text) // 2
        found += windows(engine.tokenizer.encode(text[start : start + CHARACTERS], special=False), begin)
    if not found:
        raise SystemExit(f"{books} holds no .txt files")
    return found


def unseen(engine: Engine) -> HeldOut:
    """Return windows from all over the book, with the dense model's view of them."""
    ids = engine.tokenizer.encode(BOOK.read_text(encoding="utf-8"), special=False)
    cut = windows(ids, engine.tokenizer.encode(""))
    return HeldOut(engine.weights, cut[:: max(len(cut) // JUDGED_WINDOWS, 1)], lambda done: None)


def settings(is_gated: bool) -> Sequence[tuple[Asked, Lookahead]]:
    """Return the kinds and modes that this model can have."""
    ungated: tuple[Asked, ...] = ("svd", "low-rank")
    found = list(itertools.product(ungated, Lookahead))
    return [*found, ("gate", Lookahead.SAME), ("auto", Lookahead.SAME)] if is_gated else found


def row(model: str, engine: Engine, plan: Plan, judge: HeldOut) -> dict:
    """Return what one plan was made for and what it does."""
    found, said = judge.measure(plan.layers), plan.provenance
    records = [layer.mlp for layer in engine.weights.layers]
    read = sum(
        mlp_bytes(each) if predictor is None else bytes_read(each, predictor, counts.density)
        for each, predictor, counts in zip(records, plan.layers, found.layers, strict=True)
    )
    dense = sum(mlp_bytes(each) for each in records)
    return {
        "model": model,
        "kind": said.predictor,
        "lookahead": said.lookahead,
        "target_kld": said.target_kld,
        "kld": found.kld,
        "kld_calibrated": said.measured_kld,
        "holds": found.kld <= SLACK * said.target_kld,
        "same_top": found.same_top,
        "mlp_density": found.overall.density,
        "recall": found.overall.recall,
        "weighted_recall": found.overall.weighted_recall,
        "mlp_bytes": read,
        "mlp_bytes_dense": dense,
        "bytes_share": read / dense,
        "predictor_share": plan.n_bytes / dense,
        "dense_layers": sum(each is None for each in plan.layers),
    }


def rows_of(model: str, books: Path) -> list[dict]:
    """Return the rows of one bundled model."""
    engine = load(bundled(model), plan=None, dtype="fp32", threads=THREADS)
    rows = []
    with torch_threads(THREADS):
        texts, judge = texts_of(engine, books), unseen(engine)
        for kind, lookahead in settings(engine.weights.config.is_gated):
            for target in TARGETS:
                options = CalibrationOptions(
                    target_kld=target, predictor=kind, lookahead=lookahead, quiet=True
                )
                started = time.monotonic()
                plan = calibrate(engine.weights, "", texts, options)
                rows.append(row(model, engine, plan, judge) | {"seconds": time.monotonic() - started})
                print(
                    f"{model:11} {kind:9} {lookahead:11} target {target:<7g} KLD {rows[-1]['kld']:.2g} "
                    f"density {rows[-1]['mlp_density']:.3f} bytes {rows[-1]['bytes_share']:.3f} "
                    f"{'' if rows[-1]['holds'] else 'MISSED'}",
                    flush=True,
                )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Write predictors.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", type=Path, metavar="BOOKS")
    parser.add_argument("--models", nargs="+", default=["pico", "pico-llama"])
    parser.add_argument("--out", default="predictors")
    arguments = parser.parse_args(argv)
    present = [name for name in arguments.models if (bundled(name) / "model.safetensors").is_file()]
    models = {name: rows_of(name, arguments.books) for name in present}
    missed = sum(not row["holds"] for rows in models.values() for row in rows)
    record(arguments.out, {"machine": machine(), "models": models, "missed": missed})


if __name__ == "__main__":
    main()
