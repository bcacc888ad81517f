"""Decoding by kernels against the definition in plain torch."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from tests.engine.predictors import gates, head_predictors, low_rank
from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, forward, load_weights, parse_config
from winnow.engine.decode import Decoder, Schedule
from winnow.engine.model import prefill
from winnow.engine.sparsity import Lookahead, SparseHeads, SparseMlp
from winnow.engine.synthetic import opt_config, synthetic_model
from winnow.kernels import open_cpu

N_TOKENS = 37


def decoded(weights, predictors, ids, threads=1, heads=()):
    cache = KvCache(weights.config, len(ids), weights.cache_dtype)
    decoding = Decoder(weights, predictors, open_cpu(threads), heads).start(cache)
    return np.stack([decoding.step(token)[0] for token in ids]), decoding.counts


def relative(found: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


@pytest.fixture(scope="module")
def small():
    return synthetic_model(opt_config(3, 96, 3, vocab_size=211), torch.float32, 0.15, seed=5)


@pytest.fixture
def ids(rng):
    return torch.randint(0, 211, (N_TOKENS,), generator=rng)


@pytest.fixture
def few(ids):
    return ids[:9]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_decodes_every_family_as_the_definition_does(variant, ids):
    model = tiny_model(variant, generator(7))
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    weights = load_weights(source, torch.float32)
    with torch.inference_mode():
        expected = forward(weights, ids, KvCache(weights.config, N_TOKENS, torch.float32))
    found, _ = decoded(weights, (None,) * weights.config.n_layers, ids.tolist())
    assert relative(found, expected) < 2e-5


def test_sparse_decoding_agrees_with_the_masked_definition(small, ids):
    slot = SparseMlp(small.predictors)
    with torch.inference_mode():
        expected = forward(
            small.weights, ids, KvCache(small.weights.config, N_TOKENS, torch.float32), mlp=slot
        )
    found, counts = decoded(small.weights, small.predictors, ids.tolist())
    assert relative(found, expected) < 2e-5
    assert counts.mlp_density == pytest.approx(np.mean([layer.density for layer in slot.shares()]), abs=1e-3)


@functools.cache
def tiny_weights(name, dtype=torch.float32, by_head=False):
    model = tiny_model(next(v for v in VARIANTS if v.name == name), generator(7))
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    return load_weights(source, dtype, by_head=by_head)


@pytest.mark.parametrize("name", ["opt", "opt-350m", "llama", "llama-biases"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_heads_left_out_are_decoded_as_they_are_defined(name, is_sparse, few, rng):
    weights = tiny_weights(name, by_head=True)
    heads, mlps = head_predictors(weights, rng), low_rank(weights, rng) if is_sparse else (None,) * 3
    slot, mlp_slot = SparseHeads(heads), SparseMlp(mlps)
    cache = KvCache(weights.config, N_TOKENS, torch.float32)
    with torch.inference_mode():
        expected = forward(weights, few, cache, mlp=mlp_slot, heads=slot)
    found, counts = decoded(weights, mlps, few.tolist(), heads=heads)
    assert relative(found, expected) < 2e-5
    assert 0.2 < counts.head_density < 0.8
    assert counts.head_density == pytest.approx(slot.density, abs=1e-3)


def test_heads_left_out_here_are_whole_at_the_next_token(few, rng):
    weights = tiny_weights("llama", by_head=True)
    heads = head_predictors(weights, rng)
    cache, whole = (KvCache(weights.config, 9, torch.float32) for _ in range(2))
    first = Decoder(weights, (None,) * 3, open_cpu(1), (heads[0], None, None)).start(cache)
    dense = Decoder(weights, (None,) * 3, open_cpu(1)).start(whole)
    for token in few.tolist():
        first.step(token)
        dense.step(token)
    assert torch.equal(cache.blocks[0].keys, whole.blocks[0].keys)
    assert torch.equal(cache.blocks[0].values, whole.blocks[0].values)
    assert not torch.equal(cache.blocks[1].keys, whole.blocks[1].keys)  # the heads were missed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["opt", "llama-biases"])
def test_all_heads_by_either_layout_are_the_dense_model(name, dtype, few, rng):
    weights = tiny_weights(name, dtype, by_head=True)
    dense, _ = decoded(tiny_weights(name, dtype), (None,) * 3, few.tolist())
    every = head_predictors(weights, rng, margin=1e6)
    for heads in ((), every):
        found, counts = decoded(weights, (None,) * 3, few.tolist(), heads=heads)
        assert counts.head_density == 1.0
        assert relative(found, torch.from_numpy(dense)) < (1e-5 if dtype == torch.float32 else 1e-3)


def test_two_threads_give_the_bits_of_one_with_heads(few, rng):
    weights = tiny_weights("llama", torch.bfloat16, by_head=True)
    heads, mlps = head_predictors(weights, rng), low_rank(weights, rng)
    one, _ = decoded(weights, mlps, few.tolist(), threads=1, heads=heads)
    two, _ = decoded(weights, mlps, few.tolist(), threads=2, heads=heads)
    assert np.array_equal(one, two)


def test_heads_save_their_queries_their_keys_and_values_and_their_outputs(rng):
    weights = tiny_weights("opt", by_head=True)
    heads = head_predictors(weights, rng, margin=-1e6)
    _, none = decoded(weights, (None,) * 3, [3], heads=heads)
    _, full = decoded(weights, (None,) * 3, [3], heads=())
    width = weights.config.width
    saved_per_layer = 2 * width * width * 4 + 2 * width * 4  # queries and outputs; one position of the cache
    predictors = sum(predictor.n_bytes for predictor in heads)
    assert full.bytes_per_token - none.bytes_per_token == 3 * saved_per_layer - predictors
    assert none.head_density == 0.0


def test_heads_are_refused_where_the_weights_are_not_by_head(rng):
    weights = tiny_weights("opt")
    with pytest.raises(UsageError, match="not loaded by head"):
        Decoder(weights, (None,) * 3, open_cpu(1), head_predictors(weights, rng))


def defined(weights, predictors, few):
    slot = SparseMlp(predictors)
    cache = KvCache(weights.config, N_TOKENS, torch.float32)
    with torch.inference_mode():
        return forward(weights, few, cache, mlp=slot), slot.overall()


@pytest.mark.parametrize("name", ["opt", "opt-350m", "llama", "llama-biases"])
@pytest.mark.parametrize("kind", ["svd", "low-rank"])
@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_every_lookahead_is_decoded_as_it_is_defined(name, kind, lookahead, few, rng):
    weights = tiny_weights(name)
    predictors = low_rank(weights, rng, lookahead, kind)
    expected, shares = defined(weights, predictors, few)
    found, counts = decoded(weights, predictors, few.tolist())
    assert relative(found, expected) < 2e-5
    assert 0.2 < counts.mlp_density < 0.8
    assert counts.mlp_density == pytest.approx(shares.density, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "llama-biases"])
def test_the_gate_is_decoded_as_it_is_defined(name, few):
    weights = tiny_weights(name)
    predictors = gates(weights, 0.3)
    expected, shares = defined(weights, predictors, few)
    found, counts = decoded(weights, predictors, few.tolist())
    assert relative(found, expected) < 2e-5
    assert 0.1 < counts.mlp_density < 0.9
    assert counts.mlp_density == pytest.approx(shares.density, abs=1e-3)


def test_kinds_and_lookaheads_mix_in_one_model(few, rng):
    weights = tiny_weights("llama")
    ahead, half = low_rank(weights, rng, Lookahead.NEXT), low_rank(weights, rng, Lookahead.HALF)
    for predictors in (
        (gates(weights, 0.3)[0], ahead[1], ahead[2]),
        (ahead[0], gates(weights, 0.3)[1], half[2]),
        (None, ahead[1], gates(weights, 0.3)[2]),
    ):
        expected, _ = defined(weights, predictors, few)
        found, _ = decoded(weights, predictors, few.tolist())
        assert relative(found, expected) < 2e-5


@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_each_lookahead_reads_another_input(lookahead, few, rng):
    weights = tiny_weights("opt")
    predictors = low_rank(weights, rng, lookahead)
    found, _ = decoded(weights, predictors, few.tolist())
    for other in set(Lookahead) - {lookahead}:
        moved = tuple(dataclasses.replace(each, lookahead=other) for each in predictors)
        assert relative(found, defined(weights, moved, few)[0]) > 1e-3


def test_a_predictor_runs_where_its_input_is_first_known(rng):
    weights = tiny_weights("opt")
    same, half, ahead = (low_rank(weights, rng, each) for each in Lookahead)
    assert Schedule.of(same) == Schedule(((), (), ()), ((0,), (1,), (2,)))
    assert Schedule.of(half) == Schedule(((0,), (1,), (2,)), ((), (), ()))
    assert Schedule.of(ahead) == Schedule(((0,), (), ()), ((1,), (2,), ()))
    assert Schedule.of((None, same[1], ahead[2])) == Schedule(((), (), ()), ((), (1, 2), ()))


@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_two_threads_give_the_bits_of_one_with_every_lookahead(lookahead, few, rng):
    weights = tiny_weights("llama", torch.bfloat16)
    predictors = low_rank(weights, rng, lookahead)
    one, _ = decoded(weights, predictors, few.tolist(), threads=1)
    two, _ = decoded(weights, predictors, few.tolist(), threads=2)
    assert np.array_equal(one, two)


def test_two_threads_give_the_bits_of_one_with_gates(few):
    weights = tiny_weights("llama", torch.bfloat16)
    one, _ = decoded(weights, gates(weights, 0.3), few.tolist(), threads=1)
    two, _ = decoded(weights, gates(weights, 0.3), few.tolist(), threads=2)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_neurons_by_any_road_are_the_dense_model(dtype, few, rng):
    weights = tiny_weights("llama", dtype)
    dense, _ = decoded(weights, (None,) * 3, few.tolist())
    roads = [low_rank(weights, rng, lookahead, margin=1e6) for lookahead in Lookahead]
    for predictors in (*roads, gates(weights, -1.0)):
        full, counts = decoded(weights, predictors, few.tolist())
        assert counts.mlp_density == 1.0
        assert np.array_equal(full, dense)


def test_gate_bytes_are_the_gates_the_thresholds_and_the_rest_of_the_selected():
    weights = tiny_weights("llama")
    records, config = weights.layers[0].mlp, weights.config
    gate_bytes = config.n_neurons * config.width * 4 + config.n_neurons * 4
    predictor = gates(weights, 0.3)[0]
    assert predictor.bytes_read(records, 0) == gate_bytes
    assert predictor.bytes_read(records, 10) - gate_bytes == 10 * (records.record_bytes - config.width * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_density_one_equals_dense_to_rounding(dtype, ids):
    model = synthetic_model(opt_config(2, 72, 3, vocab_size=211), dtype, 0.15, seed=6)
    for predictor in model.predictors:
        predictor.bias.fill_(1e6)  # everything is selected
    dense, _ = decoded(model.weights, (None, None), ids.tolist())
    full, counts = decoded(model.weights, model.predictors, ids.tolist())
    assert counts.mlp_density == 1.0
    assert relative(full, torch.from_numpy(dense)) < 1e-6


def test_two_threads_give_the_bits_of_one(small, ids):
    one, _ = decoded(small.weights, small.predictors, ids.tolist(), threads=1)
    two, _ = decoded(small.weights, small.predictors, ids.tolist(), threads=2)
    assert np.array_equal(one, two)


def test_goes_on_where_prefill_ended(small, ids):
    weights = small.weights
    with torch.inference_mode():
        expected = forward(weights, ids, KvCache(weights.config, N_TOKENS, torch.float32))[-1]
        cache = KvCache(weights.config, N_TOKENS, torch.float32)
        prefill(weights, ids[:20], cache)
    decoding = Decoder(weights, (None,) * 3, open_cpu(1)).start(cache)
    for token in ids[20:].tolist():
        logits = decoding.step(token)[0]
    assert relative(logits, expected) < 2e-5


def test_bytes_are_those_of_what_was_read(small):
    weights, config = small.weights, small.weights.config
    _, counts = decoded(weights, (None,) * 3, [3, 4])
    per_layer = 4 * (4 * config.width**2) + config.n_neurons * weights.layers[0].mlp.record_bytes
    kv = 2 * config.width * 4 * 1.5  # one position, then two
    head = config.vocab_size * config.width * 4
    assert counts.bytes_per_token == 3 * (per_layer + kv) + head
    assert counts.steps == 2


def test_the_embedding_is_not_written_to(small, ids):
    before = small.weights.embed.weight.clone()
    decoded(small.weights, small.predictors, ids.tolist())
    assert torch.equal(small.weights.embed.weight, before)
