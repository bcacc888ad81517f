"""Audit of gradients: texts read whole from a GPT-2 shape, from pico, and from adapters by rounds.

    python -m benchmarks.audit_gradients [BATCHES]     how many batches of each size; 3 where left out

The GPT-2 shape has random weights; its token ids are pico's tokens of a book, spread over 50,257 ids. Texts
of 24 tokens. Seconds are the attack's own, the certificate included, the gradient not.
"""

import sys

import torch
from benchmarks.recorded import BOOK, ROOT, THREADS, machine, record
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from winnow.audit.leakage import gradients_of, load_model, score, span_attack
from winnow.audit.leakage.audit import run_controls
from winnow.base.rng import generator
from winnow.engine.tokenizer import Tokenizer

PICO = ROOT / "src/winnow/zoo/pico"
LENGTH = 24
VOCABULARY = 50_257
SIZES = (1, 8, 16, 32)


def shape_of_gpt2() -> GPT2LMHeadModel:
    """Return GPT-2's shape with weights of its own initial distribution."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY)).eval()
    rng = generator(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                spread = 0.02 / (24**0.5 if name.endswith("c_proj.weight") else 1.0)
                parameter.copy_(spread * torch.randn(parameter.shape, generator=rng))
    return model


def batches(ids: Tensor, n_texts: int, n_batches: int) -> list[list[list[int]]]:
    """Return batches of texts from random places of `ids`."""
    starts = torch.randint(0, len(ids) - LENGTH, (n_batches, n_texts), generator=generator(n_texts))
    return [[ids[at : at + LENGTH].tolist() for at in row] for row in starts.tolist()]


def measured(model: torch.nn.Module, ids: Tensor, name: str, n_batches: int) -> list[dict]:
    rows = []
    for n_texts in SIZES:
        scores, seconds, certificates, ranks = [], [], [], []
        for texts in batches(ids, n_texts, n_batches):
            found = span_attack(model, gradients_of(model, texts), longest=2 * LENGTH)
            scores.append(score(found.texts, texts))
            seconds.append(found.seconds)
            certificates.append(found.certificate)
            ranks.append(found.ranks)
        row = {
            "model": name,
            "batch": n_texts,
            "length": LENGTH,
            "batches": n_batches,
            "exact_match": sum(each.exact_match for each in scores) / n_batches,
            "token_recall": sum(each.token_recall for each in scores) / n_batches,
            "last_token": sum(each.last_token for each in scores) / n_batches,
            "seconds_median": sorted(seconds)[n_batches // 2],
            "certificates": certificates,
            "ranks": ranks,
        }
        print({key: value for key, value in row.items() if key not in ("certificates", "ranks")}, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    n_batches = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(THREADS)
    tokens = Tokenizer.open(PICO).encode(BOOK.read_text(encoding="utf-8"), special=False)
    ids = torch.tensor(tokens)
    spread = torch.randperm(VOCABULARY, generator=generator(1))[ids]
    rows, controls = [], {}
    for name, model, own in (("pico", load_model(PICO), ids), ("gpt2 shape", shape_of_gpt2(), spread)):
        held = run_controls(model, seed=0)
        controls[name] = {"planted_found": held.planted_found, "noise_found": held.noise_found}
        rows += measured(model, own, name, n_batches)
    void = not all(each["planted_found"] and not each["noise_found"] for each in controls.values())
    record("audit-gradients", {"machine": machine(), "controls": controls, "rows": rows, "void": void})


if __name__ == "__main__":
    main()
