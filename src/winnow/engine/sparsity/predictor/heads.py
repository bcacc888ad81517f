"""Heads: predictors of how much each kv head is about to say.   (floor 5 · engine)

    score[k] = level[k] + slope[k] . (x - mean)        head k is computed when score[k] > bound

x is what the layer's attention reads, and the score foretells, by ridge regression, the logarithm of the
head's energy: the squared norm of its part of the attention's output. Query heads that share a kv head are
left out together. Heads of all layers are held to one bound, each layer's scores raised by the logarithm of
its price, the nats that a unit of energy lost there costs: the heads that cost least are left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from winnow.engine.cache import KvCache
from winnow.engine.model import HeadWatch, hidden
from winnow.engine.sparsity.predictor.low_rank import LowRankPredictor
from winnow.engine.weights import HeadLinear, Layer, Weights
from winnow.kernels import QuantisedMatrix

RIDGE = 1e-3  # of the inputs' mean variance
LEAST_ENERGY = 1e-12
LEAST_PRICE = 1e-12  # nats per unit of energy: a layer that costs nothing comes first, and is not infinite


@dataclass(frozen=True)
class HeadFit:
    """One layer's predictor at bound 0; on tokens that were not fitted, what it foretold and what was so."""

    predictor: LowRankPredictor
    foretold: Float32[Tensor, "T K"]
    said: Float32[Tensor, "T K"]  # logarithms of energies

    def bound(self, share: float | int) -> float:
        """Return the logarithm that a `share` of these tokens' heads are foretold to exceed."""
        return _exceeded(self.foretold.flatten(), share)

    def above(self, bound: float | int) -> LowRankPredictor | None:
        """Return the predictor of the heads whose foretold energy has a logarithm above `bound`.

        None, a layer with all heads, where those of all these tokens have.
        """
        if not (self.foretold <= bound).any():
            return None
        return replace(self.predictor, bias=self.predictor.bias - bound)

    def lost(self, bound: float | int) -> float:
        """Return the energy per token of the heads that `above` leaves out."""
        left_out = self.said.double().exp()[self.foretold <= bound]
        return left_out.sum().item() / len(self.said)


def keeping(
    fits: Sequence[HeadFit], prices: Sequence[float | int], share: float | int
) -> tuple[LowRankPredictor | None, ...]:
    """Return one predictor per layer, or None: of all layers' heads together they keep about `share`.

    `prices` are the layers' nats per unit of energy lost. None in all layers where the rest is less than one
    head of one of the tokens that the fits saw.
    """
    levels = [math.log(max(price, LEAST_PRICE)) for price in prices]
    scores = torch.cat([(fit.foretold + level).flatten() for fit, level in zip(fits, levels, strict=True)])
    bound = _exceeded(scores, share)
    return tuple(fit.above(bound - level) for fit, level in zip(fits, levels, strict=True))


def _exceeded(scores: Float32[Tensor, " N"], share: float | int) -> float:
    """Return the bound that about a `share` of the scores exceed; that of all is minus infinity."""
    n_below = round((1 - float(share)) * len(scores))
    return scores.kthvalue(n_below).values.item() if n_below else -math.inf


def head_energies(layer: Layer, mixed: Float32[Tensor, "T K sharers E"]) -> Float32[Tensor, "T K"]:
    """Return the squared norm of each kv head's part of the attention's output."""
    weight = layer.out.weight if isinstance(layer.out, HeadLinear) else layer.out.matrix.weight
    said = mixed.flatten(2)
    parts = weight.float().unflatten(1, said.shape[1:])  # D, K, inputs of a kv head
    return torch.stack([(said[:, k] @ parts[:, k].T).square().sum(-1) for k in range(said.shape[1])], 1)


def fit_heads(
    weights: Weights, texts: Sequence[Int64[Tensor, " _"]], tick: Callable[[int], None]
) -> tuple[HeadFit, ...]:
    """Return each layer's predictor of its kv heads, from one dense pass over `texts`, at least two windows.

    Every other window is fitted, the others say what the predictor is worth and where its bounds lie. Holds
    ``8 D^2`` bytes per layer, and the inputs of one window. `tick` is told the windows done.
    """
    moments = [_Moments(weights.config.width, weights.config.n_kv_heads) for _ in weights.layers]
    _listen(weights, texts[::2], moments, tick)
    predictors = [each.predictor() for each in moments]
    judged = [_Judged(each) for each in predictors]
    _listen(weights, texts[1::2], judged, lambda done: tick(len(texts[::2]) + done))
    return tuple(HeadFit(each.predictor, torch.cat(each.foretold), torch.cat(each.said)) for each in judged)


class _Moments:
    """The sums that the regression of one layer needs."""

    def __init__(self, width: int, n_heads: int) -> None:
        self.n = 0
        self.x = torch.zeros(width, dtype=torch.float64)
        self.y = torch.zeros(n_heads, dtype=torch.float64)
        self.xx = torch.zeros(width, width, dtype=torch.float64)
        self.xy = torch.zeros(width, n_heads, dtype=torch.float64)

    def add(self, x: Float32[Tensor, "T D"], said: Float32[Tensor, "T K"]) -> None:
        x, y = x.double(), said.double()
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def predictor(self) -> LowRankPredictor:
        """Return the regression as a predictor, in int8; its rank is the number of heads."""
        mean, level = self.x / self.n, self.y / self.n
        products = self.xx / self.n - mean.outer(mean)
        ridge = RIDGE * products.diagonal().mean().clamp_min(LEAST_ENERGY)
        products += ridge * torch.eye(len(products), dtype=torch.float64)
        slope: Float64[Tensor, "D K"] = torch.linalg.solve(products, self.xy / self.n - mean.outer(level))
        down, up = QuantisedMatrix.of(slope.T.contiguous()), QuantisedMatrix.of(torch.eye(len(level)))
        # The mean input passes exactly, as in whitened.py: only deviations from it are rounded.
        kept = up.weight.double() @ (down.weight.double() @ mean)
        return LowRankPredictor(down, up, (level - kept).float())


class _Judged:
    """What one layer's predictor foretells, beside what is so."""

    def __init__(self, predictor: LowRankPredictor) -> None:
        self.predictor = predictor
        self.foretold: list[Tensor] = []
        self.said: list[Tensor] = []

    def add(self, x: Float32[Tensor, "T D"], said: Float32[Tensor, "T K"]) -> None:
        self.foretold.append(self.predictor.scores(x))
        self.said.append(said)


def _listen(
    weights: Weights,
    texts: Sequence[Int64[Tensor, " _"]],
    listeners: Sequence[_Moments] | Sequence[_Judged],
    tick: Callable[[int], None],
) -> None:
    """Run `texts` densely and tell each layer's listener what its attention read and its heads said."""

    def heads(index: int, layer: Layer, x: Float32[Tensor, "T D"]) -> HeadWatch:
        def watch(mixed: Float32[Tensor, "T K sharers E"]) -> Float32[Tensor, "T K sharers E"]:
            listeners[index].add(x, head_energies(layer, mixed).clamp_min(LEAST_ENERGY).log())
            return mixed

        return watch

    with torch.inference_mode():
        for done, ids in enumerate(texts, start=1):
            cache = KvCache(weights.config, capacity=len(ids), dtype=weights.cache_dtype)
            hidden(weights, ids, cache, heads=heads)
            tick(done)
