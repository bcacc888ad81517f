"""Synthetic: random OPT models of known shapes, for timing without a download.   (floor 5 · engine)

fc1 is a product of rank D/16 and its biases are shifted, layer by layer, until the asked share of neurons
fires on random tokens. The two factors are then a predictor of that rank that is exact up to rounding, the
same tensors go to every engine, and sparse and dense decoding must give the same tokens.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine.cache import KvCache
from winnow.engine.checkpoint import DictSource
from winnow.engine.families import load_weights, parse_config
from winnow.engine.model import MlpInputs, dense_mlp, forward
from winnow.engine.sparsity.predictor import LowRankPredictor
from winnow.engine.weights import Layer, Weights
from winnow.kernels import Matrix

OPT_SHAPES = {  # layers, width, heads
    "opt-125m": (12, 768, 12),
    "opt-1.3b": (24, 2048, 32),
    "opt-2.7b": (32, 2560, 32),
    "opt-6.7b": (32, 4096, 32),
    "opt-13b": (40, 5120, 40),
}
VOCABULARY = 50272
RANK_SHARE = 16  # rank of fc1: width over this
SPREAD_TOKENS = 256  # random tokens on which the biases are set
# A predicted score differs from the true pre-activation by rounding only; this covers it.
ROUNDING_MARGIN = 0.02
# Attention passes on what all tokens share and averages the rest away; at gain 1 every token ends up alike.
ATTENTION_GAIN = 0.1
# Small, as the head is the embedding: a token that weighs more predicts itself, again and again.
EMBED_SCALE = 0.05


@dataclass(frozen=True)
class SyntheticModel:
    """A random model: the tensors as a checkpoint holds them, loaded weights and exact predictors."""

    source: DictSource
    raw_config: dict
    weights: Weights
    predictors: tuple[LowRankPredictor, ...]


def synthetic_opt(shape: str, dtype: torch.dtype, density: float, seed: int) -> SyntheticModel:
    """Return a random OPT of a named shape in which a share `density` of each layer's neurons fires.

    Greedy decoding wanders over the vocabulary, so that equal tokens say something and the active sets
    change from step to step. Holds the tensors once for the source and once packed. Raises UsageError for
    an unknown shape or a density outside 0..1.
    """
    if shape not in OPT_SHAPES:
        raise UsageError(f"--shape is {shape!r}; expected one of {', '.join(OPT_SHAPES)}.")
    if not 0 < density < 1:
        raise UsageError(f"--density is {density}; expected a share between 0 and 1.")
    raw_config = opt_config(*OPT_SHAPES[shape])
    return synthetic_model(raw_config, dtype, density, seed)


def opt_config(n_layers: int, width: int, n_heads: int, vocab_size: int = VOCABULARY) -> dict:
    """Return the config.json of an OPT of this shape."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "num_hidden_layers": n_layers,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_attention_heads": n_heads,
        "ffn_dim": 4 * width,
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
    }


def synthetic_model(raw_config: dict, dtype: torch.dtype, density: float, seed: int) -> SyntheticModel:
    """Return a random model for `raw_config`, with the share `density` of its neurons firing."""
    draws = generator(seed)
    tensors, predictors = _tensors(raw_config, dtype, draws)
    source = DictSource(parse_config(raw_config), tensors)
    weights = load_weights(source, dtype)
    _shift_biases(weights, density, draws)
    for index, (layer, predictor) in enumerate(zip(weights.layers, predictors, strict=True)):
        # The biases were set in fp32 and belong to the checkpoint in its dtype; both hold the rounded value.
        for name, bias in (("fc1", layer.mlp.bias), ("fc2", _out_bias(layer))):
            rounded = bias.to(dtype)
            bias.copy_(rounded)
            tensors[f"model.decoder.layers.{index}.{name}.bias"].copy_(rounded)
        predictor.bias.copy_(layer.mlp.bias + ROUNDING_MARGIN)
    return SyntheticModel(source, raw_config, weights, tuple(predictors))


def _tensors(
    raw: dict, dtype: torch.dtype, draws: torch.Generator
) -> tuple[dict[str, Tensor], list[LowRankPredictor]]:
    width, n_neurons = raw["hidden_size"], raw["ffn_dim"]
    rank = max(width // RANK_SHARE, 1)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=draws).mul_(scale).to(dtype)

    def ones(n: int) -> Tensor:
        return torch.ones(n, dtype=dtype)

    def zeros(n: int) -> Tensor:
        return torch.zeros(n, dtype=dtype)

    stem = "model.decoder."
    tensors = {
        f"{stem}embed_tokens.weight": normal(raw["vocab_size"], width, scale=EMBED_SCALE),
        f"{stem}embed_positions.weight": normal(raw["max_position_embeddings"] + 2, width, scale=EMBED_SCALE),
        f"{stem}final_layer_norm.weight": ones(width),
        f"{stem}final_layer_norm.bias": zeros(width),
    }
    predictors = []
    for index in range(raw["num_hidden_layers"]):
        layer = f"{stem}layers.{index}."
        for name, gain in (("q_proj", 1.0), ("k_proj", 1.0), ("v_proj", 1.0), ("out_proj", ATTENTION_GAIN)):
            tensors[f"{layer}self_attn.{name}.weight"] = normal(width, width, scale=gain * width**-0.5)
            tensors[f"{layer}self_attn.{name}.bias"] = zeros(width)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            tensors[f"{layer}{name}.weight"], tensors[f"{layer}{name}.bias"] = ones(width), zeros(width)
        down = normal(rank, width, scale=width**-0.5)
        up = normal(n_neurons, rank, scale=rank**-0.5)
        tensors[f"{layer}fc1.weight"] = (up.float() @ down.float()).to(dtype)
        tensors[f"{layer}fc1.bias"] = zeros(n_neurons)
        tensors[f"{layer}fc2.weight"] = normal(width, n_neurons, scale=2 * n_neurons**-0.5)
        tensors[f"{layer}fc2.bias"] = zeros(width)
        predictors.append(LowRankPredictor(Matrix(down), Matrix(up), torch.zeros(n_neurons)))
    return tensors, predictors


def _shift_biases(weights: Weights, density: float, draws: torch.Generator) -> None:
    """Set fc1's biases in one forward pass, each layer after those below it are set."""
    config = weights.config
    ids = torch.randint(0, config.vocab_size, (SPREAD_TOKENS,), generator=draws)

    def shifting(index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
        w_in = layer.mlp.w_in.float()
        norms = w_in.norm(dim=-1)
        z = (inputs.own @ w_in.T) / norms  # [T, F], every neuron on one scale
        n_above = max(math.ceil(density * z.numel()), 1)
        shift = z.flatten().kthvalue(z.numel() - n_above + 1).values
        layer.mlp.bias.copy_(-shift * norms)
        y = dense_mlp(index, layer, inputs)
        # Half of a ReLU's output is the same for every token; left in, it drowns what the tokens say.
        _out_bias(layer).copy_(-y.mean(0))
        return y + _out_bias(layer)

    with torch.inference_mode():
        forward(weights, ids, KvCache(config, SPREAD_TOKENS, weights.embed.dtype), mlp=shifting)


def _out_bias(layer: Layer) -> Float[Tensor, " D"]:
    assert layer.mlp_bias is not None  # OPT's layers have one
    return layer.mlp_bias
