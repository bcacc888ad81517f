"""Observe: one dense pass over text, keeping moments and samples of layer inputs.   (floor 5 · engine)

Memory does not grow with the text: per layer one D x D matrix, one mean and at most `sample_rows` rows; with
a lookahead, where a view of the input is read, a second matrix and the view's rows beside them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.base.errors import ModelError
from winnow.engine.cache import KvCache
from winnow.engine.model import MlpInputs, dense_mlp, hidden
from winnow.engine.sparsity.predictor import CrossMoments, InputMoments, Lookahead
from winnow.engine.weights import Layer, Weights


class LayerInputs:
    """What is kept of one layer: the view y that a predictor reads, and the MLP's own input x beside it."""

    def __init__(self, width: int, sample_rows: int, lookahead: Lookahead = Lookahead.SAME) -> None:
        """Make room for moments of width `width` and for `sample_rows` rows."""
        self.is_paired = lookahead is not Lookahead.SAME
        self.n_rows = 0
        self.n_sampled = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)
        self.sample = torch.empty(sample_rows, width)
        if self.is_paired:
            self.own_total = torch.zeros_like(self.total)
            self.cross_products = torch.zeros_like(self.products)
            self.own_sample = torch.empty_like(self.sample)

    def add(self, view: Float[Tensor, "T D"], own: Float[Tensor, "T D"], sample_share: float | int) -> None:
        """Take in rows; an even share enters the sample. `own` is `view` where nothing is foretold."""
        y, x = view.float(), own.float()
        self.n_rows += len(y)
        self.total += y.sum(0).double()
        self.products += (y.T @ y).double()  # one window in float32, the sum over windows in float64
        if self.is_paired:
            self.own_total += x.sum(0).double()
            self.cross_products += (x.T @ y).double()
        wanted = min(
            int(self.n_rows * sample_share) - self.n_sampled, len(y), len(self.sample) - self.n_sampled
        )
        if wanted > 0:
            rows = torch.linspace(0, len(y) - 1, wanted).long()
            taken = slice(self.n_sampled, self.n_sampled + wanted)
            self.sample[taken] = y[rows]
            if self.is_paired:
                self.own_sample[taken] = x[rows]
            self.n_sampled += wanted

    @property
    def moments(self) -> InputMoments:
        """Mean and covariance of all rows of the view, and how the own input moves with it."""
        mean = self.total / self.n_rows
        covariance = self.products / self.n_rows - torch.outer(mean, mean)
        if not self.is_paired:
            return InputMoments(mean, covariance)
        own_mean = self.own_total / self.n_rows
        crossed = self.cross_products / self.n_rows - torch.outer(own_mean, mean)
        return InputMoments(mean, covariance, CrossMoments(own_mean, crossed))

    @property
    def views(self) -> Float[Tensor, "N D"]:
        """The sample of the view."""
        return self.sample[: self.n_sampled]

    @property
    def rows(self) -> Float[Tensor, "N D"]:
        """The sample of the MLP's own input, row by row beside `views`."""
        return self.own_sample[: self.n_sampled] if self.is_paired else self.views

    def forget_moments(self) -> None:
        """Give back the memory of the moments; the sample stays."""
        self.products = torch.zeros(0, 0, dtype=torch.float64)
        if self.is_paired:
            self.cross_products = self.products

    def state(self) -> dict[str, Tensor]:
        """Return all that `restore` needs, the tensors themselves and no copies."""
        counts = torch.tensor([self.n_rows, self.n_sampled])
        state = {"counts": counts, "total": self.total, "products": self.products, "sample": self.sample}
        if self.is_paired:
            state |= {
                "own_total": self.own_total,
                "cross_products": self.cross_products,
                "own_sample": self.own_sample,
            }
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, bit for bit."""
        self.n_rows, self.n_sampled = state["counts"].tolist()
        self.total, self.products, self.sample = state["total"], state["products"], state["sample"]
        if self.is_paired:
            self.own_total, self.cross_products = state["own_total"], state["cross_products"]
            self.own_sample = state["own_sample"]


class Observer:
    """What is kept of every layer of one model, filled window by window."""

    def __init__(self, weights: Weights, n_tokens: int, sample_rows: int, lookahead: Lookahead) -> None:
        """Make room for a sample of `sample_rows` rows per layer out of `n_tokens`."""
        rows = min(sample_rows, n_tokens)
        self.layers = [LayerInputs(weights.config.width, rows, lookahead) for _ in weights.layers]
        self.share = min(sample_rows / n_tokens, 1.0)
        self.lookahead = lookahead
        self.weights = weights

    def read(self, ids: Int64[Tensor, " T"]) -> None:
        """Run one window densely, its head left out; raises ModelError where values are not finite.

        A window enters whole: what it gives is taken in after its last layer was computed.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def watching(index: int, layer: Layer, inputs: MlpInputs) -> Float[Tensor, "T D"]:
            view = self.lookahead.view(inputs)
            _check_finite(index, layer, view, inputs.own)
            seen.append((view, inputs.own))
            return dense_mlp(index, layer, inputs)

        with torch.inference_mode():
            cache = KvCache(self.weights.config, capacity=len(ids), dtype=self.weights.cache_dtype)
            last = hidden(self.weights, ids, cache, mlp=watching)
            _check_finite(len(self.layers) - 1, self.weights.layers[-1], last)
            for layer, (view, own) in zip(self.layers, seen, strict=True):
                layer.add(view, own, self.share)


def observe(
    weights: Weights,
    texts: Sequence[Int64[Tensor, " _"]],
    sample_rows: int,
    tick: Callable[[int], None],
    lookahead: Lookahead = Lookahead.SAME,
) -> list[LayerInputs]:
    """Run `texts` densely and return what was kept of every layer's MLP inputs."""
    observer = Observer(weights, sum(len(ids) for ids in texts), sample_rows, lookahead)
    for done, ids in enumerate(texts, start=1):
        observer.read(ids)
        tick(done)
    return observer.layers


def _check_finite(index: int, layer: Layer, *read: Tensor) -> None:
    if all(bool(x.isfinite().all()) for x in read):
        return
    precision = str(layer.mlp.dtype).removeprefix("torch.")
    raise ModelError(
        f"Layer {index} computes with values that are infinite or not a number, in {precision}; expected "
        "finite ones. The checkpoint is broken, or needs more range: download it again, or try --dtype fp32."
    )
