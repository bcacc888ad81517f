"""winnow calibrate: make a model's plan.   (floor 8 · cli)"""

import argparse

from winnow.cli.opening import cut, open_checkpoint, open_engine, read_text
from winnow.cli.show import quantity, share
from winnow.engine.generate import Engine, torch_threads
from winnow.engine.sparsity import CalibrationOptions, Plan, calibrate
from winnow.engine.sparsity.frontier import mlp_bytes
from winnow.engine.sparsity.plan import FILE_NAME


def run(arguments: argparse.Namespace) -> int:
    """Fit and verify a plan on --text, write it, say what was measured."""
    options = CalibrationOptions(target_kld=arguments.target_kld, quiet=arguments.quiet)
    texts = [read_text(path) for path in arguments.text]
    checkpoint = open_checkpoint(arguments)
    out = arguments.out or checkpoint.directory / FILE_NAME
    out.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be had is better known at once
    engine = open_engine(arguments, plan=None)
    pieces, _ = cut(engine, texts, arguments.limit)
    with torch_threads(engine.cpu.threads):
        plan = calibrate(engine.weights, checkpoint.content_hash(), pieces, options)
    plan.save(out)
    print(f"{out}: {_measured(engine, plan)}")
    return 0


def _measured(engine: Engine, plan: Plan) -> str:
    found = plan.provenance
    total_bytes = sum(mlp_bytes(layer.mlp) for layer in engine.weights.layers)
    return (
        f"KLD {found.measured_kld:.2g} nats on {found.validation_tokens} held-out tokens "
        f"(target {found.target_kld:g}), density {share(found.measured_density)}, "
        f"recall {share(found.measured_recall)}, predictors {quantity(plan.n_bytes)} of the MLPs' "
        f"{quantity(total_bytes)} in bf16 ({share(plan.n_bytes / total_bytes)})"
    )
