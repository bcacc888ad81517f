"""winnow solve: regressions of matrices in files.   (floor 8 · cli)"""

import argparse
import time
from pathlib import Path

import numpy as np

from winnow.base.arrays import map_array, write_array
from winnow.base.errors import ModelError, UsageError
from winnow.cli import two_layer
from winnow.cli.failures import say
from winnow.cli.show import show_json, show_pairs
from winnow.linalg import Result, lstsq

SHOWN = 10  # numbers of x that are printed for people


def run(arguments: argparse.Namespace) -> int:
    """Solve the problem that the second word names."""
    problems = {"lstsq": _lstsq, "two-layer": two_layer.run}
    return problems[arguments.choice](arguments)


def _lstsq(arguments: argparse.Namespace) -> int:
    a, b = map_array(arguments.a), map_array(arguments.b)
    started = time.perf_counter()
    try:
        result = lstsq(
            a,
            b,
            eps=arguments.eps,
            ridge=arguments.ridge,
            method=arguments.method,
            rng=arguments.seed,
            threads=arguments.threads,
        )
    except UsageError as error:  # the options were checked when the line was read
        raise ModelError(f"{arguments.a}, {arguments.b}: {error}") from None
    seconds = time.perf_counter() - started
    if arguments.out:
        write_array(arguments.out, np.asarray(result.x))
    if result.message and not arguments.quiet:
        say(result.message)
    if arguments.json:
        show_json(_as_json(result, seconds, arguments.out))
    else:
        _show(result, seconds, arguments.out)
    return 0


def _as_json(result: Result, seconds: float, out: Path | None) -> dict[str, object]:
    return {
        "rows": result.shape[0],
        "columns": result.shape[1],
        "x": str(out) if out else np.asarray(result.x).tolist(),
        "residual": result.squares.tolist(),
        "rank": result.rank,
        "eps_certified": result.eps_certified,
        "backward_error": result.backward_error,
        "cond_est": result.cond_est,
        "passes_over_A": result.passes_over_A,
        "method": result.method,
        "plan": result.plan,
        "is_converged": result.is_converged,
        "message": result.message,
        "seconds": seconds,
    }


def _show(result: Result, seconds: float, out: Path | None) -> None:
    x = np.asarray(result.x)
    first = " ".join(f"{number:.6g}" for number in x.ravel()[:SHOWN])
    show_pairs(
        f"{result.shape[0]} x {result.shape[1]} by {result.method} in {seconds:.3g} s",
        [
            ("x", str(out) if out else first + (" ..." if x.size > SHOWN else "")),
            ("residual, squared", " ".join(f"{number:.6g}" for number in result.squares[:SHOWN])),
            ("rank", f"{result.rank} of {result.shape[1]}"),
            ("certified eps", f"{result.eps_certified:.2g}"),
            ("backward error", f"{result.backward_error:.2g}"),
            ("condition, scaled", f"{result.cond_est:.2g}"),
            ("passes over A", str(result.passes_over_A)),
            ("plan", result.plan),
        ],
    )
