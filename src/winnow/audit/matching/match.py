"""Match: L-BFGS on the distance between two gradients, from several starts.   (floor 5 · audit)

    min over x of  distance(gradient(x), observed) + weight * prior(x)

Not convex: the best of several starts is kept, and its distance without the prior says how near it came. A
distance of 0 shows that this input makes this gradient; any other shows nothing, neither that the input is
wrong nor that it is safe. After arXiv:2311.13624 (abstract), construction ours.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

Gradients = Sequence[Tensor]
Distance = Callable[[Gradients, Gradients], Tensor]
Prior = Callable[[Tensor], Tensor]
HISTORY = 20
QUIET = 1e-5  # of the longest tensor's length
EXACT = 1e-10  # a distance at which no other start is tried


def squared(made: Gradients, observed: Gradients) -> Tensor:
    """Return the sum of squared differences, as a share of the observed squares."""
    off = torch.stack([(a - b).square().sum() for a, b in zip(made, observed, strict=True)]).sum()
    return off / torch.stack([b.square().sum() for b in observed]).sum().clamp(min=1e-30)


def cosine(made: Gradients, observed: Gradients) -> Tensor:
    """Return the mean over tensors of 1 - cos: blind to scale, so that clipping changes nothing.

    Tensors whose gradient is rounding alone, as that of a key's bias, have no direction and are left out.
    """
    parts = []
    least = QUIET * max(float(b.norm()) for b in observed)
    for a, b in zip(made, observed, strict=True):
        if float(b.norm()) <= least:
            continue
        lengths = a.square().sum().clamp(min=1e-30).sqrt() * b.square().sum().clamp(min=1e-30).sqrt()
        parts.append(1 - (a * b).sum() / lengths)
    return torch.stack(parts).mean()


def total_variation(x: Float[Tensor, "*N height width"]) -> Tensor:
    """Return the mean squared difference between neighbouring pixels."""
    return (x[..., 1:, :] - x[..., :-1, :]).square().mean() + (x[..., 1:] - x[..., :-1]).square().mean()


@final
@dataclass(frozen=True)
class Matching:
    """How to match: `steps` of L-BFGS from each of `restarts` starts; `weight` is the prior's."""

    steps: int = 200
    restarts: int = 8
    distance: Distance = cosine
    prior: Prior | None = None
    weight: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Matched:
    """The input of the best start, the distance of its gradient, and how many starts were made."""

    x: Tensor
    distance: float
    starts: int


def match(
    gradient: Callable[[Tensor], Gradients],
    observed: Gradients,
    starts: Iterable[Tensor],
    options: Matching | None = None,
) -> Matched:
    """Return the input whose `gradient`, differentiable, comes nearest to `observed`, from `starts`.

    At most ``options.restarts`` of them are used. Costs per start about `steps` gradients of the gradient.
    Ends early at a distance of 1e-10; void for an observed gradient that is 0.
    """
    chosen = Matching() if options is None else options
    best = Matched(torch.zeros(0), torch.inf, 0)
    for number, start in enumerate(starts, start=1):
        if number > chosen.restarts or best.distance <= EXACT:
            break
        found, distance = _descended(gradient, observed, start, chosen)
        better = distance < best.distance
        best = Matched(found if better else best.x, min(distance, best.distance), number)
    return best


def _descended(
    gradient: Callable[[Tensor], Gradients], observed: Gradients, start: Tensor, options: Matching
) -> tuple[Tensor, float]:
    x = start.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=options.steps,
        history_size=HISTORY,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value = options.distance(gradient(x), observed)
        if options.prior is not None:
            value = value + options.weight * options.prior(x)
        (x.grad,) = torch.autograd.grad(value, [x])
        return value.detach()

    # The fused kernels of attention have no second derivative.
    with torch.enable_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        distance = float(options.distance(gradient(x), observed).detach())
    found = x.detach()
    return (found, distance) if bool(found.isfinite().all()) else (start, torch.inf)
