"""Amplification: exact outcome probabilities, honest counts, and the same law in a real circuit."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.linalg.quantum.circuit import amplification, fixed_point_turns, grover_turns, measured
from winnow.linalg.quantum.copies import many_copies
from winnow.linalg.quantum.heavy import find_all
from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.plane import NONE, Register, fixed_point_loads
from winnow.linalg.quantum.reference import amplified_reference

SMALLEST_P = 1e-3  # of chi-square tests with fixed seeds: they pass or fail once and for all


def uniform(n):
    return np.full(n, 0.07)


def one_heavy(n):
    chances = np.full(n, 0.3 / n)
    chances[n // 3] = 0.95
    return chances


def power_law(n):
    return 0.9 * np.arange(1, n + 1.0) ** -1.3


LAWS = (uniform, one_heavy, power_law)


def counted(register, iterations, runs, n):
    counts = np.zeros(n + 1, dtype=int)
    for _ in range(runs):
        counts[register.amplified(iterations)] += 1  # NONE counts in the last place
    return counts


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_two_dimensions_give_the_law_of_the_whole_state_vector(law, iterations):
    n, runs = 27, 6000
    chances = law(n)
    expected = amplified_reference(chances, iterations)
    assert expected.sum() == pytest.approx(1.0)
    theta = math.asin(math.sqrt(chances.mean()))
    assert expected[:, 1].sum() == pytest.approx(math.sin((2 * iterations + 1) * theta) ** 2)
    counts = counted(Register(chances, QueryLedger(), keyed(3, iterations)), iterations, runs, n)
    wanted = np.append(expected[:, 1], expected[:, 0].sum()) * runs
    assert chisquare(counts, wanted * (runs / wanted.sum())).pvalue > SMALLEST_P


def test_a_wrong_law_fails_the_same_chi_square():
    n, runs = 27, 6000
    counts = counted(Register(power_law(n), QueryLedger(), keyed(3, 1)), 1, runs, n)
    wrong = amplified_reference(uniform(n), 1)
    wanted = np.append(wrong[:, 1], wrong[:, 0].sum()) * runs
    assert chisquare(counts, wanted * (runs / wanted.sum())).pvalue < 1e-9


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_a_real_circuit_measures_the_target_law_and_agrees_with_numpy(law, iterations):
    pytest.importorskip("qiskit")
    n, shots = 64, 8192
    chances = law(n)
    counts = measured(chances, grover_turns(iterations), shots, 5)
    expected = amplified_reference(chances, iterations)
    assert counts.sum() == shots
    assert chisquare(*pooled(counts.ravel(), expected.ravel() * shots)).pvalue > SMALLEST_P
    flagged = counts[:, 1]
    target = chances / chances.sum() * flagged.sum()
    assert chisquare(*pooled(flagged, target)).pvalue > SMALLEST_P


def pooled(counts, expected):
    """Chi-square wants at least 5 expected per cell: the rest goes into one, scaled to the same sum."""
    is_large = expected >= 5
    expected = np.append(expected[is_large], expected[~is_large].sum())
    counts = np.append(counts[is_large], counts[~is_large].sum())
    keep = expected > 0
    return counts[keep], expected[keep] * (counts[keep].sum() / expected[keep].sum())


def test_a_real_fixed_point_circuit_finds_as_often_as_the_plane_says():
    pytest.importorskip("qiskit")
    chances, failure, shots = np.zeros(16), 0.1, 4096
    chances[11] = 1.0
    loads = fixed_point_loads(1 / 16, failure)
    counts = measured(chances, fixed_point_turns(loads, failure), shots, 2)
    probability = closed_form(loads, failure, 1 / 16)
    assert probability >= 1 - failure
    assert binomtest(int(counts[11, 1]), shots, probability).pvalue > SMALLEST_P
    assert counts[:, 1].sum() == counts[11, 1]


def test_a_circuit_refuses_what_it_cannot_load():
    pytest.importorskip("qiskit")
    for n in (1, 3, 63, 128):
        with pytest.raises(UsageError, match=f"{n} rows were given"):
            amplification(np.zeros(n), ())
    with pytest.raises(UsageError, match=r"outside 0\.\.1"):
        amplification(np.array([0.5, 1.5]), ())


def closed_form(loads, failure, share):
    """Yoder, Low, Chuang: ``1 - failure T_L(T_{1/L}(1 / sqrt(failure)) sqrt(1 - share))^2``."""
    x = math.cosh(math.acosh(1 / math.sqrt(failure)) / loads) * math.sqrt(1 - share)
    chebyshev = math.cosh(loads * math.acosh(x)) if x > 1 else math.cos(loads * math.acos(x))
    return 1 - failure * chebyshev**2


@pytest.mark.parametrize(("n", "flagged"), [(64, 1), (64, 5), (1000, 1), (1000, 333), (999, 0)])
@pytest.mark.parametrize("failure", [0.1, 1e-3])
def test_a_fixed_point_search_has_its_closed_form_and_does_not_overshoot(n, flagged, failure):
    chances = np.zeros(n)
    chances[:flagged] = 1.0
    ledger, runs = QueryLedger(), 300
    loads = fixed_point_loads(1 / n, failure)
    register = Register(chances, ledger, keyed(1, n))
    hits = sum(register.fixed_point(loads, failure) != NONE for _ in range(runs))
    probability = closed_form(loads, failure, flagged / n)
    assert probability >= 1 - failure or flagged == 0
    assert binomtest(hits, runs, min(max(probability, 0.0), 1.0)).pvalue > SMALLEST_P
    assert ledger.superposition_queries == ledger.uncomputes == runs * loads


def test_the_ledger_counts_each_call_of_a_run():
    ledger = QueryLedger()
    register = Register(uniform(50), ledger, keyed(0, 0))
    register.amplified(0)
    assert (ledger.superposition_queries, ledger.uncomputes, ledger.measurements) == (1, 1, 1)
    register.amplified(7)
    assert (ledger.superposition_queries, ledger.uncomputes, ledger.measurements) == (16, 16, 2)
    assert ledger.quantum_queries == 32
    assert ledger.comparisons == 16
    assert ledger.row_reads == 0


@pytest.mark.parametrize(("n", "k"), [(1, 0), (1, 1), (64, 0), (64, 64), (500, 1), (4096, 8), (4096, 200)])
def test_every_flagged_row_is_found_once(n, k):
    flags = np.zeros(n, dtype=bool)
    flags[np.random.default_rng(k).choice(n, k, replace=False)] = True
    ledger = QueryLedger()
    assert find_all(flags, ledger, keyed(k, n)) == np.flatnonzero(flags).tolist()
    assert ledger.superposition_queries <= 12 * math.sqrt(n * max(k, 1)) + 10


@pytest.mark.parametrize("law", LAWS)
def test_copies_follow_the_weights_and_their_sum_is_estimated(law):
    n = 3000
    chances = law(n) * (400 / law(n).sum())
    chances = np.minimum(chances, 1.0)
    ledger = QueryLedger()
    copies = many_copies(Register(chances, ledger, keyed(7, 0)), keyed(8, 0))
    total = chances.sum()
    assert copies.total == pytest.approx(total, rel=4 / math.sqrt(len(copies.rows)))
    assert len(copies.rows) == pytest.approx(total, rel=4 / math.sqrt(len(copies.rows)))
    groups = np.minimum(np.cumsum(chances) / total * 8, 7).astype(
        int
    )  # rows side by side, an eighth of the sum each
    counts = np.bincount(groups[list(copies.rows)], minlength=8)
    expected = np.bincount(groups, weights=chances) / total * len(copies.rows)
    assert chisquare(counts, expected * (counts.sum() / expected.sum())).pvalue > SMALLEST_P
    assert ledger.superposition_queries < 2.5 * math.sqrt(n * total)


@pytest.mark.parametrize("sum_of_chances", [0.0, 1e-6])
def test_no_copies_are_made_of_next_to_nothing_and_the_search_ends(sum_of_chances):
    chances = np.full(1000, sum_of_chances / 1000)
    ledger = QueryLedger()
    copies = many_copies(Register(chances, ledger, keyed(0, 0)), keyed(0, 1))
    assert (copies.rows, copies.total) == ((), 0.0)
    assert ledger.superposition_queries < 25 * math.sqrt(1000)


def test_ten_million_rows_are_sampled_in_their_square_root():
    n, k = 10_000_000, 100
    chances = np.full(n, k / n)
    ledger = QueryLedger()
    copies = many_copies(Register(chances, ledger, keyed(1, 1)), keyed(1, 2))
    assert len(copies.rows) == pytest.approx(k, rel=0.5)
    assert ledger.superposition_queries < 2.5 * math.sqrt(n * k) < n / 100


def test_no_search_for_the_first_copies_runs_away():
    n, k = 2**10, 20
    costs = []
    for seed in range(150):
        ledger, draws = QueryLedger(), keyed(seed, n)
        many_copies(Register(np.full(n, k / n), ledger, draws), draws)
        costs.append(ledger.superposition_queries / math.sqrt(n * k))
    assert np.median(costs) < 1.8
    assert np.mean(np.array(costs) > 2.5) < 0.05  # where the range only grew, one in nine


def test_the_law_does_not_depend_on_what_was_hidden_before():
    chances = power_law(40)
    register = Register(chances, QueryLedger(), keyed(4, 4))
    register.hide(0)
    register.hide(3)
    counts = counted(register, 1, 5000, 40)[:-1]
    assert counts[0] == counts[3] == 0
    chances[[0, 3]] = 0.0
    assert chisquare(*pooled(counts, chances / chances.sum() * counts.sum())).pvalue > SMALLEST_P
