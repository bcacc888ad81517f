"""Families: one file per architecture, with the same four names in each.   (floor 5 · engine)

    tensors.py   the gate for tensors, and how matrices and neuron records are filled from them
    rope.py      rotary positions: frequencies and tables
    opt.py       OPT: learned positions, layer norms, ungated ReLU
    llama.py     Llama, Mistral, Qwen2, Qwen3: rotary positions, RMS norms, gated MLP

The four names: `MODEL_TYPES`, the values of ``model_type`` the file answers for; `parse`, from a config to
a ModelConfig; `shapes`, name and shape of each tensor of the checkpoint; `load`, from a source to Weights.
"""

from typing import Any

import torch

from winnow.base.errors import ModelError, UsageError
from winnow.engine.config import Fields, ModelConfig
from winnow.engine.families import llama, opt
from winnow.engine.families.rope import rotary_table
from winnow.engine.families.tensors import Shapes, TensorSource
from winnow.engine.weights import Weights
from winnow.kernels import int4

__all__ = ["MODEL_TYPES", "load_weights", "parse_config", "rotary_table", "tensor_shapes"]

_FAMILIES = {model_type: family for family in (opt, llama) for model_type in family.MODEL_TYPES}
MODEL_TYPES = tuple(sorted(_FAMILIES))


def parse_config(raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Return the shape of the model that a config, which messages call `where`, describes.

    Reads the spellings of transformers 4 and 5; its ``auto_map`` never runs. Raises ModelError.
    """
    fields = Fields(raw, where)
    family = _FAMILIES[fields.choice("model_type", None, MODEL_TYPES)]
    for key in ("quantization_config", "compression_config"):
        if fields.has(key):
            quantised = f"{where} has a {key}: its weights were quantised by another tool"
            raise ModelError(f"{quantised}, Winnow reads plain floats. Use the unquantised checkpoint.")
    return family.parse(fields)


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of each tensor that a checkpoint of `config` holds."""
    return _FAMILIES[config.family].shapes(config)


def load_weights(
    source: TensorSource, dtype: torch.dtype, *, head_dtype: torch.dtype | None = None, by_head: bool = False
) -> Weights:
    """Return the weights of `source` in `dtype`, the head in `head_dtype`, norms and biases in float32.

    Each tensor is checked before the first is read, then copied once: peak memory is the model plus one.
    `by_head`: so that heads can be left out. Raises ModelError, and UsageError for another type.
    """
    if wrong := {dtype, head_dtype or dtype} - (known := {torch.float32, torch.bfloat16, torch.int8, int4}):
        raise UsageError(f"dtype is {wrong.pop()}, expected one of {', '.join(sorted(map(str, known)))}.")
    return _FAMILIES[source.config.family].load(source, dtype, head_dtype, by_head)
