"""Generation: one request from text to text."""

import shutil

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.cli.checkpoint import write
from winnow.base.errors import ModelError, ResourceError, UsageError
from winnow.engine import Checkpoint, KvCache, StreamDecoder, forward
from winnow.engine.generate import Engine, GenerateOptions, load
from winnow.engine.sparsity import CalibrationOptions, calibrate, windows
from winnow.engine.tokenizer import CertainText

PROMPT = "the wind takes the light chaff"


def before_stop(pieces: list[str], stops: list[str]) -> str:
    """What is left by the first piece of text that completes a stop string, by its definition."""
    for n in range(1, len(pieces) + 1):
        text = "".join(pieces[:n])
        ends = [text.find(stop) for stop in stops if stop in text]
        if ends:
            return text[: min(ends)]
    return "".join(pieces)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("generate") / "model", seed=4)


@pytest.fixture(scope="module")
def engine(directory) -> Engine:
    return load(directory, dtype="fp32", threads=1)


def test_streaming_gives_the_text_of_generating(engine):
    whole = engine.generate(PROMPT, max_tokens=20, temperature=0.9, seed=3)
    pieces = list(engine.stream(PROMPT, max_tokens=20, temperature=0.9, seed=3))
    assert "".join(p.text for p in pieces) == whole.text
    assert [p.token_id for p in pieces] == whole.token_ids
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all(p.finish_reason is None for p in pieces[:-1])


def test_the_text_is_the_tokens_decoded(engine):
    done = engine.generate(PROMPT, max_tokens=25, ignore_eos=True)
    assert done.text == engine.tokenizer.decode(done.token_ids)
    assert done.finish_reason == "length"
    assert len(done.token_ids) == 25


def test_same_seed_same_tokens_for_one_and_two_threads(directory):
    answers = [
        load(directory, dtype=dtype, threads=threads)
        .generate(PROMPT, max_tokens=40, temperature=1.0, seed=11, ignore_eos=True)
        .token_ids
        for dtype in ("fp32", "bf16")
        for threads in (1, 2)
    ]
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]


def test_other_seeds_give_other_tokens(engine):
    one, two = (engine.generate(PROMPT, max_tokens=20, temperature=1.0, seed=s).token_ids for s in (1, 2))
    assert one != two


def test_a_prompt_of_ids_is_taken_as_it_is(engine):
    ids = engine.tokenizer.encode(PROMPT)
    assert engine.generate(ids, max_tokens=9).token_ids == engine.generate(PROMPT, max_tokens=9).token_ids


def test_a_stop_string_ends_the_text_before_itself(engine):
    whole = engine.generate(PROMPT, max_tokens=30, ignore_eos=True).text
    stop = whole[10:13]
    stopped = engine.generate(PROMPT, max_tokens=30, ignore_eos=True, stop=[stop])
    assert stopped.text == whole[: whole.find(stop)]
    assert stopped.finish_reason == "stop"


def test_nothing_is_streamed_that_a_stop_string_takes_back(engine):
    whole = engine.generate(PROMPT, max_tokens=30, ignore_eos=True).text
    stop = whole[8:20]  # spans several tokens
    shown = ""
    for piece in engine.stream(PROMPT, max_tokens=30, ignore_eos=True, stop=[stop, "never said"]):
        shown += piece.text
        assert whole.startswith(shown)
    assert shown == whole[: whole.find(stop)]


def test_a_stop_string_that_never_comes_holds_nothing_back_at_the_end(engine):
    whole = engine.generate(PROMPT, max_tokens=15, ignore_eos=True).text
    almost = whole[-2:] + "\x00"
    assert engine.generate(PROMPT, max_tokens=15, ignore_eos=True, stop=[almost]).text == whole


@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_text_is_held_back_only_while_it_may_yet_be_a_stop_string(engine, data):
    ids = data.draw(st.lists(st.integers(4, engine.tokenizer.vocab_size - 1), min_size=1, max_size=12))
    stream = StreamDecoder(engine.tokenizer)
    pieces = [*(stream.push(token) for token in ids), stream.flush()]
    whole = "".join(pieces)
    places = st.tuples(st.integers(0, len(whole)), st.integers(1, 5))
    cuts = data.draw(st.lists(places, max_size=3))
    stops = [whole[start : start + n] for start, n in cuts if whole[start : start + n]]
    stops += data.draw(st.lists(st.text("ab e\u00e9", min_size=1, max_size=3), max_size=2))
    text = CertainText(engine.tokenizer, tuple(stops))
    shown, n_longest = "", max(map(len, stops), default=1)
    for n, token in enumerate(ids, start=1):
        shown += text.push(token)
        assert whole.startswith(shown)
        if text.stopped:
            break
        assert len("".join(pieces[:n])) - len(shown) < n_longest
    shown += text.flush()
    assert shown == before_stop(pieces, stops)


