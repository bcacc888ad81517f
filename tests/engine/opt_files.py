"""A small OPT checkpoint: its config, random tensors, and ways to write them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.errors import ModelError, WinnowError
from winnow.base.rng import generator
from winnow.engine import Checkpoint, load_weights, parse_config, tensor_shapes

OPT = {
    "model_type": "opt",
    "hidden_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "ffn_dim": 20,
    "vocab_size": 31,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
}
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
NORM = "model.decoder.final_layer_norm.weight"


def random_tensors(raw: dict = OPT) -> dict[str, Tensor]:
    draws = generator(3)
    shapes = tensor_shapes(parse_config(raw))
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def write(directory: Path, tensors: dict[str, Tensor], raw: dict = OPT) -> Path:
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_shards(
    directory: Path, shards: dict[str, dict[str, Tensor]], weight_map: dict | None = None
) -> Path:
    (directory / "config.json").write_text(json.dumps(OPT))
    for file, tensors in shards.items():
        save_file(tensors, directory / file)
    found = {name: file for file, tensors in shards.items() for name in tensors}
    (directory / INDEX).write_text(json.dumps({"weight_map": found if weight_map is None else weight_map}))
    return directory


def two_shards() -> dict[str, dict[str, Tensor]]:
    names = sorted(random_tensors())
    tensors = random_tensors()
    return {
        "model-00001-of-00002.safetensors": {name: tensors[name] for name in names[::2]},
        "model-00002-of-00002.safetensors": {name: tensors[name] for name in names[1::2]},
    }


def refused(call: Callable[[], object], kind: type[WinnowError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def load(directory: Path) -> object:
    return load_weights(Checkpoint.open(directory), torch.float32)
