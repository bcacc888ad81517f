"""Held out: how far a plan parts from the dense model on windows not fitted.   (floor 5 · engine)

The dense side of a comparison is always the same, so its last hidden states are kept and each comparison
costs one sparse pass and two heads. Holds T x D numbers per window and the logits of a few rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.engine.cache import KvCache
from winnow.engine.model import Heads, Mlp, all_heads, dense_mlp, hidden, logits
from winnow.engine.sparsity.fidelity import divergence
from winnow.engine.sparsity.predictor import HeadPredictor, Predictor
from winnow.engine.sparsity.sparse_heads import SparseHeads
from winnow.engine.sparsity.sparse_mlp import LayerCounts, SparseMlp
from winnow.engine.weights import Weights

HEAD_ROWS = 128  # rows whose logits are held at a time


def some(texts: Sequence[Int64[Tensor, " _"]], n_tokens: int) -> list[Int64[Tensor, " _"]]:
    """Return windows from all over `texts` that hold about `n_tokens` together, all where they hold fewer."""
    total = sum(len(ids) for ids in texts)
    step = max(total // n_tokens, 1)
    return list(texts[::step])


@dataclass(frozen=True)
class Measured:
    """What some predictors did: nats per token, share of equal top tokens, counts."""

    tokens: int
    kld: float
    same_top: float
    overall: LayerCounts
    layers: tuple[LayerCounts, ...]
    head_density: float = 1.0

    @property
    def listed(self) -> list:
        """What JSON can say of it, for predictors of neurons alone."""
        shares = [asdict(layer) for layer in self.layers]
        return [self.tokens, self.kld, self.same_top, asdict(self.overall), shares]

    @classmethod
    def of_list(cls, listed: list) -> "Measured":
        """Return what was `listed`."""
        tokens, kld, same_top, overall, layers = listed
        counts = tuple(LayerCounts(**layer) for layer in layers)
        return cls(tokens, kld, same_top, LayerCounts(**overall), counts)


class HeldOut:
    """Some windows, with the dense model's last hidden states."""

    def __init__(
        self, weights: Weights, texts: Sequence[Int64[Tensor, " _"]], tick: Callable[[int], None]
    ) -> None:
        """Run `texts` densely; `tick` is told the windows done."""
        self.weights = weights
        self.texts = list(texts)
        self.dense = []
        for done, ids in enumerate(self.texts, start=1):
            self.dense.append(self._hidden(ids, dense_mlp))
            tick(done)

    @property
    def n_tokens(self) -> int:
        """Tokens compared."""
        return sum(len(ids) for ids in self.texts)

    def measure(
        self, layers: Sequence[Predictor | None], heads: Sequence[HeadPredictor | None] = ()
    ) -> Measured:
        """Run the windows with these predictors, of neurons and of heads, and compare token by token."""
        sparse_mlp, sparse_heads = SparseMlp(layers), SparseHeads(heads or (None,) * len(layers))
        nats = same = 0.0
        for ids, dense in zip(self.texts, self.dense, strict=True):
            sparse = self._hidden(ids, sparse_mlp, sparse_heads)
            with torch.inference_mode():
                for p, q in zip(dense.split(HEAD_ROWS), sparse.split(HEAD_ROWS), strict=True):
                    expected, found = logits(self.weights, p), logits(self.weights, q)
                    nats += divergence(expected, found).double().sum().item()
                    same += (expected.argmax(-1) == found.argmax(-1)).sum().item()
        n = self.n_tokens
        counts = sparse_mlp.overall(), sparse_mlp.shares()
        return Measured(n, nats / n, same / n, *counts, sparse_heads.density)

    def _hidden(self, ids: Int64[Tensor, " T"], mlp: Mlp, heads: Heads = all_heads) -> Float[Tensor, "T D"]:
        with torch.inference_mode():
            cache = KvCache(self.weights.config, capacity=len(ids), dtype=self.weights.cache_dtype)
            return hidden(self.weights, ids, cache, mlp=mlp, heads=heads)
