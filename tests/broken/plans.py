"""A plan for the tiny model, written by hand, so that each of its parts can be another."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.checkpoint import N_LAYERS, N_NEURONS, WIDTH
from winnow.engine import Checkpoint

NAME = "winnow-plan.safetensors"
RANK = 3


def said(directory: Path, **changes: object) -> dict:
    """What the metadata of a good plan says, but for `changes`; None leaves a key out."""
    row = {"kind": "svd", "lookahead": "same-layer"}
    found = {
        "format": "winnow-plan/2",
        "model_hash": Checkpoint.open(directory).content_hash(),
        "text_hash": "0" * 64,
        "lookahead": "same-layer",
        "predictor": "svd",
        "target_kld": 0.001,
        "measured_kld": 0.0009,
        "measured_density": 0.5,
        "measured_recall": 0.99,
        "validation_tokens": 1000,
        "precisions": ["fp32", "bf16"],
        "layers": [row] * N_LAYERS,
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    """The predictors of a good plan; `changes` are to layer 0, None leaves a tensor out."""
    layer = {
        "down": torch.full((RANK, WIDTH), 0.01),
        "up": torch.full((N_NEURONS, RANK), 0.01),
        "bias": torch.ones(N_NEURONS),
    }
    found = {f"layers.{i}.{name}": tensor.clone() for i in range(N_LAYERS) for name, tensor in layer.items()}
    found |= {f"layers.0.{name}": tensor for name, tensor in changes.items() if tensor is not None}
    for name, tensor in changes.items():
        if tensor is None:
            del found[f"layers.0.{name}"]
    return found


def write_plan(
    directory: Path,
    header: Mapping[str, object] | str | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a plan beside the weights; left out, each part is that of a good one."""
    content = header if isinstance(header, str) else json.dumps(said(directory) if header is None else header)
    save_file(dict(tensors() if held is None else held), directory / NAME, metadata={"winnow": content})
    return directory / NAME
