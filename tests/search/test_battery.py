"""What every method of heavy_pairs owes, whatever it is."""

import numpy as np
import pytest

from tests.search.planted import by_definition, found, listed, planted_signs, random_signs
from winnow.search import heavy_pairs
from winnow.search.outcome import clopper_pearson

METHODS = ("exact", "cascade", "lsh", "gemm", "aggregate")
RHO = 0.6


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=(*METHODS, "auto"))
def any_method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_agrees_with_the_definition_on_small_sizes(any_method: str):
    a, planted = planted_signs(1, 301, 331, RHO, 12)
    pairs = heavy_pairs(a, rho=RHO, method=any_method, recall=0.9999)
    assert listed(pairs) == by_definition(a, None, RHO)
    assert planted <= found(pairs)


def test_two_sets_agree_with_the_definition(any_method: str):
    vectors, _ = planted_signs(2, 500, 450, RHO, 200)
    a, b = vectors[:203], vectors[203:]
    expected = by_definition(a, b, RHO)
    assert len(expected) > 20
    assert listed(heavy_pairs(a, b, rho=RHO, method=any_method, recall=0.9999)) == expected


def test_every_pair_returned_is_heavy_and_its_product_right(method: str):
    a, _ = planted_signs(3, 200, 64, 0.3, 40)
    pairs = heavy_pairs(a, rho=0.3, method=method, max_pairs=20_000)
    assert len(pairs) > 40
    wide = a.astype(int)
    assert np.array_equal(pairs.product, (wide[pairs.i] * wide[pairs.j]).sum(axis=1))
    assert (pairs.product >= 0.3 * 64).all()
    assert len(found(pairs)) == len(pairs)


def test_a_mask_of_signs_changes_nothing(method: str):
    a, _ = planted_signs(4, 300, 320, RHO, 20)
    mask = random_signs(5, 1, 320)
    plain, masked = (heavy_pairs(x, rho=RHO, method=method, recall=0.9999) for x in (a, a * mask))
    assert listed(plain) == listed(masked)
    assert len(plain) >= 20


def test_negating_all_vectors_changes_nothing_and_one_side_finds_nothing(method: str):
    a, _ = planted_signs(6, 300, 320, RHO, 20)
    plain = heavy_pairs(a, rho=RHO, method=method, recall=0.9999)
    assert listed(heavy_pairs(-a, rho=RHO, method=method, recall=0.9999)) == listed(plain)
    assert len(heavy_pairs(a, -a, rho=RHO, method=method)) == 0


def test_permuting_rows_permutes_pairs(method: str):
    a, _ = planted_signs(7, 280, 384, RHO, 20)
    order = np.random.default_rng(8).permutation(280)
    moved = heavy_pairs(a[order], rho=RHO, method=method, recall=0.9999)
    back = {(*sorted((int(order[i]), int(order[j]))), product) for i, j, product in listed(moved)}
    assert back == set(by_definition(a, None, RHO))


def test_swapping_the_sets_swaps_the_pairs(method: str):
    vectors, _ = planted_signs(9, 400, 384, RHO, 150)
    a, b = vectors[:150], vectors[150:]
    forth, back = (heavy_pairs(*x, rho=RHO, method=method, recall=0.9999) for x in ((a, b), (b, a)))
    assert {(j, i, product) for i, j, product in listed(back)} == set(listed(forth))
    assert len(forth) > 20


def test_finds_nothing_in_noise(any_method: str):
    pairs = heavy_pairs(random_signs(10, 400, 512), rho=0.5, method=any_method)
    assert len(pairs) == 0
    assert pairs.product.dtype == np.int64


def test_threads_and_seeds_decide_nothing_they_should_not(method: str):
    a, _ = planted_signs(11, 500, 512, 0.5, 200)
    runs = [
        heavy_pairs(a, rho=0.5, method=method, recall=0.7, rng=seed, threads=threads)
        for seed, threads in ((1, 1), (1, 2), (1, 5), (1, 1), (2, 1))
    ]
    assert all(listed(run) == listed(runs[0]) for run in runs[1:4])
    assert all(run.report.recall_interval == runs[0].report.recall_interval for run in runs[1:4])
    if method in ("cascade", "lsh"):
        assert listed(runs[4]) != listed(runs[0])


@pytest.mark.parametrize("method_", ["cascade", "lsh", "aggregate"])
def test_recall_is_what_was_asked_for(method_: str):
    a, planted = planted_signs(12, 3000, 512, 0.6, 1000)
    pairs = heavy_pairs(a, rho=0.6, method=method_, recall=0.9)
    share = len(found(pairs) & planted) / len(planted)
    assert share > 0.87
    assert pairs.report.recall == pytest.approx(share, abs=0.06)
    assert pairs.report.canaries == 512


@pytest.mark.parametrize("method_", ["cascade", "lsh"])
def test_the_true_recall_lies_inside_the_interval_for_most_seeds(method_: str):
    a, planted = planted_signs(13, 2000, 384, 0.6, 1000)
    inside = 0
    for seed in range(40):
        pairs = heavy_pairs(a, rho=0.6, method=method_, recall=0.85, rng=seed, canaries=256)
        low, high = pairs.report.recall_interval
        inside += low <= len(found(pairs) & planted) / len(planted) <= high
    assert inside >= 34


def test_the_interval_is_clopper_and_pearsons():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 20) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert clopper_pearson(7, 20) == (pytest.approx(0.15391, abs=1e-5), pytest.approx(0.59219, abs=1e-5))


def test_the_report_says_what_was_done(any_method: str):
    a, _ = planted_signs(14, 500, 320, RHO, 5)
    seen: list[tuple[int, int]] = []
    report = heavy_pairs(
        a, rho=RHO, method=any_method, threads=1, progress=lambda done, total: seen.append((done, total))
    ).report
    assert report.method in (METHODS if any_method == "auto" else (any_method,))
    assert seen[-1][0] == seen[-1][1]
    assert min(report.candidates, report.multiply_adds, report.bytes, report.seconds) > 0
    assert report.threads == 1
    exact = report.method in ("exact", "gemm")
    assert (report.canaries, report.recall == 1.0 and report.recall_interval == (1.0, 1.0)) == (
        0 if exact else 512,
        exact,
    )
    assert ("auto chose" in report.plan) == (any_method == "auto")


def test_canaries_may_be_left_out():
    a, _ = planted_signs(15, 300, 320, RHO, 5)
    pairs = heavy_pairs(a, rho=RHO, method="cascade", canaries=0)
    assert pairs.report.recall_interval == (0.0, 1.0)
    assert np.isnan(pairs.report.recall)


def test_copies_without_end_are_still_found_each_once(method: str):
    a = np.repeat(random_signs(16, 3, 256), 40, axis=0)
    pairs = heavy_pairs(a, rho=1.0, method=method, recall=0.999)
    assert listed(pairs) == by_definition(a, None, 1.0)
    assert len(pairs) == 3 * 40 * 39 // 2
