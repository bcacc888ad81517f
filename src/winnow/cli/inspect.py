"""winnow inspect: what a checkpoint, its packed files and its plan hold.   (floor 8 · cli)"""

import argparse
import math
from dataclasses import asdict

from winnow.cli.failures import say
from winnow.cli.opening import open_checkpoint
from winnow.cli.show import quantity, share, show_json, show_pairs, show_table
from winnow.engine.checkpoint import Checkpoint, check_finite
from winnow.engine.config import ModelConfig
from winnow.engine.convert import packed_files
from winnow.engine.sparsity import IndexPredictor, LowRankPredictor, Plan, find_plan, read_plan

SHAPE = ("n_layers", "width", "n_heads", "n_kv_heads", "head_width", "n_neurons", "vocab_size", "n_positions")

# What is counted of each layer, and the heads of the columns.
COUNTS = {
    "density": "density",
    "fired": "fired",
    "recall": "recall",
    "precision": "precision",
    "weighted_recall": "weighted",
}


def run(arguments: argparse.Namespace) -> int:
    """Print shapes, sizes and the plan; weights are read only to be checked."""
    checkpoint = open_checkpoint(arguments)
    for note in checkpoint.notes:
        say(note)
    if arguments.check_tensors:
        check_finite(checkpoint)
    path = find_plan(checkpoint.directory)
    plan = read_plan(path, checkpoint.config, checkpoint.content_hash()) if path else None
    model, packed = _model(checkpoint), _packed(checkpoint)
    if arguments.json:
        show_json({**model, "packed": packed, "plan": plan and _plan(plan, checkpoint.config)})
        return 0
    rows = [(key, quantity(_n_bytes(checkpoint)) if key == "bytes" else str(model[key])) for key in model]
    show_pairs(str(checkpoint.directory), rows)
    for each in packed:
        print(f"Packed: {each['file']}, {quantity(each['bytes'])}{each['problem'] and ', does not fit'}.")
        if each["problem"]:
            say(each["problem"])
    if plan is None:
        print("No plan: it runs dense until winnow calibrate has made one.")
    else:
        show_plan(plan, checkpoint.config)
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


def _packed(checkpoint: Checkpoint) -> list[dict]:
    """Return the packed files beside the weights, and why each does not fit them, "" where it does."""
    found = packed_files(checkpoint)
    return [
        {"file": path.name, "bytes": path.stat().st_size, "problem": problem}
        for path, problem in found.items()
    ]


def _n_bytes(checkpoint: Checkpoint) -> int:
    return sum(_tensor_bytes(*checkpoint.describe(name)) for name in checkpoint.names())


def _tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor; safetensors' type names hold the number of bits: BF16, F8_E4M3, I64."""
    digits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return math.prod(shape) * int(digits or 8) // 8


def _plan(plan: Plan, config: ModelConfig) -> dict[str, object]:
    share_of_mlp = plan.n_bytes / (_mlp_bytes(config) * config.n_layers)
    layers = [_layer(plan, index, config) for index in range(len(plan.layers))]
    return {**asdict(plan.provenance), "bytes": plan.n_bytes, "share_of_mlp": share_of_mlp, "layers": layers}


def _layer(plan: Plan, index: int, config: ModelConfig) -> dict[str, object]:
    """Return what the plan says of one layer; None stands where there is nothing to say."""
    predictor = plan.layers[index]
    counts = asdict(plan.quality[index]) if plan.quality else dict.fromkeys(COUNTS)
    if predictor is None:
        return {
            "kind": "dense",
            "lookahead": None,
            "rank": None,
            "signs": None,
            "bytes": 0,
            "share": 0.0,
            **counts,
        }
    return {
        "kind": predictor.kind,
        "lookahead": predictor.lookahead.value,
        "rank": predictor.rank if isinstance(predictor, LowRankPredictor) else None,
        "signs": predictor.n_signs if isinstance(predictor, IndexPredictor) else None,
        "bytes": predictor.n_bytes,
        "share": predictor.n_bytes / _mlp_bytes(config),
        **counts,
    }


def _mlp_bytes(config: ModelConfig) -> int:
    """Return the bytes of one MLP's matrices in bfloat16."""
    return 2 * (3 if config.is_gated else 2) * config.width * config.n_neurons


def show_plan(plan: Plan, config: ModelConfig, *, on_stderr: bool = False) -> None:
    """Print what a plan says of itself, layer by layer."""
    found = plan.provenance
    heads = f"head density {share(found.measured_head_density)}, " if plan.has_heads else ""
    title = (
        f"plan: {found.predictor}, {found.lookahead}, for {', '.join(found.precisions)}; "
        f"KLD {found.measured_kld:.2g} nats (target {found.target_kld:g}), "
        f"density {share(found.measured_density)}, {heads}recall {share(found.measured_recall)} "
        f"on {found.validation_tokens} held-out tokens"
    )
    rows = [_cells(index, _layer(plan, index, config)) for index in range(len(plan.layers))]
    columns = ("layer", "kind", "reads", "rank", "bytes", "of the MLP", *COUNTS.values())
    show_table(title, columns, rows, on_stderr=on_stderr)


def _cells(index: int, layer: dict) -> list[str]:
    counts = ["" if layer[name] is None else share(layer[name]) for name in COUNTS]
    if layer["kind"] == "dense":
        return [str(index), "dense", "", "", "", "", *counts]
    sizes = [
        f"{layer[name]}{unit}"
        for name, unit in (("rank", ""), ("signs", " signs"))
        if layer[name] is not None
    ]
    rank = "".join(sizes)
    own = [layer["kind"], layer["lookahead"], rank, quantity(layer["bytes"]), share(layer["share"])]
    return [str(index), *own, *counts]
