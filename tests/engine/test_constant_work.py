"""Constant work: every step computes as many neurons of a layer as any other, and answers as before."""

from dataclasses import replace

import numpy as np
import pytest

import winnow
from winnow.base.errors import UsageError
from winnow.engine.cache import KvCache

PROMPT = "The old man looked at the sea and"


@pytest.fixture(scope="module")
def engine():
    return winnow.load("pico", threads=2)


def counts_by_step(engine, n_steps: int, n_rows: int = 1) -> np.ndarray:
    caches = [KvCache(engine.weights.config, n_steps, engine.weights.cache_dtype) for _ in range(n_rows)]
    decoding, seen = engine.decoder.start(*caches), []
    for step in range(n_steps):
        before = decoding.counts.active.copy()
        decoding.step(*range(40 + step, 40 + step + n_rows))
        seen.append(decoding.counts.active - before)
    return np.array(seen)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_every_step_lists_the_same_number_of_neurons_once_levelled(engine, n_rows):
    engine.use_plan(engine.plan)
    assert (np.ptp(counts_by_step(engine, 17, n_rows), axis=0) > 0).any()
    engine.decoder.level(engine.plan)
    levelled = counts_by_step(engine, 17, n_rows)
    assert (np.ptp(levelled, axis=0) == 0).all()
    assert (levelled[0] == n_rows * np.array(engine.decoder.filler.budgets)).all()


def test_a_levelled_step_gives_the_same_bits(engine):
    engine.use_plan(engine.plan)
    plain = engine.generate(PROMPT, max_tokens=21, logprobs=True)
    engine.decoder.level(engine.plan)
    levelled = engine.generate(PROMPT, max_tokens=21, logprobs=True)
    assert (levelled.token_ids, levelled.logprobs) == (plain.token_ids, plain.logprobs)
    assert levelled.stats.mlp_density > plain.stats.mlp_density


def test_an_engine_loaded_for_constant_work_keeps_to_it_when_its_plan_changes(engine):
    levelled = winnow.load(threads=2, constant_work=True)
    assert (
        levelled.generate(PROMPT, max_tokens=9).token_ids == engine.generate(PROMPT, max_tokens=9).token_ids
    )
    plan = levelled.plan
    levelled.use_plan(None)
    levelled.use_plan(plan)
    assert (np.ptp(counts_by_step(levelled, 9), axis=0) == 0).all()


def test_a_stream_of_constant_work_is_refused_before_a_weight_is_read():
    with pytest.raises(UsageError, match="steps of a stream have no constant work"):
        winnow.load(constant_work=True, context="streaming")


def test_a_step_beyond_its_budget_is_filled_up_to_all(engine):
    narrow = [replace(layer, density=0.001) for layer in engine.plan.quality]
    engine.use_plan(engine.plan)
    engine.decoder.level(replace(engine.plan, quality=tuple(narrow)))
    assert set(np.unique(counts_by_step(engine, 5))) == {engine.weights.config.n_neurons}


def test_gated_neurons_are_filled_in_by_their_gates():
    engine = winnow.load("pico-llama", threads=2)
    plain = engine.generate(PROMPT, max_tokens=9)
    engine.decoder.level(engine.plan)
    assert engine.generate(PROMPT, max_tokens=9).token_ids == plain.token_ids
    assert (np.ptp(counts_by_step(engine, 9), axis=0) == 0).all()


def test_a_plan_that_was_not_measured_is_refused(engine):
    with pytest.raises(UsageError, match="constant work was asked of a plan that was not measured"):
        engine.decoder.level(replace(engine.plan, quality=()))


def test_a_plan_that_leaves_heads_out_is_refused(engine):
    heads = (engine.plan.layers[0], *(None,) * (engine.weights.config.n_layers - 1))
    with pytest.raises(UsageError, match="leaves heads out"):
        engine.decoder.level(replace(engine.plan, heads=heads))
