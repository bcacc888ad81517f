"""Families: one file per architecture, with the same four names in each.   (floor 5 · engine)

    tensors.py   the gate for tensors, and how matrices and neuron records are filled from them
    rope.py      rotary positions: frequencies and tables
    opt.py       OPT: learned positions, layer norms, ungated ReLU
    llama.py     Llama, Mistral, Qwen2, Qwen3: rotary positions, RMS norms, gated MLP
    known.py     the table of families, and what is asked of whichever a config names

The four names: `MODEL_TYPES`, the values of ``model_type`` the file answers for; `parse`, from a config to
a ModelConfig; `shapes`, name and shape of each tensor of the checkpoint; `load`, from tensors to Weights.
"""

from winnow.engine.families.known import (
    MODEL_TYPES,
    empty_weights,
    load_weights,
    parse_config,
    tensor_shapes,
)
from winnow.engine.families.rope import rotary_table

__all__ = ["MODEL_TYPES", "empty_weights", "load_weights", "parse_config", "rotary_table", "tensor_shapes"]
