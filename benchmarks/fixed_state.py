"""Fixed state: how far a million bfloat16 tokens move a state from its float64 twin; bytes and errors.

    python -m benchmarks.fixed_state [--tokens N] [--out NAME]

Drift is |state - twin| / |twin| of the state's means, fed one token at a time as in decoding, and also 64 at
a time. The running sum in bfloat16 that a state must not be is measured beside it. Errors are of outputs
against softmax attention over the same keys, for Gaussian keys of two score spreads.
"""

import argparse
from collections.abc import Sequence

import torch
from benchmarks.recorded import machine, record

from winnow.attention import Kind, linear, poly_sketch, polynomial, softmax, taylor
from winnow.attention.fixed_state import FeatureAttention
from winnow.base.rng import generator

WIDTH, VALUE_WIDTH = 64, 64
SMALL = 8  # head width of the drift run: a million steps of it take a minute
LENGTH = 4096
KINDS: dict[str, Kind] = {
    "softmax": softmax(),
    "linear elu": linear("elu"),
    "linear degree-1": linear("degree-1"),
    "polynomial 2": polynomial(2),
    "taylor 2": taylor(2),
    "sketch of degree 2, product": poly_sketch(2, 1024, "product", rng=0, bias=1.0),
    "sketch of degree 4, tensor": poly_sketch(4, 1024, "tensor", rng=0, bias=1.0),
    "sketch of degree 4, nonnegative": poly_sketch(4, 1024, "nonnegative", rng=0, bias=1.0),
}
DRIFTING = ("linear elu", "polynomial 2")


def drift_row(name: str, n_tokens: int, step: int) -> dict:
    """Return the drift of one kind; batch 1, one kv head, values with a mean, as real ones have."""
    kind, rng = KINDS[name], generator(1)
    assert isinstance(kind, FeatureAttention)
    state, twin = (kind.start(1, 1, SMALL, SMALL) for _ in range(2))
    with torch.no_grad():
        for _ in range(0, n_tokens, 4096):
            k, v = (torch.randn(1, 1, 4096, SMALL, generator=rng).bfloat16() for _ in range(2))
            v = (v.float() + 0.5).bfloat16()
            twin.append(k.double(), v.double())
            for part_k, part_v in zip(k.split(step, dim=2), v.split(step, dim=2), strict=True):
                state.absorb(part_k, part_v, None)  # `append` without its checks, for the time they take
    found, wanted = state.save()["sums"].double(), twin.save()["sums"]
    return {
        "kind": name,
        "tokens": state.seen,
        "step": step,
        "drift": float((found - wanted).norm() / wanted.norm()),
    }


def naive_drift(n_tokens: int) -> float:
    """Return the drift of a running sum of values that is kept in bfloat16."""
    rng, naive = generator(1), torch.zeros(SMALL, dtype=torch.bfloat16)
    total = torch.zeros(SMALL, dtype=torch.float64)
    for _ in range(0, n_tokens, 4096):
        v = (torch.randn(4096, SMALL, generator=rng) + 0.5).bfloat16()
        total += v.double().sum(0)
        for row in v:
            naive += row
    return float((naive.double() - total).norm() / total.norm())


def kind_row(name: str) -> dict:
    """Return the state's bytes per kv head and the output errors of one kind."""
    row: dict = {"kind": name, "is_convex": KINDS[name].is_convex}
    for label, spread in (("flat", 0.5), ("sharp", 2.0)):
        rng = generator(2)
        q, k = (torch.randn(1, 4, n, WIDTH, generator=rng) for n in (64, LENGTH))
        v = torch.randn(1, 4, LENGTH, VALUE_WIDTH, generator=rng)
        # A needle per query: outputs are then about one token, not about noise around the mean.
        needles = torch.randint(LENGTH, (4, 64), generator=rng)
        picked = k[0, torch.arange(4)[:, None], needles][None]
        q = q + picked
        exact = softmax()(spread * q, k, v, causal=False)
        off = KINDS[name](spread * q, k, v, causal=False) - exact
        row[f"error_{label}"] = float(off.norm() / exact.norm())
    state = KINDS[name].start(1, 1, WIDTH, VALUE_WIDTH)
    state.append(k[:, :1].bfloat16(), v[:, :1].bfloat16())
    row["state_bytes"] = state.n_bytes
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Write fixed-state.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--out", default="fixed-state")
    arguments = parser.parse_args(argv)
    found_on = machine()  # before the minutes that follow, so that the commit is the one that runs
    kinds = [kind_row(name) for name in KINDS]
    softmax_bytes = kinds[0]["state_bytes"]
    for row in kinds:  # the context beyond which a state is smaller than the keys and values in bfloat16
        row["break_even_tokens"] = (
            None if row["kind"] == "softmax" else row["state_bytes"] * LENGTH // softmax_bytes
        )
    drifts = [drift_row(name, arguments.tokens, step) for name in DRIFTING for step in (1, 64)]
    for row in (*kinds, *drifts):
        print(row, flush=True)
    worst = max(row["drift"] for row in drifts)
    result = {"machine": found_on, "length": LENGTH, "kinds": kinds, "drifts": drifts, "worst_drift": worst}
    record(arguments.out, result | {"bf16_sum_drift": naive_drift(arguments.tokens)})


if __name__ == "__main__":
    main()
