"""winnow calibrate: make a model's plan.   (floor 8 · cli)"""

import argparse

from winnow.cli.failures import say
from winnow.cli.opening import cut, open_checkpoint, open_engine, read_text
from winnow.cli.show import quantity, share
from winnow.engine.generate import Engine, torch_threads
from winnow.engine.sparsity import CalibrationOptions, Lookahead, Plan, calibrate
from winnow.engine.sparsity.frontier import mlp_bytes
from winnow.engine.sparsity.plan import FILE_NAME
from winnow.engine.sparsity.resume import forget, partial_directory
from winnow.engine.sparsity.sanity import text_warnings
from winnow.engine.sparsity.search import HEAD_STEPS


def run(arguments: argparse.Namespace) -> int:
    """Fit and verify a plan on --text, write it, say what was measured."""
    options = CalibrationOptions(
        target_kld=arguments.target_kld,
        predictor=arguments.predictor,
        lookahead=Lookahead(arguments.lookahead),
        quiet=arguments.quiet,
        heads=arguments.heads,
    )
    texts = [read_text(path) for path in arguments.text]
    checkpoint = open_checkpoint(arguments)
    options.kinds(checkpoint.config.is_gated)  # refused before the weights are read
    out = arguments.out or checkpoint.directory / FILE_NAME
    out.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be had is better known at once
    engine = open_engine(arguments, plan=None)
    if not arguments.quiet:
        _doubt(engine, texts)
    pieces, _ = cut(engine, texts, arguments.limit)
    partial = partial_directory(out)
    try:
        with torch_threads(engine.cpu.threads):
            plan = calibrate(engine.weights, checkpoint.content_hash(), pieces, options, partial)
    except KeyboardInterrupt:
        say(f"{partial} keeps what is finished; the same command goes on from there.")
        raise
    plan.save(out)
    forget(out)
    if not arguments.quiet:
        _say_of_heads(options, plan)
    print(f"{out}: {_measured(engine, plan)}")
    return 0


def _doubt(engine: Engine, texts: list[str]) -> None:
    """Say what speaks against the texts; a part of each is enough to see it."""
    tokenizer = engine.tokenizer

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, special=False)

    sample = "".join(text[:2000] for text in texts[:50])
    for warning in text_warnings(sample, encode(sample), tokenizer.token_id("<unk>"), encode):
        say(f"warning: {warning}")


def _say_of_heads(options: CalibrationOptions, plan: Plan) -> None:
    """Say where leaving heads out did not go as one might think."""
    found = plan.provenance
    if options.heads == "auto" and not plan.has_heads:
        say(
            f"no share of the heads pays: leaving out one in {HEAD_STEPS} already misses the target; "
            "the plan keeps all."
        )
    if plan.has_heads and found.measured_kld > found.target_kld:
        say(f"the plan misses its target, as --heads {options.heads} asks; a larger share loses less.")


def _measured(engine: Engine, plan: Plan) -> str:
    found = plan.provenance
    heads = f"head density {share(found.measured_head_density)}, " if plan.has_heads else ""
    total_bytes = sum(mlp_bytes(layer.mlp) for layer in engine.weights.layers)
    return (
        f"KLD {found.measured_kld:.2g} nats on {found.validation_tokens} held-out tokens "
        f"(target {found.target_kld:g}), density {share(found.measured_density)}, "
        f"recall {share(found.measured_recall)}, {heads}predictors {quantity(plan.n_bytes)} of the MLPs' "
        f"{quantity(total_bytes)} in bf16 ({share(plan.n_bytes / total_bytes)})"
    )
