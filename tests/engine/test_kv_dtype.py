"""Keys and values of another type than the layers: near in what is said, half the bytes, the same bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from winnow.base.errors import UsageError
from winnow.engine import Engine, KvCache, Prefill, Weights, load
from winnow.engine.decode import Decoder
from winnow.engine.generate import torch_threads
from winnow.engine.model import prefill
from winnow.kernels import open_cpu

PROMPT = "Once upon a time there was a fox who "


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load("pico", plan=None, dtype="fp32", kv_dtype="int8")


def ids_of(engine: Engine, n_tokens: int) -> torch.Tensor:
    return torch.tensor((engine.tokenizer.encode(PROMPT * 20))[:n_tokens])


def read(weights: Weights, ids: torch.Tensor, capacity: int, threads: int = 2):
    """Return the logits after a prompt, and its cache."""
    cache = KvCache(weights.config, capacity, weights.cache_dtype)
    with torch_threads(threads), torch.inference_mode():
        return torch.from_numpy(Prefill(weights, open_cpu(threads)).read(ids, cache)), cache


def steps(weights: Weights, cache: KvCache, tokens: list[int], threads: int = 2) -> np.ndarray:
    decoding = Decoder(weights, (None,) * weights.config.n_layers, open_cpu(threads)).start(cache)
    return np.stack([decoding.step(token)[0] for token in tokens])


def kld(expected: torch.Tensor, found: torch.Tensor) -> float:
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("n_tokens", [1, 77])
def test_a_prompt_and_steps_say_what_float_keys_say_to_a_hundredth_of_a_nat(engine: Engine, n_tokens: int):
    ids, tokens = ids_of(engine, n_tokens), ids_of(engine, 99)[-20:].tolist()
    exact = replace(engine.weights, kv_dtype=None)
    said = []
    for weights in (exact, engine.weights):
        logits, cache = read(weights, ids, n_tokens + 20)
        said.append(torch.cat([logits[None], torch.from_numpy(steps(weights, cache, tokens))]))
    assert 0 < kld(*said) < 0.01


def test_a_prompt_is_read_as_the_definition_reads_it(engine: Engine):
    ids = ids_of(engine, 61)
    cache = KvCache(engine.weights.config, 61, torch.int8)
    with torch.inference_mode():
        expected = prefill(engine.weights, ids, cache)
    found, read_cache = read(engine.weights, ids, 61)
    assert kld(expected, found) < 1e-3
    for one, other in zip(cache.blocks, read_cache.blocks, strict=True):
        assert one.scales is not None and other.scales is not None
        torch.testing.assert_close(other.scales, one.scales, rtol=1e-2, atol=0)


def test_threads_and_batch_neighbours_do_not_change_a_bit(engine: Engine):
    weights, tokens = engine.weights, [5, 9, 200, 31]
    alone = steps(weights, KvCache(weights.config, 9, torch.int8), tokens, threads=1)
    assert np.array_equal(steps(weights, KvCache(weights.config, 9, torch.int8), tokens), alone)
    cpu, caches = open_cpu(2), [KvCache(weights.config, 9, torch.int8) for _ in range(3)]
    together = Decoder(weights, (None,) * weights.config.n_layers, cpu).start(*caches)
    rows = [together.step(token, 7, 3)[0].copy() for token in tokens]
    assert np.array_equal(np.stack(rows), alone)


def test_a_grown_cache_says_the_same_bits(engine: Engine):
    weights, ids = engine.weights, ids_of(engine, 33)
    (_, small), (_, large) = read(weights, ids, 34), read(weights, ids, 60)
    small.grow(60)
    tokens = [4, 8, 15, 16, 23]
    assert np.array_equal(steps(weights, small, tokens), steps(weights, large, tokens))
    assert small.n_bytes == large.n_bytes


def test_a_step_counts_bytes_and_scales(engine: Engine):
    config = engine.weights.config
    read_bytes = []
    for dtype in (torch.bfloat16, torch.int8):
        weights = replace(engine.weights, kv_dtype=dtype)
        decoding = Decoder(weights, (None,) * config.n_layers, open_cpu(1)).start(
            KvCache(config, 4, weights.cache_dtype)
        )
        decoding.step(3)
        read_bytes.append(decoding.counts.bytes_per_token)
    saved = 2 * config.n_layers * config.n_kv_heads * (config.head_width - 4)
    assert read_bytes[0] - read_bytes[1] == saved


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("bf16", "fp32"), ("fp32", "bf16"), ("int8", "int8")])
def test_every_pair_of_types_generates(dtype: str, kv_dtype: str):
    loaded = load("pico", dtype=dtype, kv_dtype=kv_dtype)
    done = loaded.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert len(done.token_ids) == 4


@pytest.mark.parametrize("kv_dtype", ["int4", "fp16", ""])
def test_refuses_types_that_no_cache_has(kv_dtype: str):
    with pytest.raises(UsageError, match=r"^kv_dtype is .*; expected one of bf16, fp32, int8\.$"):
        load("pico", kv_dtype=kv_dtype)


def test_refuses_a_stream(engine: Engine):
    with pytest.raises(UsageError, match="one of --kv-dtype and --context streaming"):
        load("pico", kv_dtype="int8", context="streaming")
