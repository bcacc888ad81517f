"""Active: the neurons that fire, found by search, and a layer that touches no others.   (floor 3 · search)

    { (b, f) : w_f . x_b + bias_f > threshold }

A pair is active only if its cosine reaches c = min over pairs of (threshold - bias_f) / (|w_f| |x_b|), so the
heavy pairs at c are a superset and the pre-activations decide. It pays where biases are so low that few
neurons fire and all of these at large cosines; after arXiv:2311.11429 (abstract), construction ours.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from winnow.base.errors import UsageError
from winnow.search.pairs import heavy_pairs

BREAK_EVEN = 0.004  # active share above which all products are cheaper (benchmarks/heavy_relu)
PROBED = 64  # rows of x whose active share is counted first
GATHERED = 1 << 18  # floats gathered at a time: what stays in a core's cache
LEAST_COSINE = 0.2
MANY_PAIRS = 1 << 32  # from here on another method than the cascade may win by more than its choice costs


@final
@dataclass(frozen=True)
class Active:
    """Active pairs, ascending by row of x, then neuron; `is_dense` where all products were computed.

    `recall` is the asked-for probability of each pair, 1 where all products were computed; `share` is active
    pairs over all; `note` says why all were, if they were.
    """

    rows: Int64[Tensor, " A"]
    neurons: Int64[Tensor, " A"]
    share: float
    recall: float
    is_dense: bool
    note: str


def active_neurons(
    weight: Float[Tensor, "F D"],
    x: Float[Tensor, "B D"],
    threshold: float = 0.0,
    *,
    bias: Float[Tensor, " F"] | None = None,
    recall: float = 0.99,
    rng: int = 0,
) -> Active:
    """Return which neurons' pre-activations ``weight @ x + bias`` exceed `threshold`, for each row of x.

    Each pair returned is active by its pre-activation in x's dtype; each active one is returned with
    probability at least `recall`. Where search cannot pay, since more than BREAK_EVEN of the pairs of 64 rows
    are active or the cosines that matter are small, all products are computed and the note says so. Costs the
    search's memory, or that of B * F products. Raises UsageError for shapes that do not chain and for NaN.
    """
    _check(weight, x, bias)
    shift = torch.zeros(len(weight), dtype=x.dtype) if bias is None else bias.detach()
    weight, x = weight.detach(), x.detach()
    least, note = _worth_searching(weight, x, threshold, shift)
    if least is None:
        return _counted(x @ weight.T + shift > threshold, note)
    return _searched(weight, x, threshold, shift, least, recall, rng)[0]


def _worth_searching(
    weight: Tensor, x: Tensor, threshold: float | int, shift: Tensor
) -> tuple[float | None, str]:
    """Return the least cosine to search for; None where all products are to be computed, and why."""
    least = _least_cosine(weight, x, threshold - shift)
    probed = (x[:PROBED] @ weight.T + shift > threshold).double().mean().item()
    if probed > BREAK_EVEN:
        return None, f"{probed:.3f} of the pairs are active, above {BREAK_EVEN}: all products are cheaper"
    if least < LEAST_COSINE:
        return None, f"active pairs may have cosine {least:.3g}: too small to search for"
    return (least, "") if least <= 1 else (None, "")


def _counted(is_active: Bool[Tensor, "B F"], note: str) -> Active:
    rows, neurons = torch.nonzero(is_active).unbind(1)
    return Active(rows, neurons, len(rows) / is_active.numel(), 1.0, True, note)


def _searched(
    weight: Tensor, x: Tensor, threshold: float | int, shift: Tensor, least: float, recall: float, rng: int
) -> tuple[Active, Tensor]:
    """Return the active pairs among those that a search finds, and their pre-activations."""
    most = max(len(x) * len(weight), 1)
    method = (
        "cascade" if most < MANY_PAIRS else "auto"
    )  # auto measures rates, which takes tens of milliseconds
    pairs = heavy_pairs(
        x, weight, rho=least, method=method, recall=recall, rng=rng, max_pairs=most, canaries=0
    )
    rows, neurons = torch.from_numpy(pairs.i.copy()), torch.from_numpy(pairs.j.copy())
    values = _products(x, weight, rows, neurons) + shift[neurons]
    kept = values > threshold
    rows, neurons = rows[kept], neurons[kept]
    exact = pairs.report.method in ("exact", "gemm")
    return Active(rows, neurons, len(rows) / most, 1.0 if exact else recall, False, ""), values[kept]


@final
class HeavyReLULinear(nn.Module):
    """``relu(x @ weight.T + bias)`` whose forward and backward touch active pairs only.

    Equal to the dense layer to rounding where no active pair is missed; a missed one counts as 0, forward and
    backward. `last` holds the search of the latest forward: its active share, and a note where all products
    were cheaper and computed instead.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, recall: float = 0.99, seed: int = 0) -> None:
        """Take the weights [F, D] and biases [F] of a linear layer."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.recall, self.seed = recall, seed
        self.last: Active | None = None

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Return the activations; those of pairs that are not active are 0."""
        _check(self.weight, x, self.bias)
        weight, rows, shift = self.weight.detach(), x.detach(), self.bias.detach()
        least, note = _worth_searching(weight, rows, 0.0, shift)
        if least is None:  # the dense layer, once: its activations say which pairs are active
            out = torch.relu(functional.linear(x, self.weight, self.bias))
            self.last = _counted(out.detach() > 0, note)
            return out
        self.last, values = _searched(weight, rows, 0.0, shift, least, self.recall, self.seed)
        return _ActiveLinear.apply(x, self.weight, self.bias, self.last.rows, self.last.neurons, values)


