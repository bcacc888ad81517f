"""Theorem: the conditions, constants and rates of the local theory, over random cases."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.linalg.two_layer.cases import bounded, definite, everyday, inner_matrix, sandwiched, somewhere
from winnow.base.rng import keyed
from winnow.linalg.two_layer import two_layer
from winnow.linalg.two_layer.assumptions import LIPSCHITZ, assumptions_at
from winnow.linalg.two_layer.descent import Options
from winnow.linalg.two_layer.full import Full
from winnow.linalg.two_layer.kinks import pattern_radius
from winnow.linalg.two_layer.problem import checked_problem
from winnow.linalg.two_layer.sampling import leverage, projected_leverage, rows_for, sampled_gram
from winnow.linalg.two_layer.sketch import Sketched

RADII = (0.7, 1.0, 2.5)  # R below 1 too: the constants are powers of it
CASES = 120


def extreme(matrix):
    values = np.linalg.eigvalsh(matrix)
    return values[0], values[-1]


def norm_A1(problem):
    return np.linalg.norm(problem.A1, 2)


@pytest.mark.parametrize("R", RADII)
def test_the_parts_of_the_inner_matrix_stay_below_their_constants(R):
    worst = np.zeros(2)
    for seed in range(CASES):
        point = somewhere(bounded(seed, R), seed, size=3.0 / R)
        curvature = inner_matrix(checked(point, on=False))
        gauss_newton = inner_matrix(point) - curvature
        low, high = extreme(gauss_newton)
        assert low >= -1e-12 * max(high, 1.0)
        worst = np.maximum(worst, [high / (R**2 / 4), np.linalg.norm(curvature, 2) / (9 * R**2)])
    assert (worst <= 1.0).all(), worst
    assert (worst > 1e-3).all(), "no case came anywhere near: the test would pass for any constant"


def checked(point, *, on):
    """The same point without the outputs that are on, so that only the curvature is left of B."""
    return replace(point, h=point.h if on else -np.abs(point.h))


@pytest.mark.parametrize("R", (1.0, 2.5))  # 15 R^5 needs R >= 1: lower powers of R stand behind it
def test_the_hessian_is_lipschitz_inside_one_pattern(R):
    tried = 0
    for seed in range(CASES):
        problem = bounded(seed, R)
        here = somewhere(problem, seed, size=1.0 / R)
        radius = min(pattern_radius(here, norm_A1(problem)), 1.0)
        step = np.random.default_rng(seed).normal(size=len(here.x))
        there = problem.at(here.x + step * (radius / np.linalg.norm(step)))
        assert (here.is_on == there.is_on).all(), "the pattern changed inside its radius"
        change = np.linalg.norm(here.hessian() - there.hessian(), 2)
        tried += 1
        assert change <= LIPSCHITZ * R**5 * radius
    assert tried == CASES


@pytest.mark.parametrize("R", RADII)
def test_the_hessian_is_at_least_l_under_the_condition_on_w(R):
    for seed in range(CASES):
        least = 0.5 + seed % 3
        point = somewhere(definite(seed, R, least), seed)
        assert extreme(point.hessian())[0] >= least * (1 - 1e-9)
        assert assumptions_at(point).least_curvature == pytest.approx(least, rel=1e-6)


def test_without_the_condition_the_hessian_is_often_indefinite():
    lowest = [extreme(somewhere(bounded(seed, 2.5), seed, size=0.5).hessian())[0] for seed in range(40)]
    assert sum(value < 0 for value in lowest) > 10


@pytest.mark.parametrize("R", RADII)
def test_the_weights_alone_are_within_a_tenth_of_the_inner_matrix_when_they_are_large(R):
    for seed in range(CASES):
        point = somewhere(sandwiched(seed, R), seed)
        scale = 1.0 / point.problem.w
        low, high = extreme(inner_matrix(point) * np.outer(scale, scale))  # W^-1 (B + W^2) W^-1
        assert 1 / 1.1 <= low <= high <= 1 / 0.9


def start_in_basin(problem, seed):
    """x* by Newton's method, and a start at the edge of its basin."""
    end = Full().run(problem.at(np.zeros(problem.A1.shape[1])), Options(0.0, 30, 0)).point
    report = assumptions_at(end)
    reach = min(report.basin_radius, 0.99 * report.pattern_radius)
    step = np.random.default_rng(seed).normal(size=len(end.x))
    return end.x, problem.at(end.x + step * (reach / np.linalg.norm(step)))


