"""Leverage scores, sampled rows, and regression from few labels."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator

from tests.linalg.problems import Known, excess, known, spiked
from winnow.base.errors import UsageError
from winnow.linalg import RowBlocks, active_lstsq, leverage_scores, lstsq, sample_rows


def exact(a: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    inverse = np.linalg.pinv(a.T @ a + ridge * np.eye(a.shape[1]), rcond=1e-13, hermitian=True)
    return np.einsum("ij,jk,ik->i", a, inverse, a)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array, aslinearoperator, torch.from_numpy])
def test_exact_scores_are_those_of_the_definition(make, ridge):
    a = known(1500, 21, cond=50.0).a
    np.testing.assert_allclose(leverage_scores(make(a), ridge=ridge), exact(a, ridge), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cond", [1e2, 1e8, 1e12])
def test_scores_add_up_to_the_rank(cond):
    a = known(2000, 30, cond=cond).a
    scores = leverage_scores(a)
    assert scores.sum() == pytest.approx(30, rel=1e-6)
    assert (scores >= 0).all()
    assert (scores <= 1 + 1e-12).all()


def test_a_deficient_rank_has_the_scores_of_its_range():
    a = known(2000, 20).a.copy()
    a[:, 3] = a[:, 5] + a[:, 6]
    assert leverage_scores(a).sum() == pytest.approx(19)
    assert leverage_scores(a, method="sketched").sum() == pytest.approx(19, rel=0.25)


def test_wide_matrices_have_scores_of_one():
    np.testing.assert_allclose(leverage_scores(known(40, 30).a.T.copy()), 1.0)


@pytest.mark.parametrize("make", [known, spiked])
def test_sketched_scores_are_near_the_exact_ones(make):
    a = make(6000, 30).a
    scores, true = leverage_scores(a, method="sketched"), exact(a)
    ratios = scores / true
    assert 0.8 < np.median(ratios) < 1.25
    assert np.mean((ratios > 0.5) & (ratios < 2)) > 0.97
    assert ratios.min() > 0.1


def test_scores_have_the_same_bits_in_any_pieces_and_threads():
    a = known(5000, 30, cond=1e3).a
    for method in ("exact", "sketched"):
        once = leverage_scores(a, method=method, threads=1)
        assert (leverage_scores(a, method=method, threads=2) == once).all()
        assert (leverage_scores(RowBlocks(np.split(a, [17, 2049]), *a.shape), method=method) == once).all()


@pytest.mark.parametrize("scheme", ["threshold", "poisson", "iid"])
@pytest.mark.parametrize("uniform_mix", [0.0, 0.1, 1.0])
def test_weights_make_the_sample_unbiased(scheme, uniform_mix):
    rng = np.random.default_rng(0)
    scores, values = rng.random(200) ** 4 + 1e-3, rng.random(200)
    totals = []
    for seed in range(400):
        rows, weights = sample_rows(scores, 40, scheme=scheme, uniform_mix=uniform_mix, rng=seed)
        assert (np.diff(rows) > 0).all()
        totals.append(np.sum(weights**2 * values[rows]))
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - values.sum()) < 4 * error


@pytest.mark.parametrize("s", [1, 40, 150])
def test_threshold_expects_the_number_that_was_asked(s):
    scores = np.random.default_rng(0).random(300) ** 6
    counts = [len(sample_rows(scores, s, rng=seed)[0]) for seed in range(200)]
    assert np.mean(counts) == pytest.approx(s, abs=4 * np.sqrt(s / 200) + 0.01)


def test_threshold_keeps_rows_of_high_leverage_surely():
    problem = spiked(3000, 20)
    high = np.flatnonzero(leverage_scores(problem.a) > 0.9)
    for seed in range(20):
        rows, weights = sample_rows(leverage_scores(problem.a), 100, rng=seed)
        assert np.isin(high, rows).all()
        np.testing.assert_allclose(weights[np.isin(rows, high)], 1.0)


def test_more_rows_than_there_are_takes_all():
    rows, weights = sample_rows(np.ones(5), 9)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert (weights == 1).all()


@pytest.mark.parametrize(
    ("scores", "s", "mix"),
    [
        ([], 3, 0.1),
        ([0.0, 0.0], 1, 0.1),
        ([1.0, -0.1], 1, 0.1),
        ([1.0, np.nan], 1, 0.1),
        ([[1.0]], 1, 0.1),
        ([1.0], 0, 0.1),
        ([1.0], -3, 0.1),
        ([1.0], True, 0.1),
        ([1.0], 1, -0.01),
        ([1.0], 1, 1.01),
    ],
)
def test_what_cannot_be_sampled_is_refused(scores, s, mix):
    with pytest.raises(UsageError, match="expected"):
        sample_rows(scores, s, uniform_mix=mix)


class Oracle:
    """Labels that count how often they are asked for."""

    def __init__(self, b: np.ndarray) -> None:
        self.b, self.asked = b, []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows)
        return self.b[rows]


@pytest.mark.parametrize("make", [known, spiked])
@pytest.mark.parametrize("method", ["exact", "sketched"])
def test_few_labels_reach_eps(make, method):
    errors = []
    for seed in range(12):
        problem = make(8000, 10, seed=seed)
        oracle = Oracle(problem.b)
        found = active_lstsq(problem.a, oracle, 0.1, rng=seed, method=method)
        assert len(oracle.asked) == 1
        assert len(oracle.asked[0]) < 400
        errors.append(excess(problem, found.x))
    assert np.mean(np.array(errors) <= 0.1) > 0.9


def test_uniform_rows_lose_the_spikes():
    problem = spiked(8000, 10)
    rows, weights = sample_rows(np.ones(8000), 250, rng=0)
    found = lstsq(problem.a[rows] * weights[:, None], problem.b[rows] * weights)
    assert excess(Known(problem.a, problem.b, problem.x), found.x) > 10


@pytest.mark.parametrize("form", ["sparse", "blocks", "tensor"])
def test_few_labels_of_every_form(form):
    problem = known(4000, 8)
    a = {
        "sparse": scipy.sparse.csr_array(problem.a),
        "blocks": RowBlocks(np.split(problem.a, [100, 3000]), 4000, 8),
        "tensor": torch.from_numpy(problem.a),
    }[form]
    plain = active_lstsq(problem.a, Oracle(problem.b), 0.5, rng=3)
    found = active_lstsq(a, Oracle(problem.b), 0.5, rng=3)
    np.testing.assert_allclose(np.asarray(found.x), plain.x, rtol=1e-9)
    assert isinstance(found.x, torch.Tensor) == (form == "tensor")


def test_labels_of_another_length_are_refused():
    problem = known(500, 3)
    with pytest.raises(UsageError, match="one per row"):
        active_lstsq(problem.a, lambda rows: problem.b, 0.5)
    with pytest.raises(UsageError, match="above 0"):
        active_lstsq(problem.a, Oracle(problem.b), 0.0)
    with pytest.raises(UsageError, match="LinearOperator"):
        active_lstsq(aslinearoperator(problem.a), Oracle(problem.b), 0.5)
