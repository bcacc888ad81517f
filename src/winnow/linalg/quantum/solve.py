"""Solve: least squares from rows that a simulated quantum search sampled.   (floor 2 · linalg)"""

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from winnow.base.errors import UsageError
from winnow.base.rng import SEED_LIMIT
from winnow.kernels.row_sketch import open_passes
from winnow.linalg.gate import Matrix, Seed, open_problem, seed_of
from winnow.linalg.least_squares import lstsq
from winnow.linalg.quantum.certified import certifier
from winnow.linalg.quantum.halving import LEVEL_RATE, Level, Sample, Sampler
from winnow.linalg.quantum.ledger import QueryLedger
from winnow.linalg.quantum.report import QueryReport, report_of
from winnow.linalg.rows import DenseRows

SOLUTION_RATE = 1.5  # over eps: 2 rate D rows are drawn, and the excess is about D / rows
MOST_ROUNDS = 5


@dataclass(frozen=True)
class QuantumSolution:
    """A solution, what is certified of it, the rows it rests on, and what they cost.

    eps_certified   ``|A x - b|^2 + ridge |x|^2 <= (1 + eps) min``, by a pass over all of A beside the ledger
    rounds          how many samples were drawn, each twice as large as the last; all are on the ledger
    """

    x: np.ndarray | torch.Tensor
    eps_certified: float
    is_converged: bool
    message: str
    rows: Int64[np.ndarray, " kept"]
    weights: Float64[np.ndarray, " kept"]
    levels: tuple[Level, ...]
    rounds: int
    report: QueryReport


def quantum_lstsq(A: Matrix, b: object, eps: float, *, ridge: float = 0.0, rng: Seed = 0) -> QuantumSolution:
    """Return x with ``|A x - b|^2 + ridge |x|^2`` at most ``1 + eps`` times its minimum, by counted queries.

    A [N, D] in memory, b [N] or [N, K]. Rows are sampled by (ridge) leverage, by repeated halving; the
    weighted rows are solved by `lstsq` and certified against all of A; where the certificate falls short,
    twice as many are drawn. About ``(ln D + 1 / eps) D`` rows and ``sqrt(N)`` times the root of that number
    of superposition queries, in the model in which one query reads a row of every index at once.

    The query counts are of a simulation, which itself takes N D^2 operations: they are not time. Void where
    no machine answers such queries; see `QueryReport`. For accuracy beyond eps ~ 1e-3 use `lstsq`: rows grow
    as 1 / eps here. Equal seeds give equal rows. Raises UsageError for what is not real, finite, dense and of
    matching shapes. After arXiv:2311.14823 (abstract), construction ours.
    """
    if not 0.0 < eps < math.inf:
        raise UsageError(f"eps is {eps}, expected a number above 0, such as 0.1.")
    if np.ndim(ridge) != 0:
        raise UsageError(f"ridge has {np.ndim(ridge)} axes, expected one number for all columns.")
    threads = len(os.sched_getaffinity(0))
    problem = open_problem(A, b, ridge, threads)
    if not (isinstance(problem.rows, DenseRows) and isinstance(problem.rows.source, np.ndarray)):
        raise UsageError(f"A is a {type(A).__name__}, expected a dense array in memory, for the simulation.")
    whole = np.asarray(problem.rows.source, np.float64)
    judge = certifier(problem, whole, open_passes(threads)).judge
    ledger, seed = QueryLedger(), seed_of(rng)
    rate = max(LEVEL_RATE * math.log(4.0 * whole.shape[1]), SOLUTION_RATE / eps)
    rounds = 0
    while True:
        turn = Sampler(whole, float(ridge), ledger, (seed + rounds) % SEED_LIMIT)
        sample = turn.sample(rate * 2.0**rounds)
        x = _solved(whole, problem.b, sample, float(ridge))
        verdict, rounds = judge(x), rounds + 1
        is_converged = verdict.eps <= eps or verdict.is_exact
        if is_converged or rounds == MOST_ROUNDS or len(sample.rows) == len(whole):
            break
    return QuantumSolution(
        x=problem.give(x),
        eps_certified=verdict.eps,
        is_converged=is_converged,
        message="" if is_converged else f"{verdict.eps:.2g} is certified, {eps:.2g} was asked: use lstsq.",
        rows=sample.rows,
        weights=sample.weights,
        levels=sample.levels,
        rounds=rounds,
        report=report_of(ledger, len(whole)),
    )


def _solved(
    A: Float64[np.ndarray, "N D"], b: Float64[np.ndarray, "B N"], sample: Sample, ridge: float
) -> Float64[np.ndarray, "B D"]:
    """Solve the weighted rows to rounding."""
    root = np.sqrt(sample.weights)[:, None]
    part = np.ascontiguousarray(A[sample.rows] * root)
    return np.asarray(lstsq(part, b.T[sample.rows] * root, ridge=ridge, method="gram", certify=False).x).T