@pytest.mark.parametrize("method", ["full", "w2", "sketch"])
def test_the_error_falls_below_four_tenths_in_each_step_from_the_basin(method):
    ratios = []
    for seed in range(20):
        problem = sandwiched(seed, 1.0, least=3.0)
        solution, start = start_in_basin(problem, seed)
        errors = [np.linalg.norm(start.x - solution)]
        for steps in range(1, 5):
            arrays = (problem.A1, problem.A2, problem.b, problem.w)
            found = two_layer(*arrays, method=method, x0=start.x, tol=0.0, max_steps=steps, rng=seed)
            errors.append(np.linalg.norm(found.x - solution))
        noise = 1e-13 * errors[0]
        ratios += [b / a for a, b in pairwise(errors) if a > noise]
    assert len(ratios) >= 20
    assert max(ratios) <= 0.4


def heavy(n_rows=20_000, n_columns=10):
    """Weights so large that the sampled rows alone decide the contraction."""
    draws = np.random.default_rng(11)
    A1, A2 = draws.normal(size=(n_rows, n_columns)), draws.normal(size=(3, n_rows))
    return checked_problem(A1, A2, draws.normal(size=3), draws.uniform(1e4, 2e4, n_rows))


def sampled_rate(start, per_column):
    rates = []
    for seed in range(5):
        steps = Sketched(rows=10 * per_column).run(start, Options(0.0, 6, seed)).steps
        rates.append((steps[-1].gradient_norm / start.gradient_norm) ** (1 / len(steps)))
    return float(np.median(rates))


def test_a_sampled_step_contracts_by_about_the_root_of_columns_over_rows():
    start = heavy().at(np.ones(10))
    rates = np.array([sampled_rate(start, per_column) for per_column in (16, 32, 64, 128)])
    constants = rates * np.sqrt([16, 32, 64, 128])
    assert (constants >= 0.5).all(), constants
    assert (constants <= 1.5).all(), constants


def test_steps_grow_linearly_with_the_digits_asked_for():
    start = heavy(n_rows=5000).at(np.ones(10))
    digits = range(1, 11)
    steps = [
        len(Sketched(rows=320).run(start, Options(start.gradient_norm * 10.0 ** -float(k), 60, 0)).steps)
        for k in digits
    ]
    line = np.polyval(np.polyfit(digits, steps, 1), digits)
    assert 1 - np.var(steps - line) / np.var(steps) >= 0.97
    assert steps[-1] >= 2 * steps[3]


def distortion(problem, scores, rows, seed):
    diagonal = problem.w2
    whole = (problem.A1 * diagonal[:, None]).T @ problem.A1
    part = sampled_gram(problem, diagonal, scores, rows, keyed(seed, 0))
    inverse = np.linalg.inv(np.linalg.cholesky(whole))
    low, high = extreme(inverse @ part @ inverse.T)
    return max(1.0 - low, high - 1.0)


def test_sampled_matrices_leave_their_tolerance_at_most_as_often_as_stated():
    problem = heavy(n_rows=6000, n_columns=5)
    scores = leverage(problem, problem.w2)
    assert scores.sum() == pytest.approx(5.0)
    accuracy, failure, seeds = 0.25, 0.1, 200
    rows = rows_for(5, accuracy, failure)
    assert rows < 6000
    failures = sum(distortion(problem, scores, rows, seed) > accuracy for seed in range(seeds))
    assert failures <= failure * seeds
    too_few = sum(distortion(problem, scores, 10, seed) > accuracy for seed in range(seeds))
    assert too_few > 0.5 * seeds, "with two rows per column the tolerance must break: the test has no teeth"


def test_projected_scores_are_close_to_the_exact_ones():
    problem = heavy(n_rows=500, n_columns=6)
    exact = leverage(problem, problem.w2)
    factor, _ = problem.products.definite_factor(problem.weight_gram)
    many = projected_leverage(problem, problem.w2, factor, 2000, 1)
    few = projected_leverage(problem, problem.w2, factor, 16, 1)
    np.testing.assert_allclose(many, exact, rtol=0.2)
    assert np.median(np.abs(few / exact - 1)) < 0.5


def test_the_report_says_when_the_theorem_applies_and_why_not():
    problem = sandwiched(1, 1.0, least=3.0)
    _, start = start_in_basin(problem, 1)
    near = assumptions_at(problem.at(0.05 * start.x))
    assert near.applies
    assert near.is_sandwiched
    assert near.distance_bound <= near.basin_radius
    far = assumptions_at(problem.at(np.full(len(start.x), 50.0)))
    assert not far.applies
    assert "basin" in far.sentence
    light = assumptions_at(somewhere(everyday(0), 0))
    assert not light.applies
    assert "min w^2" in light.sentence
