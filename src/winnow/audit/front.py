"""Front: the way from token ids to a layer's queries, keys and values, in pieces.   (floor 5 · audit)

    front = Front.of(model)
    x = front.embed(ids, positions)                the stream into layer 0
    z = front.attention_input(0, x)                what its query, key and value maps read
    q = front.query(0, z, positions)               by head, norms and rotary positions applied
    x = front.after_attention(0, x, mixed)         `mixed` are the heads' weighted values side by side
    z = front.mlp_input(0, x)                      what its MLP's first maps read

transformers' own arithmetic in the type of `Front.of(model, dtype)`; tested against hooks on its modules.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from winnow.audit.families import Layout, parameters_of, read_layout
from winnow.base.errors import ModelError


@final
@dataclass(frozen=True)
class Norm:
    """A layer norm, or a root-mean-square norm: `is_centred` tells them apart."""

    weight: Float[Tensor, " D"]
    bias: Float[Tensor, " D"] | None
    epsilon: float
    is_centred: bool

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype) -> "Norm":
        """Return the norm that `module` is."""
        weight = module.weight
        if not isinstance(weight, Tensor):
            raise ModelError(f"{type(module).__name__} has no weight; expected a norm that has one.")
        if isinstance(module, nn.LayerNorm):
            bias = None if module.bias is None else module.bias.detach().to(dtype)
            return cls(weight.detach().to(dtype), bias, module.eps, True)
        return cls(weight.detach().to(dtype), None, float(module.variance_epsilon), False)  # pyright: ignore

    def __call__(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Return the normed rows of `x`."""
        if self.is_centred:
            return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.epsilon)


@final
@dataclass(frozen=True)
class Front:
    """A model's weights where `layout` says, in one type, without gradients."""

    layout: Layout
    parameters: Mapping[str, Tensor]
    norms: Mapping[str, Norm]
    rotary: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype = torch.float32) -> "Front":
        """Return the front of `model`; weights that have another type are copied. Raises ModelError."""
        layout = read_layout(model)
        modules = dict(model.named_modules())
        paths = [layout.embedding_norm] if layout.embedding_norm else []
        for layer in layout.layers:
            paths += [layer.attention_norm, layer.mlp_norm]
            paths += [path for path in (layer.query_norm, layer.key_norm) if path]
        return cls(
            layout,
            {name: value.to(dtype) for name, value in parameters_of(model).items()},
            {path: Norm.of(modules[path], dtype) for path in paths},
            modules[layout.rotary] if layout.rotary else None,
        )

    @property
    def width(self) -> int:
        """D: the width of the stream."""
        return self.parameters[self.layout.tokens].shape[1]

    @property
    def n_tokens(self) -> int:
        """V: how many tokens have an embedding."""
        return self.parameters[self.layout.tokens].shape[0]

    @property
    def n_positions(self) -> int | None:
        """How many positions have an embedding; None for rotary models."""
        if self.layout.positions is None:
            return None
        return self.parameters[self.layout.positions].shape[0] - self.layout.position_offset

    @property
    def first_norm(self) -> Norm:
        """The norm between the embeddings and the first layer's queries, keys and values."""
        return self.norms[self.layout.embedding_norm or self.layout.layers[0].attention_norm]

    def position_rows(self, positions: Int64[Tensor, "*N"]) -> Float[Tensor, "*N D"] | None:
        """Return what is added to the embeddings of tokens at `positions`; None for rotary models."""
        layout = self.layout
        if layout.positions is None:
            return None
        rows = self.parameters[layout.positions][positions + layout.position_offset]
        return rows if layout.segments is None else rows + self.parameters[layout.segments][0]

    def embed(self, ids: Int64[Tensor, "*N"], positions: Int64[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Return the stream into layer 0 for tokens `ids` at `positions`; BERT's in segment 0."""
        x = self.parameters[self.layout.tokens][ids]
        rows = self.position_rows(positions)
        x = x if rows is None else x + rows
        return self.norms[self.layout.embedding_norm](x) if self.layout.embedding_norm else x

    def attention_input(self, layer: int, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Return what the query, key and value maps of `layer` read of the stream `x`."""
        return self.norms[self.layout.layers[layer].attention_norm](x) if self.layout.norms_first else x

    def query(
        self, layer: int, z: Float[Tensor, "*N D"], positions: Int64[Tensor, "*N"]
    ) -> Float[Tensor, "*N H E"]:
        """Return the queries of rows `z` at `positions`, by head."""
        place = self.layout.layers[layer]
        by_head = place.query.apply(z, self.parameters).unflatten(-1, (-1, self.layout.head_width))
        return self._turned(by_head, place.query_norm, positions)

    def key(
        self, layer: int, z: Float[Tensor, "*N D"], positions: Int64[Tensor, "*N"]
    ) -> Float[Tensor, "*N K E"]:
        """Return the keys of rows `z` at `positions`, by key-value head."""
        place = self.layout.layers[layer]
        by_head = place.key.apply(z, self.parameters).unflatten(-1, (-1, self.layout.head_width))
        return self._turned(by_head, place.key_norm, positions)

    def value(self, layer: int, z: Float[Tensor, "*N D"]) -> Float[Tensor, "*N K E"]:
        """Return the values of rows `z`, by key-value head."""
        place = self.layout.layers[layer]
        return place.value.apply(z, self.parameters).unflatten(-1, (-1, self.layout.head_width))

    def after_attention(
        self, layer: int, x: Float[Tensor, "*N D"], mixed: Float[Tensor, "*N heads"]
    ) -> Float[Tensor, "*N D"]:
        """Return the stream behind the attention: `mixed` through its output map, added to `x`."""
        place = self.layout.layers[layer]
        x = x + place.out.apply(mixed, self.parameters)
        return x if self.layout.norms_first else self.norms[place.attention_norm](x)

    def mlp_input(self, layer: int, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Return what the MLP's first maps read of the stream behind the attention."""
        return self.norms[self.layout.layers[layer].mlp_norm](x) if self.layout.norms_first else x

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "Front":
        """Return this front with other values in the place of its own."""
        return dataclasses.replace(self, parameters={**self.parameters, **parameters})

    def _turned(self, by_head: Tensor, norm: str | None, positions: Tensor) -> Tensor:
        """Apply a norm per head and rotary positions, where the model has them."""
        if norm is not None:
            by_head = self.norms[norm](by_head)
        if self.rotary is None:
            return by_head
        cos, sin = self.rotary(by_head, positions.reshape(1, -1))
        cos, sin = (turn.reshape(*positions.shape, 1, -1) for turn in (cos, sin))
        half = by_head.shape[-1] // 2
        turned = torch.cat([-by_head[..., half:], by_head[..., :half]], -1)
        return by_head * cos + turned * sin
