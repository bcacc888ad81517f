"""Aggregation: the paper's algorithm, its counts against its formula."""

import dataclasses

import numpy as np
import pytest

from tests.search.planted import by_definition, found, listed, planted_signs, random_signs
from winnow.base.errors import UsageError
from winnow.kernels import open_cpu
from winnow.search import heavy_pairs
from winnow.search.aggregate import Aggregate
from winnow.search.problem import Problem, product_limit
from winnow.search.signs import read_signs


def problem_of(a: np.ndarray, b: np.ndarray | None, rho: float, recall: float = 0.99) -> Problem:
    cpu = open_cpu(1)
    left, right = read_signs("A", a, 0, cpu), None if b is None else read_signs("B", b, 0, cpu)
    limit = product_limit(rho, a.shape[1])
    return Problem(left, right, limit, recall, 0, cpu, 10**6, lambda done, total: None)


@pytest.mark.parametrize(("rho", "size"), [(0.9, 7), (0.7, 5), (0.5, 4), (0.3, 2)])
def test_the_rule_for_the_group_on_random_data(rho: float, size: int):
    groups = Aggregate().groups(problem_of(random_signs(1, 1500, 1024), None, rho))
    assert groups is not None
    assert abs(groups.size - size) <= 1
    assert groups.size <= rho * 1024**0.5 / 4 * 1.02
    assert (groups.degree, groups.rounds, groups.centred) == (1, 1, False)
    assert groups.correlation == pytest.approx(1024**-0.5, rel=0.02)


@pytest.mark.parametrize("form", [Aggregate(repeats=3), Aggregate(is_paper=True), Aggregate(degree=2)])
def test_counts_match_the_formula(form: Aggregate):
    vectors, _ = planted_signs(2, 500, 512, 0.85, 30)
    for a, b, slack in ((vectors[:200], vectors[200:], 0.0), (vectors, None, 1.0)):
        problem = problem_of(a, b, 0.85)
        groups = form.groups(problem)
        assert groups is not None
        found_ = form.find(problem)
        done = found_.multiply_adds - found_.candidates * 512
        formula = groups.multiply_adds(len(a), None if b is None else len(b))
        assert formula <= done <= formula * (1 + slack) + 1
        h = [-(-n // groups.size) for n in (len(a), len(a if b is None else b))]
        products = h[0] * h[1] if b is not None else h[0] * (h[0] + 1) // 2
        turns = groups.rounds * groups.repeats * groups.coordinates
        assert formula == turns * (products + groups.degree * len(vectors))


def test_the_papers_group_is_the_cube_root_and_votes_are_counted():
    a, planted = planted_signs(3, 343, 1024, 0.9, 6)
    groups = Aggregate(is_paper=True).groups(problem_of(a, None, 0.9))
    assert groups is not None
    assert groups.size == 7
    assert groups.rounds == int(np.ceil(10 * np.log(343)))
    pairs = heavy_pairs(a, rho=0.9, method="aggregate", group_size="paper", canaries=0)
    assert len(found(pairs) & planted) >= 5
    assert pairs.report.candidates < 343 * 342 // 2 // 2


def test_most_cells_are_dropped_and_heavy_ones_kept():
    a, planted = planted_signs(4, 2000, 1024, 0.9, 300)
    pairs = heavy_pairs(a, rho=0.9, method="aggregate", repeats=1)
    assert len(found(pairs) & planted) >= 285
    assert pairs.report.candidates < 0.12 * 2000 * 1999 / 2


def correlated(seed: int, n: int, width: int, strength: float) -> np.ndarray:
    """Rows that agree with one common vector more often than chance."""
    draws, common = np.random.default_rng(seed), random_signs(seed, 1, width)
    flips = draws.random((n, width)) < (1 - strength) / 2
    return np.where(flips, -common, common).astype(np.int8)


def test_a_correlated_background_is_centred():
    a = correlated(5, 900, 1024, 0.3)
    a[10] = a[20]
    pairs = heavy_pairs(a, rho=0.9, method="aggregate", recall=0.999)
    assert (10, 20) in found(pairs)
    assert listed(pairs) == by_definition(a, None, 0.9)
    assert "centred" in pairs.report.notes[0]
    assert pairs.report.method == "aggregate"


def test_a_background_that_drowns_the_signal_goes_to_the_cascade_and_says_so():
    draws = np.random.default_rng(6)
    centres = random_signs(6, 8, 256)
    flips = draws.random((400, 256)) < 0.1
    a = (centres[draws.integers(0, 8, 400)] * np.where(flips, -1, 1)).astype(np.int8)
    pairs = heavy_pairs(a, rho=0.75, method="aggregate", recall=0.999, degree=1)
    assert "cascade searched instead" in pairs.report.notes[0]
    expected = by_definition(a, None, 0.75)
    assert len(expected) > 50
    assert len(found(pairs)) >= 0.98 * len(expected)


def test_the_papers_group_is_refused_where_coordinates_end():
    with pytest.raises(UsageError, match="group_size auto"):
        heavy_pairs(random_signs(7, 3000, 128), rho=0.55, method="aggregate", group_size="paper", degree=1)


def test_parameters_are_kept_for_what_follows():
    groups = Aggregate(degree=2, repeats=2).groups(problem_of(random_signs(8, 300, 512), None, 0.9))
    assert groups is not None
    assert dataclasses.replace(groups, size=3).count(10) == 4
    assert (groups.degree, groups.repeats) == (2, 2)
