"""Predictors of tiny models: drawn at random, since what they miss is the same on both sides of a test."""

import torch

from winnow.engine.sparsity import GatePredictor, IndexPredictor, Lookahead, LowRankPredictor
from winnow.engine.weights import Weights
from winnow.kernels import Matrix, QuantisedMatrix

RANK = 7


def low_rank(
    weights: Weights,
    rng: torch.Generator,
    lookahead: Lookahead = Lookahead.SAME,
    kind: str = "svd",
    margin: float | int = 0.0,
) -> tuple[LowRankPredictor, ...]:
    """Return predictors that select about half of the neurons, at random; all with a margin far above 0."""
    width, n_neurons = weights.config.width, weights.config.n_neurons
    drawn = []
    for index in range(weights.config.n_layers):
        down = torch.randn(RANK, width, generator=rng) / width**0.5
        up = torch.randn(n_neurons, RANK, generator=rng)
        held = QuantisedMatrix if index % 2 else Matrix  # a plan may hold either
        pair = (held.of(down), held.of(up)) if held is QuantisedMatrix else (Matrix(down), Matrix(up))
        drawn.append(LowRankPredictor(*pair, torch.full((n_neurons,), float(margin)), kind, lookahead))
    return tuple(drawn)


def indexes(
    weights: Weights,
    rng: torch.Generator,
    lookahead: Lookahead = Lookahead.SAME,
    margin: float | int = 0.0,
) -> tuple[IndexPredictor, ...]:
    """Return indexes that select about half of the neurons, at random; all with a margin far above 0."""
    width, n_neurons = weights.config.width, weights.config.n_neurons
    drawn = []
    for index in range(weights.config.n_layers):
        words = 1 + index % 2
        projection = QuantisedMatrix.of(torch.randn(64 * words, width, generator=rng))
        offset = 0.1 * torch.randn(64 * words, generator=rng)
        signs = torch.randint(-(2**63), 2**63 - 1, (n_neurons, words), generator=rng)
        sizes, bias = torch.rand(n_neurons, generator=rng), torch.full((n_neurons,), float(margin))
        drawn.append(IndexPredictor(projection, offset, signs, sizes, bias, lookahead))
    return tuple(drawn)


def gates(weights: Weights, threshold: float | int) -> tuple[GatePredictor, ...]:
    """Return gates that select a neuron above `threshold`, a little higher from one neuron to the next."""
    n_neurons = weights.config.n_neurons
    spread = torch.linspace(0, 0.1, n_neurons)
    return tuple(GatePredictor(threshold + spread) for _ in weights.layers)


def head_predictors(
    weights: Weights, rng: torch.Generator, margin: float | int = 0.0
) -> tuple[LowRankPredictor, ...]:
    """Return predictors that select about half of the kv heads, at random; all with a margin far above 0."""
    width, n_heads = weights.config.width, weights.config.n_kv_heads
    drawn = []
    for _ in range(weights.config.n_layers):
        down, up = torch.randn(RANK, width, generator=rng), torch.randn(n_heads, RANK, generator=rng)
        pair = QuantisedMatrix.of(down), QuantisedMatrix.of(up)
        drawn.append(LowRankPredictor(*pair, torch.full((n_heads,), float(margin))))
    return tuple(drawn)
