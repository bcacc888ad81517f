"""Search: heavy pairs against float32 products and against faiss, and what recall and counts are.

race        2^18 vectors of 1024 signs, 1024 planted pairs. Winnow starts from packed words, pairs i < j. The
            plain rival multiplies float32 tiles with torch and lists the products above the threshold, as if
            for tiles above the diagonal only; it is timed on a tile and scaled by the number of pairs. faiss,
            an IndexBinaryFlat of the same bits, answers range searches of some queries and is scaled by their
            number; it cannot leave out half of the pairs, and `times_faiss_half` is as if it could.
methods     every method at sizes that it finishes soon: where they cross.
coverage    how often the true recall lies inside the reported interval, over 200 seeds.
aggregate   recall by rho, multiply-adds against their formula, and their growth with n.

    python -m benchmarks.search [race] [methods] [coverage] [aggregate]
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import faiss
import numpy as np
import torch
from benchmarks.recorded import RESULTS, ROOT, THREADS, machine, record

from winnow.base.chart import HEIGHT, LEFT, MARK, RIGHT, TOP, WIDTH, Words, dot, line, page, text
from winnow.base.files import replacing
from winnow.base.rng import keyed
from winnow.kernels import open_cpu
from winnow.kernels.bit_products.reference import pack_signs_reference, unpack_signs_reference
from winnow.search import Pairs, heavy_pairs
from winnow.search.aggregate import Aggregate
from winnow.search.problem import Problem, product_limit
from winnow.search.signs import Signs

N, WIDE = 1 << 18, 1024
TILE = 4096
QUERIES = 256
ROUNDS = 3


def planted(seed: int, n: int, width: int, rho: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return packed random rows, and the pairs of them that were made heavy, at the threshold exactly."""
    draws = keyed(seed, n)
    words = draws.integers(0, 2**64, (n, width // 64), dtype=np.uint64)
    pairs = np.sort(draws.permutation(n)[: 2 * count].reshape(count, 2), axis=1)
    flips = np.zeros((count, width), bool)
    for row in flips:
        row[draws.choice(width, product_limit(rho, width), replace=False)] = True
    words[pairs[:, 1]] = words[pairs[:, 0]] ^ pack_signs_reference(flips)
    return words, pairs


def recall_of(pairs: Pairs, truth: np.ndarray, n: int) -> float:
    return float(np.isin(truth[:, 0] * n + truth[:, 1], pairs.i * n + pairs.j).mean())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def race_at(rho: float) -> dict:
    words, truth = planted(1, N, WIDE, rho, 1024)
    limit = product_limit(rho, WIDE)
    tile = torch.from_numpy(unpack_signs_reference(words[:TILE], WIDE)).float()
    index = faiss.IndexBinaryFlat(WIDE)
    octets = words.view(np.uint8)
    index.add(octets)
    least = WIDE - 2 * limit
    taken: dict[str, list[float]] = {"winnow": [], "float32": [], "faiss": []}
    pairs = heavy_pairs(words, rho=rho, threads=THREADS)
    for _ in range(ROUNDS):
        taken["float32"].append(seconds(lambda: torch.nonzero(tile @ tile.T >= least)))
        taken["faiss"].append(seconds(lambda: index.range_search(octets[:QUERIES], limit + 1)))
        taken["winnow"].append(seconds(lambda: heavy_pairs(words, rho=rho, threads=THREADS)))
    n_pairs = N * (N - 1) / 2
    float32 = statistics.median(taken["float32"]) * n_pairs / TILE**2
    flat = statistics.median(taken["faiss"]) * N / QUERIES
    ours = statistics.median(taken["winnow"])
    return {
        "rho": rho, "n": N, "width": WIDE, "method": pairs.report.method, "milliseconds": 1e3 * ours,
        "samples_s": taken["winnow"], "recall": recall_of(pairs, truth, N), "found": len(pairs),
        "recall_interval": pairs.report.recall_interval, "plan": pairs.report.plan,
        "float32_seconds": float32, "float32_scaled_from_tile_of": TILE,
        "float32_multiply_adds_per_s": n_pairs * WIDE / float32,
        "faiss_seconds": flat, "faiss_scaled_from_queries": QUERIES, "faiss_version": faiss.__version__,
        "times_float32": float32 / ours, "times_faiss": flat / ours, "times_faiss_half": flat / 2 / ours,
    }  # fmt: skip


def race() -> dict:
    rows = []
    for rho in (0.5, 0.9):
        rows.append(race_at(rho))
        print(rows[-1], flush=True)
    return {"race": rows}


def methods() -> dict:
    rows = []
    for n, names in (
        (1 << 12, ("gemm", "aggregate", "exact", "cascade", "lsh")),
        (1 << 16, ("exact", "cascade", "lsh")),
    ):
        for rho in (0.3, 0.5, 0.7, 0.9):
            words, truth = planted(2, n, WIDE, rho, 512)
            for name in names:
                if name == "lsh" and rho == 0.3 and n > 1 << 12:
                    continue  # thousands of tables: some ten times the cascade's time
                pairs = heavy_pairs(words, rho=rho, method=name, threads=THREADS)
                best = min([pairs.report.seconds, heavy_pairs(words, rho=rho, method=name).report.seconds])
                recall = recall_of(pairs, truth, n)
                rows.append(
                    {"n": n, "rho": rho, "method": name, "milliseconds": 1e3 * best, "recall": recall}
                )
                print(rows[-1], flush=True)
    return {"methods": rows}


def coverage() -> dict:
    n, width, rho, rows = 8192, 512, 0.6, []
    words, truth = planted(3, n, width, rho, 4000)
    for name in ("cascade", "lsh"):
        inside = 0
        for seed in range(200):
            pairs = heavy_pairs(words, rho=rho, method=name, recall=0.9, rng=seed, canaries=256)
            low, high = pairs.report.recall_interval
            inside += low <= recall_of(pairs, truth, n) <= high
        rows.append({"method": name, "seeds": 200, "n": n, "width": width, "inside": inside / 200})
        print(rows[-1], flush=True)
    return {"coverage": rows}


def problem_of(words: np.ndarray, rho: float, width: int) -> Problem:
    cpu = open_cpu(THREADS)
    limit = product_limit(rho, width)
    half = len(words) // 2
    sides = Signs(words[:half], width), Signs(words[half:], width)
    return Problem(*sides, limit, 0.99, 0, cpu, 10**7, lambda done, total: None)


def aggregate() -> dict:
    recalls, counts = [], []
    for rho in (0.9, 0.7, 0.5, 0.3):
        words, truth = planted(4, 8192, WIDE, rho, 1000)
        form = Aggregate(repeats=1)
        pairs = heavy_pairs(words, rho=rho, method="aggregate", repeats=1, canaries=0)
        groups = form.groups(problem_of(words, rho, WIDE))
        recalls.append(
            {
                "rho": rho,
                "n": 8192,
                "group": groups.size if groups else 0,
                "recall": recall_of(pairs, truth, 8192),
            }
        )
        print(recalls[-1], flush=True)
    for name, form, sizes in (
        ("auto", Aggregate(repeats=1), (1024, 2048, 4096, 8192, 16384)),
        ("paper", Aggregate(is_paper=True, degree=2), (256, 512, 1024, 2048)),
    ):
        for n in sizes:
            words, _ = planted(5, 2 * n, WIDE, 0.9, n // 64)
            problem = problem_of(words, 0.9, WIDE)
            groups = form.groups(problem)
            found = form.find(problem)
            assert groups is not None
            counted = found.multiply_adds - found.candidates * WIDE
            row = {
                "rule": name, "n": n, "group": groups.size, "degree": groups.degree, "rounds": groups.rounds,
                "coordinates": groups.coordinates, "counted": counted, "formula": groups.multiply_adds(n, n),
                "per_pair_and_round": counted / n**2 / groups.rounds, "compared": found.candidates / n**2,
            }  # fmt: skip
            row["counted_of_formula"] = counted / row["formula"]
            counts.append(row)
            print(row, flush=True)
    fits = [{"rule": rule, "exponent": exponent(counts, rule)} for rule in ("auto", "paper")]
    with replacing(ROOT / "docs/search.svg") as draft:
        draft.write_text(drawn(counts, fits), encoding="utf-8")
    return {"aggregate_recall": recalls, "aggregate_counts": counts, "aggregate_fits": fits}


def exponent(counts: list[dict], rule: str) -> float:
    """Return the slope of log multiply-adds over log n."""
    logs = [(math.log(row["n"]), math.log(row["counted"])) for row in counts if row["rule"] == rule]
    return float(np.polyfit(*zip(*logs, strict=True), 1)[0])


def drawn(counts: list[dict], fits: list[dict]) -> str:
    """Return the log-log chart of multiply-adds against n."""
    xs = [math.log2(row["n"]) for row in counts]
    ys = [math.log10(row["counted"]) for row in counts]
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    bottom = HEIGHT - 64

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + 20 + (x - min(xs)) / (max(xs) - min(xs)) * (WIDTH - LEFT - RIGHT - 60)
        return across, bottom - (y - low) / (high - low) * (bottom - TOP)

    parts = [
        line((LEFT, bottom), (WIDTH - RIGHT, bottom), "#667080"),
        line((LEFT, TOP), (LEFT, bottom), "#667080"),
    ]
    parts += [
        text(LEFT - 10, place(min(xs), y)[1] + 4, f"1e{y}", "tick", "end") for y in range(low, high + 1)
    ]
    parts += [
        text(place(x, low)[0], bottom + 19, f"2^{x:.0f}", "tick", "middle")
        for x in sorted(set(map(round, xs)))
    ]
    for fit in fits:
        chosen = [place(x, y) for x, y, row in zip(xs, ys, counts, strict=True) if row["rule"] == fit["rule"]]
        parts += [line(a, b, MARK, 2) for a, b in pairwise(chosen)]
        parts += [dot(each, is_marked=False) for each in chosen]
        label = f"{fit['rule']}: exponent {fit['exponent']:.2f}"
        parts.append(text(chosen[-1][0] - 4, chosen[-1][1] - 12, label, "point", "end"))
    note = "signs of width 1024, rho 0.9, n against n; auto: one round, paper: 10 ln n rounds"
    return page(Words("What aggregation multiplies", note, "n", "multiply-adds"), parts)


def main() -> None:
    """Write search.json, or the parts of it that are named."""
    parts = {"race": race, "methods": methods, "coverage": coverage, "aggregate": aggregate}
    target = RESULTS / "search.json"
    result = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    result["machine"] = machine()
    for name in sys.argv[1:] or parts:
        result |= parts[name]()
        record("search", result)


if __name__ == "__main__":
    main()
