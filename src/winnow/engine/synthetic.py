"""Synthetic: random models of known shapes, for timing without a download.   (floor 5 · engine)

    OPT     fc1 is a product of rank D/16, of two int8 factors, and its biases are shifted, layer by layer,
            until the asked share of neurons fires on random tokens. The two factors are then a predictor of
            that rank that is exact up to rounding, and sparse and dense decoding must give the same tokens.
    Llama   SiLU is never zero, so no choice of neurons is exact. Each layer's gate thresholds let through the
            asked share on random tokens; sparse and dense decoding may part.

The same tensors go to every engine. Matrices are drawn anew whenever they are read, so that memory holds them
only where an engine does.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine.cache import KvCache
from winnow.engine.checkpoint import DictSource, DrawnTensor
from winnow.engine.families import load_weights, parse_config
from winnow.engine.model import HeadWatch, MlpInputs, dense_mlp, forward, weighted_sum
from winnow.engine.sparsity.predictor import GatePredictor, HeadPredictor, LowRankPredictor, Predictor
from winnow.engine.sparsity.sparse_heads import silenced
from winnow.engine.weights import HeadLinear, Layer, Linear, Weights, product
from winnow.kernels import QuantisedMatrix, matrix

OPT_SHAPES = {  # layers, width, heads
    "opt-125m": (12, 768, 12),
    "opt-1.3b": (24, 2048, 32),
    "opt-2.7b": (32, 2560, 32),
    "opt-6.7b": (32, 4096, 32),
    "opt-13b": (40, 5120, 40),
}
LLAMA_SHAPES = {  # layers, width, neurons, heads, kv heads
    "llama-1b": (16, 2048, 8192, 32, 8),
}
OPT_VOCABULARY = 50272
LLAMA_VOCABULARY = 128256
RANK_SHARE = 16  # rank of fc1: width over this
HEAD_SEED = 2
SPREAD_TOKENS = 256  # random tokens on which biases and thresholds are set
# A predicted score differs from the true pre-activation by rounding only; this covers it.
ROUNDING_MARGIN = 0.02
# Attention passes on what all tokens share and averages the rest away; at gain 1 every token ends up alike.
ATTENTION_GAIN = 0.1
# Small, as the head is the embedding: a token that weighs more predicts itself, again and again.
EMBED_SCALE = 0.05


@dataclass(frozen=True)
class SyntheticModel:
    """A random model: the tensors as a checkpoint holds them, loaded weights and a predictor per layer.

    With exact predictors, sparse decoding gives the tokens of dense decoding.
    """

    source: DictSource
    raw_config: dict
    weights: Weights
    predictors: tuple[Predictor, ...]
    is_exact: bool

    def with_head(self, dtype: torch.dtype) -> "SyntheticModel":
        """Return the model with the map to logits held as `dtype`; what other engines get stays as it is.

        Rounded from what is held already, which of random weights is as good as their checkpoint.
        """
        head = self.weights.head
        held = matrix(head.matrix.weight, dtype)
        embed = held if head.matrix is self.weights.embed else self.weights.embed
        return replace(self, weights=replace(self.weights, embed=embed, head=Linear(held, head.bias)))

    def by_head(self, density: float | int) -> "tuple[Weights, tuple[HeadPredictor, ...]]":
        """Return the weights with the map behind attention by head, and predictors of a `density` of heads.

        They are drawn at random, so tokens part from the dense ones. Copies that one map of each layer.
        """
        if not 0 < density < 1:
            raise UsageError(f"--head-density is {density}; expected a share between 0 and 1.")
        n_heads = self.weights.config.n_kv_heads
        layers = tuple(replace(layer, out=_by_head(layer.out, n_heads)) for layer in self.weights.layers)
        weights = replace(self.weights, layers=layers)
        return weights, _head_predictors(weights, density, generator(HEAD_SEED))


def synthetic_shape(shape: str, dtype: torch.dtype, density: float, seed: int) -> SyntheticModel:
    """Return a random model of a named shape in which a share `density` of each layer's neurons is computed.

    Greedy decoding wanders over the vocabulary, so that equal tokens say something and the active sets
    change from step to step. Holds the tensors once, packed. Raises UsageError for
    an unknown shape or a density outside 0..1.
    """
    raw_config = shape_config(shape)
    if not 0 < density < 1:
        raise UsageError(f"--density is {density}; expected a share between 0 and 1.")
    return synthetic_model(raw_config, dtype, density, seed)


def shape_config(shape: str) -> dict:
    """Return the config.json of a named shape; raises UsageError for an unknown one."""
    if shape in OPT_SHAPES:
        return opt_config(*OPT_SHAPES[shape])
    if shape in LLAMA_SHAPES:
        return llama_config(*LLAMA_SHAPES[shape])
    raise UsageError(f"--shape is {shape!r}; expected one of {', '.join((*OPT_SHAPES, *LLAMA_SHAPES))}.")


def opt_config(n_layers: int, width: int, n_heads: int, vocab_size: int = OPT_VOCABULARY) -> dict:
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


def llama_config(
    n_layers: int,
    width: int,
    n_neurons: int,
    n_heads: int,
    n_kv_heads: int,
    vocab_size: int = LLAMA_VOCABULARY,
) -> dict:
    """Return the config.json of a Llama of this shape, its head tied to the embedding."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": n_layers,
        "hidden_size": width,
        "intermediate_size": n_neurons,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": width // n_heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }


