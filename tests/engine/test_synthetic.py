"""Synthetic models: the density asked for, and predictors that are exact."""

import numpy as np
import pytest
import torch

from winnow.base.errors import UsageError
from winnow.engine import KvCache
from winnow.engine.decode import Decoder
from winnow.engine.sparsity import Plan, compare
from winnow.engine.sparsity.plan import Provenance
from winnow.engine.synthetic import opt_config, synthetic_model, synthetic_opt
from winnow.kernels import open_cpu

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


def test_greedy_decoding_does_not_repeat_one_token():
    model = synthetic_model(opt_config(4, 128, 4, vocab_size=500), torch.float32, 0.1, seed=3)
    decoder = Decoder(model.weights, model.predictors, open_cpu(1))
    cache = KvCache(model.weights.config, 40, torch.float32)
    tokens = [7]
    for _ in range(30):
        tokens.append(int(np.argmax(decoder.step(tokens[-1], cache))))
    assert len(set(tokens)) > 10


def test_the_source_holds_the_loaded_numbers():
    model = synthetic_model(opt_config(2, 64, 4, vocab_size=101), torch.bfloat16, 0.1, seed=4)
    for index, layer in enumerate(model.weights.layers):
        stored = model.source.tensor(f"model.decoder.layers.{index}.fc1.bias")
        assert torch.equal(stored.float(), layer.mlp.bias)
        assert torch.equal(model.source.tensor(f"model.decoder.layers.{index}.fc1.weight"), layer.mlp.w_in)


def test_equal_seeds_give_equal_models():
    one, two = (synthetic_model(opt_config(1, 64, 4, 101), torch.float32, 0.1, seed=5) for _ in range(2))
    other = synthetic_model(opt_config(1, 64, 4, 101), torch.float32, 0.1, seed=6)
    assert torch.equal(one.weights.embed, two.weights.embed)
    assert not torch.equal(one.weights.embed, other.weights.embed)


@pytest.mark.parametrize(("shape", "density"), [("opt-9b", 0.1), ("opt-125m", 0.0), ("opt-125m", 1.2)])
def test_refuses_unknown_shapes_and_densities(shape, density):
    with pytest.raises(UsageError, match="expected"):
        synthetic_opt(shape, torch.bfloat16, density, seed=0)
