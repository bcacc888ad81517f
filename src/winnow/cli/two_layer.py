"""winnow solve two-layer: a softmax under a ReLU, fitted to targets in files.   (floor 8 · cli)"""

import argparse
import time
from pathlib import Path

import numpy as np

from winnow.base.arrays import map_array, write_array
from winnow.base.errors import ModelError, UsageError
from winnow.cli.failures import say
from winnow.cli.show import show_json, show_pairs
from winnow.linalg import two_layer
from winnow.linalg.two_layer import Solution

SHOWN = 10  # numbers of x that are printed for people


def run(arguments: argparse.Namespace) -> int:
    """Fit, and show the solution with the reason why it is where it is."""
    paths = [Path(name) for name in (arguments.a1, arguments.a2, arguments.b)]
    A1, A2, b = map(map_array, paths)
    w = _weights(arguments.w)
    started = time.perf_counter()
    try:
        found = two_layer(
            A1, A2, b, w, method=arguments.method, rng=arguments.seed, threads=arguments.threads
        )
    except UsageError as error:  # the options were checked when the line was read
        raise ModelError(f"{', '.join(map(str, paths))}: {error}") from None
    seconds = time.perf_counter() - started
    if arguments.out:
        write_array(arguments.out, found.x)
    if not found.converged and not arguments.quiet:
        say(found.reason)
    if arguments.json:
        show_json(_as_json(found, seconds, arguments.out))
    else:
        _show(found, A1.shape, seconds, arguments.out)
    return 0


def _weights(text: str) -> np.ndarray | float:
    """Read a number, or the name of a file that holds one per row."""
    try:
        return float(text)
    except ValueError:
        return map_array(text)


def _as_json(found: Solution, seconds: float, out: Path | None) -> dict[str, object]:
    return {
        "x": str(out) if out else found.x.tolist(),
        "loss": found.loss,
        "gradient_norm": found.gradient_norm,
        "converged": found.converged,
        "reason": found.reason,
        "method": found.method,
        "steps": len(found.history),
        "kink_crossings": found.kink_crossings,
        "theorem_applies": found.assumptions.applies,
        "assumptions": found.assumptions.sentence,
        "seconds": seconds,
    }


def _show(found: Solution, shape: tuple[int, ...], seconds: float, out: Path | None) -> None:
    first = " ".join(f"{number:.6g}" for number in found.x[:SHOWN])
    show_pairs(
        f"{shape[0]} x {shape[1]} by {found.method} in {seconds:.3g} s",
        [
            ("x", str(out) if out else first + (" ..." if len(found.x) > SHOWN else "")),
            ("loss", f"{found.loss:.6g}"),
            ("gradient norm", f"{found.gradient_norm:.2g}"),
            ("steps", f"{len(found.history)}, crossing {found.kink_crossings} kinks"),
            ("ended", found.reason),
            ("theory", found.assumptions.sentence),
        ],
    )
