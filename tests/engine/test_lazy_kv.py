"""Keys and values computed when they are needed, against those computed at once: the same bits."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cli.checkpoint import write
from tests.engine.predictors import head_predictors
from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import (
    Checkpoint,
    DictSource,
    GenerateOptions,
    KvCache,
    SamplingOptions,
    load,
    load_weights,
    parse_config,
)
from winnow.engine.cache import KV_POLICIES, KvPolicy
from winnow.engine.context import Session
from winnow.engine.counts import NOTED_STEPS
from winnow.engine.decode import Decoder
from winnow.engine.generate import Engine
from winnow.engine.model import prefill
from winnow.engine.sparsity import Plan
from winnow.engine.sparsity.plan import Provenance
from winnow.engine.synthetic import llama_config, synthetic_model
from winnow.kernels import open_cpu

CAPACITY = 70
NAMES = [
    "opt",
    "opt-350m",
    "opt-bare-maps",
    "llama",
    "llama-grouped",
    "llama-biases",
    "mistral-window",
    "qwen2",
]
NORMED = ["qwen3", "qwen3-biases"]


@functools.cache
def tiny_weights(name: str, dtype: torch.dtype):
    model = tiny_model(next(v for v in VARIANTS if v.name == name), generator(7))
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    return load_weights(source, dtype, by_head=True)


@functools.cache
def grouped_in_int4():
    """Rows of whole groups of 32."""
    model = synthetic_model(llama_config(2, 96, 160, 6, 3, 211), torch.int4, 0.5, seed=3)
    return model.by_head(0.5)[0]


def drawn(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def some_ids(rng: torch.Generator, n: int) -> list[int]:
    return torch.randint(0, 211, (n,), generator=rng).tolist()


class Runs:
    """The same acts on a dense and on a lazy cache, compared as they go."""

    def __init__(self, weights, heads, window: int, isa: str = "best") -> None:
        self.weights, cpu = weights, open_cpu(2, isa)
        none = (None,) * weights.config.n_layers
        self.decoders = [Decoder(weights, none, cpu, heads, KvPolicy(w)) for w in (1, window)]
        self.caches = [KvCache(weights.config, CAPACITY, weights.cache_dtype) for _ in range(2)]
        self.is_exact = isa != "torch"
        self.start()

    def start(self) -> None:
        self.decodings = [d.start(c) for d, c in zip(self.decoders, self.caches, strict=True)]

    def read(self, ids: list[int]) -> None:
        with torch.inference_mode():
            one, two = (prefill(self.weights, torch.tensor(ids), cache) for cache in self.caches)
        self.assert_equal(one.numpy(), two.numpy())

    def step(self, token: int) -> None:
        self.assert_equal(*(decoding.step(token) for decoding in self.decodings))

    def assert_equal(self, one: np.ndarray, two: np.ndarray) -> None:
        if self.is_exact:
            assert np.array_equal(one, two)
        else:
            np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())

    @property
    def length(self) -> int:
        return self.caches[0].length

    def go_back(self, length: int) -> None:
        """To a common beginning, as a session does."""
        for cache in self.caches:
            cache.length = length

    def break_off(self) -> None:
        """Begin a step that fails within the first layer's calls."""
        for cache, decoding in zip(self.caches, self.decodings, strict=True):
            cache.length, position = CAPACITY, cache.length
            with pytest.raises((ValueError, IndexError)):
                decoding.step(3)
            cache.length = position

    def take_turns(self) -> None:
        """Let another decoding take a step on the same cache."""
        mine = self.decodings
        self.start()
        self.step(5)
        self.decodings = mine

    def assert_caches_equal(self) -> None:
        length = self.caches[0].length
        assert self.caches[1].length == length
        for one, two in zip(self.caches[0].blocks, self.caches[1].blocks, strict=True):
            for mine, theirs in zip(one.floats(0, length), two.floats(0, length), strict=True):
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", NAMES + NORMED)
@pytest.mark.compiled
def test_lazy_has_the_bits_of_dense(name, dtype, rng):
    weights = tiny_weights(name, dtype)
    for _ in range(3):
        runs = Runs(weights, head_predictors(weights, rng), drawn(rng, 2, 16))
        runs.read(some_ids(rng, drawn(rng, 1, 30)))
        for token in some_ids(rng, drawn(rng, 1, 35)):
            runs.step(token)
        runs.assert_caches_equal()


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["opt", "llama-grouped", "qwen3-biases"])
def test_lazy_has_the_bits_of_dense_where_keys_and_values_are_int8(name, dtype, rng):
    weights = replace(tiny_weights(name, dtype), kv_dtype=torch.int8)
    runs = Runs(weights, head_predictors(weights, rng), 7)
    runs.read(some_ids(rng, 21))
    for token in some_ids(rng, 40):
        runs.step(token)
    assert runs.caches[0].blocks[0].dtype == torch.int8
    runs.assert_caches_equal()