def test_logprobs_are_those_of_the_dense_definition(engine):
    ids = engine.tokenizer.encode(PROMPT)
    done = engine.generate(ids, max_tokens=8, logprobs=True, ignore_eos=True, temperature=1.2, seed=4)
    whole = torch.tensor([*ids, *done.token_ids])
    cache = KvCache(engine.weights.config, len(whole), torch.float32)
    scores = forward(engine.weights, whole, cache)[len(ids) - 1 : -1, : engine.tokenizer.vocab_size]
    expected = scores.log_softmax(-1)[torch.arange(8), torch.tensor(done.token_ids)]
    assert done.logprobs == pytest.approx(expected.tolist(), abs=2e-4)


def test_the_end_token_stops_unless_ignored(engine):
    end = engine.weights.config.eos_ids[0]
    bias = {end: 100.0}
    stopped = engine.generate(PROMPT, max_tokens=12, logit_bias=bias)
    assert stopped.token_ids == [end]
    assert stopped.finish_reason == "stop"
    assert stopped.text == ""
    assert engine.generate(PROMPT, max_tokens=12, logit_bias=bias, ignore_eos=True).token_ids == [end] * 12


def test_ids_without_a_token_are_never_picked(engine):
    unused = range(engine.tokenizer.vocab_size, engine.weights.config.vocab_size)
    assert len(unused) > 0
    bias = dict.fromkeys(unused, 100.0)
    done = engine.generate(PROMPT, max_tokens=10, logit_bias=bias, temperature=2.0, ignore_eos=True)
    assert not set(done.token_ids) & set(unused)


def test_logprobs_are_those_of_the_picked_tokens(engine):
    done = engine.generate(PROMPT, max_tokens=8, logprobs=True, ignore_eos=True)
    assert len(done.logprobs) == 8
    assert all(value <= 0 for value in done.logprobs)
    assert engine.generate(PROMPT, max_tokens=8).logprobs is None


def test_stats_say_what_ran(engine):
    stats = engine.generate(PROMPT, max_tokens=10, ignore_eos=True).stats
    assert stats.prompt_tokens == len(engine.tokenizer.encode(PROMPT))
    assert stats.counts.steps == 9  # the first token comes from the prompt
    assert stats.mlp_density == 1.0
    assert stats.bytes_per_token > 0 < stats.tokens_per_second


def test_a_plan_beside_the_weights_is_found_and_used(directory, engine, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    ids = torch.randint(4, 300, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    options = CalibrationOptions(target_kld=0.05, sample_rows=256, quiet=True)
    plan = calibrate(
        engine.weights, Checkpoint.open(copy).content_hash(), windows(ids, [2], size=120), options
    )
    plan.save(copy / "winnow-plan.safetensors")
    sparse = load(copy, dtype="fp32", threads=1)
    assert sparse.plan is not None
    assert sparse.generate(PROMPT, max_tokens=10, ignore_eos=True).stats.mlp_density < 1.0
    assert load(copy, dtype="fp32", threads=1, plan=None).plan is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": [], "max_tokens": 3}, "holds no tokens"),
        ({"prompt": [5, -1]}, "Token id -1"),
        ({"prompt": [5, 307]}, "Token id 307"),
        ({"prompt": [5] * 150, "max_tokens": 20}, "150 . 20 = 170"),
        ({"prompt": [5], "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": [5], "max_tokens": -4}, "max_tokens is -4"),
        ({"prompt": [5], "stop": ["a", ""]}, "stop string is empty"),
        ({"prompt": [5], "logit_bias": {99999: 1.0}}, "logit_bias names token 99999"),
        ({"prompt": [5], "temperature": -1.0}, "temperature"),
    ],
    ids=str,
)
def test_refuses_requests_that_cannot_be_served(options, message, engine):
    prompt = options.pop("prompt")
    with pytest.raises(UsageError, match=message):
        engine.generate(prompt, **options)


def test_a_refused_request_leaves_the_engine_as_it_was(engine):
    before = engine.generate(PROMPT, max_tokens=6).token_ids
    with pytest.raises(UsageError):
        engine.generate([5, 99999])
    assert engine.generate(PROMPT, max_tokens=6).token_ids == before


def test_context_is_used_to_the_last_position(engine):
    n_positions = engine.weights.config.n_positions
    done = engine.generate([5] * (n_positions - 3), max_tokens=3, ignore_eos=True)
    assert len(done.token_ids) == 3


def test_an_output_that_is_not_a_number_ends_with_an_error(directory):
    broken = load(directory, dtype="fp32", threads=1)
    broken.weights.layers[0].mlp.w_in.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinity"):
        broken.generate(PROMPT)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "float"}, UsageError),
        ({"device": "cuda"}, ResourceError),
        ({"threads": 0}, UsageError),
        ({"plan": "/nowhere/plan"}, ModelError),
        ({"path": "/nowhere"}, ModelError),
    ],
    ids=str,
)
def test_load_refuses_what_it_cannot_do(options, error, directory):
    with pytest.raises(error):
        load(**{"path": directory, **options})


def test_options_have_defaults_that_serve():
    assert GenerateOptions().max_tokens == 64
