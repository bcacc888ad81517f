"""Sequences decoded together: each has the bits it has alone, and what they share is read once."""

import numpy as np
import pytest
import torch

from tests.engine.predictors import gates, head_predictors, low_rank
from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, load_weights, parse_config
from winnow.engine.decode import Decoder
from winnow.engine.model import prefill
from winnow.engine.synthetic import opt_config, synthetic_model
from winnow.kernels import MOST_BATCH, int4, open_cpu

LENGTHS = (5, 1, 9, 3, 7, 2, 6, 4)  # of the prompts
STEPS = 6


def loaded(name: str, dtype: torch.dtype, by_head: bool = False):
    model = tiny_model(next(v for v in VARIANTS if v.name == name), generator(7))
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    return load_weights(source, dtype, by_head=by_head)


def drawn(batch: int, vocab_size: int, rng: torch.Generator):
    """Prompts of different lengths, and what each sequence says afterwards."""
    prompts = [torch.randint(0, vocab_size, (n,), generator=rng) for n in LENGTHS[:batch]]
    return prompts, torch.randint(0, vocab_size, (STEPS, batch), generator=rng).tolist()


def begun(decoder: Decoder, prompts):
    caches = [KvCache(decoder.weights.config, 20, decoder.weights.cache_dtype) for _ in prompts]
    with torch.inference_mode():
        for prompt, cache in zip(prompts, caches, strict=True):
            prefill(decoder.weights, prompt, cache)
    return caches


def apart(decoder: Decoder, prompts, said):
    logits, caches = [], begun(decoder, prompts)
    for row, cache in enumerate(caches):
        decoding = decoder.start(cache)
        logits.append([decoding.step(tokens[row])[0] for tokens in said])
    return np.array(logits).swapaxes(0, 1), caches


def together(decoder: Decoder, prompts, said):
    caches = begun(decoder, prompts)
    decoding = decoder.start(*caches)
    return np.stack([decoding.step(*tokens) for tokens in said]), caches, decoding.counts


def same(decoder: Decoder, batch: int, rng: torch.Generator) -> bool:
    prompts, said = drawn(batch, decoder.weights.config.vocab_size, rng)
    alone, separate = apart(decoder, prompts, said)
    found, shared, _ = together(decoder, prompts, said)
    assert len(np.unique(found[-1], axis=0)) == batch  # the sequences differ
    caches = zip(separate, shared, strict=True)
    pairs = [pair for one, other in caches for pair in zip(one.blocks, other.blocks, strict=True)]
    kept = all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)
    return np.array_equal(alone, found) and kept


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_neighbours_change_no_bit_in_any_family(variant, rng):
    weights = loaded(variant.name, torch.float32)
    assert same(Decoder(weights, (None,) * weights.config.n_layers, open_cpu(1)), 3, rng)


@pytest.mark.parametrize("batch", [2, MOST_BATCH])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, int4], ids=["bf16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_change_no_bit_where_each_has_its_own_neurons_and_heads(dtype, batch, threads, rng):
    model = synthetic_model(opt_config(2, 96, 3, vocab_size=211), torch.bfloat16, 0.3, seed=5)
    weights = load_weights(model.source, dtype, by_head=True)
    mlps, heads = low_rank(weights, rng), head_predictors(weights, rng)
    assert same(Decoder(weights, mlps, open_cpu(threads), heads), batch, rng)


def test_neighbours_change_no_bit_behind_gates(rng):
    weights = loaded("llama", torch.bfloat16)
    assert same(Decoder(weights, gates(weights, 0.05), open_cpu(2)), 3, rng)


def test_what_several_need_is_read_once(rng):
    weights = loaded("opt", torch.bfloat16)
    dense = Decoder(weights, (None,) * 3, open_cpu(1))
    prompts, said = drawn(4, weights.config.vocab_size, rng)
    _, _, counts = together(dense, prompts, said)
    n_weights = sum(
        layer.qkv.n_bytes + layer.out.n_bytes + layer.mlp.storage.nbytes for layer in weights.layers
    )
    n_cached = sum(
        2 * (n + step + 1) * weights.config.width * 2 * 3 for n in LENGTHS[:4] for step in range(STEPS)
    )
    assert counts.steps == 4 * STEPS
    assert sum(counts.n_bytes) == STEPS * n_weights + n_cached
    assert counts.head_bytes == STEPS * weights.head.n_bytes


def test_the_neurons_of_a_batch_are_the_union_of_those_of_its_sequences(rng):
    weights = loaded("opt", torch.float32)
    mlps = low_rank(weights, rng)
    decoder = Decoder(weights, mlps, open_cpu(1))
    prompts, said = drawn(2, weights.config.vocab_size, rng)
    _, _, counts = together(decoder, prompts, said)
    alike = [prompts[0], prompts[0]], [[token, token] for token, _ in said]
    _, _, of_twins = together(decoder, *alike)
    assert 0.2 < of_twins.mlp_density < 0.8
    n_predictors = sum(predictor.n_bytes for predictor in mlps)
    seen = sum(2 * 2 * (LENGTHS[0] + step + 1) * weights.config.width * 4 * 3 for step in range(STEPS))
    attention = sum(layer.qkv.n_bytes + layer.out.n_bytes for layer in weights.layers)
    read = sum(of_twins.n_bytes) - STEPS * (n_predictors + attention) - seen
    assert read == sum(of_twins.active) // 2 * weights.layers[0].mlp.record_bytes
    assert counts.bytes_per_token > of_twins.bytes_per_token  # two that differ read more than twins


@pytest.mark.parametrize("batch", [0, MOST_BATCH + 1])
def test_no_sequence_and_too_many_are_refused(batch):
    weights = loaded("opt", torch.float32)
    caches = [KvCache(weights.config, 4, torch.float32) for _ in range(batch)]
    with pytest.raises(UsageError, match=f"{batch} sequences .* expected 1 to {MOST_BATCH}"):
        Decoder(weights, (None,) * 3, open_cpu(1)).start(*caches)
