"""Audit of gradients: texts read whole from a GPT-2 shape and from pico, and how long that takes.

    python -m benchmarks.audit_gradients recovery --corpus DIR --heldout DIR --work DIR
    python -m benchmarks.audit_gradients timing   --corpus DIR --heldout DIR --work DIR

The GPT-2 shape has random weights and a byte-level BPE of 50,257 tokens trained on CORPUS; the texts are 24
and 25 tokens from random places of HELDOUT. WORK keeps the tokenizer and every batch that is done, so that
an interrupted run goes on; empty it when the attack has changed. `recovery` counts shares, which a busy
machine does not disturb; `timing` wants a quiet one and takes under a minute. Each writes its own part of
audit-gradients.json; with `--model` the rows of the other model stay as they were, and every row says at
which commit it was measured. Seconds are the attack's own, the certificate included, the gradient not.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.audit_texts import Kept, batch_of, books_of, byte_pairs, shape_of_gpt2
from benchmarks.recorded import RESULTS, ROOT, THREADS, machine, record
from torch import Tensor

from winnow.audit.leakage import gradients_of, load_model, score, span_attack
from winnow.audit.leakage.audit import run_controls
from winnow.base.progress import Progress
from winnow.base.timing import commit
from winnow.engine.tokenizer import Tokenizer

PICO = ROOT / "src/winnow/zoo/pico"
MODELS = ("gpt2 shape", "pico")
LONGEST = 48
BATCHES = {1: 56, 8: 40, 16: 40, 32: 6}  # texts in a batch: batches; 1,016 texts in those of 1 to 16
TIMED = {1: 5, 8: 3, 16: 3}


def opened(name: str, arguments: argparse.Namespace) -> tuple[torch.nn.Module, Tensor]:
    """Return the model of that name with the held-out books in its tokens."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in books_of(arguments.heldout))
    if name == "pico":
        return load_model(PICO), torch.tensor(Tokenizer.open(PICO).encode(text, special=False))
    pairs = byte_pairs(arguments.corpus, arguments.work / "tokenizer.json").encode(text).ids
    return shape_of_gpt2(), torch.tensor(pairs)


def attacked(model: torch.nn.Module, texts: list[list[int]]) -> dict:
    """Return what one attack on the gradient of `texts` finds."""
    found = span_attack(model, gradients_of(model, texts), longest=LONGEST)
    counted = score(found.texts, texts)
    return {
        "exact_match": counted.exact_match,
        "token_recall": counted.token_recall,
        "last_token": counted.last_token,
        "certificate": found.certificate,
        "is_certified": found.is_certified,
        "ranks": found.ranks,
        "inputs": sum(len(text) - 1 for text in texts),
        "seconds": found.seconds,
        "reason": found.reason,
    }


def recovery(arguments: argparse.Namespace, before: dict) -> dict:
    """Return shares of the texts read back, by model and size of the batch."""
    kept = Kept(arguments.work / "recovery.jsonl")
    plan = [(n_texts, number) for n_texts, n in BATCHES.items() for number in range(n)]
    others = [row for row in before.get("rows", []) if row["model"] not in arguments.model]
    rows = [{"commit": before["machine"]["commit"]} | row for row in others]
    controls = {
        name: found for name, found in before.get("controls", {}).items() if name not in arguments.model
    }
    for name in arguments.model:
        model, ids = opened(name, arguments)
        progress = Progress(name, len(plan))
        progress.start_at(sum(row["model"] == name for row in kept.rows))
        for done, (n_texts, number) in enumerate(plan, 1):
            key = {"model": name, "batch": n_texts, "number": number}
            if kept.find(**key) is None:
                kept.add(key | attacked(model, batch_of(ids, n_texts, number)))
            progress.update(done, f"{n_texts} texts")
        held = run_controls(model, seed=0)
        controls[name] = {"planted_found": held.planted_found, "noise_found": held.noise_found}
        done = [row for row in kept.rows if row["model"] == name]
        rows += [_row(name, n_texts, done) | {"commit": commit()} for n_texts in BATCHES]
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    is_void = not all(each["planted_found"] and not each["noise_found"] for each in controls.values())
    return {"controls": controls, "rows": rows, "void": is_void}


def _row(name: str, n_texts: int, done: Sequence[dict]) -> dict:
    """Return the mean of all batches of `n_texts`: all have as many texts."""
    rows = [row for row in done if row["batch"] == n_texts]
    shares = {
        key: statistics.fmean(row[key] for row in rows)
        for key in ("exact_match", "token_recall", "last_token", "is_certified")
    }
    certificates = [row["certificate"] for row in rows if row["certificate"] is not None]
    return {
        "model": name,
        "batch": n_texts,
        "batches": len(rows),
        "texts": n_texts * len(rows),
        "inputs": max(row["inputs"] for row in rows),
        "rank": max(row["ranks"][1] for row in rows if row["ranks"]),
        **shares,
        "texts_missed": round((1 - shares["exact_match"]) * n_texts * len(rows)),
        "worst_certificate": max(certificates, default=None),
        "reasons": sorted({row["reason"] for row in rows if row["reason"]}),
    }


def timing(arguments: argparse.Namespace, before: dict) -> dict:
    """Return the median seconds of an attack on the GPT-2 shape, by size of the batch."""
    model, ids = opened("gpt2 shape", arguments)
    attacked(model, batch_of(ids, 1, 0))  # the first pays for cold caches
    rows = []
    for n_texts, n_batches in TIMED.items():
        done = [attacked(model, batch_of(ids, n_texts, number)) for number in range(n_batches)]
        seconds = sorted(row["seconds"] for row in done)
        rows.append(
            {
                "model": "gpt2 shape",
                "batch": n_texts,
                "batches": n_batches,
                "seconds": statistics.median(seconds),
                "seconds_max": seconds[-1],
                "exact_match": statistics.fmean(row["exact_match"] for row in done),
            }
        )
        print(rows[-1], flush=True)
    return {"rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Write one part of audit-gradients.json, the other as it was."""
    parts = {"recovery": recovery, "timing": timing}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=parts)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of .txt books")
    parser.add_argument("--heldout", type=Path, required=True, help="a folder of other .txt books")
    parser.add_argument("--work", type=Path, required=True, help="a folder outside of the repository")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="with recovery")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    target = RESULTS / "audit-gradients.json"
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    measured = parts[arguments.part](arguments, before.get(arguments.part, {}))
    now = machine()
    is_void = measured.pop("void", False)
    result = before | {"machine": now, arguments.part: {"machine": now} | measured}
    record("audit-gradients", result | ({"void": True} if is_void else {}))


if __name__ == "__main__":
    main()
