"""Heads: how many of its heads a bundled model can do without, token by token.

    python -m benchmarks.heads

Two ways to choose: "oracle" knows how much each head is about to say, "predicted" foretells it by a linear
map of the attention's input. Both leave out what says least, weighed by what it costs the layer's output
(measured). The book was not seen by the model; the fit saw its beginning, what is judged follows that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from benchmarks.recorded import BOOK, machine, record
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.engine import KvCache, load_weights
from winnow.engine.checkpoint import Checkpoint
from winnow.engine.model import Heads, forward
from winnow.engine.sparsity import windows
from winnow.engine.sparsity.fidelity import divergence
from winnow.engine.sparsity.predictor import fit_heads, head_energies
from winnow.engine.sparsity.sparse_heads import silenced
from winnow.engine.tokenizer import Tokenizer
from winnow.engine.weights import Layer, Weights

DENSITIES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
FITTED_TOKENS, JUDGED_TOKENS = 24_000, 8_000
PRICED_SHARE = 0.15  # of a layer's heads, left out to learn what they cost

# (layer, what its attention reads, energies of its heads) -> which are kept
Choice = Callable[[int, Float[Tensor, "T D"], Float[Tensor, "T K"]], Bool[Tensor, "T K"]]


@dataclass
class Study:
    """One model, what its heads say and what leaving them out costs."""

    weights: Weights
    judged: list[Tensor]

    def logits(self, ids: Tensor, heads: Heads) -> Tensor:
        cache = KvCache(self.weights.config, len(ids), self.weights.cache_dtype)
        return forward(self.weights, ids, cache, heads=heads)

    def measure(self, keep: Choice) -> tuple[float, float, float, list[float]]:
        """Return divergence, share of equal likeliest tokens, head density, energy lost in each layer."""
        nats = same = kept_heads = n_heads = 0.0
        lost = [0.0] * self.weights.config.n_layers

        def heads(index: int, layer: Layer, x: Tensor):
            def watch(mixed: Tensor) -> Tensor:
                nonlocal kept_heads, n_heads
                energies = head_energies(layer, mixed)
                kept = keep(index, x, energies)
                lost[index] += (energies * ~kept).sum().item()
                kept_heads, n_heads = kept_heads + kept.sum().item(), n_heads + kept.numel()
                return silenced(mixed, kept)

            return watch

        n_tokens = sum(map(len, self.judged))
        for ids in self.judged:
            dense, sparse = self.logits(ids, lambda *_: None), self.logits(ids, heads)
            nats += divergence(dense, sparse).sum().item()
            same += (dense.argmax(-1) == sparse.argmax(-1)).sum().item()
        return nats / n_tokens, same / n_tokens, kept_heads / n_heads, [each / n_tokens for each in lost]

    def prices(self) -> list[float]:
        """Return, per layer, the nats that a unit of energy lost there costs."""
        found = []
        for layer in range(self.weights.config.n_layers):

            def weakest(index: int, x: Tensor, energies: Tensor, layer: int = layer) -> Tensor:
                bound = energies.quantile(PRICED_SHARE) if index == layer else -1.0
                return energies > bound

            nats, _, _, lost = self.measure(weakest)
            found.append(nats / lost[layer])
        return found


def rows(name: str, fit: list[Tensor], judged: list[Tensor]) -> Iterator[dict]:
    """Measure both ways to choose at each density."""
    study = Study(load_weights(Checkpoint.open(name), torch.float32), judged)
    fits = fit_heads(study.weights, fit, lambda done: None)
    levels = [math.log(price) for price in study.prices()]
    scores = torch.cat([(each.said + level).flatten() for each, level in zip(fits, levels, strict=True)])
    for density in DENSITIES:
        bound = scores.quantile(1 - density)

        def oracle(index: int, x: Tensor, energies: Tensor, bound: Tensor = bound) -> Tensor:
            return energies.log() + levels[index] > bound

        def predicted(index: int, x: Tensor, energies: Tensor, bound: Tensor = bound) -> Tensor:
            return fits[index].predictor.scores(x) + levels[index] > bound

        for way, keep in (("oracle", oracle), ("predicted", predicted)):
            nats, same, share, _ = study.measure(keep)
            yield {"model": name, "chosen": way, "head_density": share, "kld_mean": nats, "same_top": same}


def main() -> None:
    """Write heads.json."""
    result: dict = {"machine": machine(), "rows": []}
    text = BOOK.read_text(encoding="utf-8")
    for name in ("pico", "pico-llama"):
        tokenizer = Tokenizer.open(Checkpoint.open(name).directory)
        ids, begin = tokenizer.encode(text, special=False), tokenizer.encode("")
        middle = FITTED_TOKENS
        with torch.inference_mode():
            fit, judged = windows(ids[:middle], begin), windows(ids[middle : middle + JUDGED_TOKENS], begin)
            result["rows"] += rows(name, fit, judged)
    record("heads", result)


if __name__ == "__main__":
    main()
