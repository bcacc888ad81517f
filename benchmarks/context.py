"""Context: how a token's time grows with the tokens before it, dense and sparse.

    python -m benchmarks.context

A step reads the weights, which do not grow, and the keys and values of the heads it computes. So the growth
of its bytes over the bandwidth is the least its time can grow by, and the sparse engine's is the dense
one's times the head density.
"""

import torch
from benchmarks.recorded import THREADS, record

from winnow.base.rng import generator
from winnow.engine.bench import BenchOptions, BenchReport, Expected, WinnowRunner, race
from winnow.engine.synthetic import synthetic_shape
from winnow.kernels import open_cpu

SHAPE, DTYPE, DENSITY, HEAD_DENSITY = "opt-1.3b", torch.bfloat16, 0.10, 0.5
NEW_TOKENS, REPEATS = 48, 2
CONTEXTS = (128, 512, 1024, 2048 - NEW_TOKENS)


def grown(reports: list[BenchReport]) -> dict:
    """Return context.json: what each engine reads and takes, and its growth since the shortest context."""
    machine = reports[-1].to_json()["machine"]
    machine["read_gb_per_s"] = max(report.machine.read_gb_per_s for report in reports)
    first = {row.engine: row for row in reports[0].rows}
    rows = []
    for report in reports:
        for row in report.rows:
            start = first[row.engine]
            n_bytes = row.bytes_per_token - start.bytes_per_token
            rows.append(
                {
                    "engine": row.engine,
                    "shape": row.shape,
                    "dtype": row.dtype,
                    "mlp_density": row.mlp_density,
                    "head_density": row.head_density,
                    "prompt_tokens": row.prompt_tokens,
                    "ms_per_token": row.ms_per_token,
                    "bytes_per_token": row.bytes_per_token,
                    "kv_growth_bytes": n_bytes,
                    "growth_ms": row.ms_per_token - start.ms_per_token,
                    "kv_growth_limit_ms": n_bytes / machine["read_gb_per_s"] / 1e6,
                }
            )
    return {
        "machine": machine,
        "rows": rows,
        "compared": [_compared(rows, report.rows[0].prompt_tokens) for report in reports[1:]],
        "failures": [failure for report in reports for failure in report.failures],
        "void": any(report.is_void for report in reports),
    }


def _compared(rows: list[dict], n_read: int) -> dict:
    dense, sparse = (row for row in rows if row["prompt_tokens"] == n_read)
    return {
        "prompt_tokens": n_read,
        "head_density": sparse["head_density"],
        "bytes_growth_ratio": sparse["kv_growth_bytes"] / dense["kv_growth_bytes"],
        "time_growth_ratio": sparse["growth_ms"] / dense["growth_ms"],
    }


def main() -> None:
    """Write context.json."""
    model = synthetic_shape(SHAPE, DTYPE, DENSITY, seed=0)
    weights, heads = model.by_head(HEAD_DENSITY)
    cpu, vocab_size = open_cpu(THREADS), model.weights.config.vocab_size
    runners = [
        WinnowRunner(model.weights, None, cpu, vocab_size),
        WinnowRunner(weights, model.predictors, cpu, vocab_size, heads),
    ]
    prompt = torch.randint(vocab_size, (max(CONTEXTS),), generator=generator(1)).tolist()
    expected = Expected(DENSITY, is_exact=False, head_density=HEAD_DENSITY)
    reports = []
    for n_read in CONTEXTS:
        print(f"context {n_read}: running")
        options = BenchOptions(SHAPE, n_read, NEW_TOKENS, REPEATS)
        reports.append(race(runners, prompt[:n_read], cpu, options, lambda *_: None, expected))
    record("context", grown(reports))


if __name__ == "__main__":
    main()
