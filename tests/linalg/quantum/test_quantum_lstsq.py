"""quantum_lstsq: certified at the eps asked for, on rows that were really sampled, with an honest ledger."""

import numpy as np
import pytest
import scipy.sparse
import torch

from tests.linalg.quantum.test_halving import matrix
from winnow.base.errors import UsageError
from winnow.kernels.row_sketch import open_passes
from winnow.linalg.gate import open_problem
from winnow.linalg.quantum import quantum_lstsq
from winnow.linalg.quantum.certified import certifier

NOISE = 0.7


def problem(n, d, kind="gaussian", seed=0):
    draws = np.random.default_rng(seed + 50)
    A = matrix(n, d, kind, seed)
    return A, A @ draws.normal(size=d) + NOISE * draws.normal(size=n)


def excess(A, b, x, ridge=0.0):
    """How far x is above the minimum, relatively: by numpy on the whole problem."""
    tall = np.vstack([A, np.sqrt(ridge) * np.eye(A.shape[1])])
    right = np.concatenate([b, np.zeros((A.shape[1], *b.shape[1:]))])
    best = np.linalg.lstsq(tall, right, rcond=None)[0]
    squares = np.square(tall @ x - right).sum(axis=0)
    return np.max(squares / np.square(tall @ best - right).sum(axis=0)) - 1.0


@pytest.mark.parametrize("kind", ["gaussian", "power-law", "spiked"])
def test_the_certified_eps_is_the_asked_one_and_the_truth_is_below(kind):
    A, b = problem(20_011, 5, kind)
    first_rounds = 0
    for seed in range(12):
        found = quantum_lstsq(A, b, 0.1, rng=seed)
        assert found.is_converged
        assert excess(A, b, found.x) <= found.eps_certified * (1 + 1e-6) + 1e-12 <= 0.1 + 1e-6
        first_rounds += found.rounds == 1
    assert first_rounds >= 11


def test_leverage_succeeds_where_as_many_uniform_rows_fail():
    A, b = problem(20_011, 6, "spiked")
    found = quantum_lstsq(A, b, 0.1, rng=1)
    assert excess(A, b, found.x) <= 0.1
    failures = 0
    for seed in range(10):
        rows = np.random.default_rng(seed).choice(len(A), len(found.rows), replace=False)
        failures += excess(A, b, np.linalg.lstsq(A[rows], b[rows], rcond=None)[0]) > 0.1
    assert failures >= 9


@pytest.mark.parametrize("ridge", [0.5, 3000.0])
def test_a_ridge_problem_is_certified_with_its_ridge(ridge):
    A, b = problem(15_000, 8)
    found = quantum_lstsq(A, b, 0.05, ridge=ridge)
    assert found.is_converged
    assert excess(A, b, found.x, ridge) == pytest.approx(found.eps_certified, rel=1e-4)


def test_several_right_sides_share_one_sample():
    A, b = problem(15_000, 4)
    both = np.stack([b, np.roll(b, 7)], axis=1)
    found = quantum_lstsq(A, both, 0.1)
    assert found.x.shape == (4, 2)
    assert excess(A, both, found.x) <= 0.1


def test_the_certificate_is_the_true_excess_of_any_x():
    A, b = problem(800, 5)
    given = open_problem(A, b, 0.0, 1)
    judge = certifier(given, A, open_passes(1)).judge
    for scale in (1e-3, 0.1, 0.5):
        x = np.linalg.lstsq(A, b, rcond=None)[0] + scale * np.random.default_rng(3).normal(size=5)
        assert judge(x[None]).eps == pytest.approx(excess(A, b, x), rel=1e-6)


def test_the_ledger_adds_up_over_levels_and_rounds():
    A, b = problem(20_011, 5)
    found = quantum_lstsq(A, b, 0.1, rng=2)
    assert found.rounds == 1
    assert found.report.quantum_queries == sum(level.quantum_queries for level in found.levels)
    assert found.report.superposition_queries == found.report.uncomputes > 0
    assert [level.n_rows for level in found.levels][-1] == 20_011
    assert len(found.rows) < found.report.row_reads < 20_011
    assert len(found.rows) == len(found.weights) == len(set(found.rows.tolist()))


