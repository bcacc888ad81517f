"""Prefill reads a prompt as the definition does: keys, values and logits, in every precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, Prefill, Weights, load_weights, parse_config, tensor_shapes
from winnow.engine.decode import Decoder
from winnow.engine.generate import torch_threads
from winnow.engine.model import CHUNK, prefill
from winnow.engine.prefill import MOST_STEPS
from winnow.kernels import int4, open_cpu

COMMON = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "vocab_size": 53,
    "max_position_embeddings": 1200,
}
OPT = COMMON | {"model_type": "opt", "ffn_dim": 167}
OPT_350M = OPT | {"word_embed_proj_dim": 64, "do_layer_norm_before": False}
LLAMA = COMMON | {
    "model_type": "llama",
    "num_key_value_heads": 2,
    "intermediate_size": 167,
    "rms_norm_eps": 1e-5,
    "mlp_bias": True,
    "attention_bias": True,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 16, "attention_bias": False}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 150}
MODELS = {"opt": OPT, "opt-350m": OPT_350M, "llama": LLAMA, "qwen3": QWEN3, "mistral": MISTRAL}
HELD = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8, "int4": int4}
ROUNDED = [name for name in HELD if name != "fp32"]
SIZES = [1, 7, 300, CHUNK + 77]
# Of the whole vector, in the 2-norm. A bfloat16 product is rounded by 2^-9 of itself, its input as well; both
# ways do so some dozen times, the one now where the other does not.
FAR = {"fp32": 1e-5, "bf16": 2**-5, "int8": 2**-5, "int4": 2**-5}


def weights_of(raw: dict, held: str, *, by_head: bool = False) -> Weights:
    config, draws = parse_config(raw), generator(23)
    tensors = {
        name: torch.randn(shape, generator=draws) / shape[-1] ** 0.5
        if len(shape) > 1
        else torch.randn(shape, generator=draws) * 0.1 + ("norm" in name)
        for name, shape in tensor_shapes(config).items()
    }
    return load_weights(DictSource(config, tensors), HELD[held], by_head=by_head)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["opt", "mistral"])
def other(request: pytest.FixtureRequest) -> str:
    """Return one model of each family, for what does not hang on its details."""
    return request.param


@pytest.fixture(params=HELD)
def held(request: pytest.FixtureRequest) -> str:
    return request.param


def some_ids(count: int) -> Tensor:
    return torch.randint(53, (count,), generator=generator(count))


def read(weights: Weights, ids: Tensor, threads: int = 2, cache: KvCache | None = None):
    """Return the logits and the cache of a prompt read by Prefill."""
    cache = cache or KvCache(weights.config, len(ids), weights.cache_dtype)
    with torch_threads(threads), torch.inference_mode():
        return torch.from_numpy(Prefill(weights, open_cpu(threads)).read(ids, cache)), cache


def defined(weights: Weights, ids: Tensor):
    """Return the logits and the cache of a prompt read by the definition."""
    cache = KvCache(weights.config, len(ids), weights.cache_dtype)
    with torch.inference_mode():
        return prefill(weights, ids, cache), cache


def held_in(cache: KvCache) -> list[Tensor]:
    """Return keys and values of every layer, as far as the cache is filled."""
    return [kv[:, : cache.length] for block in cache.blocks for kv in (block.keys, block.values)]


def distance(found: Tensor, expected: Tensor) -> float:
    """Return how far two tensors are apart, as a share of the second; NaN stays NaN."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def same_bits(first: tuple[Tensor, KvCache], second: tuple[Tensor, KvCache]) -> bool:
    pairs = zip(held_in(first[1]), held_in(second[1]), strict=True)
    return torch.equal(first[0], second[0]) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("n_tokens", SIZES)
def test_is_the_definition_up_to_rounding(model: str, held: str, n_tokens: int) -> None:
    weights = weights_of(MODELS[model], held)
    ids = some_ids(n_tokens)
    (logits, cache), (expected, expected_cache) = read(weights, ids), defined(weights, ids)
    assert cache.length == n_tokens
    assert distance(logits, expected) < FAR[held]
    for found, right in zip(held_in(cache), held_in(expected_cache), strict=True):
        assert distance(found, right) < FAR[held]


@pytest.mark.parametrize("n_tokens", [2, 64])
def test_reads_maps_stored_by_head(held: str, n_tokens: int) -> None:
    raw = LLAMA | {"num_key_value_heads": 3}  # int4 wants 32 inputs of each
    weights, ids = weights_of(raw, held, by_head=True), some_ids(n_tokens)
    assert distance(read(weights, ids)[0], defined(weights, ids)[0]) < FAR[held]


@pytest.mark.parametrize("n_tokens", [11, 130, CHUNK + 40])
@pytest.mark.parametrize("held", ROUNDED)
def test_any_number_of_threads_gives_the_same_bits(other: str, held: str, n_tokens: int) -> None:
    weights, ids = weights_of(MODELS[other], held), some_ids(n_tokens)
    alone = read(weights, ids, threads=1)
    assert same_bits(read(weights, ids, threads=2), alone)


