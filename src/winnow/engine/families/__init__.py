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

    Reads the spellings of transformers 4 and 5. Code that the config points to (``auto_map``) is never run.
    Raises ModelError for an unknown model type, a quantised checkpoint and every number outside its range.
    """
    fields = Fields(raw, where)
    family = _FAMILIES[fields.choice("model_type", None, MODEL_TYPES)]
    for key in ("quantization_config", "compression_config"):
        if fields.has(key):
            raise ModelError(
                f"{where} has a {key}: its weights are quantised by another tool, Winnow reads plain floats. "
                "Use the unquantised checkpoint of this model."
            )
    return family.parse(fields)


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of each tensor that a checkpoint of `config` holds."""
    return _FAMILIES[config.family].shapes(config)


def load_weights(source: TensorSource, dtype: torch.dtype) -> Weights:
    """Return the weights of `source` in `dtype`: matrices and records in it, norms and biases in float32.

    Every tensor's name, shape and type is checked before the first is read; tensors are then copied once,
    so peak memory is the model plus one tensor. Raises ModelError on any mismatch.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.int8, int4):
        raise UsageError(f"dtype is {dtype}, expected torch.float32, bfloat16, int8 or int4.")
    return _FAMILIES[source.config.family].load(source, dtype)
