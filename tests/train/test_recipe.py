"""Recipes: lengths and rates follow from the step alone."""

import dataclasses

import pytest

from winnow.base.errors import UsageError
from winnow.train.recipe import PICO, PICO_LLAMA, RECIPES, Recipe


def test_every_fifth_step_is_long_and_all_steps_hold_the_same_tokens():
    recipe = Recipe()
    lengths = [recipe.row_tokens(step) for step in range(11)]
    assert [i for i, n in enumerate(lengths) if n == recipe.n_positions] == [4, 9]
    assert {recipe.batch_tokens % n for n in lengths} == {0}


def test_the_rate_climbs_to_its_peak_and_falls_to_a_fiftieth():
    recipe = Recipe(n_steps=1000, warmup_steps=100)
    rates = [recipe.rate(step) for step in range(1000)]
    assert max(rates) == rates[99] == rates[100] == recipe.peak_rate
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[0] == pytest.approx(recipe.peak_rate / 100)
    assert recipe.rate(1000) == pytest.approx(0.02 * recipe.peak_rate)
    assert recipe.rate(5000) == recipe.rate(1000)


def test_a_run_shorter_than_its_warm_up_has_a_rate():
    recipe = Recipe(n_steps=3, warmup_steps=3)
    assert [recipe.rate(s) for s in range(4)] == pytest.approx(
        [f * recipe.peak_rate for f in (1 / 3, 2 / 3, 1, 1)]
    )


def test_the_bundled_recipes_are_found_by_their_names_and_see_what_their_cards_say():
    assert RECIPES == {"pico": PICO, "pico-llama": PICO_LLAMA}
    assert PICO.n_tokens >= 40_000_000
    assert PICO_LLAMA.n_tokens >= 13_000_000


def test_both_bundled_mlps_have_about_as_many_weights():
    assert 2 * PICO.n_neurons <= 3 * PICO_LLAMA.n_neurons <= 2.5 * PICO.n_neurons


def test_a_recipe_cannot_change_under_way():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # pyright: ignore


MISFITS = {
    "no layers": ({"n_layers": 0}, "n_layers is 0; expected at least 1"),
    "no steps": ({"n_steps": -5}, "n_steps is -5"),
    "bytes without tokens": ({"vocab_size": 259}, r"vocab_size is 259; expected 260 .* to 65536"),
    "ids beyond 16 bits": ({"vocab_size": 100_000}, "vocab_size is 100000"),
    "heads": ({"width": 250}, "width 250 is no multiple of n_heads 4"),
    "key heads": ({"n_kv_heads": 3}, "n_heads 4 is no multiple of n_kv_heads 3"),
    "key heads of OPT": ({"n_kv_heads": 2}, "OPT has one per head, 4"),
    "architecture": ({"architecture": "gpt2"}, "architecture is 'gpt2'; expected one of"),
    "no neurons": ({"n_neurons": 0}, "n_neurons is 0; expected at least 1"),
    "short rows": ({"short_tokens": 500}, "batch_tokens 8192 is no multiple of short_tokens 500"),
    "long rows": ({"batch_tokens": 1024}, "batch_tokens 1024 is no multiple of n_positions 2048"),
    "empty batches": ({"batch_tokens": 0}, "batch_tokens 0 is no multiple"),
}


@pytest.mark.parametrize(("change", "says"), MISFITS.values(), ids=MISFITS)
def test_sizes_that_do_not_fit_are_refused_before_the_run(change, says):
    with pytest.raises(UsageError, match=says):
        Recipe(**change)


def test_the_extremes_of_the_vocabulary_fit():
    assert [Recipe(vocab_size=n).vocab_size for n in (260, 65_536)] == [260, 65_536]
