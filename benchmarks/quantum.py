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
LEVEL_EXPONENTS, LEVEL_SEEDS = range(12, 25), 9
REDRAWS = 1000  # of the seeds, for the interval of a slope


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


def halving(n: int, seed: int) -> QueryLedger:
    ledger = QueryLedger()
    A = np.random.default_rng(n).normal(size=(n, 4))
    Sampler(A, 0.0, ledger, seed * 1000 + n.bit_length()).sample(20.0)
    return ledger


def growth(name: str, sizes: list[int], queries: np.ndarray) -> dict:
    """The slope of ln(queries) [sizes, seeds] in ln(N), and where 95 of 100 redraws of the seeds lie."""
    draws, n_seeds = keyed(0, 1), queries.shape[1]
    redrawn = [
        slope(sizes, np.median(queries[:, draws.integers(0, n_seeds, n_seeds)], axis=1))
        for _ in range(REDRAWS)
    ]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    counts = np.median(queries, axis=1)
    return {
        "what": name,
        "rows_from": sizes[0],
        "rows_to": sizes[-1],
        "slope": slope(sizes, counts),
        "slope_low": float(low),
        "slope_high": float(high),
        "queries": counts.tolist(),
    }


def slope(sizes: list[int], counts: np.ndarray) -> float:
    return float(np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def fitted(name: str, sizes: list[int], counts: np.ndarray) -> dict:
    """The medians as ``root sqrt(N)`` and a term in ln(N) or a constant, least in relative error."""
    n = np.array(sizes, dtype=float)
    found = {"what": name}
    for second, column in (("log", np.log(n)), ("constant", np.ones(len(n)))):
        terms = np.stack([np.sqrt(n), column], axis=1) / counts[:, None]
        best = np.linalg.lstsq(terms, np.ones(len(n)), rcond=None)[0]
        off = float(np.abs(terms @ best - 1.0).max())
        found |= {f"{second}_root": float(best[0]), f"{second}_term": float(best[1]), f"{second}_off": off}
    return found


def all_levels() -> dict:
    """The whole halving: superposition queries, and these with every row read."""
    sizes = [2**e for e in LEVEL_EXPONENTS]
    ledgers = [[halving(n, seed) for seed in range(LEVEL_SEEDS)] for n in sizes]
    asked = np.array([[each.superposition_queries for each in row] for row in ledgers])
    whole = asked + [[each.row_reads for each in row] for row in ledgers]
    parts = {"few rows": slice(0, 6), "many rows": slice(4, None), "all": slice(0, None)}
    rows = [growth(f"all levels, {part}", sizes[cut], asked[cut]) for part, cut in parts.items()]
    rows.append(growth("all levels, all, row reads counted", sizes, whole))
    return {
        "growth": rows,
        "form": [
            fitted("superposition queries", sizes, np.median(asked, axis=1)),
            fitted("with row reads", sizes, np.median(whole, axis=1)),
        ],
    }


def one_level(law: str) -> dict:
    sizes = [2**e for e in range(12, 23)]
    return growth(law, sizes, np.array([[level_queries(law, n, seed) for seed in range(9)] for n in sizes]))


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
    levels = all_levels()
    result = {
        "machine": machine(),
        "eps": EPS,
        "columns": WIDTH,
        "kept": KEPT,
        "growth": [*(one_level(law) for law in LAWS), *levels["growth"]],
        "form": levels["form"],
        "solutions": [certified(kind) for kind in KINDS],
        "reads": [beside_reads(2**e) for e in (15, 17, 20, 22)],
    }
    record("quantum", result)


if __name__ == "__main__":
    main()
