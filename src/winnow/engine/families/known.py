"""Known: the families, and what is asked of whichever a config names.   (floor 5 · engine)"""

from typing import Any

import torch

from winnow.base.errors import ModelError, UsageError
from winnow.engine.config import Fields, ModelConfig
from winnow.engine.families import llama, opt
from winnow.engine.families.tensors import EmptyTensors, Shapes, Tensors, TensorSource, UncodedError
from winnow.engine.weights import DTYPES, Weights
from winnow.kernels.choice import codes_pay

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
    `by_head`: so that heads can be left out. bfloat16 is coded, in twelve bits a weight, where that is faster
    and all of the model can be; where one row cannot, the work is begun anew. Raises ModelError, and
    UsageError for another type.
    """
    if wrong := {dtype, head_dtype or dtype} - set(DTYPES.values()):
        known = ", ".join(sorted(map(str, DTYPES.values())))
        raise UsageError(f"dtype is {wrong.pop()}, expected one of {known}.")
    family, shapes = _FAMILIES[source.config.family], tensor_shapes(source.config)
    try:
        return family.load(Tensors(source, shapes, dtype, head_dtype, is_coded=codes_pay()), by_head)
    except UncodedError:
        return family.load(Tensors(source, shapes, dtype, head_dtype), by_head)


def empty_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    head_dtype: torch.dtype | None = None,
    by_head: bool = False,
    is_coded: bool = True,
) -> Weights:
    """Return weights laid out as `load_weights` lays them out, in memory that is still to be written.

    `is_coded` says whether that codes what it holds as bfloat16, which depends on the weights.
    """
    tensors = EmptyTensors(config, tensor_shapes(config), dtype, head_dtype, is_coded)
    return _FAMILIES[config.family].load(tensors, by_head)
