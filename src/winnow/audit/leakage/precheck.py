"""Pre-check: what a gradient can give away, in seconds and without an attack.   (floor 5 · audit)

A layer's inputs show while there are fewer distinct ones than dimensions and their directions stand above the
noise. Both are read from the gradient's singular values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from winnow.audit.front import Front
from winnow.audit.leakage.attack import position_rows, token_rows
from winnow.audit.leakage.batches import stacked
from winnow.audit.leakage.lora import capacity
from winnow.audit.leakage.meters import Noise, noise_of
from winnow.audit.leakage.spans import read_span


@final
@dataclass(frozen=True)
class LayerCheck:
    """Of the inputs of one layer's `maps`: `rank` directions above the noise in `width` dimensions."""

    layer: int
    maps: str
    rank: int
    width: int
    is_saturated: bool


@final
@dataclass(frozen=True)
class Precheck:
    """What shows. `n_tokens` and `n_positions` are exact where the embeddings have gradients, else None.

    `clients` is how many such gradients must be summed, in secret, before layer 0 is full: nothing shows
    from there on. 0 where no direction shows already. `adapter_capacity` is per round.
    """

    layers: tuple[LayerCheck, ...]
    noise: Noise | None
    n_tokens: int | None
    n_positions: int | None
    clients: int
    adapter_capacity: int


def precheck(model: nn.Module, gradients: Mapping[str, Tensor], n_layers: int | None = None) -> Precheck:
    """Return what `gradients` can give away. `n_layers` limits how many layers are looked at (all).

    Costs two eigenproblems of width D per layer. Raises ModelError for an unknown family.
    """
    front = Front.of(model)
    noise = noise_of(front, gradients)
    tau = noise.deviation if noise is not None and "rows" in noise.source and noise.deviation else None
    layers = []
    for number, layer in enumerate(front.layout.layers[:n_layers]):
        for maps, what in ((layer.reads, "attention"), (layer.mlp, "mlp")):
            matrix = stacked(gradients, maps)
            if matrix is not None:
                span = read_span(matrix, tau)
                layers.append(LayerCheck(number, what, span.rank, span.width, span.is_saturated))
    least = min((each.rank for each in layers if each.layer == 0), default=0)
    tokens = token_rows(front, gradients)
    return Precheck(
        tuple(layers),
        noise,
        None if tokens is None else len(tokens),
        position_rows(front, gradients),
        -(-front.width // least) if least else 0,
        capacity(front, 1),
    )
