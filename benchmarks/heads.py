"""Heads: how many of its heads a bundled model can do without, token by token.

    python -m benchmarks.heads

Four ways at the same share of heads. "known" knows how much each head is about to say, "spread" foretells it
by a linear map of the attention's input, as a plan does; both leave out, over all layers, what is priced
least. "equal" foretells too, and keeps the same share in every layer. "drop" chooses as "spread" does, and a
head left out at a token drops that token's key and value for good, where the others keep or owe them. The
book was not seen by the model; the fits and prices saw its beginning, what is judged follows that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from benchmarks.recorded import BOOK, machine, record
from torch import Tensor

from winnow.engine import KvCache, load_weights
from winnow.engine.checkpoint import Checkpoint
from winnow.engine.model import Heads, HeadWatch, all_heads, forward
from winnow.engine.sparsity import SparseHeads, windows
from winnow.engine.sparsity.fidelity import divergence
from winnow.engine.sparsity.heldout import HeldOut, some
from winnow.engine.sparsity.predictor import HeadFit, HeadPredictor, fit_heads, head_energies
from winnow.engine.sparsity.search import HeadLadder
from winnow.engine.sparsity.sparse_heads import DroppingHeads, silenced
from winnow.engine.tokenizer import Tokenizer
from winnow.engine.weights import Layer, Weights

DENSITIES = (0.97, 0.95, 0.9, 0.8, 0.7, 0.5)
FITTED_TOKENS, JUDGED_TOKENS, PRICING_TOKENS = 24_000, 8_000, 4_000


class Known:
    """Heads chosen by what they say, as no predictor can; it counts as `SparseHeads` does."""

    def __init__(self, prices: Sequence[float], bound: float) -> None:
        self.prices = prices
        self.bound = bound
        self.kept = self.seen = 0

    def __call__(self, index: int, layer: Layer, x: Tensor) -> HeadWatch:
        def watch(mixed: Tensor) -> Tensor:
            kept = head_energies(layer, mixed) * self.prices[index] > self.bound
            self.kept, self.seen = self.kept + int(kept.sum()), self.seen + kept.numel()
            return silenced(mixed, kept)

        return watch

    @property
    def density(self) -> float:
        """Share of heads kept."""
        return self.kept / self.seen


@dataclass
class Study:
    """One model and the text that it is judged by, with what it says of that with all heads."""

    weights: Weights
    judged: list[Tensor]

    def __post_init__(self) -> None:
        """Run the text once."""
        self.dense = [self._logits(ids, all_heads) for ids in self.judged]

    def measure(self, begin: Callable[[], Heads]) -> dict:
        """Return divergence and share of equal likeliest tokens; `begin` is called for every window."""
        nats, same = [], []
        for ids, dense in zip(self.judged, self.dense, strict=True):
            sparse = self._logits(ids, begin())
            nats.append(divergence(dense, sparse))
            same.append(dense.argmax(-1) == sparse.argmax(-1))
        mean = torch.cat(same).double().mean().item()
        return {"kld_mean": torch.cat(nats).double().mean().item(), "same_top": mean}

    def _logits(self, ids: Tensor, heads: Heads) -> Tensor:
        cache = KvCache(self.weights.config, len(ids), self.weights.cache_dtype)
        return forward(self.weights, ids, cache, heads=heads)


def ways(
    study: Study, ladder: HeadLadder, density: float
) -> Iterator[tuple[str, Callable[[], Heads], Known | SparseHeads]]:
    """Yield each way to leave heads out: its name, what begins a window, what counts."""
    fits: Sequence[HeadFit] = ladder.fits
    said = [fit.said.double().exp() * price for fit, price in zip(fits, ladder.prices, strict=True)]
    known = Known(ladder.prices, torch.cat([each.flatten() for each in said]).quantile(1 - density).item())
    yield "known", lambda: known, known
    alike: list[HeadPredictor | None] = [fit.above(fit.bound(density)) for fit in fits]
    equal, spread, drop = SparseHeads(alike), *(SparseHeads(ladder.keeping(density)) for _ in range(2))
    yield "equal", lambda: equal, equal
    yield "spread", lambda: spread, spread
    yield "drop", lambda: DroppingHeads(drop), drop


def rows(name: str, fit: list[Tensor], judged: list[Tensor]) -> tuple[list[dict], list[dict]]:
    """Measure every way at each share: a row for each, and the ways side by side."""
    study = Study(load_weights(Checkpoint.open(name), torch.float32), judged)
    fits = fit_heads(study.weights, fit, lambda done: None)
    probe = HeldOut(study.weights, some(fit, PRICING_TOKENS), lambda done: None)
    ladder = HeadLadder(fits, probe, lambda done: None)
    found, compared = [], []
    for density in DENSITIES:
        beside: dict = {"model": name, "head_density": density}
        for way, begin, counted in ways(study, ladder, density):
            measured = study.measure(begin)
            found.append({"model": name, "chosen": way, "head_density": counted.density, **measured})
            beside[f"kld_{way}"] = measured["kld_mean"]
            assert math.isfinite(measured["kld_mean"])
        compared.append(beside)
    return found, compared


def main() -> None:
    """Write heads.json."""
    result: dict = {"machine": machine(), "rows": [], "compared": []}
    text = BOOK.read_text(encoding="utf-8")
    for name in ("pico", "pico-llama"):
        tokenizer = Tokenizer.open(Checkpoint.open(name).directory)
        ids, begin = tokenizer.encode(text, special=False), tokenizer.encode("")
        middle = FITTED_TOKENS
        with torch.inference_mode():
            fit, judged = windows(ids[:middle], begin), windows(ids[middle : middle + JUDGED_TOKENS], begin)
            found, compared = rows(name, fit, judged)
        result["rows"] += found
        result["compared"] += compared
    record("heads", result)


if __name__ == "__main__":
    main()
