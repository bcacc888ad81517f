"""winnow inspect: what a checkpoint and its plan hold.   (floor 8 · cli)"""

import argparse
import math
from dataclasses import asdict

from winnow.cli.failures import say
from winnow.cli.opening import open_checkpoint
from winnow.cli.show import quantity, share, show_json, show_pairs, show_table
from winnow.engine.checkpoint import Checkpoint
from winnow.engine.config import ModelConfig
from winnow.engine.sparsity import LowRankPredictor, Plan, find_plan, open_plan
from winnow.kernels import relu

SHAPE = ("n_layers", "width", "n_heads", "n_kv_heads", "head_width", "n_neurons", "vocab_size", "n_positions")


def run(arguments: argparse.Namespace) -> int:
    """Print shapes, sizes and the plan; only config and headers are read, the weights stay on disk."""
    checkpoint = open_checkpoint(arguments)
    for note in checkpoint.notes:
        say(note)
    path = find_plan(checkpoint.directory)
    plan = open_plan(path, checkpoint.config, checkpoint.content_hash()) if path else None
    model = _model(checkpoint)
    if arguments.json:
        show_json({**model, "plan": plan and _plan(plan, checkpoint.config)})
        return 0
    rows = [(key, quantity(_n_bytes(checkpoint)) if key == "bytes" else str(model[key])) for key in model]
    show_pairs(str(checkpoint.directory), rows)
    if plan is None:
        print(_no_plan(checkpoint.config))
    else:
        _show_plan(plan, checkpoint.config)
    return 0


def _model(checkpoint: Checkpoint) -> dict[str, object]:
    config = checkpoint.config
    described = [checkpoint.describe(name) for name in checkpoint.names()]
    return {
        "family": config.family,
        "activation": config.activation.name,
        **{key: getattr(config, key) for key in SHAPE},
        "parameters": sum(math.prod(shape) for shape, _ in described),
        "bytes": _n_bytes(checkpoint),
        "dtypes": ", ".join(sorted({dtype for _, dtype in described})),
        "content_hash": checkpoint.content_hash(),
    }


def _n_bytes(checkpoint: Checkpoint) -> int:
    return sum(_tensor_bytes(*checkpoint.describe(name)) for name in checkpoint.names())


def _tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor; safetensors' type names hold the number of bits: BF16, F8_E4M3, I64."""
    digits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return math.prod(shape) * int(digits or 8) // 8


def _plan(plan: Plan, config: ModelConfig) -> dict[str, object]:
    layers = [
        {"rank": each.rank, "bytes": each.n_bytes, "share": _share_of_mlp(each, config)} if each else None
        for each in plan.layers
    ]
    weights = (3 if config.is_gated else 2) * config.width * config.n_neurons * config.n_layers
    share_of_mlp = plan.n_bytes / (2 * weights)  # bfloat16
    return {**asdict(plan.provenance), "bytes": plan.n_bytes, "share_of_mlp": share_of_mlp, "layers": layers}


def _share_of_mlp(predictor: LowRankPredictor, config: ModelConfig) -> float:
    """Return the predictor's bytes over those of the MLP's matrices in bfloat16."""
    weights = (3 if config.is_gated else 2) * config.width * config.n_neurons
    return predictor.n_bytes / (2 * weights)  # bfloat16


def _show_plan(plan: Plan, config: ModelConfig) -> None:
    rows = [
        [str(index), str(each.rank), quantity(each.n_bytes), share(_share_of_mlp(each, config))]
        if each
        else [str(index), "dense", "", ""]
        for index, each in enumerate(plan.layers)
    ]
    found = plan.provenance
    title = (
        f"plan: {found.predictor}, {found.lookahead}; KLD {found.measured_kld:.2g} nats "
        f"(target {found.target_kld:g}), density {share(found.measured_density)}, "
        f"recall {share(found.measured_recall)} on {found.validation_tokens} held-out tokens"
    )
    show_table(title, ("layer", "rank", "predictor", "of the MLP"), rows)


def _no_plan(config: ModelConfig) -> str:
    if config.activation is relu:
        return "No plan: it runs dense until winnow calibrate has made one."
    return f"No plan: {config.activation.name} neurons are never exactly zero, so this model runs dense."
