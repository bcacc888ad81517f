"""Observe: one dense pass over text, keeping moments and samples of layer inputs.   (floor 5 · engine)

Memory does not grow with the text: per layer one D x D matrix, one mean and at most `sample_rows` rows.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.engine.model import MlpInputs, dense_mlp
from winnow.engine.sparsity.fidelity import window_logits
from winnow.engine.sparsity.predictor import InputMoments
from winnow.engine.weights import Layer, Weights


class LayerInputs:
    """What is kept of one layer's MLP inputs."""

    def __init__(self, width: int, sample_rows: int) -> None:
        self.n_rows = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)
        self.sample = torch.empty(sample_rows, width)
        self.n_sampled = 0

    def add(self, x: Float[Tensor, "T D"], sample_share: float) -> None:
        """Take in rows `x`; an even share of them enters the sample."""
        x = x.float()
        self.n_rows += len(x)
        self.total += x.sum(0).double()
        self.products += (x.T @ x).double()  # one window in float32, the sum over windows in float64
        wanted = min(
            int(self.n_rows * sample_share) - self.n_sampled, len(x), len(self.sample) - self.n_sampled
        )
        if wanted > 0:
            rows = torch.linspace(0, len(x) - 1, wanted).long()
            self.sample[self.n_sampled : self.n_sampled + wanted] = x[rows]
            self.n_sampled += wanted

    @property
    def moments(self) -> InputMoments:
        """Mean and covariance of all rows seen."""
        mean = self.total / self.n_rows
        return InputMoments(mean, self.products / self.n_rows - torch.outer(mean, mean))

    @property
    def rows(self) -> Float[Tensor, "N D"]:
        """The sample."""
        return self.sample[: self.n_sampled]


def observe(
    weights: Weights, texts: Sequence[Int64[Tensor, " _"]], sample_rows: int, tick: Callable[[int], None]
) -> list[LayerInputs]:
    """Run `texts` densely and return what was kept of every layer's MLP inputs."""
    kept = [LayerInputs(weights.config.width, sample_rows) for _ in weights.layers]
    share = sample_rows / sum(len(ids) for ids in texts)

    def watching(index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
        kept[index].add(inputs.own, min(share, 1.0))
        return dense_mlp(index, layer, inputs)

    with torch.inference_mode():
        for done, ids in enumerate(texts, start=1):
            window_logits(weights, ids, watching)
            tick(done)
    return kept
