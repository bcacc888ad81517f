"""The dense definition: its slot, its cache, its chunks and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import (
    DictSource,
    KvCache,
    dense_mlp,
    forward,
    load_weights,
    parse_config,
    tensor_shapes,
)
from winnow.engine.families.rope import rotary_table, rotate
from winnow.engine.model import CHUNK, MlpInputs, prefill
from winnow.engine.weights import Layer, Weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 37,
    "vocab_size": 53,
    "max_position_embeddings": 1200,
    "rms_norm_eps": 1e-5,
    "mlp_bias": True,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "ffn_dim": 37,
    "vocab_size": 53,
    "max_position_embeddings": 1200,
}


def random_weights(raw: dict, dtype: torch.dtype = torch.float32) -> Weights:
    config, draws = parse_config(raw), generator(19)
    tensors = {
        name: torch.randn(shape, generator=draws) * 1.5 / shape[-1] ** 0.5
        for name, shape in tensor_shapes(config).items()
    }
    return load_weights(DictSource(config, tensors), dtype)


@pytest.fixture(scope="module", params=[OPT, LLAMA], ids=["opt", "llama"])
def weights(request: pytest.FixtureRequest) -> Weights:
    return random_weights(request.param)


def some_ids(count: int) -> Tensor:
    return torch.randint(53, (count,), generator=generator(count))


def cache_for(weights: Weights, capacity: int) -> KvCache:
    return KvCache(weights.config, capacity, torch.float32)


@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77])
def test_prefill_in_chunks_is_forward_in_one_piece(weights: Weights, n_tokens: int) -> None:
    ids, chunked, whole = some_ids(n_tokens), cache_for(weights, 1200), cache_for(weights, 1200)
    logits = prefill(weights, ids, chunked)
    torch.testing.assert_close(logits, forward(weights, ids, whole)[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chunked.blocks[1].keys, whole.blocks[1].keys, rtol=1e-4, atol=1e-4)
    assert chunked.length == whole.length == n_tokens


def test_chunks_end_at_multiples_of_512_wherever_a_prompt_starts(weights: Weights) -> None:
    sizes = []

    def record(index: int, layer: Layer, inputs: MlpInputs) -> Tensor:
        if index == 0:
            sizes.append(len(inputs.own))
        return dense_mlp(index, layer, inputs)

    cache = cache_for(weights, 1200)
    prefill(weights, some_ids(100), cache, mlp=record)
    prefill(weights, some_ids(950), cache, mlp=record)
    assert sizes == [100, 412, 512, 26]


def test_a_prompt_in_two_parts_gives_the_logits_of_the_whole(weights: Weights) -> None:
    ids, cache = some_ids(300), cache_for(weights, 300)
    prefill(weights, ids[:111], cache)
    parted = prefill(weights, ids[111:], cache)
    torch.testing.assert_close(parted, prefill(weights, ids, cache_for(weights, 300)), rtol=1e-4, atol=1e-4)


def test_later_tokens_change_nothing_before_them(weights: Weights) -> None:
    ids = some_ids(20)
    other = ids.clone()
    other[12:] = (other[12:] + 1) % 53
    first, second = (forward(weights, each, cache_for(weights, 20)) for each in (ids, other))
    assert torch.equal(first[:12], second[:12])
    assert not torch.equal(first[12:], second[12:])


def test_the_slot_sees_every_layer_in_order_and_its_output_is_what_is_added(weights: Weights) -> None:
    seen = []

    def silent(index: int, layer: Layer, inputs: MlpInputs) -> Tensor:
        seen.append((index, layer is weights.layers[index], tuple(inputs.own.shape)))
        return torch.zeros_like(inputs.own)

    ids = some_ids(5)
    without = forward(weights, ids, cache_for(weights, 5), mlp=silent)
    assert seen == [(0, True, (5, 24)), (1, True, (5, 24))]
    assert not torch.allclose(without, forward(weights, ids, cache_for(weights, 5)))


def test_the_dense_mlp_is_the_sum_over_all_neurons(weights: Weights) -> None:
    layer, x = weights.layers[0], torch.randn(3, 24, generator=generator(2))
    expected = torch.zeros(3, 24, dtype=torch.float64)
    records, rows = layer.mlp, x.double()
    for neuron in range(records.n_neurons):
        fires = layer.activation(rows @ records.w_in[neuron].double() + records.bias[neuron].double())
        if records.is_gated:
            fires = fires * (rows @ records.w_up[neuron].double() + records.bias_up[neuron].double())
        expected += fires[:, None] * records.w_out[neuron].double()
    assert layer.mlp_bias is not None
    torch.testing.assert_close(
        dense_mlp(0, layer, MlpInputs(x, x, x)).double(), expected + layer.mlp_bias, rtol=1e-5, atol=1e-5
    )


def test_a_window_hides_all_but_the_last_keys() -> None:
    # One layer, so that nothing older reaches the last position by way of its neighbours.
    full = random_weights({**LLAMA, "num_hidden_layers": 1})
    windowed = replace(full, layers=tuple(replace(layer, window=4) for layer in full.layers))
    ids = some_ids(30)
    older, inside = ids.clone(), ids.clone()
    older[:26] = (older[:26] + 1) % 53
    inside[26] = (inside[26] + 1) % 53
    last = [forward(windowed, each, cache_for(windowed, 30))[-1] for each in (ids, older, inside)]
    assert torch.equal(last[0], last[1])
    assert not torch.allclose(last[0], last[2])


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rope = parse_config(LLAMA).rope
    assert rope is not None
    q, k = torch.randn(2, 1, 1, 8, generator=generator(4))
    products = []
    for shift in (0, 5, 400):
        at_q, at_k = rotary_table(rope, 8, shift + 9, 1), rotary_table(rope, 8, shift, 1)
        products.append((rotate(q, *at_q) * rotate(k, *at_k)).sum())
        torch.testing.assert_close(rotate(q, *at_q).norm(), q.norm())
    torch.testing.assert_close(products[1:], products[:1] * 2, rtol=1e-3, atol=1e-4)


def test_a_tied_head_shares_the_memory_of_the_embedding() -> None:
    weights = random_weights(OPT, torch.bfloat16)
    assert weights.head.matrix.weight.data_ptr() == weights.embed.weight.data_ptr()


def test_bf16_keeps_norms_and_biases_in_fp32() -> None:
    layer = random_weights(OPT, torch.bfloat16).layers[0]
    assert layer.qkv.matrix.weight.dtype == layer.mlp.w_in.dtype == torch.bfloat16
    assert layer.qkv.bias is not None and layer.mlp_bias is not None
    kept = (layer.attention_norm.weight, layer.qkv.bias, layer.mlp_bias, layer.mlp.bias)
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_a_cache_says_what_it_holds(weights: Weights) -> None:
    cache = cache_for(weights, 10)
    config = weights.config
    assert cache.n_bytes == 2 * config.n_layers * config.n_kv_heads * 10 * config.head_width * 4


@pytest.mark.parametrize("capacity", [0, -1, 1201, 10**12])
def test_a_cache_beyond_the_models_positions_is_refused(weights: Weights, capacity: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1200"):
        cache_for(weights, capacity)


@pytest.mark.parametrize("run", [forward, prefill])
def test_tokens_that_do_not_fit_are_refused(weights: Weights, run) -> None:
    cache = cache_for(weights, 10)
    run(weights, some_ids(10), cache)
    with pytest.raises(UsageError, match="1 tokens were given after 10, the cache has room for 10"):
        run(weights, some_ids(1), cache)
    assert cache.length == 10


@pytest.mark.parametrize("bad", [-1, 53, 2**40])
def test_ids_outside_the_vocabulary_are_refused(weights: Weights, bad: int) -> None:
    with pytest.raises(UsageError, match="the model knows 0 to 52"):
        forward(weights, torch.tensor([3, bad]), cache_for(weights, 10))


@pytest.mark.parametrize("run", [forward, prefill])
def test_an_empty_prompt_is_refused(weights: Weights, run) -> None:
    with pytest.raises(UsageError, match="No tokens were given"):
        run(weights, torch.empty(0, dtype=torch.int64), cache_for(weights, 10))
