"""Streams in the engine: exact while the window lasts, however a prompt is cut, constant size beyond."""

import dataclasses

import pytest
import torch

from tests.cli.checkpoint import N_POSITIONS, write
from tests.engine.predictors import gates, head_predictors, low_rank
from tests.engine.tiny import VARIANTS, VOCAB_SIZE, save, tiny_model
from winnow.attention import StreamingCache, register
from winnow.attention.streaming import Rotation
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import Checkpoint, KvCache, load_weights
from winnow.engine.cache import KV_POLICIES
from winnow.engine.context import Session, Stream, StreamingContext
from winnow.engine.context.past import angles_of, learned_position
from winnow.engine.decode import Decoder
from winnow.engine.families.rope import rotary_table
from winnow.engine.generate import GenerateOptions, load
from winnow.engine.prefill import Prefill
from winnow.engine.sparsity import Plan
from winnow.engine.sparsity.plan import Provenance
from winnow.kernels import open_cpu

NAMED = {variant.name: variant for variant in VARIANTS}
KINDS = ("opt", "opt-350m", "opt-bare-maps", "llama-grouped", "llama-yarn", "qwen3", "qwen2")
SMALL = StreamingContext(window=24, heavy=7, sinks=3, clusters=5)
PROMPT = "the wind takes"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Weights of a tiny random model by its variant's name."""

    def open_one(name: str):
        folder = save(tiny_model(NAMED[name], generator(1)), tmp_path_factory.mktemp(name))
        return load_weights(Checkpoint.open(folder), torch.float32)

    return open_one


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "tiny")


def streamed(weights, context, predictors=None, threads=2) -> Stream:
    cpu = open_cpu(threads)
    decoder = Decoder(weights, predictors or (None,) * len(weights.layers), cpu)
    return Stream(Prefill(weights, cpu), decoder, context)


def drawn_ids(n: int) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (n,), generator=generator(5))


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_exact_attention_while_the_window_lasts(name, opened):
    weights, ids = opened(name), drawn_ids(90)
    predictors = gates(weights, 0.0) if weights.config.is_gated else low_rank(weights, generator(2))
    stream = streamed(weights, StreamingContext(window=90, heavy=5, clusters=4), predictors)
    cache, past = KvCache(weights.config, 90, torch.float32), stream.start()
    exact, decoding = stream.decoder.start(cache), stream.decode(past)
    with torch.inference_mode():
        wanted, got = Prefill(weights, open_cpu(2)).read(ids[:47], cache), stream.read(ids[:47], past)
    for token in ids[47:].tolist():
        torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(wanted), rtol=1e-3, atol=1e-3)
        wanted, got = exact.step(token)[0], decoding.step(token)[0]
    assert decoding.counts.mlp_density == exact.counts.mlp_density < 1
    assert decoding.counts.head_density == 1
    assert decoding.counts.steps == exact.counts.steps == 43


@pytest.mark.parametrize("name", ["opt", "llama-grouped"])
def test_any_cut_of_a_prompt_gives_the_same_tokens(name, opened):
    weights, ids = opened(name), drawn_ids(531)  # trained for 320
    stream = streamed(weights, SMALL)

    def answer(*cuts: int) -> list[int]:
        past = stream.start()
        decoding = stream.decode(past)
        with torch.inference_mode():
            for part in ids.tensor_split(cuts):
                logits = stream.read(part, past)
        said = []
        for _ in range(12):
            said.append(int(logits.argmax()))
            logits = decoding.step(said[-1])[0]
        return said

    whole = answer()
    assert whole == answer(1, 2, 100, 513) == answer(*range(67, 531, 67))
    past = stream.start()
    decoding = stream.decode(past)
    with torch.inference_mode():
        stream.read(ids[:431], past)
    logits = [decoding.step(token)[0] for token in ids[431:].tolist()][-1]
    assert int(logits.argmax()) == whole[0]


def test_a_stream_holds_as_much_after_three_trained_lengths_as_at_the_start(directory):
    engine = load(directory, dtype="fp32", threads=1, context=SMALL)
    assert engine.streaming is not None
    past = engine.streaming.start()
    decoding, before = engine.streaming.decode(past), past.n_bytes
    for step in range(3 * N_POSITIONS):
        decoding.step(5 + step % 200)
    assert past.length == 3 * N_POSITIONS
    assert past.n_bytes == before
    with torch.inference_mode():
        engine.streaming.read(torch.arange(900) % 300, past)
    assert past.n_bytes == before


def test_the_engine_says_the_same_with_any_context_the_window_holds(directory):
    exact = load(directory, dtype="fp32", threads=1)
    wide = load(directory, dtype="fp32", threads=1, context=StreamingContext(window=90))
    options = {"max_tokens": 60, "ignore_eos": True, "logprobs": True}
    wanted, got = exact.generate(PROMPT, **options), wide.generate(PROMPT, **options)
    assert got.token_ids == wanted.token_ids
    torch.testing.assert_close(
        torch.tensor(got.logprobs), torch.tensor(wanted.logprobs), rtol=1e-4, atol=1e-4
    )


