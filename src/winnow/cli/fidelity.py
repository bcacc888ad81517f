"""winnow fidelity: what the plan loses on a text.   (floor 8 · cli)"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from winnow.base.chart import Point, Words, share_chart
from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.base.progress import Progress
from winnow.cli.opening import cut, open_engine, open_exact, read_text
from winnow.cli.show import quantity, share, show_json, show_pairs, show_table
from winnow.engine.generate import torch_threads
from winnow.engine.sparsity import Fidelity
from winnow.engine.sparsity.fidelity import sweep

# How far --sweep moves the thresholds, in standard deviations of each neuron's score; 0 is the plan itself.
SHIFTS = (-1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5)
SMALLEST_DRAWN = 1e-8  # nats; float32 tells nothing below, and a logarithmic axis has no place for 0


def run(arguments: argparse.Namespace) -> int:
    """Compare sparse with dense on --text, token by token; with --sweep also at other densities."""
    if arguments.sweep is not None and arguments.sweep.suffix != ".svg":
        raise UsageError(f"--sweep {arguments.sweep} does not end in .svg; name the file sweep.svg, say.")
    text = read_text(arguments.text)
    engine = open_engine(arguments, arguments.plan or "auto")
    if engine.plan is None:
        raise ModelError("this model has no plan beside it; run winnow calibrate, or name one with --plan.")
    pieces, _ = cut(engine, [text], arguments.limit)
    progress = Progress("comparing", len(pieces), quiet=arguments.quiet)
    shifts = (0.0,) if arguments.sweep is None else SHIFTS
    exact = None if arguments.dtype == "fp32" else open_exact(arguments)
    with torch_threads(engine.cpu.threads):
        found = sweep(engine.weights, engine.plan, shifts, pieces, progress.update, exact)
    measured = found[shifts.index(0.0)]
    if arguments.sweep is not None:
        _write_chart(arguments.sweep, found, measured, arguments.text.name)
    if arguments.json:
        rows = [{"shift": s, **asdict(f)} for s, f in zip(shifts, found, strict=True)]
        show_json({**asdict(measured), **({} if arguments.sweep is None else {"sweep": rows})})
        return 0
    show_pairs(f"sparse against dense on {arguments.text}", _rows(measured))
    if arguments.sweep is not None:
        _show_sweep(shifts, found, arguments.sweep)
    return 0


def _rows(measured: Fidelity) -> list[tuple[str, str]]:
    m = measured
    quantised = (
        [] if m.kld_quantised is None else [("KLD of its precision", f"{m.kld_quantised:.2e}, from fp32")]
    )
    return [
        ("tokens", str(m.tokens)),
        ("perplexity, dense", f"{m.ppl_dense:.4f} ± {m.ppl_dense_se:.4f}"),
        ("perplexity, sparse", f"{m.ppl_sparse:.4f} ± {m.ppl_sparse_se:.4f}"),
        ("sparse over dense", f"{m.ppl_ratio:.5f} ± {m.ppl_ratio_se:.5f}"),
        ("correlation of ln ppl", f"{100 * m.ppl_correlation:.3f} %"),
        *quantised,
        ("KLD, mean (nats)", f"{m.kld_mean:.2e} ± {m.kld_mean_se:.1e}"),
        ("KLD, median", f"{m.kld_median:.2e}"),
        ("KLD, 99 %", f"{m.kld_p99:.2e}"),
        ("KLD, 99.9 %", f"{m.kld_p999:.2e}"),
        ("KLD, largest", f"{m.kld_max:.2e}"),
        ("same likeliest token", f"{100 * m.same_top:.2f} ± {100 * m.same_top_se:.2f} %"),
        ("p of the true token", f"{100 * m.delta_p_mean:+.3f} ± {100 * m.delta_p_mean_se:.3f} % on average"),
        ("its RMS change", f"{100 * m.delta_p_rms:.3f} %"),
        ("MLP density", share(m.mlp_density)),
        ("head density", share(m.head_density)),
        ("predictor recall", share(m.predictor_recall)),
        ("MLP bytes per token", f"{quantity(m.mlp_bytes)}, {share(_of_dense(m))} of dense, in bf16"),
    ]


def _of_dense(measured: Fidelity) -> float:
    return measured.mlp_bytes / measured.mlp_bytes_dense


def _show_sweep(shifts: Sequence[float], found: Sequence[Fidelity], path: Path) -> None:
    columns = ("thresholds", "density", "bytes of dense", "KLD", "±", "KLD 99.9 %", "same top", "recall")
    rows = [
        [
            "the plan's" if shift == 0 else f"{-shift:+g} sd",
            share(f.mlp_density),
            share(_of_dense(f)),
            f"{f.kld_mean:.2e}",
            f"{f.kld_mean_se:.1e}",
            f"{f.kld_p999:.2e}",
            f"{100 * f.same_top:.2f} %",
            share(f.predictor_recall),
        ]
        for shift, f in zip(shifts, found, strict=True)
    ]
    show_table(f"the plan's thresholds moved, drawn in {path}", columns, rows)


def _write_chart(path: Path, found: Sequence[Fidelity], measured: Fidelity, text: str) -> None:
    words = Words(
        title="What sparsity costs",
        note=f"{measured.tokens} tokens of {text}; labels are MLP densities, the plan itself is marked"
        + ("" if all(f.kld_mean >= SMALLEST_DRAWN for f in found) else "; less than 1e-8 stands at 1e-8"),
        across="MLP bytes read per token, of dense",
        upward="mean divergence from dense (nats per token)",
    )
    points = [
        Point(_of_dense(f), max(f.kld_mean, SMALLEST_DRAWN), share(f.mlp_density), f is measured)
        for f in found
    ]
    with replacing(path) as draft:
        draft.write_text(share_chart(words, points), encoding="utf-8")