def synthetic_model(raw_config: dict, dtype: torch.dtype, density: float, seed: int) -> SyntheticModel:
    """Return a random model for `raw_config`, with predictors that select the share `density`."""
    draws = generator(seed)
    if raw_config["model_type"] == "llama":
        return _synthetic_llama(raw_config, dtype, density, draws)
    return _synthetic_opt(raw_config, dtype, density, draws)


def _synthetic_opt(raw: dict, dtype: torch.dtype, density: float, draws: torch.Generator) -> SyntheticModel:
    stored = dtype if dtype.is_floating_point else torch.bfloat16
    tensors, predictors = _opt_tensors(raw, stored, draws)
    source = DictSource(parse_config(raw), tensors)
    weights = load_weights(source, dtype)
    _shift_biases(weights, density, draws)
    for index, (layer, predictor) in enumerate(zip(weights.layers, predictors, strict=True)):
        # The biases were set in fp32 and belong to the checkpoint in its dtype; both hold the rounded value.
        for name, bias in (("fc1", layer.mlp.bias), ("fc2", _out_bias(layer))):
            rounded = bias.to(stored)
            bias.copy_(rounded)
            source.tensor(f"model.decoder.layers.{index}.{name}.bias").copy_(rounded)
        predictor.bias.copy_(layer.mlp.bias + ROUNDING_MARGIN)
    # fc1 rounded to int8 or int4 has no rank of its own any more, and the predictor is of the one before.
    return SyntheticModel(source, raw, weights, tuple(predictors), is_exact=dtype.is_floating_point)


def _synthetic_llama(raw: dict, dtype: torch.dtype, density: float, draws: torch.Generator) -> SyntheticModel:
    stored = dtype if dtype.is_floating_point else torch.bfloat16
    source = DictSource(parse_config(raw), _llama_tensors(raw, stored, draws))
    weights = load_weights(source, dtype)
    return SyntheticModel(source, raw, weights, _gate_predictors(weights, density, draws), is_exact=False)


def _normal(n_rows: int, n_columns: int, scale: float, dtype: torch.dtype, seed: int) -> DrawnTensor:
    def draw() -> Tensor:
        return torch.randn(n_rows, n_columns, generator=generator(seed)).mul_(scale).to(dtype)

    return DrawnTensor((n_rows, n_columns), dtype, draw)


def _product(up: QuantisedMatrix, down: QuantisedMatrix, dtype: torch.dtype) -> DrawnTensor:
    shape = (up.weight.shape[0], down.weight.shape[1])
    return DrawnTensor(shape, dtype, lambda: (up.weight @ down.weight).to(dtype))


def _seed(draws: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=draws))


