"""The certificate is above the truth, and catches what is wrong."""

import numpy as np
import pytest

from tests.linalg.problems import excess, known, spiked
from winnow.base.rng import keyed
from winnow.kernels.row_sketch import open_passes
from winnow.linalg import lstsq
from winnow.linalg.gate import open_problem
from winnow.linalg.refine import certificate, evaluate, to_rounding
from winnow.linalg.rows import DenseRows, Sketch
from winnow.linalg.triangle import from_sketch, stretch_of


@pytest.mark.parametrize("make", [known, spiked])
def test_certificate_is_above_the_truth(make):
    ratios = []
    for seed in range(25):
        problem = make(1200, 12, seed=seed)
        found = lstsq(problem.a, problem.b, eps=0.3, method="sketch", rng=seed, sketch_rows=96)
        true = excess(problem, found.x)
        assert true <= found.eps_certified
        ratios.append(found.eps_certified / true)
    assert np.median(ratios) < 6  # a margin for 96 rows, which are few


@pytest.mark.parametrize("make", [known, spiked])
@pytest.mark.parametrize(("n", "d"), [(700, 1), (1500, 7), (1100, 64), (1301, 91)])
def test_certificate_of_the_default_sketch_is_within_four_times_the_truth(make, n, d):
    for seed in range(10):
        problem = make(n, d, seed=seed)
        found = lstsq(problem.a, problem.b, eps=0.1, method="sketch", rng=seed)
        true = excess(problem, found.x)
        assert true <= found.eps_certified <= min(4 * true, 0.1)


def test_certificate_is_above_the_truth_wherever_x_is():
    problem = known(3000, 30, cond=1e5, seed=1)
    opened = open_problem(problem.a, problem.b, 0.0, 1)
    triangle = triangle_of_sketch(problem.a, 240, 8)
    rng = np.random.default_rng(0)
    for size in 10.0 ** np.arange(-6, 2):
        x = problem.x + size * triangle.solve(rng.standard_normal((1, 30)))
        point = evaluate(opened, x)
        w = np.square(triangle.solve_transposed(point.gradient)).sum(axis=1)
        true = excess(problem, x[0])
        assert true * (1 - 1e-9) <= certificate(triangle, w, point.objective)[0]


def test_a_ridge_is_part_of_the_certificate():
    problem = known(3000, 30, cond=1e3, seed=2)
    found = lstsq(problem.a, problem.b, ridge=0.05, eps=1e-2, method="sketch")
    assert excess(problem, found.x, 0.05) <= found.eps_certified <= 1e-2


def triangle_of_sketch(a: np.ndarray, height: int, nonzeros: int):
    passes = open_passes(1)
    sketched = DenseRows(a, passes).sketch(Sketch(height, nonzeros, 0))
    none = np.zeros((height, 1))
    return from_sketch(sketched, none, np.zeros(a.shape[1]), passes, lambda x: DenseRows(x, passes).gram())[0]


def distortion(a: np.ndarray, r: np.ndarray) -> float:
    return float(np.linalg.cond(np.linalg.solve(r.T, a.T)))


def test_sparse_signs_keep_spiked_rows_where_others_lose_them():
    problem = spiked(4096, 96)
    assert distortion(problem.a, triangle_of_sketch(problem.a, 384, 8).r) < 5
    count_sketch = triangle_of_sketch(problem.a, 384, 1)  # one entry per column: two spikes meet somewhere
    assert distortion(problem.a, count_sketch.r) > 100
    uniform = problem.a[np.random.default_rng(0).choice(4096, 384, replace=False)]
    assert distortion(problem.a, np.linalg.qr(uniform, mode="r")) > 100


def test_the_stretch_bounds_the_sketch_over_seeds():
    """The largest singular value of S on a range, over 60 sketches, spiked and not."""
    for make in (known, spiked):
        q = np.linalg.qr(make(2000, 20).a)[0]
        rows = DenseRows(q, open_passes(1))
        largest = [np.linalg.norm(rows.sketch(Sketch(160, 8, seed)), 2) for seed in range(30)]
        assert max(largest) <= stretch_of(20, 160)
        assert min(largest) > 1


def test_refinement_that_cannot_converge_says_so():
    """A triangle of another matrix: the loop ends and claims nothing."""
    problem, other = known(2000, 30, cond=1e3, seed=5), known(2000, 30, cond=1e6, seed=6)
    opened = open_problem(problem.a, problem.b, 0.0, 1)
    triangle = triangle_of_sketch(other.a, 240, 8)
    reached = to_rounding(opened, triangle, evaluate(opened, np.zeros((1, 30))))
    assert not reached.is_converged


@pytest.mark.parametrize("method", ["sketch", "auto"])
def test_what_rounding_hides_is_that_of_the_directions_kept(method):
    rng = keyed(8, 0)
    A, b = rng.standard_normal((20_000, 60)), rng.standard_normal(20_000)
    A[:, 3] = A[:, 4] - A[:, 5]
    found = lstsq(A, b, eps=0.1, method=method)
    least = np.linalg.lstsq(A, b, rcond=None)[0]
    assert (found.rank, found.is_converged) == (59, True)
    truth = np.sum((A @ found.x - b) ** 2) / np.sum((A @ least - b) ** 2) - 1
    assert truth <= found.eps_certified <= 0.1
