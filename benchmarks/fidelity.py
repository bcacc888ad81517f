"""Fidelity: the bundled models with their shipped plans against themselves dense, on a book not seen before.

Twice: in exact arithmetic, where nothing but the neurons left out differs, and decoded token by token through
the kernels in bfloat16, as `winnow generate` does.
"""

import math
from pathlib import Path

import numpy as np
import torch
from benchmarks.recorded import BOOK, THREADS, machine, record, winnow_json

from winnow.engine import Engine, KvCache, load
from winnow.engine.checkpoint import bundled
from winnow.engine.counts import DecodeCounts
from winnow.engine.sparsity import windows
from winnow.engine.sparsity.fidelity import divergence


def decoded(model: Path) -> dict:
    """Return the row of bfloat16 decoding by the kernels, every token decoded."""
    sparse, dense = load(model, threads=THREADS), load(model, threads=THREADS, plan=None)
    ids = sparse.tokenizer.encode(BOOK.read_text(encoding="utf-8"), special=False)
    nats, same, surprise = [], [], []
    density = 0.0
    texts = windows(ids, sparse.tokenizer.encode(""))
    for text in texts:
        (p, _), (q, counts) = logits(dense, text), logits(sparse, text)
        density += counts.mlp_density * len(text)
        nats.append(divergence(p, q))
        same.append(p.argmax(-1) == q.argmax(-1))
        surprise.append(torch.stack([_surprise(x, text) for x in (p, q)]))
    kld = torch.cat(nats).double()
    ppl_dense, ppl_sparse = (math.exp(x) for x in torch.cat(surprise, 1).double().mean(1).tolist())
    return {
        "arithmetic": "bf16, decoded by the kernels",
        "tokens": len(kld),
        "kld_mean": kld.mean().item(),
        "kld_p999": torch.quantile(kld, 0.999).item(),
        "same_top": torch.cat(same).double().mean().item(),
        "ppl_dense": ppl_dense,
        "ppl_sparse": ppl_sparse,
        "mlp_density": density / len(kld),
    }


def logits(engine: Engine, ids: torch.Tensor) -> tuple[torch.Tensor, DecodeCounts]:
    """Return the logits after each token, decoded one by one from an empty cache, and what that took."""
    cache = KvCache(engine.weights.config, len(ids), engine.weights.cache_dtype)
    decoding = engine.decoder.start(cache)
    return torch.from_numpy(np.stack([decoding.step(token)[0] for token in ids.tolist()])), decoding.counts


def _surprise(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(scores[:-1], ids[1:], reduction="none")


def main() -> None:
    """Write pico-fidelity.json and pico-llama-fidelity.json."""
    for name in ("pico", "pico-llama"):
        model = bundled(name)
        result = {
            "machine": machine(),
            "rows": [
                {"arithmetic": "exact", **winnow_json("fidelity", model, "--text", BOOK)},
                decoded(model),
            ],
            "perplexity": winnow_json("perplexity", model, "--text", BOOK),
            "inspect": {**winnow_json("inspect", model), "directory": name},
        }
        record(f"{name}-fidelity", result)


if __name__ == "__main__":
    main()
