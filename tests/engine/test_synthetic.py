"""Synthetic models: the density asked for, and predictors that are exact where exactness is possible."""

import numpy as np
import pytest
import torch

from winnow.base.errors import UsageError
from winnow.engine import KvCache, parse_config, tensor_shapes
from winnow.engine.decode import Decoder
from winnow.engine.sparsity import Plan, compare
from winnow.engine.sparsity.plan import Provenance
from winnow.engine.sparsity.predictor import GatePredictor
from winnow.engine.synthetic import (
    llama_config,
    opt_config,
    shape_config,
    synthetic_model,
    synthetic_shape,
)
from winnow.kernels import open_cpu, silu

TINY_LLAMA = llama_config(4, 128, 368, 4, 2, vocab_size=500)
UNMEASURED = Provenance("", "", "same-layer", "synthetic", 0.0, 0.0, 0.0, 1.0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_predictors_miss_nothing_and_hardly_overreach(dtype, rng):
    model = synthetic_model(opt_config(3, 128, 4, vocab_size=500), dtype, 0.1, seed=1)
    ids = torch.randint(0, 500, (200,), generator=rng)
    measured = compare(model.weights, Plan(UNMEASURED, model.predictors), [ids], lambda done: None)
    assert measured.predictor_recall > 0.999
    assert measured.kld_mean < 1e-5
    for layer in measured.layers:
        assert layer.density - layer.fired < 0.01


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_the_asked_share_of_neurons_fires(density, rng):
    model = synthetic_model(opt_config(4, 256, 4, vocab_size=500), torch.float32, density, seed=2)
    ids = torch.randint(0, 500, (200,), generator=rng)
    measured = compare(model.weights, Plan(UNMEASURED, model.predictors), [ids], lambda done: None)
    assert measured.mlp_density == pytest.approx(density, abs=0.02)


@pytest.mark.parametrize("raw", [opt_config(2, 64, 4, vocab_size=500), TINY_LLAMA], ids=["opt", "llama"])
def test_a_tensor_is_the_same_whenever_it_is_read_and_no_other_is(raw):
    source = synthetic_model(raw, torch.bfloat16, 0.1, seed=4).source
    names = [name for name in source.names() if source.tensor(name).ndim == 2]
    for name in names:
        tensor = source.tensor(name)
        assert torch.equal(tensor, source.tensor(name))
        assert source.describe(name) == (tuple(tensor.shape), "BF16")
    assert len({tuple(source.tensor(name).flatten()[:8].tolist()) for name in names}) == len(names)


def greedily(model, n_tokens) -> tuple[list[int], float]:
    """The likeliest tokens after one token, and the share of neurons that they took."""
    cache = KvCache(model.weights.config, n_tokens, model.weights.embed.dtype)
    decoding = Decoder(model.weights, model.predictors, open_cpu(1)).start(cache)
    tokens = [7]
    for _ in range(n_tokens):
        tokens.append(int(np.argmax(decoding.step(tokens[-1])[0])))
    return tokens, decoding.counts.mlp_density


@pytest.mark.parametrize("raw", [opt_config(4, 128, 4, vocab_size=500), TINY_LLAMA], ids=["opt", "llama"])
def test_greedy_decoding_does_not_repeat_one_token(raw):
    tokens, _ = greedily(synthetic_model(raw, torch.float32, 0.1, seed=3), 30)
    assert len(set(tokens)) > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.4])
def test_gates_let_the_asked_share_through_while_decoding(dtype, density):
    model = synthetic_model(TINY_LLAMA, dtype, density, seed=5)
    assert all(isinstance(predictor, GatePredictor) for predictor in model.predictors)
    assert greedily(model, 60)[1] == pytest.approx(density, abs=0.01)


def test_exact_predictors_are_those_of_relu():
    assert synthetic_model(opt_config(1, 64, 4, 101), torch.float32, 0.1, seed=4).is_exact
    assert not synthetic_model(llama_config(1, 64, 96, 4, 2, 101), torch.float32, 0.1, seed=4).is_exact


def test_one_level_of_contribution_serves_all_neurons(rng):
    model = synthetic_model(TINY_LLAMA, torch.float32, 0.2, seed=6)
    ids = torch.randint(0, 500, (300,), generator=rng)
    measured = compare(model.weights, Plan(UNMEASURED, model.predictors), [ids], lambda done: None)
    for layer in measured.layers:
        assert layer.density == pytest.approx(0.2, abs=0.02)
        assert layer.weighted_recall > 2 * layer.density  # the heavy ones, not any


def test_llama_1b_has_the_published_shape():
    config = parse_config(shape_config("llama-1b"))
    assert (config.n_layers, config.width, config.n_neurons) == (16, 2048, 8192)
    assert (config.n_heads, config.n_kv_heads, config.head_width) == (32, 8, 64)
    assert config.rope is not None
    assert (config.rope.theta, config.activation, config.is_tied) == (500_000.0, silu, True)
    assert sum(np.prod(shape) for shape in tensor_shapes(config).values()) == 1_235_814_400


def test_the_source_holds_the_loaded_numbers():
    model = synthetic_model(opt_config(2, 64, 4, vocab_size=101), torch.bfloat16, 0.1, seed=4)
    for index, layer in enumerate(model.weights.layers):
        stored = model.source.tensor(f"model.decoder.layers.{index}.fc1.bias")
        assert torch.equal(stored.float(), layer.mlp.bias)
        assert torch.equal(model.source.tensor(f"model.decoder.layers.{index}.fc1.weight"), layer.mlp.w_in)


@pytest.mark.parametrize("raw", [opt_config(1, 64, 4, 101), llama_config(1, 64, 96, 4, 2, 101)], ids=str)
def test_the_source_holds_every_tensor_of_its_config(raw):
    model = synthetic_model(raw, torch.float32, 0.1, seed=4)
    shapes = {name: tuple(model.source.tensor(name).shape) for name in model.source.names()}
    assert shapes == {name: tuple(shape) for name, shape in tensor_shapes(model.weights.config).items()}


@pytest.mark.parametrize("raw", [opt_config(1, 64, 4, 101), llama_config(1, 64, 96, 4, 2, 101)], ids=str)
def test_equal_seeds_give_equal_models(raw):
    one, two = (synthetic_model(raw, torch.float32, 0.1, seed=5) for _ in range(2))
    other = synthetic_model(raw, torch.float32, 0.1, seed=6)
    assert torch.equal(one.weights.embed.weight, two.weights.embed.weight)
    assert torch.equal(one.weights.layers[0].mlp.storage, two.weights.layers[0].mlp.storage)
    assert not torch.equal(one.weights.embed.weight, other.weights.embed.weight)


@pytest.mark.parametrize(
    ("shape", "density"), [("opt-9b", 0.1), ("llama-2b", 0.1), ("opt-125m", 0.0), ("llama-1b", 1.2)]
)
def test_refuses_unknown_shapes_and_densities(shape, density):
    with pytest.raises(UsageError, match="expected"):
        synthetic_shape(shape, torch.bfloat16, density, seed=0)
