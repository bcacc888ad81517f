"""Two-layer regression: seconds to a gradient norm against scipy, and how the methods converge.

python -m benchmarks.two_layer

Every side starts at the same x0, has the closed derivatives of `winnow.linalg.two_layer`, runs on one thread,
and stops as soon as the 2-norm of its gradient is at most TOL. Sides may end in different minima, so the loss
stands beside the time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import numpy as np
from benchmarks.recorded import machine, record
from scipy.optimize import least_squares, minimize

from winnow.linalg.two_layer import two_layer
from winnow.linalg.two_layer.descent import Options
from winnow.linalg.two_layer.problem import Point, Problem, checked_problem
from winnow.linalg.two_layer.sketch import Sketched

TOL = 1e-6
LIMIT_S = 1.5  # a rival that takes longer is stopped and its row says so


@dataclass(frozen=True)
class Shape:
    """Rows, columns and outputs, the weight, and the ratio of the largest column to the smallest."""

    rows: int
    columns: int
    outputs: int
    w: float
    spread: float = 1.0


SHAPES = {
    "small": Shape(1000, 8, 4, 0.1),
    "small, no w": Shape(1000, 8, 4, 0.0),
    "tall": Shape(20_000, 40, 10, 0.1),
    "tall, no w": Shape(20_000, 40, 10, 0.0),
    "wide": Shape(5000, 200, 20, 0.1),
    "many outputs": Shape(4000, 60, 400, 0.05),
    "uneven columns": Shape(20_000, 40, 10, 0.1, spread=1e3),
    "uneven and wide": Shape(5000, 200, 20, 0.1, spread=1e3),
}
REPEATS = 3
RANDOM_PROBLEMS = 100


def problem_of(seed: int, shape: Shape, *, signed: bool = False) -> Problem:
    """Targets are what a hidden x gives, with noise; `signed` ones may be negative, where no ReLU reaches."""
    draws = np.random.default_rng(seed)
    scale = np.geomspace(1.0, 1.0 / shape.spread, shape.columns)
    A1 = draws.normal(size=(shape.rows, shape.columns)) * scale
    A2 = draws.normal(size=(shape.outputs, shape.rows))
    nothing = np.zeros(shape.outputs)
    hidden = checked_problem(A1, A2, nothing, 0.0).at(start_of(seed + 2000, shape))
    b = np.maximum(hidden.h, 0.0) + 0.05 * draws.normal(size=shape.outputs)
    return checked_problem(A1, A2, b if signed else np.abs(b), shape.w)


def start_of(seed: int, shape: Shape) -> np.ndarray:
    """A random x whose logits have a spread of about 1."""
    scale = np.geomspace(1.0, 1.0 / shape.spread, shape.columns)
    return np.random.default_rng(seed).normal(size=shape.columns) / (scale * np.sqrt(shape.columns))


class Stopwatch:
    """Evaluates a problem for a rival, remembers the last point, and stops it at the goal or at the limit."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.last = problem, problem.at(np.zeros(problem.A1.shape[1]))
        self.started = time.perf_counter()

    def at(self, x: np.ndarray) -> Point:
        if not np.array_equal(x, self.last.x):
            self.last = self.problem.at(x.copy())
        return self.last

    def stop(self, x: np.ndarray) -> None:
        if self.at(x).gradient_norm <= TOL or time.perf_counter() - self.started > LIMIT_S:
            raise StopIteration

    def residual(self, x: np.ndarray) -> np.ndarray:
        point = self.at(x)
        return np.concatenate([point.c, self.problem.w * point.z]) if self.problem.w.any() else point.c

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        point, problem = self.at(x), self.problem
        outputs = np.zeros((len(problem.b), len(x)))
        outputs[point.is_on] = point.jacobian()
        return np.concatenate([outputs, problem.w[:, None] * problem.A1]) if problem.w.any() else outputs


def by_winnow(problem: Problem, x0: np.ndarray, method: str) -> Point:
    found = two_layer(problem.A1, problem.A2, problem.b, problem.w, method=method, x0=x0, tol=TOL, threads=1)
    return problem.at(found.x)


def by_trf(problem: Problem, x0: np.ndarray) -> Point:
    watch = Stopwatch(problem)

    def stop(intermediate_result: object) -> None:
        watch.stop(intermediate_result.x)

    none = {"xtol": None, "ftol": None, "gtol": TOL / np.sqrt(len(x0))}
    return watch.at(
        least_squares(
            watch.residual, x0, watch.jacobian, method="trf", callback=stop, max_nfev=1000, **none
        ).x
    )


def by_scipy(problem: Problem, x0: np.ndarray, method: str) -> Point:
    watch = Stopwatch(problem)
    options = {"maxiter": 5000} | ({"xtol": 0.0} if method == "Newton-CG" else {"ftol": 0.0, "gtol": 0.0})
    products = (lambda x, v: watch.at(x).hessian_times(v)) if method == "Newton-CG" else None
    found = minimize(
        lambda x: watch.at(x).loss,
        x0,
        jac=lambda x: watch.at(x).gradient,
        hessp=products,
        method=method,
        callback=watch.stop,
        options=options,
    )
    return watch.at(found.x)