@pytest.mark.compiled
def test_lazy_has_the_bits_of_dense_in_int4(rng):
    runs = Runs(grouped_in_int4(), head_predictors(grouped_in_int4(), rng), 5)
    runs.read(some_ids(rng, 3))
    for token in some_ids(rng, 40):
        runs.step(token)
    runs.assert_caches_equal()


@pytest.mark.compiled
@pytest.mark.parametrize("window", range(1, 17))
@pytest.mark.parametrize("margin", [-1e6, -2.0, 1e6], ids=["no heads", "few", "all heads"])
def test_every_window_and_any_number_of_heads(window, margin, rng):
    weights = tiny_weights("llama", torch.bfloat16)
    runs = Runs(weights, head_predictors(weights, rng, margin), window)
    for token in some_ids(rng, 40):
        runs.step(token)
    runs.assert_caches_equal()


def test_the_definitions_agree_to_rounding(rng):
    weights = tiny_weights("qwen3", torch.float32)
    runs = Runs(weights, head_predictors(weights, rng), 4, isa="torch")
    runs.read(some_ids(rng, 5))
    for token in some_ids(rng, 12):
        runs.assert_equal(*(decoding.step(token) for decoding in runs.decodings))


@pytest.mark.compiled
@pytest.mark.parametrize("seed", range(12))
def test_whatever_befalls_the_cache_it_is_whole_when_it_is_read(seed):
    rng = generator(seed)
    weights = tiny_weights(["llama-grouped", "opt", "qwen3"][seed % 3], torch.bfloat16)
    runs = Runs(weights, head_predictors(weights, rng, margin=-1.0), drawn(rng, 2, 12))
    acts = [
        lambda: runs.go_back(drawn(rng, 0, runs.length)),
        lambda: runs.read(some_ids(rng, min(CAPACITY - runs.length, drawn(rng, 1, 9)))),
        runs.start,
        runs.break_off,
        runs.assert_caches_equal,
        runs.take_turns,
    ]
    for _ in range(30):
        for token in some_ids(rng, min(CAPACITY - runs.length, drawn(rng, 0, 9))):
            runs.step(token)
        if runs.length == CAPACITY:
            runs.go_back(drawn(rng, 0, CAPACITY - 10))
        acts[drawn(rng, 0, len(acts) - 1)]()
    runs.assert_caches_equal()


class Broken(Exception):
    pass


