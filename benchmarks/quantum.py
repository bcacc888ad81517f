"""Simulated quantum least squares: how queries grow, how often the answer is certified, what it would take.

python -m benchmarks.quantum

Nothing here is a time. Queries are counted by the ledger as the simulation makes them; medians over seeds.
"""

from statistics import median

import numpy as np
from benchmarks.recorded import machine, record

from winnow.base.rng import keyed
from winnow.linalg.quantum import QueryLedger, quantum_lstsq
from winnow.linalg.quantum.copies import many_copies
from winnow.linalg.quantum.halving import Sampler
from winnow.linalg.quantum.heavy import find_all
from winnow.linalg.quantum.plane import Register

KEPT = 64
LAWS = ("uniform", "one heavy", "power law")
KINDS = ("gaussian", "power law", "spiked")
SEEDS = 200
EPS = 0.1
N_ROWS, WIDTH = 2**15, 6


def chances_of(law: str, n: int) -> np.ndarray:
    """Chances that sum to about KEPT."""
    if law == "power law":
        power = np.arange(1, n + 1.0) ** -0.4
        return np.minimum(1.0, KEPT * power / power.sum())
    chances = np.full(n, KEPT / n)
    if law == "one heavy":
        chances[n // 3] = 1.0
    return chances


def level_queries(law: str, n: int, seed: int) -> int:
    ledger, draws = QueryLedger(), keyed(seed, n)
    chances = chances_of(law, n)
    register = Register(chances, ledger, draws)
    for heavy in find_all(chances >= 1.0, ledger, draws):
        register.hide(heavy)
    many_copies(register, draws)
    return ledger.superposition_queries


def halving_queries(n: int, seed: int) -> int:
    ledger = QueryLedger()
    A = np.random.default_rng(n).normal(size=(n, 4))
    Sampler(A, 0.0, ledger, seed * 1000 + n.bit_length()).sample(20.0)
    return ledger.superposition_queries


def growth(name: str, sizes: list[int], seeds: int, queries) -> dict:
    """The slope of the logarithm of the queries in the logarithm of N."""
    counts = [median(queries(n, seed) for seed in range(seeds)) for n in sizes]
    slope = float(np.polyfit(np.log(sizes), np.log(counts), 1)[0])
    return {"what": name, "rows_from": sizes[0], "rows_to": sizes[-1], "slope": slope, "queries": counts}


def problem_of(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    A = draws.normal(size=(n, WIDTH))
    if kind == "power law":
        A *= (np.arange(1, n + 1.0) ** -0.6)[draws.permutation(n), None]
    if kind == "spiked":  # half of the columns live in one row each
        A[:, ::2] *= 1e-4
        A[draws.choice(n, WIDTH // 2, replace=False), np.arange(0, WIDTH, 2)] = 10.0
    return A, A @ draws.normal(size=WIDTH) + 0.7 * draws.normal(size=n)


def certified(kind: str) -> dict:
    """Solve with many seeds; and with as many rows taken uniformly, judged by the true excess."""
    A, b = problem_of(kind, N_ROWS)
    least = float(np.linalg.lstsq(A, b, rcond=None)[1][0])
    found = [quantum_lstsq(A, b, EPS, rng=seed) for seed in range(SEEDS)]
    uniform = []
    for seed, each in enumerate(found):
        rows = np.random.default_rng(seed).choice(N_ROWS, len(each.rows), replace=False)
        x = np.linalg.lstsq(A[rows], b[rows], rcond=None)[0]
        uniform.append(np.square(A @ x - b).sum() <= (1 + EPS) * least)
    return {
        "weights": kind,
        "seeds": SEEDS,
        "certified": sum(each.eps_certified <= EPS for each in found) / SEEDS,
        "in_the_first_sample": sum(each.rounds == 1 for each in found) / SEEDS,
        "uniform_rows": sum(uniform) / SEEDS,
        "eps_median": median(each.eps_certified for each in found),
        "rows_kept": median(len(each.rows) for each in found),
    }


def beside_reads(n: int) -> dict:
    A, b = problem_of("gaussian", n)
    report = quantum_lstsq(A, b, EPS, rng=1).report
    return {
        "rows": n,
        "quantum_queries": report.quantum_queries,
        "row_reads": report.row_reads,
        "classical_reads": report.classical_reads,
        "crossover_rows": report.crossover_rows,
        "t_gates": report.t_gates,
        "multiply_adds": n * WIDTH**2,
    }


def main() -> None:
    """Write quantum.json."""
    sizes = [2**e for e in range(12, 23)]
    result = {
        "machine": machine(),
        "eps": EPS,
        "columns": WIDTH,
        "kept": KEPT,
        "growth": [
            *(growth(law, sizes, 9, lambda n, seed, law=law: level_queries(law, n, seed)) for law in LAWS),
            growth("all levels of the halving", sizes[2:], 3, halving_queries),
            growth("all levels, from fewer rows", sizes[:-2], 3, halving_queries),
        ],
        "solutions": [certified(kind) for kind in KINDS],
        "reads": [beside_reads(2**e) for e in (15, 17, 20, 22)],
    }
    record("quantum", result)


if __name__ == "__main__":
    main()
