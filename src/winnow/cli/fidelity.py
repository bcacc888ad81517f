"""winnow fidelity: what the plan loses on a text.   (floor 8 · cli)"""

import argparse
from dataclasses import asdict

from winnow.base.errors import ModelError
from winnow.base.progress import Progress
from winnow.cli.opening import cut, open_engine, read_text
from winnow.cli.show import share, show_json, show_pairs
from winnow.engine.generate import torch_threads
from winnow.engine.sparsity import Fidelity, compare


def run(arguments: argparse.Namespace) -> int:
    """Compare sparse with dense on --text, token by token."""
    text = read_text(arguments.text)
    engine = open_engine(arguments, arguments.plan or "auto")
    if engine.plan is None:
        raise ModelError("this model has no plan beside it; run winnow calibrate, or name one with --plan.")
    pieces, _ = cut(engine, [text], arguments.limit)
    progress = Progress("comparing", len(pieces), quiet=arguments.quiet)
    with torch_threads(engine.cpu.threads):
        measured = compare(engine.weights, engine.plan, pieces, progress.update)
    if arguments.json:
        show_json(asdict(measured))
    else:
        show_pairs(f"sparse against dense on {arguments.text}", _rows(measured))
    return 0


def _rows(measured: Fidelity) -> list[tuple[str, str]]:
    return [
        ("tokens", str(measured.tokens)),
        ("perplexity, dense", f"{measured.ppl_dense:.4f}"),
        ("perplexity, sparse", f"{measured.ppl_sparse:.4f}"),
        ("KLD, mean (nats)", f"{measured.kld_mean:.2e}"),
        ("KLD, median", f"{measured.kld_median:.2e}"),
        ("KLD, 99.9 %", f"{measured.kld_p999:.2e}"),
        ("same likeliest token", share(measured.same_top)),
        ("MLP density", share(measured.mlp_density)),
        ("head density", share(measured.head_density)),
        ("predictor recall", share(measured.predictor_recall)),
    ]
