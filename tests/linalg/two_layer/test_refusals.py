"""Refusals: one clear line for each thing that is off."""

import numpy as np
import pytest
import torch

from winnow.base.errors import UsageError
from winnow.linalg.two_layer import two_layer

A1, A2, B = np.ones((3, 2)), np.ones((4, 3)), np.ones(4)
WRONG = {
    "NaN in A1": ((np.full((3, 2), np.nan), A2, B), "A1 holds NaN"),
    "infinity in A2": ((A1, np.full((4, 3), np.inf), B), "A2 holds NaN or infinity"),
    "NaN in b": ((A1, A2, [1.0, 2.0, np.nan, 4.0]), "b holds NaN"),
    "infinite w": ((A1, A2, B, np.inf), "w holds NaN or infinity"),
    "empty A1": ((np.ones((0, 2)), A2, B), "A1 is empty"),
    "no columns": ((np.ones((3, 0)), A2, B), "A1 is empty"),
    "flat A1": ((np.ones(3), A2, B), "A1 has 1 dimensions, expected 2"),
    "deep A2": ((A1, np.ones((4, 3, 1)), B), "A2 has 3 dimensions"),
    "A2 of another width": ((A1, np.ones((4, 5)), B), "A2 has 5 columns, A1 has 3 rows"),
    "b of another length": ((A1, A2, np.ones(3)), "b has 3 entries, A2 has 4 rows"),
    "w of another length": ((A1, A2, B, np.ones(4)), "w has 4 entries, A1 has 3 rows"),
    "complex": ((A1 * 1j, A2, B), "A1 holds complex128"),
    "text": ((A1, [["a", "b", "c"]] * 4, B), "A2 holds <U1"),
    "ragged": ((A1, A2, [[1.0], [2.0, 3.0]]), "b is no array"),
    "objects": ((A1, A2, [None] * 4), "b holds object"),
    "bfloat16": ((torch.ones(3, 2, dtype=torch.bfloat16), A2, B), "A1 is no array"),
    "overflow": ((A1 * 1e300, A2, B, 1e10), "overflows"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG)
def test_arrays_that_cannot_be_meant_are_refused_by_name(arguments, says):
    with pytest.raises(UsageError, match=says) as caught:
        two_layer(*arguments, x0=np.full(2, 1e5))
    assert "\n" not in str(caught.value)


OPTIONS = {
    "unknown method": ({"method": "sgd"}, "method is 'sgd', expected one of lm"),
    "x0 of another length": ({"x0": np.ones(3)}, "x0 has 3 entries, A1 has 2 columns"),
    "NaN in x0": ({"x0": [np.nan, 0.0]}, "x0 holds NaN"),
    "negative tol": ({"tol": -1e-9}, "tol is -1e-09"),
    "tol NaN": ({"tol": float("nan")}, "tol is nan"),
    "negative steps": ({"max_steps": -1}, "max_steps is -1"),
    "negative seed": ({"rng": -1}, "rng is -1"),
    "seed too large": ({"rng": 2**63}, "rng is"),
    "w2 without w": ({"method": "w2"}, "is singular"),
}


@pytest.mark.parametrize(("options", "says"), OPTIONS.values(), ids=OPTIONS)
def test_options_out_of_range_are_refused_by_name(options, says):
    with pytest.raises(UsageError, match=says):
        two_layer(A1, A2, B, **options)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.float16, bool])
def test_other_real_numbers_are_taken_as_float64(kind):
    solution = two_layer(A1.astype(kind), A2.astype(kind), B.astype(kind))
    assert solution.x.dtype == np.float64


def test_tensors_and_lists_are_taken_too():
    lists = two_layer(A1.tolist(), torch.from_numpy(A2), tuple(B), 0.5)
    assert lists.loss == two_layer(A1, A2, B, 0.5).loss


def test_a_singular_problem_is_refused_where_the_processor_takes_subnormals_for_zero():
    was_on = float(torch.tensor([1e-40]) * 1) == 0
    torch.set_flush_denormal(True)  # as some libraries do, for the rest of the process
    try:
        with pytest.raises(UsageError, match="is singular"):
            two_layer(A1, A2, B, method="w2")
    finally:
        torch.set_flush_denormal(was_on)
