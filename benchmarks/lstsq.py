"""Least squares: how much quicker than LAPACK, how exact, and how honest the certificate is.

    .venv/bin/python -m benchmarks.lstsq [PART ...]

Parts: rounding, tall, taller, crossover, grid, trials, mapped; each rewrites its own share of lstsq.json
("mapped" writes 12 GB to the folder of temporary files). Both sides get the same two threads and the same
arrays in memory; they take turns, and medians are told.
"""

import json
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.recorded import RESULTS, THREADS, machine, record

from winnow.base.timing import commit
from winnow.linalg import lstsq
from winnow.linalg.cost import measured_rates, sketch_height

SPEED = {  # rows, columns, condition, eps, repeats
    "rounding": (200_000, 512, 1e6, None, 3),
    "tall": (500_000, 512, 1e6, 1e-2, 3),
    "taller": (1_000_000, 256, 1e6, 1e-2, 3),
}
CROSSOVER = ((2_000, 16), (20_000, 16), (2_000, 64), (20_000, 64), (100_000, 64), (4_000, 256), (40_000, 256))
CONDITIONS = tuple(10.0**k for k in range(0, 16, 3))
RESIDUALS = tuple(10.0**k for k in range(-15, 1, 3))
TRIALS = 1000
TRIED_COLUMNS = (1, 8, 20, 64, 128)
MAPPED = (2_929_688, 512)  # 12 GB
CHUNK = 1 << 16
MOST_SPREAD = 0.5  # (slowest - fastest) / median