def test_a_sample_that_falls_short_is_drawn_again_larger_and_all_of_it_is_counted(monkeypatch):
    monkeypatch.setattr("winnow.linalg.quantum.solve.SOLUTION_RATE", 1e-3)
    monkeypatch.setattr("winnow.linalg.quantum.solve.LEVEL_RATE", 0.5)
    A, b = problem(20_011, 5)
    found = quantum_lstsq(A, b, 0.05, rng=0)
    assert found.rounds > 1
    assert found.report.quantum_queries > sum(level.quantum_queries for level in found.levels)


def test_an_accuracy_out_of_reach_says_so_and_claims_nothing(monkeypatch):
    monkeypatch.setattr("winnow.linalg.quantum.solve.SOLUTION_RATE", 1e-9)
    A, b = problem(20_011, 5)
    found = quantum_lstsq(A, b, 1e-7)
    assert not found.is_converged
    assert found.eps_certified > 1e-7
    assert "use lstsq" in found.message


def test_few_rows_are_read_and_solved_to_rounding():
    A, b = problem(90, 5)
    found = quantum_lstsq(A, b, 0.1)
    assert found.eps_certified < 1e-12
    assert (found.report.quantum_queries, found.report.row_reads) == (0, 90)
    assert "All 90 rows were read" in str(found.report)


def test_a_consistent_system_is_solved_exactly():
    A, _ = problem(15_000, 4)
    found = quantum_lstsq(A, A @ np.arange(4.0), 0.1)
    assert found.is_converged
    np.testing.assert_allclose(found.x, np.arange(4.0), atol=1e-12)


def test_dependent_columns_are_solved_and_certified():
    A, b = problem(15_000, 3)
    A = np.hstack([A, A[:, :1] - A[:, 1:2]])
    found = quantum_lstsq(A, b, 0.1)
    assert found.is_converged
    assert excess(A, b, found.x) <= 0.1


def test_equal_seeds_give_equal_bits_nothing_is_written_to_and_tensors_come_back():
    A, b = problem(15_000, 4)
    copies = A.copy(), b.copy()
    first, second = (quantum_lstsq(A, b, 0.1, rng=8) for _ in range(2))
    assert first.x.tobytes() == second.x.tobytes()
    assert (copies[0] == A).all()
    assert (b == copies[1]).all()
    as_tensor = quantum_lstsq(torch.from_numpy(A), torch.from_numpy(b), 0.1, rng=8)
    assert isinstance(as_tensor.x, torch.Tensor)
    assert as_tensor.x.numpy().tobytes() == first.x.tobytes()


A3, B3 = np.ones((6, 2)), np.ones(6)
WRONG = {
    "NaN in A": ((np.full((6, 2), np.nan), B3, 0.1), {}),
    "infinity in b": ((A3, np.full(6, np.inf), 0.1), {}),
    "empty": ((np.ones((0, 2)), np.ones(0), 0.1), {}),
    "shapes": ((A3, np.ones(5), 0.1), {}),
    "complex": ((A3 * 1j, B3, 0.1), {}),
    "text": ((np.array([["a", "b"]] * 6), B3, 0.1), {}),
    "eps zero": ((A3, B3, 0.0), {}),
    "eps negative": ((A3, B3, -0.5), {}),
    "eps infinite": ((A3, B3, float("inf")), {}),
    "eps NaN": ((A3, B3, float("nan")), {}),
    "ridge negative": ((A3, B3, 0.1), {"ridge": -1.0}),
    "ridge NaN": ((A3, B3, 0.1), {"ridge": float("nan")}),
    "seed negative": ((A3, B3, 0.1), {"rng": -3}),
}


@pytest.mark.parametrize(("arguments", "options"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused_in_one_line(arguments, options):
    with pytest.raises(UsageError) as caught:
        quantum_lstsq(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_matrix_that_is_not_held_in_memory_is_refused():
    sparse = scipy.sparse.random_array((500, 3), density=0.5, rng=0, format="csr")
    with pytest.raises(UsageError, match="dense array in memory"):
        quantum_lstsq(sparse, np.ones(500), 0.1)
