"""Methods: they descend, agree, stop with a sentence, and name what holds them up."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from tests.linalg.two_layer.cases import everyday, somewhere
from winnow.linalg.two_layer import METHODS, two_layer
from winnow.linalg.two_layer.damped import logit_basis
from winnow.linalg.two_layer.descent import best_within
from winnow.linalg.two_layer.problem import checked_problem

EVERY = sorted(METHODS)


def solve(problem, **options):
    return two_layer(problem.A1, problem.A2, problem.b, problem.w, threads=1, **options)


@pytest.mark.parametrize("method", EVERY)
def test_every_method_ends_where_the_gradient_vanishes_and_says_so(method):
    for seed in range(5):
        solution = solve(everyday(seed, w=0.5), method=method, x0=np.full(7, 0.2), rng=seed)
        assert solution.converged, solution.reason
        assert solution.gradient_norm <= 1e-8
        assert "within tol" in solution.reason
        assert np.isfinite(solution.x).all()


@pytest.mark.parametrize("method", EVERY)
def test_the_loss_never_rises_and_the_history_ends_at_the_solution(method):
    problem = everyday(4, w=0.2)
    solution = solve(problem, method=method, x0=np.ones(7))
    losses = [problem.at(np.ones(7)).loss, *(step.loss for step in solution.history)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))
    assert solution.history[-1].loss == solution.loss == problem.at(solution.x).loss
    assert solution.kink_crossings == sum(step.kink_crossings for step in solution.history)


@pytest.mark.parametrize("method", EVERY)
def test_equal_seeds_give_equal_bits_and_nothing_is_written_to(method):
    problem = everyday(2, w=0.3)
    arrays = [np.array(a) for a in (problem.A1, problem.A2, problem.b, problem.w)]
    copies = [a.copy() for a in arrays]
    x0 = np.full(7, 0.1)
    first, second = (two_layer(*arrays, method=method, x0=x0, rng=9) for _ in range(2))
    assert first.x.tobytes() == second.x.tobytes()
    assert all((a == b).all() for a, b in zip(arrays, copies, strict=True))
    assert (x0 == 0.1).all()
    assert first.x is not x0


@pytest.mark.parametrize("method", EVERY)
def test_no_steps_are_taken_where_none_are_allowed_or_needed(method):
    problem = everyday(1, w=0.5)
    none = solve(problem, method=method, x0=np.ones(7), max_steps=0)
    assert not none.converged
    assert (none.history, none.reason[:9]) == ((), "max_steps")
    again = solve(problem, method=method, x0=solve(problem).x)
    assert again.converged
    assert again.history == ()


def test_lm_converges_from_random_starts_or_names_its_failure():
    failures = []
    for seed in range(50):
        draws = np.random.default_rng(seed)
        shape = {"n_rows": int(draws.integers(20, 300)), "n_columns": int(draws.integers(2, 15))}
        problem = everyday(seed, n_outputs=int(draws.integers(1, 25)), w=(0.0, 0.01, 0.1)[seed % 3], **shape)
        solution = solve(problem, x0=somewhere(problem, seed + 500).x)
        if not solution.converged:
            failures.append(solution.reason)
        assert solution.loss <= somewhere(problem, seed + 500).loss
    assert len(failures) <= 2, failures
    assert all("off" in reason for reason in failures), failures


def test_sampled_preconditioning_needs_few_products_and_never_the_whole_hessian():
    problem = everyday(8, n_rows=3000, n_columns=40, n_outputs=6, w=0.2)
    solution = solve(problem, method="newton_cg", x0=np.full(40, 0.1))
    assert solution.converged
    assert sum(step.hessian_products for step in solution.history) < 5 * len(solution.history)


def test_lm_ignores_how_columns_are_scaled_and_directions_that_move_nothing():
    problem = everyday(6, n_columns=4)
    scales = np.array([1e-3, 1.0, 1e2, 1e4])
    plain = solve(problem, x0=np.full(4, 0.3), tol=1e-9)
    scaled = two_layer(
        problem.A1 * scales, problem.A2, problem.b, problem.w, x0=0.3 / scales, tol=1e-6, max_steps=50
    )
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-9)
    doubled = np.hstack([problem.A1, problem.A1])  # rank 4 of 8
    twice = two_layer(doubled, problem.A2, problem.b, problem.w, x0=np.full(8, 0.15))
    assert twice.converged
    assert twice.loss == pytest.approx(plain.loss, rel=1e-9)
    assert logit_basis(everyday(6, n_rows=5, n_columns=9)).shape == (9, 5)


def test_a_corner_that_is_a_minimum_is_found_and_named_with_its_output():
    # Output 0 wants to be negative and cannot; output 1 pulls it up: the minimum is where output 0 switches.
    A1 = np.array([[1.0], [-1.0]])
    A2 = np.array([[2.0, -1.0], [1.0, 0.0]])
    found = two_layer(A1, A2, [-3.0, 0.9], x0=[-1.0])
    assert found.converged
    assert "corner" in found.reason
    assert "output 0" in found.reason
    assert found.gradient_norm <= 1e-8, "between its two slopes lies 0"
    assert abs((A2 @ softmax(A1 @ found.x))[0]) < 1e-12
    searched = two_layer(A1, A2, [-3.0, 0.9], x0=[-1.0], method="full")
    assert not searched.converged
    assert "try method='lm'" in searched.reason
    assert searched.loss > found.loss


def test_lm_settles_in_corners_where_targets_are_negative_or_names_its_failure():
    draws, settled, cornered = np.random.default_rng(5), 0, 0
    for seed in range(12):
        problem = everyday(seed, n_rows=60 + seed, n_columns=2 + seed % 9, n_outputs=3 + seed % 11, w=0.01)
        b = problem.b * draws.choice([-1.0, 1.0], len(problem.b))
        found = two_layer(problem.A1, problem.A2, b, problem.w, x0=somewhere(problem, seed).x, threads=1)
        settled += found.converged
        assert found.reason
        if found.converged and "corner" in found.reason:
            cornered += 1
            signed = checked_problem(problem.A1, problem.A2, b, problem.w)
            for _ in range(20):
                near = signed.at(found.x + 1e-5 * draws.normal(size=len(found.x)))
                assert near.loss >= found.loss - 1e-12, "the corner is no minimum: a neighbour lies lower"
    assert settled >= 10
    assert cornered >= 3, "no corner was met: the test has no teeth"


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def test_a_dead_start_is_no_success():
    solution = two_layer([[1.0], [2.0]], [[-1.0, -2.0]], [0.5])
    assert not solution.converged
    assert "off" in solution.reason


def test_a_tolerance_below_rounding_ends_with_a_sentence_about_it():
    solution = solve(everyday(0, w=0.3), tol=0.0, max_steps=100)
    assert not solution.converged
    assert "rounding" in solution.reason
    assert solution.gradient_norm < 1e-12


@pytest.mark.parametrize("values", [[1.0, 2.0, 5.0], [-2.0, 0.0, 3.0], [0.0, 0.0, 0.0], [-1.0, -1.0, 4.0]])
@pytest.mark.parametrize("slope", [[1.0, -2.0, 0.5], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("radius", [1e-3, 0.7, 100.0])
def test_the_step_within_a_radius_is_the_best_of_all(values, slope, radius):
    values, slope = np.array(values), np.array(slope)
    p, damping = best_within(values, slope, radius)
    assert np.linalg.norm(p) <= radius * (1 + 1e-9)
    assert damping >= max(0.0, -values[0])
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    others = draws / np.linalg.norm(draws, axis=1, keepdims=True) * radius
    others = np.vstack([others, others * np.linspace(0, 1, 2000)[:, None]])
    best = (others @ slope + 0.5 * (others**2) @ values).min()
    assert slope @ p + 0.5 * values @ p**2 <= best + 1e-9 * max(1.0, abs(best))


SAME_BITS = """
import sys
import numpy as np
from winnow.linalg import two_layer
draws = np.random.default_rng(0)
for rows, columns, outputs in ((20001, 41, 10), (997, 13, 30)):
    A1, A2 = draws.normal(size=(rows, columns)), draws.normal(size=(outputs, rows))
    b, x0 = np.abs(draws.normal(size=outputs)), 0.1 * draws.normal(size=columns)
    for method in ("lm", "newton_cg", "full", "sketch", "w2"):
        found = two_layer(A1, A2, b, 0.1, x0=x0, method=method, max_steps=4, threads=int(sys.argv[1]))
        print(found.x.tobytes().hex())
"""


def test_the_bits_are_the_same_for_any_number_of_threads():
    printed = [
        subprocess.run(
            [sys.executable, "-c", SAME_BITS, str(threads)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2)
    ]
    assert printed[0].count("\n") == 10
    assert printed[0] == printed[1]