def drawn(n: int, d: int, cond: float, seed: int = 0, residual: float = 1.0) -> tuple[np.ndarray, ...]:
    """A with singular values near 1 .. 1 / cond, written in place; b; the x that b was made of."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.logspace(0, -np.log10(cond), d)[:, None]
    mix = mix.T.copy() @ np.linalg.qr(rng.standard_normal((d, d)))[0] if cond > 1 else np.eye(d)
    x = rng.standard_normal(d)
    a, b = np.empty((n, d)), np.empty(n)
    for start in range(0, n, CHUNK):
        piece = rng.standard_normal((min(CHUNK, n - start), d))
        np.matmul(piece, mix, out=a[start : start + len(piece)])
        b[start : start + len(piece)] = a[start : start + len(piece)] @ x
    scale = residual * np.linalg.norm(b) / np.sqrt(n)
    for start in range(0, n, CHUNK):
        b[start : start + CHUNK] += scale * rng.standard_normal(len(b[start : start + CHUNK]))
    return a, b, x


def backward_error(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> float:
    """Karlson and Walden's estimate with A's own singular values, relative to |A|."""
    r = b - a @ x
    _, s, vt = np.linalg.svd(np.linalg.qr(a, mode="r")) if len(a) > 4 * a.shape[1] else np.linalg.svd(a)
    far = np.sqrt(np.square(s * np.linalg.norm(x)) + r @ r)
    with np.errstate(invalid="ignore"):
        return float(np.linalg.norm(vt @ (a.T @ r) / far) / np.linalg.norm(s)) if far.all() else 0.0


def timed(call: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def raced(name: str) -> dict:
    """One problem, solved in turns by numpy and by lstsq."""
    measured_rates(THREADS)
    n, d, cond, eps, repeats = SPEED[name]
    a, b, _ = drawn(n, d, cond)
    ours: list[float] = []
    theirs: list[float] = []
    found = best = None
    for _ in range(repeats):
        seconds, found = timed(lambda: lstsq(a, b, eps=eps, threads=THREADS))
        ours.append(seconds)
        seconds, best = timed(lambda: np.linalg.lstsq(a, b, rcond=None)[0])
        theirs.append(seconds)
    off = np.square(a @ (found.x - best)).sum() / np.square(a @ best - b).sum()
    row = {
        "rows": n,
        "columns": d,
        "eps": eps or 0.0,
        "method": found.method,
        "passes": found.passes_over_A,
        "numpy_s": statistics.median(theirs),
        "winnow_s": statistics.median(ours),
        "speedup": statistics.median(theirs) / statistics.median(ours),
        "spread": max((max(s) - min(s)) / statistics.median(s) for s in (ours, theirs)),
        "eps_certified": found.eps_certified,
        "eps_true": float(off),
    }
    if eps is None:
        row["numpy_backward_error"] = backward_error(a, b, best)
        row["winnow_backward_error"] = backward_error(a, b, found.x)
        row |= forward(a, b, best, found.x)
    print(row, flush=True)
    if row["spread"] > MOST_SPREAD:
        raise SystemExit(f"{name}: the machine was disturbed, nothing is written; run again")
    return {name: row}


def forward(a: np.ndarray, b: np.ndarray, best: np.ndarray, x: np.ndarray) -> dict:
    """Forward errors against a solution refined in extended precision, relative to its norm."""
    true = best.astype(np.longdouble)
    r = np.linalg.qr(a, mode="r")
    for _ in range(4):
        left = np.concatenate(
            [
                b[i : i + CHUNK] - a[i : i + CHUNK].astype(np.longdouble) @ true
                for i in range(0, len(b), CHUNK)
            ]
        )
        step = sum(
            a[i : i + CHUNK].T.astype(np.longdouble) @ left[i : i + CHUNK] for i in range(0, len(b), CHUNK)
        )
        true = true + np.linalg.solve(r, np.linalg.solve(r.T, step.astype(np.float64)))
    size = np.linalg.norm(true.astype(np.float64))
    return {
        "numpy_forward_error": float(np.linalg.norm((best - true).astype(np.float64)) / size),
        "winnow_forward_error": float(np.linalg.norm((x - true).astype(np.float64)) / size),
    }


def crossover() -> dict:
    """Every method, named, at sizes around which it starts to pay; and what auto takes."""
    measured_rates(THREADS)
    return {"crossover": [crossed(n, d, eps) for n, d in CROSSOVER for eps in (None, 1e-2)]}


def crossed(n: int, d: int, eps: float | None) -> dict:
    a, b, _ = drawn(n, d, 10.0)
    taken: dict[str, list[float]] = {"numpy": [], "gram": [], "sketch": []}
    for _ in range(5):
        taken["numpy"].append(timed(lambda: np.linalg.lstsq(a, b, rcond=None))[0])
        for method in ("gram", "sketch"):
            taken[method].append(timed(lambda m=method: lstsq(a, b, eps=eps, method=m, threads=THREADS))[0])
    medians = {name: 1e3 * statistics.median(each) for name, each in taken.items()}
    row = {"rows": n, "columns": d, "eps": eps or 0.0, "auto": lstsq(a, b, eps=eps, threads=THREADS).method}
    row |= {f"{name}_ms": each for name, each in medians.items()}
    print(row, flush=True)
    return row


def grid() -> dict:
    """Backward errors over condition and residual, against numpy's; and whether a loss is told."""
    rows = []
    for cond in CONDITIONS:
        for residual in RESIDUALS:
            rng = np.random.default_rng(int(np.log10(cond) * 100 - np.log10(residual)))
            u, v = (np.linalg.qr(rng.standard_normal((k, 50)))[0] for k in (4000, 50))
            a, x, off = (u * np.logspace(0, -np.log10(cond), 50)) @ v.T, *map(rng.standard_normal, (50, 4000))
            x, off = x / np.linalg.norm(x), off - u @ (u.T @ off)
            b = a @ x + residual * off / np.linalg.norm(off)
            theirs = backward_error(a, b, np.linalg.lstsq(a, b, rcond=None)[0])
            row = {"condition": cond, "residual": residual, "numpy": theirs}
            for method in ("gram", "sketch", "lapack"):
                found = lstsq(a, b, method=method, threads=THREADS)
                row[method] = backward_error(a, b, found.x)
                row[f"{method}_told"] = not found.is_converged
            rows.append(row)
    worst = {
        method: max(row[method] / max(row["numpy"], 1e-17) for row in rows if not row[f"{method}_told"])
        for method in ("gram", "sketch", "lapack")
    }
    told = sum(row[f"{m}_told"] for row in rows for m in worst)
    print(worst, told, flush=True)
    return {"grid": {"points": len(rows), "worst_of_numpy": worst, "told": told, "rows": rows}}