SIDES: dict[str, Callable[[Problem, np.ndarray], Point]] = {
    "winnow lm": partial(by_winnow, method="lm"),
    "winnow newton_cg": partial(by_winnow, method="newton_cg"),
    "scipy least_squares trf": by_trf,
    "scipy newton-cg": partial(by_scipy, method="Newton-CG"),
    "scipy l-bfgs-b": partial(by_scipy, method="L-BFGS-B"),
}


def race(name: str, shape: Shape) -> list[dict]:
    """Each side on the same problems, in turns."""
    taken: dict[str, list[tuple[float, Point]]] = {side: [] for side in SIDES}
    for seed in range(REPEATS + 1):  # the first round warms up
        problem = problem_of(seed, shape)
        x0 = start_of(seed + 1000, shape)
        for side, solve in SIDES.items():
            started = time.perf_counter()
            with np.errstate(all="ignore"):
                end = solve(problem, x0)
            taken[side].append((time.perf_counter() - started, end))
    rows = []
    for side, (_, *runs) in taken.items():
        rows.append(
            {
                "problem": name,
                **asdict(shape),
                "solver": side,
                "ms": 1e3 * median(seconds for seconds, _ in runs),
                "reached": sum(end.gradient_norm <= TOL for _, end in runs),
                "of": len(runs),
                "loss": median(end.loss for _, end in runs),
            }
        )
    best = min((row["ms"] for row in rows if row["reached"] == row["of"]), default=float("nan"))
    return [row | {"is_best": row["ms"] == best} for row in rows]


def side_by_side(rows: list[dict]) -> dict:
    """One line of a race: milliseconds of each side, none for one that was stopped before it got there."""
    done = [row for row in rows if row["reached"] == row["of"]]
    first = {key: rows[0][key] for key in ("problem", "rows", "columns", "outputs", "w")}
    times = {row["solver"].replace(" ", "_"): row["ms"] for row in done}
    return first | times | {"quickest": min(done, key=lambda row: row["ms"])["solver"]}


def converges(*, signed: bool) -> dict:
    """The method lm from random starts on random problems, and what it said where it did not converge."""
    reasons: dict[str, int] = {}
    steps, corners = [], 0
    for seed in range(RANDOM_PROBLEMS):
        draws = np.random.default_rng(seed)
        sizes = (int(draws.integers(20, 300)), int(draws.integers(2, 15)), int(draws.integers(1, 25)))
        problem = problem_of(seed, Shape(*sizes, (0.0, 0.01, 0.1)[seed % 3]), signed=signed)
        x0 = draws.normal(size=sizes[1])
        found = two_layer(problem.A1, problem.A2, problem.b, problem.w, x0=x0)
        steps.append(len(found.history))
        corners += found.converged and "corner" in found.reason
        if not found.converged:
            kind = next(
                word for word in ("corner", "off", "max_steps", "rounding", "No step") if word in found.reason
            )
            reasons[kind] = reasons.get(kind, 0) + 1
    return {
        "targets": "of either sign" if signed else "not negative",
        "problems": RANDOM_PROBLEMS,
        "converged": RANDOM_PROBLEMS - sum(reasons.values()),
        "of_them_at_corners": corners,
        "stuck_at_a_corner": reasons.pop("corner", 0),
        "all_outputs_off": reasons.pop("off", 0),
        "otherwise": sum(reasons.values()),
        "median_steps": median(steps),
    }


def contraction() -> list[dict]:
    """How much the gradient of one problem with large w falls per step, by rows per column of the sample."""
    draws = np.random.default_rng(11)
    A1, A2 = draws.normal(size=(20_000, 10)), draws.normal(size=(3, 20_000))
    problem = checked_problem(A1, A2, draws.normal(size=3), draws.uniform(1e4, 2e4, 20_000))
    start = problem.at(np.ones(10))
    rows = []
    for per_column in (16, 32, 64, 128, 256):
        rates = []
        for seed in range(7):
            run = Sketched(rows=10 * per_column).run(start, Options(0.0, 6, seed))
            rates.append((run.point.gradient_norm / start.gradient_norm) ** (1 / len(run.steps)))
        rate = median(rates)
        rows.append({"rows_per_column": per_column, "factor": rate, "of_root": rate * np.sqrt(per_column)})
    return rows


def main() -> None:
    """Write two-layer.json; on one thread, which a BLAS must be told before it is loaded."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        again = [sys.executable, "-m", "benchmarks.two_layer"]
        raise SystemExit(subprocess.call(again, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}))
    races = [race(name, shape) for name, shape in SHAPES.items()]
    result = {
        "machine": {**machine(), "threads": 1},
        "tol": TOL,
        "races": [side_by_side(rows) for rows in races],
        "rows": [row for rows in races for row in rows],
        "convergence": [converges(signed=False), converges(signed=True)],
        "contraction": contraction(),
    }
    record("two-layer", result)


if __name__ == "__main__":
    main()
