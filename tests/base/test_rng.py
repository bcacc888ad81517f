"""Randomness: equal seeds, equal numbers; nothing global moves."""

import numpy as np
import pytest
import torch

from winnow.base.errors import UsageError
from winnow.base.rng import generator, keyed


def test_equal_seeds_give_equal_streams():
    first, second = (torch.rand(17, generator=generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(17, generator=generator(6)))


def test_the_global_generators_are_not_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    generator(3)
    keyed(3, 4).random(5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_keyed_numbers_depend_on_the_pair_alone():
    expected = [keyed(7, step).integers(0, 1000, 9).tolist() for step in range(6)]
    backwards = [keyed(7, step).integers(0, 1000, 9).tolist() for step in reversed(range(6))]
    assert backwards[::-1] == expected
    assert len({tuple(row) for row in expected}) == 6
    assert keyed(7, 8).random() != keyed(8, 7).random()


def test_keyed_numbers_are_the_published_philox():
    # numpy's Philox is versioned by name; a change here would change every resumed run.
    assert keyed(0, 0).integers(0, 2**32, 3).tolist() == [149215387, 49592932, 2628306354]


@pytest.mark.parametrize("bad", [-1, -(2**40), 2**63, 2**70])
def test_a_seed_out_of_range_is_refused_with_the_range(bad):
    for make in (generator, lambda seed: keyed(seed, 0), lambda counter: keyed(0, counter)):
        with pytest.raises(UsageError, match=r"expected 0 <= \w+ < 2\*\*63"):
            make(bad)


def test_the_largest_seed_works():
    assert generator(2**63 - 1).initial_seed() == 2**63 - 1
    assert 0 <= keyed(2**63 - 1, 2**63 - 1).random() < 1


def test_the_fixture_starts_afresh_for_each_test(rng, request):
    assert torch.equal(
        torch.rand(3, generator=rng),
        torch.rand(3, generator=generator(request.config.getoption("--rng-seed"))),
    )
