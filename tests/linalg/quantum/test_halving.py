"""Halving: samples stand for the whole matrix, at the square root of its rows in queries."""

import functools
import math

import numpy as np
import pytest

from winnow.base.rng import keyed
from winnow.linalg.quantum.copies import many_copies
from winnow.linalg.quantum.halving import Sampler, scores_against
from winnow.linalg.quantum.heavy import find_all
from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.plane import Register
from winnow.linalg.quantum.report import report_of


def matrix(n, d, kind, seed=0):
    draws = np.random.default_rng(seed)
    if kind == "power-law":
        return draws.normal(size=(n, d)) * (np.arange(1, n + 1.0) ** -0.6)[draws.permutation(n), None]
    A = draws.normal(size=(n, d))
    if kind == "spiked":  # one row in its own direction for every second column
        A[:, ::2] *= 1e-4
        A[draws.choice(n, d // 2 + d % 2, replace=False), np.arange(0, d, 2)] = 10.0
    return A


def distortion(A, rows, weights, ridge=0.0):
    """How far, at most, the sample's quadratic form is from the whole one's, relatively."""
    whole = A.T @ A + ridge * np.eye(A.shape[1])
    part = (A[rows] * weights[:, None]).T @ A[rows] + ridge * np.eye(A.shape[1])
    inverse = np.linalg.inv(np.linalg.cholesky(whole))
    return np.abs(np.linalg.eigvalsh(inverse @ part @ inverse.T) - 1.0).max()


@pytest.mark.parametrize("kind", ["gaussian", "power-law", "spiked"])
def test_a_sample_stands_for_the_whole_matrix(kind):
    A = matrix(30_011, 6, kind)
    for seed in range(4):
        ledger = QueryLedger()
        sample = Sampler(A, 0.0, ledger, seed).sample(60.0)
        assert len(sample.rows) == len(set(sample.rows.tolist())) < 1500
        assert distortion(A, sample.rows, sample.weights) < 0.5
        assert ledger.row_reads < 30_011 / 2


def test_uniform_sampling_of_as_many_rows_fails_on_spikes():
    A = matrix(30_011, 6, "spiked")
    rows = np.random.default_rng(0).choice(len(A), 1500, replace=False)
    assert distortion(A, rows, np.full(1500, len(A) / 1500)) > 0.95


def test_spikes_are_heavy_rows_found_and_kept_with_weight_one():
    A = matrix(20_000, 6, "spiked")
    spikes = np.flatnonzero(np.abs(A).max(axis=1) == 10.0)
    sample = Sampler(A, 0.0, QueryLedger(), 1).sample(40.0)
    kept = dict(zip(sample.rows.tolist(), sample.weights.tolist(), strict=True))
    assert all(kept[row] == 1.0 for row in spikes)
    assert sample.levels[-1].n_heavy >= len(spikes)


def test_scores_against_half_of_the_rows_bound_those_of_all():
    A = matrix(900, 7, "power-law")
    exact = scores_against(A, 0.0)(A)
    bound = scores_against(A[:450], 0.0)(A)
    assert exact.sum() == pytest.approx(7.0)
    assert (bound >= exact * (1 - 1e-9)).all()


def test_a_row_outside_the_row_space_scores_infinity_and_a_ridge_bounds_it():
    B = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    asked = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1e-3], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    free = scores_against(B, 0.0)(asked)
    assert free[0] == pytest.approx(1 / 5 + 1 / 9)
    assert np.isinf(free[[1, 2]]).all()
    assert free[3] == 0.0
    ridged = scores_against(B, 2.0)(asked)
    expected = np.einsum("ij,jk,ik->i", asked, np.linalg.inv(B.T @ B + 2.0 * np.eye(3)), asked)
    np.testing.assert_allclose(ridged, expected, rtol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 1e4])
def test_a_ridge_needs_fewer_rows(ridge):
    A = matrix(20_000, 8, "gaussian")
    sample = Sampler(A, ridge, QueryLedger(), 3).sample(60.0)
    assert distortion(A, sample.rows, sample.weights, ridge) < 0.5
    trace = np.trace(np.linalg.solve(A.T @ A + ridge * np.eye(8), A.T @ A))
    assert len(sample.rows) < 60 * 2.6 * trace


@pytest.mark.parametrize("n", [1, 5, 400])
def test_few_rows_are_read_whole_and_not_searched(n):
    ledger = QueryLedger()
    sample = Sampler(matrix(n, 3, "gaussian"), 0.0, ledger, 0).sample(50.0)
    assert sorted(sample.rows.tolist()) == list(range(n))
    assert (sample.weights == 1.0).all()
    assert (ledger.quantum_queries, ledger.row_reads, sample.levels) == (0, n, ())