def break_off_at_the_end(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ctrl-C does: the calls have run, the step has not ended."""

    def broken(position: int) -> None:
        raise Broken

    for decoding in runs.decodings:
        with monkeypatch.context() as patched:
            patched.setattr(decoding._backlogs[0], "end", broken)
            with pytest.raises(Broken):
                decoding.step(7)


@pytest.mark.compiled
def test_a_step_that_was_broken_off_is_taken_again_with_another_token(monkeypatch, rng):
    weights = tiny_weights("llama", torch.bfloat16)
    runs = Runs(weights, head_predictors(weights, rng), 5)
    for token in some_ids(rng, 9):
        runs.step(token)
    break_off_at_the_end(runs, monkeypatch)
    for token in some_ids(rng, 9):
        runs.step(token)
    runs.assert_caches_equal()


@pytest.mark.compiled
def test_a_first_step_behind_an_earlier_position_may_be_broken_off(monkeypatch, rng):
    weights = tiny_weights("llama", torch.bfloat16)
    runs = Runs(weights, head_predictors(weights, rng), 5)
    for token in some_ids(rng, 20):
        runs.step(token)
    runs.go_back(6)  # further than the inputs reach
    break_off_at_the_end(runs, monkeypatch)
    runs.assert_caches_equal()
    runs.read(some_ids(rng, 3))
    runs.step(11)
    runs.assert_caches_equal()


@pytest.mark.compiled
def test_between_steps_heads_that_are_not_due_are_left_out(rng):
    weights = tiny_weights("llama", torch.bfloat16)
    n_heads = weights.config.n_kv_heads
    runs = Runs(weights, head_predictors(weights, rng, margin=-1e6), n_heads)
    blocks, steps = runs.caches[1].blocks, 4 * n_heads
    for position in range(steps):
        runs.step(some_ids(rng, 1)[0])
        whole = blocks[1].keys[:, : position + 1].any(-1).sum(-1)
        # One head at a step, each in its turn: what they lack is 0, 1, 2, ... positions.
        expected = [max(position + 1 - lag, 0) for lag in range(n_heads)]
        assert sorted(whole.tolist(), reverse=True) == expected
    runs.caches[1].complete()
    assert blocks[1].keys[:, :steps].any(-1).all()


@pytest.mark.compiled
def test_bytes_are_those_of_the_heads_due_and_of_the_inputs_they_need(rng):
    weights = tiny_weights("llama", torch.float32)
    config = weights.config
    n_heads, width = config.n_kv_heads, config.width
    runs = Runs(weights, head_predictors(weights, rng, margin=-1e6), n_heads)
    for token in some_ids(rng, 4 * n_heads):
        runs.step(token)
    dense, lazy = (decoding.counts for decoding in runs.decodings)
    of_a_head = 2 * config.head_width * width * 4
    inputs = sum(min(n + 1, n_heads) for n in range(4 * n_heads)) * width * 4  # the head due lacks the most
    saved = (n_heads - 1) * of_a_head * 4 * n_heads - inputs
    assert [a - b for a, b in zip(dense.n_bytes, lazy.n_bytes, strict=True)] == [saved] * 3
    assert (dense.heads == lazy.heads).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_counts_are_the_same_however_often_they_are_asked_for(rng, batch):
    weights = tiny_weights("llama", torch.float32)
    decoder = Decoder(weights, (None,) * 3, open_cpu(2), head_predictors(weights, rng), KV_POLICIES["lazy"])
    caches = [KvCache(weights.config, CAPACITY, weights.cache_dtype) for _ in range(2 * batch)]
    often, once = decoder.start(*caches[:batch]), decoder.start(*caches[batch:])
    read = [often.counts.bytes_per_token]
    for token in some_ids(rng, NOTED_STEPS + 5):
        often.step(*[token] * batch)
        once.step(*[token] * batch)
        read.append(often.counts.bytes_per_token)
    assert len(set(read)) > NOTED_STEPS / 2  # it grew from step to step
    for counted in ("steps", "head_bytes"):
        assert getattr(often.counts, counted) == getattr(once.counts, counted) > 0
    for counted in ("active", "heads", "n_bytes"):
        assert getattr(often.counts, counted).tolist() == getattr(once.counts, counted).tolist()


@pytest.mark.compiled
def test_two_threads_give_the_bits_of_one(rng):
    weights = tiny_weights("qwen3", torch.int8)
    heads, ids, found = head_predictors(weights, rng), some_ids(rng, 25), []
    for threads in (1, 2, 3):
        cache = KvCache(weights.config, 25, weights.cache_dtype)
        decoding = Decoder(weights, (None,) * 3, open_cpu(threads), heads, KV_POLICIES["lazy"]).start(cache)
        found.append(np.stack([decoding.step(token) for token in ids]))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("window", [0, -3, 65])
def test_windows_that_hold_nothing_or_too_much_are_refused(window):
    with pytest.raises(UsageError, match="window is"):
        KvPolicy(window)


def test_without_heads_to_leave_out_lazy_is_dense(rng):
    weights = tiny_weights("opt", torch.float32)
    runs = Runs(weights, (), 8)
    for token in some_ids(rng, 5):
        runs.step(token)
    assert (runs.decodings[0].counts.n_bytes == runs.decodings[1].counts.n_bytes).all()
    runs.assert_caches_equal()


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> tuple[Engine, Engine]:
    """A dense and a lazy engine of one tiny model, with a plan that leaves heads out."""
    path = write(tmp_path_factory.mktemp("lazy") / "model", seed=4)
    opened = load(path, dtype="fp32", threads=1)
    weights = load_weights(Checkpoint.open(path), torch.float32, by_head=True)
    n = weights.config.n_layers
    heads = head_predictors(weights, generator(1), margin=-0.5)
    plan = Plan(
        Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.1, 0.1, 0.5, 0.5, 99), (None,) * n, (), heads
    )
    return tuple(Engine(weights, opened.tokenizer, plan, 1, policy) for policy in KV_POLICIES.values())


@pytest.mark.compiled
def test_a_session_is_whole_at_every_prompt_even_after_an_answer_that_was_stopped(engines):
    answers = []
    for engine in engines:
        session, said = Session(engine.weights), []
        for turn, (prompt, n_heard) in enumerate(
            [([5, 6, 7], 20), ([5, 6, 7, 9, 11], 3), ([5, 6], 17), ([5, 6, 7, 9, 11, 12, 13], 1), ([5], 25)]
        ):
            pieces = engine.run(
                prompt, GenerateOptions(25, SamplingOptions(1.0, seed=turn), ignore_eos=True), session
            )
            heard = [next(pieces).token_id for _ in range(n_heard)]
            pieces.close()
            said.append(heard)
            follow = [*session.tokens, 3]  # what is read next stands behind what was said
            said.append(
                [p.token_id for p in engine.run(follow, GenerateOptions(4, ignore_eos=True), session)]
            )
        answers.append(said)
        assert engine.last_stats.head_density < 1
    assert answers[0] == answers[1]