def trials() -> dict:
    """Certified against true eps, another matrix and sketch each time; the default height and others."""
    settings = [(d, 0, 0.1) for d in TRIED_COLUMNS] + [
        (64, 0, 1.0),
        (64, 0, 1e-4),
        (20, 8, 0.1),
        (20, 32, 0.1),
    ]
    rows = [tried(spikes, *setting) for setting in settings for spikes in (False, True)]
    default = [row for row in rows if row["sketch"] == "default"]
    return {
        "trials": rows,
        "trials_default": {
            "trials": sum(row["trials"] for row in default),
            "violations": sum(row["violations"] for row in default),
            "most": max(row["most"] for row in default),
            "median": statistics.median(row["median"] for row in default),
        },
    }


def tried(spikes: bool, d: int, times: int, eps: float) -> dict:
    """Solve by a sketch of `times` D rows, 0 for the default, and set the certificate against the truth."""
    ratios, violated = [], 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((2000, d)) * 10.0 ** rng.uniform(-2, 2, d)
        if spikes:
            a[rng.choice(2000, d, replace=False)] = 1e4 * np.eye(d)
        b = a @ rng.standard_normal(d) + rng.standard_normal(2000)
        q, r = np.linalg.qr(a)
        best = np.linalg.solve(r, q.T @ b)
        height = times * d or None
        found = lstsq(a, b, eps=eps, method="sketch", rng=seed, threads=1, sketch_rows=height)
        true = np.square(a @ (found.x - best)).sum() / np.square(a @ best - b).sum()
        violated += true > found.eps_certified or found.eps_certified > eps
        ratios.append(found.eps_certified / true)
    row = {
        "matrix": "spiked" if spikes else "plain",
        "columns": d,
        "sketch": f"{times} D" if times else "default",
        "eps": eps,
        "height_of_columns": round((times * d or sketch_height((2000, d), eps)) / d),
        "trials": TRIALS,
        "violations": int(violated),
        "within_4": float(np.mean(np.array(ratios) <= 4)),
    }
    quantiles = np.quantile(ratios, [0, 0.05, 0.5, 0.95, 1])
    row |= dict(zip(("least", "q05", "median", "q95", "most"), map(float, quantiles), strict=True))
    print(row, flush=True)
    return row


def mapped() -> dict:
    """A file half the size of this machine's memory, solved without loading it."""
    n, d = MAPPED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        b = write(path, n, d)
        a = np.load(path, mmap_mode="r", allow_pickle=False)
        measured_rates(THREADS)
        before, faults = anonymous_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        watcher = Watch()
        seconds, found = timed(lambda: lstsq(a, b, eps=1e-2, threads=THREADS))
        row = {
            "gigabytes": a.nbytes / 1e9,
            "seconds": seconds,
            "method": found.method,
            "passes": found.passes_over_A,
            "eps_certified": found.eps_certified,
            "extra_gb": (watcher.stop() - before) / 1e9,
            "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        }
    print(row, flush=True)
    return {"mapped": row}


def write(path: Path, n: int, d: int) -> np.ndarray:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(n, d))
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal(d), np.empty(n)
    for start in range(0, n, CHUNK):
        piece = rng.standard_normal((min(CHUNK, n - start), d))
        out[start : start + len(piece)] = piece
        b[start : start + len(piece)] = piece @ x + 10 * rng.standard_normal(len(piece))
    out.flush()
    return b


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


class Watch:
    """The most anonymous memory seen, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.most, self.is_over = 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.is_over.wait(0.01):
            self.most = max(self.most, anonymous_bytes())

    def stop(self) -> int:
        self.is_over.set()
        self.thread.join()
        return self.most


TIMED = ("rounding", "tall", "taller", "crossover")  # the machine that is told is theirs
PARTS: dict[str, Callable[[], dict]] = {
    "rounding": lambda: raced("rounding"),
    "tall": lambda: raced("tall"),
    "taller": lambda: raced("taller"),
    "crossover": crossover,
    "grid": grid,
    "trials": trials,
    "mapped": mapped,
}


def main() -> None:
    """Write lstsq.json, the parts that were not asked for as they are; `commits` tells them apart."""
    target = RESULTS / "lstsq.json"
    result = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {"commits": {}}
    for name in sys.argv[1:] or PARTS:
        if name in TIMED or "machine" not in result:
            result["machine"] = machine()
        result |= PARTS[name]()
        result["commits"][name] = commit()
    record("lstsq", result)


if __name__ == "__main__":
    main()