def test_any_number_of_threads_gives_fp32_the_same_up_to_the_order_of_sums(other: str) -> None:
    # torch's fp32 products are MKL's, which cuts its sums by the number of threads.
    weights, ids = weights_of(MODELS[other], "fp32"), some_ids(130)
    alone, shared = (read(weights, ids, threads=threads) for threads in (1, 2))
    assert distance(shared[0], alone[0]) < FAR["fp32"]


@pytest.mark.parametrize("n_tokens", [1, CHUNK + 40])
def test_what_the_cache_held_behind_the_prompt_is_never_read(other: str, held: str, n_tokens: int) -> None:
    weights, ids = weights_of(MODELS[other], held), some_ids(n_tokens)
    used = KvCache(weights.config, n_tokens + 9, weights.cache_dtype)
    for block in used.blocks:
        block.keys.fill_(torch.nan)
        block.values.fill_(torch.nan)
    assert same_bits(read(weights, ids, cache=used), read(weights, ids))
    assert used.blocks[0].keys[:, n_tokens:].isnan().all()


@pytest.mark.parametrize("n_more", [1, 130])
def test_a_prompt_parted_where_a_chunk_ends_gives_the_bits_of_the_whole(
    other: str, held: str, n_more: int
) -> None:
    weights, ids = weights_of(MODELS[other], held), some_ids(CHUNK + n_more)
    parted = KvCache(weights.config, len(ids), weights.cache_dtype)
    read(weights, ids[:CHUNK], cache=parted)
    assert same_bits(read(weights, ids[CHUNK:], cache=parted), read(weights, ids))


def test_a_prompt_parted_anywhere_is_the_same_up_to_rounding(held: str) -> None:
    weights, ids = weights_of(LLAMA, held), some_ids(300)
    parted = KvCache(weights.config, len(ids), weights.cache_dtype)
    read(weights, ids[:111], cache=parted)
    assert distance(read(weights, ids[111:], cache=parted)[0], read(weights, ids)[0]) < FAR[held]


def test_a_few_tokens_are_decode_steps_over_all_neurons_and_unpack_nothing(held: str) -> None:
    weights, cpu = weights_of(OPT, held), open_cpu(2)
    ids = some_ids(MOST_STEPS[HELD[held]])
    caches = [KvCache(weights.config, len(ids), weights.cache_dtype) for _ in range(2)]
    reader, steps = Prefill(weights, cpu), Decoder(weights, (None,) * 3, cpu).start(caches[1])
    logits = reader.read(ids, caches[0])
    expected = [steps.step(token)[0] for token in ids.tolist()][-1]
    assert np.array_equal(logits, expected)
    assert same_bits((torch.zeros(1), caches[0]), (torch.zeros(1), caches[1]))
    assert reader.scratch_bytes == 0


def test_holds_its_largest_matrix_once_in_bf16_and_only_beside_integers(held: str) -> None:
    weights = weights_of(OPT, held)
    reader = Prefill(weights, open_cpu(2))
    for n_tokens in (9, 40):
        reader.read(some_ids(n_tokens), KvCache(weights.config, n_tokens, weights.cache_dtype))
    # Queries are read apart from keys and values, and the head is a product with one row.
    largest = max(2 * 96 * 96, 167 * 96)
    assert reader.scratch_bytes == (2 * largest if held.startswith("int") else 0)


def test_the_logits_are_fresh_arrays() -> None:
    weights = weights_of(OPT, "bf16")
    reader = Prefill(weights, open_cpu(1))
    first, second = (
        reader.read(some_ids(n), KvCache(weights.config, n, weights.cache_dtype)) for n in (20, 21)
    )
    assert not np.shares_memory(first, second)
    assert not np.array_equal(first, second)


def test_only_the_window_is_seen() -> None:
    # One layer, so that nothing older reaches the last position by way of its neighbours.
    full = weights_of({**LLAMA, "num_hidden_layers": 1}, "bf16")
    windowed = replace(full, layers=tuple(replace(layer, window=4) for layer in full.layers))
    ids = some_ids(CHUNK + 30)
    older, inside = ids.clone(), ids.clone()
    older[: CHUNK + 26] = (older[: CHUNK + 26] + 1) % 53
    inside[CHUNK + 26] = (inside[CHUNK + 26] + 1) % 53
    last = [read(windowed, each)[0] for each in (ids, older, inside)]
    assert torch.equal(last[0], last[1])
    assert not torch.equal(last[0], last[2])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "No tokens were given"),
        ([1] * 11, "11 tokens were given after 0, the cache has room for 10"),
        ([3, 53], "the model knows 0 to 52"),
        ([-1, 3], "the model knows 0 to 52"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(ids: list[int], message: str) -> None:
    weights = weights_of(OPT, "bf16")
    cache = KvCache(weights.config, 10, torch.bfloat16)
    with pytest.raises(UsageError, match=message):
        Prefill(weights, open_cpu(1)).read(torch.tensor(ids, dtype=torch.int64), cache)
    assert cache.length == 0
