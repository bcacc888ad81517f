"""Streaming inside transformers: parity while the window lasts, constant size beyond, clear refusals."""

import pytest
import torch

import winnow.attention
from winnow.attention import StreamingCache, streaming
from winnow.attention.streaming import StreamingOptions, calibrate_remainder
from winnow.base.errors import UsageError
from winnow.base.rng import generator

transformers = pytest.importorskip("transformers")
from winnow.attention.hf import calibrated, captured  # noqa: E402 (needs the extra)

GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
NAME = "winnow_streaming"


def tiny(family: str, **changes):
    """A random model whose weights are large enough that attention is not uniform."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
    config = transformers.AutoConfig.for_model(family, **sizes, **ids, **FAMILIES[family], **changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    rng = generator(0)
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.normal_(std=0.06, generator=rng)
    winnow.attention.register()
    return model


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


@pytest.fixture
def padded(rng):
    """Two prompts, the first padded on the left."""
    ids = torch.randint(3, 97, (2, 61), generator=rng)
    mask = torch.ones_like(ids)
    ids[0, :11], mask[0, :11] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def text(model, padded, **options):
    return model.generate(**padded, max_new_tokens=9, do_sample=False, eos_token_id=None, **options)


def wide(model):
    return StreamingCache(model.config, streaming(100, heavy=8, clusters=4, block=8, reservoir=8))


def narrow(model, **changes):
    return StreamingCache(model.config, streaming(16, heavy=8, clusters=4, block=8, reservoir=8, **changes))


def test_without_a_cache_and_within_the_window_it_is_sdpa(model, padded):
    real = padded["attention_mask"].bool()
    model.set_attn_implementation("sdpa")
    wanted = model(**padded, use_cache=False).logits[real]
    model.set_attn_implementation(NAME)
    for cache in (None, wide(model), transformers.DynamicCache(config=model.config)):
        found = model(**padded, past_key_values=cache, use_cache=cache is not None).logits[real]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_generates_what_the_dynamic_cache_does_within_the_window(model, padded):
    model.set_attn_implementation("sdpa")
    greedy, beams = text(model, padded), text(model, padded, num_beams=3)
    model.set_attn_implementation(NAME)
    assert torch.equal(text(model, padded, past_key_values=wide(model)), greedy)
    assert torch.equal(text(model, padded, past_key_values=wide(model), prefill_chunk_size=16), greedy)
    assert torch.equal(text(model, padded, past_key_values=wide(model), num_beams=3), beams)


def test_beyond_the_window_chunks_do_not_matter_and_size_is_constant(model, padded):
    model.set_attn_implementation(NAME)
    whole, cut = narrow(model), narrow(model)
    wanted = text(model, padded, past_key_values=whole)
    assert torch.equal(text(model, padded, past_key_values=cut, prefill_chunk_size=7), wanted)
    assert whole.get_seq_length() == 61 + 8
    size = whole.n_bytes
    model(torch.full((2, 200), 5), past_key_values=whole, attention_mask=torch.ones(2, 269))
    assert whole.n_bytes == size


def test_the_remainder_matters_in_a_model(padded):
    model = tiny("llama")
    wanted = model(**padded, use_cache=False).logits[1]
    model.set_attn_implementation(NAME)
    off = {}
    for how in ("on", "off"):
        found = model(**padded, past_key_values=narrow(model, remainder=how)).logits[1]
        off[how] = float((found - wanted).norm())
    assert 0 < off["on"] < 0.5 * off["off"]


def test_exact_attention_has_gradients(padded):
    model = tiny("llama").requires_grad_(True)
    grads = []
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        model.zero_grad()
        ids = padded["input_ids"][1:]
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_a_cache_can_be_used_anew_after_reset(padded):
    model = tiny("opt")
    model.set_attn_implementation(NAME)
    cache = narrow(model)
    first = text(model, padded, past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(text(model, padded, past_key_values=cache), first)


def test_rows_can_be_repeated_and_chosen(padded):
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    cache = narrow(model)
    model(**padded, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    cache.batch_select_indices(torch.tensor([3]))
    assert cache.batch_size == 1


def test_what_cannot_be_done_is_said(padded):
    model = tiny("llama")
    cache = narrow(model)
    with pytest.raises(UsageError, match="set_attn_implementation"):
        model(**padded, past_key_values=cache)
    model.set_attn_implementation(NAME)
    model(**padded, past_key_values=cache)
    with pytest.raises(UsageError, match="absorbed tokens cannot be taken out"):
        cache.crop(-3)
    with pytest.raises(UsageError, match="cannot be offloaded"):
        cache.layers[0].offload()
    with pytest.raises(UsageError, match=r"padding mask \[B, tokens\]"):
        model(padded["input_ids"], attention_mask=torch.zeros(2, 1, 61, 61), use_cache=False)
    with pytest.raises(UsageError, match="streams without dropout"):
        tiny_dropout = tiny("llama", attention_dropout=0.5).train()
        tiny_dropout.set_attn_implementation(NAME)
        tiny_dropout(**padded, past_key_values=narrow(tiny_dropout))


def test_sliding_layers_are_refused(padded):
    config = transformers.MistralConfig(sliding_window=32, num_hidden_layers=2)
    with pytest.raises(UsageError, match="sliding_attention"):
        StreamingCache(config, streaming(16))
    model = tiny("mistral")
    model.set_attn_implementation(NAME)
    model.config.sliding_window = 32
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 32
    with pytest.raises(UsageError, match="sliding window of 32"):
        model(**padded, use_cache=False)


def test_keys_that_lose_their_note_are_noticed():
    layer = narrow(tiny("llama")).layers[0]
    layer.config._attn_implementation = NAME
    k = torch.zeros(1, 2, 3, 8)
    layer.update(k, k)
    with pytest.raises(UsageError, match="cannot stream"):
        layer.update(k, k)


def test_a_calibration_on_a_models_own_keys_streams_by_head(pico):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        pico, dtype=torch.float32, local_files_only=True
    )
    winnow.attention.register()
    ids = torch.randint(3, 500, (1, 200), generator=generator(1))
    shared = {"window": 32, "block": 16, "heavy": 8, "reservoir": 2}
    candidates = [StreamingOptions(**shared, clusters=n) for n in (1, 16)]
    layers = captured(model, ids)
    assert len(layers) == model.config.num_hidden_layers
    # What was captured makes what the model says: attention over it is that of sdpa.
    assert model.config._attn_implementation == "sdpa"
    found = calibrated(model, ids, candidates, target=0.05)
    assert all(layer.error.shape == (layers[0].k.shape[1], 2) for layer in found)
    again = calibrate_remainder(
        layers[1].q, layers[1].k, layers[1].v, candidates, target=0.05, scale=layers[1].scale
    )
    assert again.chosen == found[1].chosen
    model.set_attn_implementation(NAME)
    cache = StreamingCache(model.config, [layer.kind for layer in found])
    with torch.no_grad():
        logits = model(ids, past_key_values=cache, use_cache=True).logits
    assert bool(logits.isfinite().all())
    assert cache.n_bytes == sum(layer.total_bytes for layer in found)
    with pytest.raises(UsageError, match="There are 1 kinds"):
        StreamingCache(model.config, [found[0].kind])
