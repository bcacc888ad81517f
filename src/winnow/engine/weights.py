"""Weights: a model's tensors as the kernels read them, and the maps they stand for.   (floor 5 · engine)

Each map has two readings: called with a tensor of rows it is the definition in plain torch, and `apply`
hands the same memory to the kernels, a batch of rows from numpy array to numpy array. Activations are float32
between maps. torch rounds input and result of a bfloat16 product to bfloat16; the kernels round neither.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from winnow.engine.config import ModelConfig
from winnow.kernels import Activation, AnyMatrix, Calls, Lists, NeuronRecords, int4, matrix
from winnow.kernels.gathered_linear import by_blocks, from_blocks

# The types in which weights are held, by the names that users give them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8, "int4": int4}


@final
@dataclass(frozen=True, eq=False)
class Linear:
    """``y = x @ matrix.T + bias``; reads the matrix's bytes."""

    matrix: AnyMatrix
    bias: Float32[Tensor, " M"] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of weight that one product reads."""
        return self.matrix.n_bytes

    def __call__(self, x: Float32[Tensor, "T D"]) -> Float32[Tensor, "T M"]:
        """Return the product for T rows."""
        y = product(x, self.matrix.weight)
        return y if self.bias is None else y + self.bias

    def apply(self, calls: Calls, x: Float32[np.ndarray, "B D"], out: Float32[np.ndarray, "B M"]) -> None:
        """Write the products for a batch of rows into `out`."""
        calls.linear(x, self.matrix, self._bias, out)

    def apply_by_head(
        self, calls: Calls, x: Float32[np.ndarray, "B D"], heads: Lists, out: Float32[np.ndarray, "B M"]
    ) -> None:
        """Write the products with the rows of each row's listed heads into those places of `out`."""
        calls.gathered_rows(x, self.matrix, self._bias, *heads, out)

    def part(self, start: int, stop: int) -> "Linear":
        """Return the outputs start..stop-1, the same memory."""
        return Linear(self.matrix.part(start, stop), None if self.bias is None else self.bias[start:stop])

    @cached_property
    def _bias(self) -> np.ndarray | None:
        return None if self.bias is None else self.bias.numpy()


@final
@dataclass(frozen=True, eq=False)
class HeadLinear:
    """``y = a @ weight.T + bias``: the map behind attention, stored so that heads left out are not read.

    int8 holds a scale per output and head; int4 needs a multiple of 32 inputs per head.
    """

    matrix: AnyMatrix  # of n_heads blocks, as `by_blocks` lays them out
    n_heads: int  # kv heads, each with the inputs of all heads that share it
    bias: Float32[Tensor, " D"] | None = None

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "D M"],
        n_heads: int,
        dtype: torch.dtype,
        bias: Float32[Tensor, " D"] | None,
    ) -> "HeadLinear":
        """Return `weight` laid out for `n_heads` kv heads and rounded to `dtype`."""
        return cls(matrix(by_blocks(weight, n_heads), dtype), n_heads, bias)

    @property
    def weight(self) -> Float[Tensor, "D M"]:
        """The weights that are meant."""
        return from_blocks(self.matrix.weight, self.n_heads)

    @property
    def n_bytes(self) -> int:
        """Bytes of weight that one product with all inputs reads."""
        return self.matrix.n_bytes

    def __call__(self, a: Float32[Tensor, "T M"]) -> Float32[Tensor, "T D"]:
        """Return the product for T rows."""
        y = product(a, self.weight)
        return y if self.bias is None else y + self.bias

    def apply(
        self, calls: Calls, a: Float32[np.ndarray, "B M"], heads: Lists, out: Float32[np.ndarray, "B D"]
    ) -> None:
        """Write the products for a batch of rows, each over the inputs of its listed heads, into `out`."""
        calls.gathered_columns(a, self.matrix, self._bias, *heads, out)

    @cached_property
    def _bias(self) -> np.ndarray | None:
        return None if self.bias is None else self.bias.numpy()


@final
@dataclass(frozen=True, eq=False)
class LayerNorm:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` along the last axis."""

    weight: Float32[Tensor, " D"]
    bias: Float32[Tensor, " D"]
    eps: float

    def __call__(self, x: Float32[Tensor, "*B D"]) -> Float32[Tensor, "*B D"]:
        """Return the rows, each normalised."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def apply(self, calls: Calls, x: Float32[np.ndarray, "N D"], out: Float32[np.ndarray, "N D"]) -> None:
        """Write the normalised rows into `out`, which may be `x`."""
        calls.layer_norm(x, self._weight, self._bias, self.eps, out)

    @cached_property
    def _weight(self) -> np.ndarray:
        return self.weight.numpy()

    @cached_property
    def _bias(self) -> np.ndarray:
        return self.bias.numpy()


@final
@dataclass(frozen=True, eq=False)
class RmsNorm:
    """``x / sqrt(mean(x * x) + eps) * weight`` along the last axis."""

    weight: Float32[Tensor, " D"]
    eps: float

    def __call__(self, x: Float32[Tensor, "*B D"]) -> Float32[Tensor, "*B D"]:
        """Return the rows, each normalised."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    def apply(self, calls: Calls, x: Float32[np.ndarray, "N D"], out: Float32[np.ndarray, "N D"]) -> None:
        """Write the normalised rows into `out`, which may be `x`."""
        calls.rms_norm(x, self._weight, self.eps, out)

    @cached_property
    def _weight(self) -> np.ndarray:
        return self.weight.numpy()


Norm = LayerNorm | RmsNorm


@runtime_checkable
class MlpWeights(Protocol):
    """What an MLP is made of: its neurons, its output bias, its activation. A Layer holds one."""

    @property
    def mlp(self) -> NeuronRecords:
        """One record per neuron."""
        ...

    @property
    def mlp_bias(self) -> Float32[Tensor, " D"] | None:
        """What is added to the sum over the neurons."""
        ...

    @property
    def activation(self) -> Activation:
        """The function of a neuron's input, or of its gate."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """One block: attention and its norm, the MLP's neuron records and their norm."""

    attention_norm: Norm
    qkv: Linear  # rows: H*E of queries, then K*E of keys, then K*E of values
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    out: Linear | HeadLinear
    mlp_norm: Norm
    mlp: NeuronRecords
    mlp_bias: Float32[Tensor, " D"] | None
    activation: Activation
    window: int | None = None  # how many keys, its own included, a query may see


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """All tensors of one model; a tied head shares the embedding's memory."""

    config: ModelConfig
    embed: AnyMatrix  # [V, embed]
    positions: Float[Tensor, "positions D"] | None  # OPT: row p belongs to position p
    project_in: Linear | None
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    project_out: Linear | None
    head: Linear
    kv_dtype: torch.dtype | None = None  # None: that of products

    @property
    def dtype(self) -> torch.dtype:
        """In which the layers are held; embedding and head may be held otherwise."""
        return self.layers[0].mlp.dtype

    @property
    def product_dtype(self) -> torch.dtype:
        """In which a prompt is multiplied: the layers' type, bfloat16 beside int8 and int4."""
        return self.dtype if self.dtype.is_floating_point else torch.bfloat16

    @property
    def cache_dtype(self) -> torch.dtype:
        """In which keys and values are held."""
        return self.product_dtype if self.kv_dtype is None else self.kv_dtype


def product(x: Float32[Tensor, "T D"], weight: Float[Tensor, "M D"]) -> Float32[Tensor, "T M"]:
    """Return ``x @ weight.T``, computed in weight's type and given back in float32."""
    return (x.to(weight.dtype) @ weight.T).float()
