"""Sampling: which token is picked, and which options are refused."""

import numpy as np
import pytest

from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine.sampling import SamplingOptions, candidates, pick

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], dtype=np.float32))


def shares(options: dict, n: int = 4000) -> np.ndarray:
    sampling = SamplingOptions(temperature=1.0, seed=7, **options)
    drawn = [pick(LOGITS, sampling, step, ()) for step in range(n)]
    return np.bincount(drawn, minlength=5) / n


def test_temperature_zero_takes_the_likeliest():
    assert pick(LOGITS, SamplingOptions(), 0, ()) == 1


def test_equal_logits_go_to_the_lower_id():
    assert pick(np.array([1.0, 3.0, 3.0], dtype=np.float32), SamplingOptions(), 0, ()) == 1


def test_draws_follow_the_probabilities():
    assert np.abs(shares({}) - [0.1, 0.4, 0.05, 0.3, 0.15]).max() < 0.03


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {1, 3}),  # 0.4 alone does not reach 0.5
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "min_p": 0.5}, {1, 3}),
        ({"top_k": 2, "top_p": 0.5}, {1}),  # of the two that are left, 0.57 reaches 0.5
    ],
    ids=str,
)
def test_filters_keep_exactly_these_tokens(options, kept):
    assert set(np.flatnonzero(shares(options))) == kept


def test_a_step_draws_the_same_whatever_was_drawn_before():
    sampling = SamplingOptions(temperature=1.3, seed=3)
    alone = pick(LOGITS, sampling, 17, ())
    after = [pick(LOGITS, sampling, step, ()) for step in range(18)][-1]
    assert alone == after


def test_seeds_differ():
    def draws(seed: int) -> list[int]:
        sampling = SamplingOptions(temperature=1.0, seed=seed)
        return [pick(LOGITS, sampling, step, ()) for step in range(20)]

    assert draws(1) != draws(2)


def test_repetition_penalty_lowers_what_was_said_whatever_its_sign():
    logits = np.array([2.0, 1.9, -1.0], dtype=np.float32)
    penal = SamplingOptions(repetition_penalty=2.0)
    assert pick(logits, penal, 0, [0]) == 1
    assert pick(np.array([-1.0, -1.5, -9.0], dtype=np.float32), penal, 0, [0]) == 1
    assert logits[0] == 2.0  # the caller's array is left alone


def test_logit_bias_moves_the_choice():
    assert pick(LOGITS, SamplingOptions(logit_bias={2: 50.0}), 0, ()) == 2
    assert pick(LOGITS, SamplingOptions(logit_bias={1: -100.0}), 0, ()) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.5},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -3},
        {"min_p": 2.0},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"logit_bias": {3: float("inf")}},
        {"logit_bias": {3: 101.0}},
    ],
    ids=str,
)
def test_refuses_values_outside_their_range(bad):
    with pytest.raises(UsageError, match="expected"):
        SamplingOptions(**bad)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 99.0])
def test_survives_extreme_temperatures(temperature):
    assert pick(LOGITS, SamplingOptions(temperature=temperature), 0, ()) in range(5)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 17},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.1, "min_p": 0.07},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.93, "min_p": 0.01, "repetition_penalty": 1.4},
        {"temperature": 0.6, "top_k": 5, "top_p": 0.5, "repetition_penalty": 0.8},
    ],
    ids=str,
)
def test_what_may_be_drawn_and_how_likely_is_what_transformers_says(options):
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = 2.5 * torch.randn(5, 203, generator=generator(8))
    history = torch.randint(0, 203, (5, 31), generator=generator(9))
    wanted = [RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0))]
    wanted += [TemperatureLogitsWarper(options["temperature"])]
    wanted += [TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    wanted += [TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    wanted += [MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    expected = LogitsProcessorList(wanted)(history, logits.clone()).double().softmax(-1).numpy()
    for row, seen, shares in zip(logits.numpy(), history.tolist(), expected, strict=True):
        tokens, found = candidates(row, SamplingOptions(**options), seen)
        assert set(tokens.tolist()) == set(np.flatnonzero(shares).tolist())
        np.testing.assert_allclose(found, shares[tokens], rtol=1e-4)
        assert list(found) == sorted(found, reverse=True)


def test_draws_follow_the_shares_of_the_candidates():
    options = SamplingOptions(temperature=0.8, top_k=4, top_p=0.95, repetition_penalty=1.5, seed=2)
    tokens, expected = candidates(LOGITS, options, [1])
    drawn = np.bincount([pick(LOGITS, options, step, [1]) for step in range(4000)], minlength=5) / 4000
    assert set(np.flatnonzero(drawn)) == set(tokens.tolist())
    assert np.abs(drawn[tokens] - expected).max() < 0.03
