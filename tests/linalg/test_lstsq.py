"""The battery that every method of lstsq faces."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator

from tests.linalg.problems import as_numpy, backward_error, excess, known, spiked
from winnow.kernels import native
from winnow.linalg import Result, RowBlocks, lstsq

METHODS = ["gram", "sketch", "lapack"]
METHODS_AUTO = ["auto", *METHODS]


@pytest.fixture(params=METHODS_AUTO)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("size", [(3001, 17), (999, 1), (777, 130), (4097, 49)])
def test_solves_consistent_system_to_rounding(method, size):
    problem = known(*size, cond=1e3, residual=0.0)
    found = lstsq(problem.a, problem.b, method=method)
    assert np.linalg.norm(found.x - problem.x) < 1e-12
    assert found.is_converged
    assert found.backward_error < 1e-15


@pytest.mark.parametrize("eps", [1.0, 0.1, 1e-2, 1e-6])
def test_reaches_eps_and_certifies_it(method, eps):
    problem = known(5003, 31, cond=1e4)
    found = lstsq(problem.a, problem.b, eps=eps, method=method)
    assert found.is_converged
    assert excess(problem, found.x) * (1 - 1e-9) - 1e-20 <= found.eps_certified <= eps


@pytest.mark.parametrize("cond", [1.0, 1e4, 1e8, 1e12, 1e15])
@pytest.mark.parametrize("residual", [1e-14, 1e-6, 1.0])
def test_backward_error_on_ill_conditioned(method, cond, residual):
    problem = known(1500, 40, cond, residual, seed=3)
    best = np.linalg.lstsq(problem.a, problem.b, rcond=None)[0]
    found = lstsq(problem.a, problem.b, method=method)
    limit = 10 * max(backward_error(problem.a, problem.b, best), 1e-17)
    assert backward_error(problem.a, problem.b, found.x) <= limit or not found.is_converged
    assert found.is_converged


@pytest.mark.parametrize("cond", [1.0, 1e6, 1e10])
def test_the_backward_error_that_is_told_is_the_true_one(method, cond):
    problem = known(3000, 40, cond, 1e-2, seed=4)
    found = lstsq(problem.a, problem.b, method=method)
    true = backward_error(problem.a, problem.b, found.x)
    assert true / 3 - 1e-17 <= found.backward_error <= 3 * true + 1e-17


def test_unpacks_as_numpy_does(method):
    problem = known(2000, 23, cond=100.0)
    x, residual, rank, s = lstsq(problem.a, problem.b, method=method)
    expected = np.linalg.lstsq(problem.a, problem.b, rcond=None)
    np.testing.assert_allclose(x, expected[0], atol=1e-12)
    np.testing.assert_allclose(residual, expected[1], rtol=1e-12)
    assert rank == expected[2]
    np.testing.assert_allclose(s, expected[3], rtol=0.6 if method == "sketch" else 1e-9)


def test_several_right_sides_equal_one_by_one(method):
    problem = known(3000, 20, cond=1e3)
    b = np.stack([problem.b, np.zeros(3000), 1e6 * problem.a[:, 0], problem.b**2], axis=1)
    together = lstsq(problem.a, b, method=method)
    assert together.x.shape == (20, 4)
    for k in range(4):
        alone = lstsq(problem.a, b[:, k], method=method)
        np.testing.assert_allclose(together.x[:, k], alone.x, rtol=1e-9, atol=1e-9 * np.abs(alone.x).max())
        np.testing.assert_allclose(
            together.squares[k], alone.squares[0], rtol=1e-9, atol=1e-15 * np.sum(b[:, k] ** 2)
        )


@pytest.mark.parametrize("ridge", [1e-6, 0.3, 1e4])
@pytest.mark.parametrize("shape", [(2500, 31), (30, 40)])
def test_ridge_equals_the_augmented_system(method, ridge, shape):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
    tall = np.concatenate([a, np.sqrt(ridge) * np.eye(shape[1])])
    expected = np.linalg.lstsq(tall, np.concatenate([b, np.zeros(shape[1])]), rcond=None)[0]
    found = lstsq(a, b, ridge=ridge, method=method)
    np.testing.assert_allclose(found.x, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(found.squares, np.sum(np.square(a @ expected - b)), rtol=1e-7, atol=1e-11)


def test_a_ridge_per_column_shrinks_that_column_alone(method):
    problem = known(2000, 3)
    found = lstsq(problem.a, problem.b, ridge=np.array([0.0, 1e12, 0.0]), method=method)
    without = np.linalg.lstsq(problem.a[:, [0, 2]], problem.b, rcond=None)[0]
    np.testing.assert_allclose(found.x, [without[0], 0.0, without[1]], atol=1e-9)


def forms(a: np.ndarray, tmp_path):
    """The same numbers as everything that is accepted."""
    np.save(tmp_path / "a.npy", a)
    pieces = np.split(a, [1, 700, 701, 2900])
    wide = np.zeros((a.shape[0], 2 * a.shape[1]))
    wide[:, ::2] = a
    return {
        "fortran": np.asfortranarray(a),
        "strided": wide[:, ::2],
        "swapped": a.astype(a.dtype.newbyteorder()),
        "mapped": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "torch": torch.from_numpy(a),
        "list": a.tolist(),
        "blocks": RowBlocks(pieces, *a.shape),
        "restarted": RowBlocks(lambda: iter(pieces), *a.shape),
    }


@pytest.mark.parametrize("method", ["gram", "sketch"])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_same_bits_in_any_form_any_pieces_and_threads(method, eps, tmp_path, monkeypatch):
    problem = known(5000, 37, cond=1e3)
    once = lstsq(problem.a, problem.b, eps=eps, method=method, threads=1, rng=5, sketch_rows=400)
    for threads in (2, 3):
        again = lstsq(problem.a, problem.b, eps=eps, method=method, threads=threads, rng=5, sketch_rows=400)
        assert (again.x == once.x).all()
    monkeypatch.setattr("winnow.linalg.rows.PIECE_BYTES", 1 << 16)
    for name, form in forms(problem.a, tmp_path).items():
        found = lstsq(form, problem.b, eps=eps, method=method, rng=5, sketch_rows=400)
        assert (as_numpy(found.x) == once.x).all(), name
        assert found.eps_certified == once.eps_certified


def test_another_seed_is_another_sketch():
    problem = known(5000, 37)
    first, second = (lstsq(problem.a, problem.b, eps=0.5, method="sketch", rng=seed).x for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("rng", [7, np.int64(7), np.random.default_rng(7), torch.Generator()])
def test_every_kind_of_seed_is_taken(rng):
    problem = known(2000, 5)
    assert lstsq(problem.a, problem.b, rng=rng, method="sketch").is_converged


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, aslinearoperator])
def test_sparse_and_operators_equal_dense(method, make):
    rng = np.random.default_rng(0)
    a = scipy.sparse.random_array((3000, 70), density=0.05, rng=rng).toarray()
    b = rng.standard_normal((3000, 2))
    expected = np.linalg.lstsq(a, b, rcond=None)[0]
    found = lstsq(make(a), b, method=method)
    np.testing.assert_allclose(found.x, expected, atol=1e-11)
    loose = lstsq(make(a), b, method=method, eps=1e-2)
    assert loose.is_converged
    assert loose.eps_certified <= 1e-2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8, np.bool_])
def test_every_real_type_is_solved_in_double(method, dtype):
    rng = np.random.default_rng(1)
    a = (3 * rng.standard_normal((2000, 9))).astype(dtype)
    b = (3 * rng.standard_normal(2000)).astype(dtype)
    found = lstsq(a, b, method=method)
    expected = np.linalg.lstsq(a.astype(float), b.astype(float), rcond=None)[0]
    floating = np.issubdtype(dtype, np.floating)
    assert found.x.dtype == (np.float32 if floating else np.float64)
    np.testing.assert_allclose(
        found.x, expected, rtol=1e-6 if floating else 1e-11, atol=1e-6 if floating else 1e-11
    )


def test_a_tensor_is_answered_by_a_tensor(method):
    problem = known(2000, 5)
    a, b = torch.from_numpy(problem.a).float().requires_grad_(), torch.from_numpy(problem.b).float()
    found = lstsq(a, b, method=method)
    assert isinstance(found.x, torch.Tensor)
    assert found.x.dtype == torch.float32


def test_nothing_is_modified_and_read_only_is_enough(method):
    problem = known(2000, 12)
    a, b = problem.a.copy(), problem.b.copy()
    a.flags.writeable = b.flags.writeable = False
    lstsq(a, b, method=method, ridge=0.1)
    lstsq(a, b, method=method, eps=0.1)
    assert (a == problem.a).all()
    assert (b == problem.b).all()


@pytest.mark.parametrize("fault", ["twin", "zero", "sum"])
def test_of_many_solutions_the_one_of_least_norm(method, fault):
    problem = known(2500, 20)
    a = problem.a.copy()
    a[:, 7] = {"twin": a[:, 3], "zero": 0 * a[:, 3], "sum": a[:, 1] - 2 * a[:, 2]}[fault]
    expected, _, rank, _ = np.linalg.lstsq(a, problem.b, rcond=None)
    found = lstsq(a, problem.b, method=method)
    assert found.rank == rank == 19
    np.testing.assert_allclose(found.x, expected, atol=1e-10)
    assert found.residual.shape == (0,)
    assert "rank is 19 of 20" in found.message


def test_a_matrix_of_zeros_has_the_solution_zero(method):
    found = lstsq(np.zeros((100, 3)), np.ones(100), method=method)
    assert found.rank == 0
    assert (found.x == 0).all()


def test_wide_systems_have_the_shortest_solution(method):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((30, 77)), rng.standard_normal((30, 2))
    found = lstsq(a, b, method=method if method in ("auto", "lapack") else "gram")
    np.testing.assert_allclose(found.x, np.linalg.lstsq(a, b, rcond=None)[0], atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "gram", "lapack"])
def test_rcond_leaves_out_what_numpy_leaves_out(method):
    problem = known(3000, 16, cond=1e6, residual=0.1)
    expected, _, rank, _ = np.linalg.lstsq(problem.a, problem.b, rcond=1e-3)
    found = lstsq(problem.a, problem.b, rcond=1e-3, method=method)
    assert found.rank == rank < 16
    np.testing.assert_allclose(found.x, expected, atol=1e-8)


def test_units_of_columns_do_not_matter(method):
    problem = known(3000, 6, cond=10.0)
    scale = 10.0 ** np.array([-9, 0, 7, -3, 5, 1])
    found = lstsq(problem.a * scale, problem.b, method=method if method != "lapack" else "auto", rcond=None)
    plain = lstsq(problem.a, problem.b)
    if found.method != "lapack":  # LAPACK takes the small columns for noise
        np.testing.assert_allclose(found.x * scale, plain.x, rtol=1e-9)
    assert found.rank == 6 or found.method == "lapack"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["gram", "sketch"])
def test_units_of_columns_do_not_matter_beside_a_residual(method, seed):
    problem = known(3000, 6, cond=10.0, residual=0.1, seed=seed)
    scale = 10.0 ** np.array([-9, 0, 7, -3, 5, 1])
    found = lstsq(problem.a * scale, problem.b, method=method, rng=np.random.default_rng(seed))
    expected = np.linalg.lstsq(problem.a, problem.b, rcond=None)[0]
    np.testing.assert_allclose(found.x * scale, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["gram", "sketch"])
def test_spiked_rows_are_solved(method):
    problem = spiked(6000, 40)
    found = lstsq(problem.a, problem.b, method=method)
    expected = np.linalg.lstsq(problem.a, problem.b, rcond=None)[0]
    np.testing.assert_allclose(found.x, expected, rtol=1e-10)
    loose = lstsq(problem.a, problem.b, eps=1e-2, method=method)
    assert excess(problem, loose.x) <= loose.eps_certified + 1e-20
    assert loose.eps_certified <= 1e-2


@pytest.mark.parametrize("size", [1e-130, 1e-60, 1e60, 1e130])
def test_scale_does_not_matter(method, size):
    problem = known(2000, 12, cond=1e3)
    found = lstsq(size * problem.a, size * problem.b, method=method)
    x = lstsq(problem.a, problem.b).x
    assert np.linalg.norm(found.x - x) <= 2e-11 * np.linalg.norm(x)  # small entries err as large ones do


def test_result_names_its_failure():
    problem = known(4000, 50, cond=1e12, residual=1.0)
    found = lstsq(problem.a, problem.b, eps=1e-30, method="sketch")
    assert not found.is_converged
    assert "was asked" in found.message
    assert found.eps_certified > 1e-30


def test_a_consistent_system_says_that_eps_means_nothing():
    problem = known(4000, 20, residual=0.0)
    found = lstsq(problem.a, problem.b, eps=1e-3, method="sketch")
    assert found.is_converged
    assert np.linalg.norm(found.x - problem.x) < 1e-12
    assert found.eps_certified <= 1e-3 or "means nothing" in found.message


def test_without_a_certificate_nothing_is_claimed():
    problem = known(4000, 20)
    found = lstsq(problem.a, problem.b, eps=1e-3, method="sketch", certify=False)
    assert found.eps_certified == np.inf
    assert np.isnan(found.backward_error)
    assert excess(problem, found.x) <= 1e-3
    np.testing.assert_allclose(found.squares, np.sum(np.square(problem.a @ found.x - problem.b)), rtol=1e-9)


def test_a_sketch_reads_a_few_times():
    problem = known(20000, 24)
    found = lstsq(problem.a, problem.b, eps=1e-2, method="sketch")
    assert found.passes_over_A <= 5
    assert isinstance(found, Result)


@pytest.mark.parametrize(
    ("shape", "eps", "expected"), [((300, 8), None, "lapack"), ((40000, 100), None, "gram")]
)
def test_auto_takes_lapack_where_it_is_small_and_a_triangle_where_it_is_tall(shape, eps, expected):
    rng = np.random.default_rng(0)
    found = lstsq(rng.standard_normal(shape), rng.standard_normal(shape[0]), eps=eps)
    assert found.method == expected
    assert found.plan.startswith(expected)


def test_works_by_its_definitions_where_there_was_no_compiler(method, monkeypatch):
    problem = known(1500, 20, cond=1e4)
    expected = lstsq(problem.a, problem.b, method=method)
    monkeypatch.setattr(native, "module", None)
    found = lstsq(problem.a, problem.b, method=method)
    assert found.is_converged
    np.testing.assert_allclose(
        found.x, expected.x, atol=1e-8
    )  # the square of the condition times the residual
    loose = lstsq(problem.a, problem.b, method=method, eps=1e-2)
    assert excess(problem, loose.x) <= loose.eps_certified + 1e-12 <= 1e-2 + 1e-12
