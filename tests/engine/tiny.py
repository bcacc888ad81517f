"""Tiny random checkpoints, written by transformers and large enough in their weights to show mistakes.

Matrices are drawn from N(0, 1.5 / sqrt(fan in)), norms and biases are perturbed: attention is then far from
uniform, so that a wrong rotation, mask or head order changes the logits.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "opt": (OPTConfig, OPTForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
VOCAB_SIZE = 211
N_POSITIONS = 320
OPT = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 104}
LLAMA = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 88}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 80}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Variant:
    """One kind of checkpoint: its family and what differs from the family's plain shape."""

    name: str
    family: str
    settings: dict = field(default_factory=dict)


VARIANTS = (
    Variant("opt", "opt"),
    Variant("opt-350m", "opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    Variant("opt-no-final-norm", "opt", {"_remove_final_layer_norm": True}),
    Variant("opt-bare-maps", "opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    Variant("opt-untied", "opt", {"tie_word_embeddings": False}),
    Variant("llama", "llama"),
    Variant("llama-tied", "llama", {"tie_word_embeddings": True}),
    Variant("llama-grouped", "llama", {"num_key_value_heads": 2, "head_dim": 20, "rope_parameters": LLAMA3}),
    Variant(
        "llama-linear",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    Variant("llama-yarn", "llama", {"num_key_value_heads": 3, "rope_parameters": YARN}),
    Variant("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
    Variant("mistral", "mistral", {"num_key_value_heads": 3, "sliding_window": None}),
    Variant("mistral-window", "mistral", {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 17}),
    Variant("qwen2", "qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    Variant(
        "qwen2-window",
        "qwen2",
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 31, "max_window_layers": 1},
    ),
    Variant("qwen3", "qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    Variant(
        "qwen3-biases",
        "qwen3",
        {
            "num_key_value_heads": 3,
            "head_dim": 10,
            "attention_bias": True,
            "rope_parameters": {**YARN, "attention_factor": 1.25, "truncate": False, "beta_fast": 16.0},
        },
    ),
)


def tiny_model(variant: Variant, generator: torch.Generator) -> PreTrainedModel:
    """Return the random model of `variant`, in float32 and ready to run."""
    config_class, model_class = CLASSES[variant.family]
    sizes = OPT if variant.family == "opt" else LLAMA
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    config = config_class(
        **{
            **sizes,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": N_POSITIONS,
            **ends,
            **variant.settings,
        }
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(draw * 1.5 / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(draw * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.requires_grad_(False)


def save(model: PreTrainedModel, directory: Path, **options) -> Path:
    """Write `model` as transformers does; `options` go to save_pretrained."""
    model.save_pretrained(directory, **options)
    return directory
