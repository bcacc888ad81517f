"""Choosing: the table of expected numbers, and the probe against attention itself."""

import math

import pytest
import torch

from winnow.attention import (
    Needle,
    finds_needle,
    linear,
    min_poly_degree,
    poly_sketch,
    polynomial,
    separation_probe,
    softmax,
)
from winnow.attention.choosing import needle_rows
from winnow.attention.reference import attend_reference, exponential, power
from winnow.base.errors import UsageError

N = 1024
# Kernel -> the needle's weight on itself, and what is foretold; the network is then 0 or 1 in 99 % of trials.
EXPECTED = {
    "exp": (0.991, "found"),
    1: (0.007, "lost"),
    2: (0.051, "lost"),
    3: (0.274, "lost"),
    4: (0.709, "found"),
    5: (0.934, "found"),
    6: (0.987, "found"),
    8: (0.999, "found"),
}
# ln n / ln 2 -> the largest degree that is lost and the least that is found.
THRESHOLDS = {8: (2, 4), 10: (3, 4), 12: (4, 5), 14: (4, 6), 16: (5, 7), 20: (7, 9)}


@pytest.mark.parametrize("kernel", EXPECTED)
def test_the_table_of_expected_numbers(kernel):
    weight, says = EXPECTED[kernel]
    found = separation_probe(kernel, N, trials=400, rng=0)
    assert found.weight == pytest.approx(weight, abs=6e-4)
    assert found.says == says
    assert found.found_without == 0
    assert found.found_with == 0 if says == "lost" else found.found_with >= 0.98
    assert (found.margin > 0) == (says == "found")


def test_the_thresholds_of_the_weight():
    assert Needle().lost_below == pytest.approx(0.4167, abs=1e-4)
    assert Needle().found_above == pytest.approx(0.6818, abs=1e-4)
    assert Needle().n_signs == 35


@pytest.mark.parametrize("log2_n", THRESHOLDS)
def test_the_degree_that_is_needed_grows_with_log_n(log2_n):
    n, (lost, found) = 2**log2_n, THRESHOLDS[log2_n]
    says = {degree: separation_probe(degree, n, trials=1, rng=0).says for degree in range(1, 12)}
    assert max(d for d, what in says.items() if what == "lost") == lost
    assert min(d for d, what in says.items() if what == "found") == found
    assert separation_probe("exp", n, trials=1, rng=0).weight > 0.97


@pytest.mark.parametrize("log2_n", THRESHOLDS)
def test_min_poly_degree_is_the_degree_that_finds_the_needle(log2_n):
    # Rows of the needle's own type have a larger score than noise, so it may take one degree more.
    n, needle = 2**log2_n, Needle()
    signal = needle.shown**2 + needle.b**2 + needle.c**2
    degree = min_poly_degree(n, signal, needle.c**2, needle.found_above)
    assert degree <= THRESHOLDS[log2_n][1] <= degree + 1


def test_min_poly_degree_is_the_least():
    for n in (2, 100, 10**6, 2**40):
        for signal, noise, target in [(2.0, 1.0, 0.5), (1.94, 0.25, 0.9), (1.01, 1.0, 0.3)]:
            degree = min_poly_degree(n, signal, noise, target)
            reached = [
                1 / (1 + (n - 1) * math.exp(each * math.log(noise / signal))) for each in (degree, degree - 1)
            ]
            assert reached[0] >= target - 1e-9
            assert degree == 1 or reached[1] < target


@pytest.mark.parametrize("kernel", ["exp", 1, 4])
def test_distinct_rows_stand_for_the_whole_matrix(kernel):
    n, needle = 96, Needle()
    rows = needle_rows(n, needle, position=37, is_shown=True)
    weight = exponential if kernel == "exp" else power(kernel, 0.0)
    out = attend_reference(weight, *(rows[None, None],) * 3, causal=False)[0, 0]
    w = float(out[37, 0]) / float(rows[37, 0])
    assert separation_probe(kernel, n, trials=1, rng=0).weight == pytest.approx(w, rel=1e-9)


def test_attention_itself_finds_the_needle_as_foretold():
    n = 256
    assert finds_needle(softmax(), n, rng=0) == (0.0, 1.0)
    assert finds_needle(polynomial(4, 0.0), n, Needle(width=18), trials=5, rng=0) == (0.0, 1.0)
    assert finds_needle(polynomial(2, 0.0), n, rng=0) == (0.0, 0.0)
    assert finds_needle(linear(), n, rng=0) == (0.0, 0.0)
    assert finds_needle(linear("degree-1"), n, rng=0) == (0.0, 0.0)


def test_a_large_sketch_finds_what_its_power_finds_and_a_small_one_does_not():
    needle = Needle(width=10)
    assert finds_needle(poly_sketch(4, 4096, "product", rng=1), 256, needle, rng=0)[1] >= 0.9
    small = finds_needle(poly_sketch(4, 16, "nonnegative", rng=1), 256, needle, rng=0)
    assert small[1] - small[0] < 0.5


def test_softmax_fails_where_the_features_are_too_small():
    needle = Needle(shown=0.7, b=0.5, c=0.5, theta=0.4)
    assert separation_probe("exp", 32 * 2048, needle, rng=0).says != "found"  # 0.7^2 + 0.5^2 < 1
    assert separation_probe(32, 32 * 2048, needle, rng=0).says == "found"


WRONG = {
    "kernel": (lambda: separation_probe(0, N, rng=0), "expected 'exp' or a degree"),
    "n": (lambda: separation_probe(2, 1000, rng=0), "expected a multiple of 32"),
    "n of 0": (lambda: separation_probe(2, 0, rng=0), "expected a multiple of 32"),
    "order": (lambda: Needle(theta=1.3), "hidden < theta < shown"),
    "width": (lambda: Needle(width=2), "width >= 3"),
    "failure": (lambda: Needle(failure=0.0), "0 < failure < 1"),
    "position": (lambda: needle_rows(64, Needle(), position=64, is_shown=True), "0 <= position < 64"),
    "equal scores": (lambda: min_poly_degree(9, 1.0, 1.0, 0.5), "no degree tells equal scores apart"),
    "target": (lambda: min_poly_degree(9, 2.0, 1.0, 1.0), "0 < target < 1"),
    "one row": (lambda: min_poly_degree(1, 2.0, 1.0, 0.5), "n >= 2"),
}


@pytest.mark.parametrize(("call", "says"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_refused(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_rows_hold_the_needle_where_it_was_put():
    rows = needle_rows(64, Needle(), position=5, is_shown=True)
    assert torch.equal(rows[:, 0].nonzero().flatten(), torch.tensor([5]))
    assert float(rows[5, 0]) == pytest.approx(1.2 * math.sqrt(math.log(64)))