class _ActiveLinear(torch.autograd.Function):
    """The products of listed pairs, and their gradients."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, neurons: Tensor, values: Tensor
    ) -> Tensor:
        """Write the listed pre-activations, zero elsewhere."""
        ctx.save_for_backward(x, weight, rows, neurons)
        out = x.new_zeros(len(x), len(weight))
        out[rows, neurons] = values
        return out

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Multiply by the sparse matrix of gradients of listed pairs, which ascend by row, then neuron."""
        x, weight, rows, neurons = ctx.saved_tensors
        active = gradients[0][rows, neurons]
        of_bias = weight.new_zeros(len(weight)).index_add_(0, neurons, active)
        wide = torch.promote_types(x.dtype, torch.float32)
        starts = np.searchsorted(rows.numpy(), np.arange(len(x) + 1))
        pairs = scipy.sparse.csr_array(
            (active.to(wide).numpy(), neurons.numpy(), starts), shape=(len(x), len(weight))
        )
        of_x = torch.from_numpy(pairs @ weight.to(wide).numpy())
        of_weight = torch.from_numpy(pairs.T.tocsr() @ x.to(wide).numpy())
        return of_x.to(x.dtype), of_weight.to(x.dtype), of_bias, None, None, None


def _parts(n: int, width: int) -> list[slice]:
    step = max(GATHERED // width, 1)
    return [slice(at, at + step) for at in range(0, n, step)]


def _products(x: Tensor, weight: Tensor, rows: Tensor, neurons: Tensor) -> Tensor:
    out = x.new_empty(len(rows))
    for part in _parts(len(rows), x.shape[1]):
        out[part] = torch.linalg.vecdot(x[rows[part]], weight[neurons[part]])
    return out


def _least_cosine(weight: Tensor, x: Tensor, needed: Tensor) -> float:
    """Return the smallest cosine that an active pair may have; above 1 where none can be active."""
    sizes = torch.linalg.vector_norm(weight, dim=1).double().clamp_min(1e-300)
    longest = torch.linalg.vector_norm(x, dim=1).max().item()
    least = (needed.double() / sizes).min().item()
    if longest == 0:
        return -math.inf if least < 0 else math.inf
    return least / longest * (1 - 1e-6) if least > 0 else least / longest


def _check(weight: Tensor, x: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or x.ndim != 2 or weight.shape[1] != x.shape[1] or min(*weight.shape, len(x)) < 1:
        raise UsageError(
            f"weight has shape {tuple(weight.shape)} and x {tuple(x.shape)}, expected [F, D] and [B, D]."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias has shape {tuple(bias.shape)}, expected ({len(weight)},).")
    for name, tensor in (("weight", weight), ("x", x), ("bias", bias)):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise UsageError(f"{name} holds NaN or infinity, expected finite numbers.")
