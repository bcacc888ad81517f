"""Audit of defences: what adapters show by rounds, how well noise is measured, all defences in one table.

    python -m benchmarks.audit_defences

On pico, with texts from the bundled book. Adapters stand on queries, keys and values, all else is frozen;
their rounds are steps of descent on one text. Shares and deviations only: no busy machine disturbs them.
"""

import copy

import torch
from benchmarks.recorded import BOOK, ROOT, THREADS, machine, record
from tests.audit.models import with_lora

from winnow.audit.families import read_layout
from winnow.audit.front import Front
from winnow.audit.leakage import (
    defence_matrix,
    gradients_of,
    implied,
    load_model,
    noise_of,
    read_defence,
)
from winnow.audit.leakage.lora import capacity, certified_tokens
from winnow.base.rng import generator
from winnow.engine.tokenizer import Tokenizer
from winnow.linalg.privacy import gaussian_epsilon

PICO = ROOT / "src/winnow/zoo/pico"
RANKS, ROUNDS = (4, 8, 16), 4
INPUTS = (7, 12, 23)
STEP = 3.0
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0)
DELTA = 1e-5
MATRIX = (
    *("none", "clip=1", "noise=0.01", "noise=0.1", "noise=0.5", "noise=1", "noise=2", "bf16", "int8"),
    *("top-k=0.1", "dropout", "freeze=embed_positions", "lora=8", "lora=64", "sum=2", "sum=8"),
)


def adapters(model: torch.nn.Module, ids: list[int]) -> list[dict]:
    """Return for each rank and number of inputs how many the gradients certify, by round."""
    rows = []
    for rank in RANKS:
        for n_inputs in INPUTS:
            adapted = copy.deepcopy(model)
            paths = [place.module for place in read_layout(adapted).layers[0].reads]
            with_lora(adapted, paths, rank, generator(rank)).double()
            text, rounds, named = ids[: n_inputs + 1], [], dict(adapted.named_parameters())
            for number in range(1, ROUNDS + 1):
                rounds.append(gradients_of(adapted, [text]))
                front = Front.of(adapted)
                found = certified_tokens(front, rounds, longest=n_inputs)
                right = sum(text[place] in shown.tolist() for place, shown in enumerate(found))
                rows.append(
                    {
                        "rank": rank,
                        "inputs": n_inputs,
                        "round": number,
                        "capacity": rank if number == 1 else capacity(front, number - 1),
                        "certified": right / n_inputs,
                        "wrong": sum(map(len, found)) - right,
                    }
                )
                with torch.no_grad():
                    for name, gradient in rounds[-1].items():
                        named[name].sub_(STEP * gradient)
    return rows


def meter(model: torch.nn.Module, texts: list[list[int]]) -> list[dict]:
    """Return the noise that is measured beside what was configured, and what rounding is taken for."""
    front, rows = Front.of(model), []
    cases = [(f"noise={sigma}", sigma, after) for sigma in SIGMAS for after in ("", "bf16", "int8")]
    for name, sigma, after in [*cases, ("none", 0.0, ""), ("bf16", 0.0, ""), ("int8", 0.0, "")]:
        sent = read_defence(name).gradients(model, texts, generator(3))
        if after == "bf16":
            sent = {key: g.bfloat16().float() for key, g in sent.items()}
        elif after == "int8":
            steps = {key: float(g.abs().max()) / 127 for key, g in sent.items()}
            sent = {key: (g / steps[key]).round() * steps[key] for key, g in sent.items()}
        bulk = {key: g for key, g in sent.items() if key != front.layout.positions}
        for source, given in (("rows", sent), ("bulk", bulk)):
            found = noise_of(front, given)
            assert found is not None
            worth = implied(found, 1.0, len(texts), 1.0, 1, DELTA)
            rows.append(
                {
                    "defence": f"{name}, {after}" if after else name,
                    "source": source,
                    "configured": sigma,
                    "measured": found.deviation * len(texts),
                    "ratio": found.deviation * len(texts) / sigma if sigma else None,
                    "kind": str(found.kind),
                    "epsilon_configured": gaussian_epsilon(1 / sigma, DELTA) if sigma else None,
                    "epsilon_implied": None if worth is None else worth.server,
                }
            )
    return rows


def matrix(model: torch.nn.Module, texts: list[list[int]]) -> list[dict]:
    """Return one gradient under every defence."""
    rows = []
    for row in defence_matrix(model, texts, MATRIX):
        assert row.audit.score is not None
        rows.append(
            {
                "defence": row.audit.defence,
                "verdict": row.audit.verdict,
                "exact_match": row.audit.score.exact_match,
                "token_recall": row.audit.score.token_recall,
                "epsilon_server": row.account.server if row.account else None,
                "epsilon_final_model": row.account.final_model if row.account else None,
                "recovery_bound": row.bound,
                "loss_before": row.loss_before,
                "loss_after": row.loss_after,
                "is_void": bool(row.audit.controls.failures),
            }
        )
    return rows


def main() -> None:
    """Write audit-defences.json."""
    torch.set_num_threads(THREADS)
    model = load_model(PICO)
    ids = Tokenizer.open(PICO).encode(BOOK.read_text(encoding="utf-8")[20_000:40_000], special=False)
    texts = [ids[at : at + 24] for at in range(0, 96, 24)]
    parts = {"adapters": adapters(model, ids), "meter": meter(model, texts), "matrix": matrix(model, texts)}
    record(
        "audit-defences", {"machine": machine(), **parts, "void": any(r["is_void"] for r in parts["matrix"])}
    )


if __name__ == "__main__":
    main()