def test_a_column_of_zeros_does_no_harm():
    A = matrix(9000, 4, "gaussian")
    A[:, 2] = 0.0
    sample = Sampler(A, 0.0, QueryLedger(), 0).sample(40.0)
    assert distortion(A[:, [0, 1, 3]], sample.rows, sample.weights) < 0.6


def slope(sizes, queries):
    return np.polyfit(np.log(sizes), np.log(queries), 1)[0]


def weights_of(law, n, k):
    if law == "uniform":
        chances = np.full(n, k / n)
    elif law == "one heavy":
        chances = np.full(n, (k - 1) / n)
        chances[n // 3] = 1.0
    else:
        power = np.arange(1, n + 1.0) ** -0.4
        chances = np.minimum(1.0, k * power / power.sum())
    return chances


@pytest.mark.parametrize("law", ["uniform", "one heavy", "power law"])
def test_queries_of_a_sampled_level_grow_as_the_root_of_its_rows(law):
    sizes = [2**e for e in range(12, 19)]
    queries = []
    for n in sizes:
        counts = []
        for seed in range(5):
            ledger, draws = QueryLedger(), keyed(seed, 1)
            chances = weights_of(law, n, 64)
            register = Register(chances, ledger, draws)
            for heavy in find_all(chances >= 1.0, ledger, draws):
                register.hide(heavy)
            many_copies(register, draws)
            counts.append(ledger.superposition_queries)
        queries.append(np.median(counts))
    assert slope(sizes, queries) == pytest.approx(0.5, abs=0.03)


@functools.cache
def levels_of(n, seed):
    ledger = QueryLedger()
    sample = Sampler(matrix(n, 3, "gaussian", seed=n), 0.0, ledger, seed).sample(20.0)
    return sample.levels, ledger


def test_queries_of_all_levels_grow_as_the_root_of_the_rows():
    sizes = [2**e for e in (15, 17, 19)]
    queries = [np.median([levels_of(n, seed)[1].superposition_queries for seed in range(3)]) for n in sizes]
    assert slope(sizes, queries) == pytest.approx(0.5, abs=0.03)


def test_what_few_rows_add_to_the_slope_is_the_levels_that_are_read():
    """Each inner level costs the same multiple of its root; below the last one a geometric sum is cut off."""
    runs = [levels_of(2**17, seed)[0][:-1] for seed in range(3)]
    sizes = [level.n_rows for level in runs[0]]
    costs = np.median([[level.quantum_queries / 2 for level in levels] for levels in runs], axis=0)
    assert len(sizes) >= 7
    assert slope(sizes, costs) == pytest.approx(0.5, abs=0.03)
    few = [2**e for e in (12, 14)]
    queries = [np.median([levels_of(n, seed)[1].superposition_queries for seed in range(3)]) for n in few]
    assert slope(few, queries) > 0.53
    unread = np.median(costs / np.sqrt(sizes)) * math.sqrt(sizes[0] / 2) / (1 - math.sqrt(0.5))
    assert slope(few, np.array(queries) + unread) == pytest.approx(0.5, abs=0.04)


def test_equal_seeds_give_equal_samples_and_nothing_is_written_to():
    A = matrix(5000, 4, "gaussian")
    copy = A.copy()
    first, second = (Sampler(A, 0.0, QueryLedger(), 5).sample(20.0) for _ in range(2))
    assert first.rows.tobytes() == second.rows.tobytes()
    assert first.weights.tobytes() == second.weights.tobytes()
    assert (copy == A).all()
    assert Sampler(A, 0.0, QueryLedger(), 6).sample(20.0).rows.tobytes() != first.rows.tobytes()


def test_the_report_prints_both_columns_and_what_each_would_need():
    ledger = QueryLedger(
        superposition_queries=400, uncomputes=400, row_reads=100, comparisons=400, measurements=9
    )
    report = report_of(ledger, 10_000)
    assert (report.quantum_queries, report.classical_reads) == (800, 10_000)
    n = report.crossover_rows
    assert 800 * math.sqrt(n / 10_000) + 100 == pytest.approx(n, rel=0.02)
    assert report.t_gates == 4 * 10_000 * 800
    for word in ("800 oracle calls", "10,000 row reads", "QRAM", f"{n:,}", "T gates"):
        assert word in str(report)