def _opt_tensors(
    raw: dict, dtype: torch.dtype, draws: torch.Generator
) -> tuple[dict[str, Tensor | DrawnTensor], list[LowRankPredictor]]:
    width, n_neurons = raw["hidden_size"], raw["ffn_dim"]
    rank = max(width // RANK_SHARE, 1)

    def normal(n_rows: int, n_columns: int, scale: float) -> DrawnTensor:
        return _normal(n_rows, n_columns, scale, dtype, _seed(draws))

    def ones(n: int) -> Tensor:
        return torch.ones(n, dtype=dtype)

    def zeros(n: int) -> Tensor:
        return torch.zeros(n, dtype=dtype)

    stem = "model.decoder."
    tensors: dict[str, Tensor | DrawnTensor] = {
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
        down = QuantisedMatrix.of(normal(rank, width, scale=width**-0.5).draw())
        up = QuantisedMatrix.of(normal(n_neurons, rank, scale=rank**-0.5).draw())
        tensors[f"{layer}fc1.weight"] = _product(up, down, dtype)
        tensors[f"{layer}fc1.bias"] = zeros(n_neurons)
        tensors[f"{layer}fc2.weight"] = normal(width, n_neurons, scale=2 * n_neurons**-0.5)
        tensors[f"{layer}fc2.bias"] = zeros(width)
        predictors.append(LowRankPredictor(down, up, torch.zeros(n_neurons)))
    return tensors, predictors


def _llama_tensors(raw: dict, dtype: torch.dtype, draws: torch.Generator) -> dict[str, Tensor | DrawnTensor]:
    width, n_neurons, head_width = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    q_width, kv_width = raw["num_attention_heads"] * head_width, raw["num_key_value_heads"] * head_width

    def normal(n_rows: int, n_columns: int, scale: float) -> DrawnTensor:
        return _normal(n_rows, n_columns, scale, dtype, _seed(draws))

    tensors: dict[str, Tensor | DrawnTensor] = {
        "model.embed_tokens.weight": normal(raw["vocab_size"], width, EMBED_SCALE),
        "model.norm.weight": torch.ones(width, dtype=dtype),
    }
    for index in range(raw["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, n_rows in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
            tensors[f"{layer}self_attn.{name}.weight"] = normal(n_rows, width, width**-0.5)
        tensors[f"{layer}self_attn.o_proj.weight"] = normal(width, q_width, ATTENTION_GAIN * q_width**-0.5)
        for name in ("gate_proj", "up_proj"):
            tensors[f"{layer}mlp.{name}.weight"] = normal(n_neurons, width, width**-0.5)
        tensors[f"{layer}mlp.down_proj.weight"] = normal(width, n_neurons, 2 * n_neurons**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = torch.ones(width, dtype=dtype)
    return tensors


def _by_head(out: Linear | HeadLinear, n_heads: int) -> HeadLinear:
    return HeadLinear.of(out.matrix.weight, n_heads, out.matrix.dtype, out.bias)


def _head_predictors(
    weights: Weights, density: float | int, draws: torch.Generator
) -> tuple[HeadPredictor, ...]:
    """Return predictors that each select a head for a share `density` of random tokens."""
    config = weights.config
    rank = max(config.width // RANK_SHARE // 4, 1)
    ids = torch.randint(0, config.vocab_size, (SPREAD_TOKENS,), generator=draws)
    predictors = []

    def choosing(index: int, layer: Layer, x: Float[Tensor, "T D"]) -> HeadWatch:
        down = QuantisedMatrix.of(torch.randn(rank, config.width, generator=draws))
        up = QuantisedMatrix.of(torch.randn(config.n_kv_heads, rank, generator=draws))
        predictor = LowRankPredictor(down, up, torch.zeros(config.n_kv_heads))
        scores = predictor.scores(x)
        predictor.bias.copy_(-scores.quantile(1 - float(density), dim=0))
        predictors.append(predictor)
        return lambda mixed: silenced(mixed, predictor.scores(x) > 0)

    with torch.inference_mode():
        forward(weights, ids, KvCache(config, SPREAD_TOKENS, weights.cache_dtype), heads=choosing)
    return tuple(predictors)


def _gate_predictors(weights: Weights, density: float, draws: torch.Generator) -> tuple[GatePredictor, ...]:
    """Return gate thresholds from one forward pass, each layer's above winnowed layers."""
    config = weights.config
    ids = torch.randint(0, config.vocab_size, (SPREAD_TOKENS,), generator=draws)
    predictors = []

    def choosing(index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
        gates = layer.activation(product(inputs.own, layer.mlp.w_in) + layer.mlp.bias)  # [T, F]
        ups = product(inputs.own, layer.mlp.w_up) + layer.mlp.bias_up
        # A gate of 1 moves the output by this much: one level of contribution serves all neurons.
        reach = ups.square().mean(0).sqrt() * layer.mlp.w_out.float().norm(dim=-1)
        level = _reached_by(gates.abs() * reach, density)
        predictor = GatePredictor(level / reach)
        predictors.append(predictor)
        return weighted_sum(layer, gates * ups * predictor.selected(layer, inputs))

    with torch.inference_mode():
        forward(weights, ids, KvCache(config, SPREAD_TOKENS, weights.cache_dtype), mlp=choosing)
    return tuple(predictors)


def _reached_by(values: Float[Tensor, "T F"], share: float) -> Float[Tensor, ""]:
    """Return the level that a `share` of the values, at least one, reaches."""
    n_above = max(math.ceil(share * values.numel()), 1)
    return values.flatten().kthvalue(values.numel() - n_above + 1).values


def _shift_biases(weights: Weights, density: float, draws: torch.Generator) -> None:
    """Set fc1's biases in one forward pass, each layer after those below it are set."""
    config = weights.config
    ids = torch.randint(0, config.vocab_size, (SPREAD_TOKENS,), generator=draws)

    def shifting(index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
        w_in = layer.mlp.w_in.float()
        norms = w_in.norm(dim=-1)
        z = (inputs.own @ w_in.T) / norms  # [T, F], every neuron on one scale
        shift = _reached_by(z, density)
        layer.mlp.bias.copy_(-shift * norms)
        y = dense_mlp(index, layer, inputs)
        # Half of a ReLU's output is the same for every token; left in, it drowns what the tokens say.
        _out_bias(layer).copy_(-y.mean(0))
        return y + _out_bias(layer)

    with torch.inference_mode():
        forward(weights, ids, KvCache(config, SPREAD_TOKENS, weights.cache_dtype), mlp=shifting)


def _out_bias(layer: Layer) -> Float[Tensor, " D"]:
    assert layer.mlp_bias is not None  # OPT's layers have one
    return layer.mlp_bias