def test_a_stream_is_the_same_for_any_number_of_threads(directory):
    said = [
        load(directory, threads=threads, context=SMALL).generate(PROMPT, max_tokens=200, temperature=1.0)
        for threads in (1, 2)
    ]
    assert said[0].token_ids == said[1].token_ids
    assert said[0].text == said[1].text


def test_a_prompt_beyond_the_models_positions_is_read(directory):
    engine = load(directory, dtype="fp32", threads=1, context=SMALL)
    assert engine.generate([5] * (N_POSITIONS + 100), max_tokens=2, ignore_eos=True).stats.read_tokens == 260


@pytest.mark.parametrize("position", ["clamp", "cache"])
def test_a_rotary_stream_says_what_transformers_says_with_the_same_states(position, opened):
    weights, ids = opened("llama-grouped"), drawn_ids(450)
    stream = streamed(weights, dataclasses.replace(SMALL, position=position))
    past = stream.start()
    register()
    with torch.inference_mode():
        got = stream.read(ids, past)
        model = tiny_model(NAMED["llama-grouped"], generator(1)).float()
        model.set_attn_implementation("winnow_streaming")
        told = model(ids[None], past_key_values=StreamingCache(model.config, stream.kind), use_cache=True)
    torch.testing.assert_close(torch.from_numpy(got), told.logits[0, -1], rtol=1e-3, atol=1e-3)


def test_old_tokens_stand_behind_the_window_or_at_the_trained_length(opened):
    config = opened("llama-grouped").config
    clamp, cache = (
        dataclasses.replace(SMALL, position=each).kind(config).options for each in ("clamp", "cache")
    )
    assert clamp.shift(1000) == 1001 - config.n_positions
    assert cache.shift(1000) == 1001 - cache.held
    assert cache.shift(cache.held - 1) == clamp.shift(cache.held - 1) == 0


def test_learned_positions_stop_at_the_last_one(opened):
    config = opened("opt").config
    assert [learned_position(config, at) for at in (0, 319, 320, 10**6)] == [0, 319, 319, 319]


def test_angles_are_those_of_the_model_and_stay_true_a_million_positions_on(opened):
    config = opened("llama-yarn").config
    cos, sin = rotary_table(config.rope, config.head_width, 100, 50)
    torch.testing.assert_close(angles_of(config, 100, 50), (cos, sin), rtol=1e-4, atol=1e-4)
    at, further = 1_000_003, 40
    kind = StreamingContext(window=24).kind(config)
    assert isinstance(kind.options.rotation, Rotation)
    key = torch.cat([torch.ones(1, config.head_width // 2), torch.zeros(1, config.head_width // 2)], -1)
    moved = kind.options.rotation.turned(key, torch.tensor([at + further]))
    back = kind.options.rotation.turned(moved, torch.tensor([-at]))
    scale = config.rope.scale
    cos, sin = angles_of(config, further, 1)
    torch.testing.assert_close(back * scale, torch.cat([cos, sin], -1), rtol=1e-4, atol=1e-4)
    far = angles_of(config, at, 1)[0]
    exact = (at * torch.tensor(kind.options.rotation.frequencies, dtype=torch.float64)).cos() * scale
    torch.testing.assert_close(far[0].double(), exact, rtol=0, atol=1e-6)


def test_what_cannot_stream_is_refused_at_the_gate(opened, directory):
    weights = opened("opt")
    said = Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.1, 0.1, 0.5, 0.5, 99)
    leaves_heads_out = Plan(said, (None,) * 3, (), head_predictors(weights, generator(3)))
    with pytest.raises(UsageError, match="--kv lazy"):
        load(directory, kv="lazy", context="streaming")
    with pytest.raises(UsageError, match="leaves heads out"):
        SMALL.check_fits(leaves_heads_out, KV_POLICIES["dense"])
    with pytest.raises(UsageError, match="sliding window"):
        streamed(opened("mistral-window"), SMALL)
    with pytest.raises(UsageError, match="--window at most 96"):
        load(directory, context=StreamingContext(window=97))
    with pytest.raises(UsageError, match="at least 1"):
        StreamingContext(window=0)
    with pytest.raises(UsageError, match="expected one of clamp, cache"):
        StreamingContext(position="absolute")
    with pytest.raises(UsageError, match="--position cache is for rotary models"):
        dataclasses.replace(SMALL, position="cache").kind(weights.config)
    with pytest.raises(UsageError, match="expected one of exact, streaming"):
        load(directory, context="endless")
    engine = load(directory, context=SMALL)
    with pytest.raises(UsageError, match="A session keeps all keys"):
        next(engine.run(PROMPT, GenerateOptions(max_tokens=3), Session(engine.weights)))
    with pytest.raises(UsageError, match="leaves heads out"):
        engine.use_plan(leaves_heads_out)
    stream = streamed(weights, SMALL)
    with pytest.raises(UsageError, match="2 sequences"):
        stream.decode(stream.start(), stream.start())


def test_the_budget_is_what_the_states_hold(opened):
    config = opened("llama-grouped").config
    sizes = [
        dataclasses.replace(SMALL, **change).kind(config).start(1, 1, 20, 20).n_bytes
        for change in ({}, {"window": 25}, {"heavy": 8}, {"sinks": 4}, {"clusters": 6})
    ]
    assert all(size > sizes[0] for size in sizes[1:])
