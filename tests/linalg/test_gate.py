"""What cannot be solved is refused in one line that says what to do."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from winnow.base.errors import ResourceError, UsageError
from winnow.linalg import RowBlocks, lstsq
from winnow.linalg.gate import open_rows
from winnow.linalg.solvers import in_memory

A, B = np.random.default_rng(0).standard_normal((2000, 4)), np.random.default_rng(1).standard_normal(2000)


def with_entry(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[(1234,) + (2,) * (array.ndim - 1)] = value
    return changed


BROKEN = {
    "b too short": (A, B[:-1], "b has 1999 rows and A 2000"),
    "b too deep": (A, B[:, None, None], "b has 3 axes"),
    "b a number": (A, np.float64(3.0), "b has 0 axes"),
    "b without columns": (A, B[:, None][:, :0], "at least one column"),
    "A a vector": (A[:, 0], B, "expected [rows, columns]"),
    "A deep": (A[None], B, "expected [rows, columns]"),
    "A without rows": (A[:0], B[:0], "at least one row"),
    "A without columns": (A[:, :0], B, "at least one row and one column"),
    "A complex": (A + 1j, B, "complex128, expected real"),
    "b complex": (A, B + 1j, "stack real and imaginary"),
    "A of words": (A.astype(str), B, "expected real numbers"),
    "A of objects": (A.astype(object), B, "expected real numbers"),
    "A of dates": (A.astype("datetime64[s]"), B, "expected real numbers"),
    "A ragged": ([[1.0, 2.0], [3.0]], B[:2], "no array of numbers"),
    "A masked": (np.ma.masked_array(A), B, "masked"),
    "b NaN": (A, with_entry(B, np.nan), "nan in row 1234, column 0"),
    "b infinite": (A, with_entry(B, -np.inf), "-inf in row 1234"),
    "sparse complex": (scipy.sparse.csr_array(A + 1j), B, "expected real"),
    "operator complex": (aslinearoperator(A + 1j), B, "expected real"),
}


@pytest.mark.parametrize(("a", "b", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_input_is_refused_in_one_line(a, b, says):
    with pytest.raises(UsageError) as caught:
        lstsq(a, b)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["auto", "gram", "sketch", "lapack"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array, torch.from_numpy])
def test_what_is_not_finite_in_a_is_found(method, value, make):
    with pytest.raises(UsageError, match="finite"):
        lstsq(make(with_entry(A, value)), B, method=method)


def test_the_place_of_a_nan_is_told():
    with pytest.raises(UsageError, match="nan in row 1234, column 2"):
        lstsq(with_entry(A, np.nan), B, method="gram")


@pytest.mark.parametrize("method", ["gram", "sketch"])
def test_too_large_numbers_are_solved_or_refused_with_a_way_out(method):
    expected = lstsq(A, B).x
    np.testing.assert_allclose(1e200 * lstsq(1e200 * A, B, method=method).x, expected, rtol=1e-9)
    with pytest.raises(UsageError, match="method='lapack'"):
        lstsq(A, 1e200 * B, method=method)


OPTIONS = {
    "eps 0": ({"eps": 0.0}, "eps is 0.0"),
    "eps negative": ({"eps": -0.1}, "above 0"),
    "eps nan": ({"eps": float("nan")}, "above 0"),
    "ridge negative": ({"ridge": -1e-9}, "0 or more"),
    "ridge nan": ({"ridge": float("nan")}, "0 or more"),
    "ridge of another length": ({"ridge": np.ones(3)}, "for each of 4 columns"),
    "rcond": ({"rcond": 1.0}, "below 1"),
    "seed": ({"rng": -1}, "rng is -1"),
    "seed true": ({"rng": True}, "rng is True"),
    "threads": ({"threads": -2}, "threads is -2"),
    "sketch too flat": ({"method": "sketch", "sketch_rows": 4}, "8 x 4"),
    "sketch negative": ({"method": "sketch", "sketch_rows": -8}, "sketch_rows is -8"),
}


@pytest.mark.parametrize(("options", "says"), OPTIONS.values(), ids=OPTIONS)
def test_options_outside_their_range_are_refused(options, says):
    with pytest.raises(UsageError) as caught:
        lstsq(A, B, **options)
    assert says in str(caught.value)


def test_an_unknown_method_lists_those_there_are():
    with pytest.raises((UsageError, TypeError)):  # jaxtyping, in tests, sees it first
        lstsq(A, B, method="qr")


def test_a_generator_of_blocks_is_refused():
    with pytest.raises(UsageError, match="read once"):
        RowBlocks((block for block in [A]), *A.shape)


@pytest.mark.parametrize("rows", [1999, 2001])
def test_blocks_of_another_length_are_refused(rows):
    with pytest.raises(UsageError, match="the blocks hold 2000 rows"):
        lstsq(RowBlocks([A], rows, 4), np.zeros(rows), method="gram")


def test_blocks_of_another_width_are_refused():
    with pytest.raises(UsageError, match="block 1 is"):
        lstsq(RowBlocks([A, A[:, :3]], 4000, 4), np.zeros(4000), method="gram")


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried():
    def operator(n: int, d: int) -> LinearOperator:
        return LinearOperator((n, d), matvec=lambda v: v, rmatvec=lambda v: v, dtype=np.float64)

    with pytest.raises(ResourceError, match="memory"):
        in_memory(open_rows(operator(2**40, 2**40), 1)[0])  # the product leaves 64 bits
    with pytest.raises(ResourceError, match="Gram matrix"):
        lstsq(operator(10**6, 5 * 10**5), np.zeros(10**6), method="gram")
    with pytest.raises(ResourceError, match="a sketch of"):
        lstsq(operator(10**6, 4 * 10**5), np.zeros(10**6), method="sketch")
