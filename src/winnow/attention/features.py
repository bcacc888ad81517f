"""Features: maps whose inner products are the weights.   (floor 4 · attention)

    w(q, k) = keys(k) . queries(scale * q)

With such a map the sum over keys of w(q, k) v is ``queries(q) . sum keys(k) v^T``: the sum over keys no
longer depends on q, and its size not on the number of keys.
"""

import math
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import elu, normalize, pad


@runtime_checkable
class FeatureMap(Protocol):
    """A weight as an inner product of features."""

    @property
    def label(self) -> str:
        """All that fixes the map: equal labels, equal features."""
        ...

    @property
    def is_convex(self) -> bool:
        """Whether no weight is ever negative."""
        ...

    def n_features(self, width: int) -> int:
        """Return the number of features of keys of this width."""
        ...

    def default_scale(self, width: int) -> float:
        """Return the scale that is meant when none is given."""
        ...

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the features of keys."""
        ...

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the features of queries, which are scaled already."""
        ...

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return ``queries(q) @ keys(k).T``, by whatever is the shortest way; equal up to rounding."""
        ...


@final
class EluFeatures:
    """``elu(x) + 1`` in each coordinate: positive, as many features as coordinates.

    After arXiv:2006.16236 (abstract). The customary scale is 1.
    """

    label = "linear(elu)"
    is_convex = True

    def n_features(self, width: int) -> int:
        """As many as coordinates."""
        return width

    def default_scale(self, width: int) -> float:
        """One, whatever the width."""
        return 1.0

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return elu(k) + 1."""
        return elu(k) + 1

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return elu(q) + 1."""
        return elu(q) + 1

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return the products of the features."""
        return self.queries(q) @ self.keys(k).mT


@final
class AngleFeatures:
    """``1 + cos(q, k)``: the polynomial of degree 1 that is never negative.

    Only directions count, so a positive scale changes nothing. A vector of zeros has weight 1 with all.
    """

    label = "linear(degree-1)"
    is_convex = True

    def n_features(self, width: int) -> int:
        """One more than coordinates."""
        return width + 1

    def default_scale(self, width: int) -> float:
        """As everywhere, though it changes nothing."""
        return 1 / math.sqrt(width)

    def keys(self, k: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the unit vector of k and 1."""
        return pad(normalize(k, dim=-1), (0, 1), value=1.0)

    def queries(self, q: Float[Tensor, "*N E"]) -> Float[Tensor, "*N R"]:
        """Return the unit vector of q and 1."""
        return self.keys(q)

    def weights(self, q: Float[Tensor, "*N T E"], k: Float[Tensor, "*M T_keys E"]) -> Tensor:
        """Return 1 + cos(q, k), never below zero whatever the rounding."""
        return (1 + normalize(q, dim=-1) @ normalize(k, dim=-1).mT).clamp(min=0)
