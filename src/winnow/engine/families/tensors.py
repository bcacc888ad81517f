"""Tensors: checked as a whole before the first is read, then copied once.   (floor 5 · engine)

A family asks for its maps by the names of the checkpoint. `Tensors` fills them from a source; `EmptyTensors`
gives the same memory unwritten, for weights that are read as they were packed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from winnow.base.errors import ModelError
from winnow.base.room import return_freed_memory
from winnow.engine.config import ModelConfig
from winnow.engine.weights import HeadLinear, LayerNorm, Linear, RmsNorm
from winnow.kernels import AnyMatrix, CodedMatrix, Matrix, NeuronRecords, matrix
from winnow.kernels.matrices import empty_matrix
from winnow.kernels.pack import can_code

FLOATS = ("F64", "F32", "F16", "BF16")
HEAD = "lm_head.weight"
# Buffers that older checkpoints store and no reader needs.
LEFTOVERS = (".rotary_emb.inv_freq", "decoder.version")

Shapes = dict[str, tuple[int, ...]]


@runtime_checkable
class TensorSource(Protocol):
    """What a model is loaded from: a checkpoint on disk, or tensors in memory."""

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        ...

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        ...

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type (F32, BF16, ... as safetensors spells them) without reading the data."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        ...


class UncodedError(Exception):
    """Some weights are no coded bfloat16: the model is to be held as plain bfloat16."""


class AbstractTensors(ABC):
    """What a family makes its weights of, by the names of `expected`, held as `dtype`.

    The map to logits, and an embedding tied to it, are held as `head_dtype`. With `is_coded` what is held as
    bfloat16 takes twelve bits a weight where its width allows: rows of all maps but those stored by heads.
    """

    config: ModelConfig
    expected: Shapes
    dtype: torch.dtype
    head_dtype: torch.dtype
    is_coded: bool

    @abstractmethod
    def joined(self, names: Sequence[str], dtype: torch.dtype) -> AnyMatrix:
        """Return the matrices called `names` as one in `dtype`, their rows one after the other."""

    @abstractmethod
    def by_head(self, name: str, bias: Tensor | None) -> HeadLinear:
        """Return the map behind attention called `name`, stored by heads."""

    @abstractmethod
    def table(self, *names: str) -> Tensor:
        """Return the tensors called `names` as floats and as one, their rows one after the other."""

    @abstractmethod
    def vector(self, *names: str) -> Tensor:
        """Return the vectors called `names` as one, in float32."""

    @abstractmethod
    def records(self, w_in: str, w_out: str, w_up: str | None = None, *, has_bias: bool) -> NeuronRecords:
        """Return one record per neuron, of the maps called `w_in`, `w_out` and, if gated, `w_up`."""

    @abstractmethod
    def check_tied(self, embed: AnyMatrix, name: str) -> None:
        """Raise ModelError when a head is stored that is not `embed`, stored as `name`."""

    def codes(self, width: int, dtype: torch.dtype) -> bool:
        """Return whether rows of `width` weights of `dtype` are held coded."""
        return self.is_coded and dtype == torch.bfloat16 and can_code(width)

    @property
    def float_dtype(self) -> torch.dtype:
        """What is held as a float beside weights of `dtype`, such as positions."""
        return self.dtype if self.dtype.is_floating_point else torch.bfloat16

    def matrix(self, *names: str) -> AnyMatrix:
        """Return the matrices called `names` as one, their rows one after the other."""
        return self.joined(names, self.dtype)

    def embedding(self, name: str) -> AnyMatrix:
        """Return the embedding called `name`, in the type of the head where it is the head too."""
        return self.joined([name], self.dtype if HEAD in self.expected else self.head_dtype)

    def linear(self, *names: str, has_bias: bool = False) -> Linear:
        """Return the linear maps called `names` as one, with their biases where there are any."""
        bias = self.vector(*(f"{name}.bias" for name in names)) if has_bias else None
        return Linear(self.matrix(*(f"{name}.weight" for name in names)), bias)

    def out_map(self, name: str, *, has_bias: bool, by_head: bool) -> Linear | HeadLinear:
        """Return the map behind attention, stored by heads where heads are to be left out."""
        if not by_head:
            return self.linear(name, has_bias=has_bias)
        return self.by_head(f"{name}.weight", self.vector(f"{name}.bias") if has_bias else None)

    def layer_norm(self, name: str, width: int, eps: float) -> LayerNorm:
        """Return the layer norm called `name`; without stored weights it scales by one and shifts by zero."""
        if f"{name}.weight" not in self.expected:
            return LayerNorm(torch.ones(width), torch.zeros(width), eps)
        return LayerNorm(self.vector(f"{name}.weight"), self.vector(f"{name}.bias"), eps)

    def rms_norm(self, name: str, eps: float) -> RmsNorm:
        """Return the RMS norm called `name`."""
        return RmsNorm(self.vector(f"{name}.weight"), eps)

    def head(self, embed: AnyMatrix, name: str) -> Linear:
        """Return the map to logits: `embed`, stored as `name`, itself when tied, else the stored head.

        Raises ModelError when the config ties the head and the checkpoint holds a different one.
        """
        if HEAD in self.expected:
            return Linear(self.joined([HEAD], self.head_dtype))
        self.check_tied(embed, name)
        return Linear(embed)


@final
class Tensors(AbstractTensors):
    """The tensors of one source under the names of `expected`, given out in `dtype`.

    A checkpoint of the bare model (without its head) spells the same names without ``model.``; both
    are found. Raises ModelError when a tensor is missing, left over, of another shape or no float.
    Peak memory while loading: what was given out plus one tensor.
    """

    def __init__(
        self,
        source: TensorSource,
        expected: Shapes,
        dtype: torch.dtype,
        head_dtype: torch.dtype | None = None,
        is_coded: bool = False,
    ) -> None:
        """Check the whole source against `expected`; a head without a type of its own is held as `dtype`."""
        self.source = source
        self.config = source.config
        self.expected = expected
        self.dtype = dtype
        self.head_dtype = dtype if head_dtype is None else head_dtype
        self.is_coded = is_coded
        stored = set(source.names())
        is_bare = not any(name.startswith("model.") for name in stored)
        self._stored = {name: name.removeprefix("model.") if is_bare else name for name in expected}
        self._check_names(stored)
        for name, shape in expected.items():
            self._check_layout(self._stored[name], shape)

    def joined(self, names: Sequence[str], dtype: torch.dtype) -> AnyMatrix:
        """Return the matrices called `names` as one in `dtype`, their rows one after the other."""
        if not dtype.is_floating_point:
            return matrix(torch.cat([self._read(name) for name in names]), dtype)
        heights, width = [self.expected[name][0] for name in names], self.expected[names[0]][1]
        if self.codes(width, dtype):
            coded, first = CodedMatrix.empty(sum(heights), width), 0
            for name, height in zip(names, heights, strict=True):
                if not coded.put(self._read(name), first):
                    raise UncodedError(name)
                first += height
            return coded
        joined = Matrix.empty(sum(heights), width, dtype)
        for part, name in zip(joined.weight.split(heights), names, strict=True):
            part.copy_(self._read(name))
        return joined

    def by_head(self, name: str, bias: Tensor | None) -> HeadLinear:
        """Return the map behind attention called `name`, stored by heads."""
        return HeadLinear.of(self._read(name), self.config.n_kv_heads, self.dtype, bias)

    def table(self, *names: str) -> Tensor:
        """Return the tensors called `names` as floats and as one, their rows one after the other.

        A single tensor that has the type already is not copied.
        """
        parts = [self._read(name).to(self.float_dtype) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def vector(self, *names: str) -> Tensor:
        """Return the vectors called `names` as one, in float32."""
        return torch.cat([self._read(name).float() for name in names])

    def records(self, w_in: str, w_out: str, w_up: str | None = None, *, has_bias: bool) -> NeuronRecords:
        """Return one record per neuron, filled from the maps called `w_in`, `w_out` and, if gated, `w_up`."""
        n_neurons, width = self.expected[f"{w_in}.weight"]
        is_coded = self.codes(width, self.dtype)
        records = NeuronRecords.empty(n_neurons, width, self.dtype, w_up is not None, is_coded)
        self._put(records, "w_in", w_in)
        self._put(records, "w_out", w_out)
        if has_bias:
            records.bias.copy_(self._read(f"{w_in}.bias"))
        if w_up is not None:
            self._put(records, "w_up", w_up)
            if has_bias:
                records.bias_up.copy_(self._read(f"{w_up}.bias"))
        return_freed_memory()  # scratch from between what stays: hundreds of megabytes by the last layer
        return records

    def check_tied(self, embed: AnyMatrix, name: str) -> None:
        """Raise ModelError when a head is stored that is not `embed`, stored as `name`."""
        if HEAD not in self.source.names():
            return
        self._check_layout(HEAD, embed.shape)
        held = [tensor.to(self.float_dtype) for tensor in (self.source.tensor(HEAD), self._read(name))]
        if not torch.equal(*held):
            raise ModelError(
                f"{HEAD} differs from the embedding although config.json ties the two. "
                "Set tie_word_embeddings to false to use the stored head."
            )

    def _put(self, records: NeuronRecords, part: str, name: str) -> None:
        weight = self._read(f"{name}.weight")
        if not records.put(part, weight.T if part == "w_out" else weight):
            raise UncodedError(name)

    def _read(self, name: str) -> Tensor:
        return self.source.tensor(self._stored[name])

    def _check_names(self, stored: set[str]) -> None:
        known = set(self._stored.values())
        missing = sorted(known - stored)
        if missing:
            raise ModelError(
                f"The checkpoint lacks {_some(missing)}. Does config.json belong to these weights?"
            )
        extra = sorted(name for name in stored - known - {HEAD} if not name.endswith(LEFTOVERS))
        if extra:
            raise ModelError(
                f"The checkpoint holds {_some(extra)} which this architecture does not use. "
                "Does config.json belong to these weights?"
            )

    def _check_layout(self, name: str, shape: tuple[int, ...]) -> None:
        found, dtype = self.source.describe(name)
        if found != shape:
            raise ModelError(
                f"{name} has shape {list(found)}, expected {list(shape)}. "
                "Does config.json belong to these weights?"
            )
        if dtype not in FLOATS:
            raise ModelError(
                f"{name} has type {dtype}, expected {', '.join(FLOATS)}. Use an unquantised checkpoint."
            )


@final
class EmptyTensors(AbstractTensors):
    """The memory of a model's tensors, laid out as `Tensors` does and not yet written.

    Takes address space; memory only where it is touched, which norms without stored weights are.
    """

    def __init__(
        self,
        config: ModelConfig,
        expected: Shapes,
        dtype: torch.dtype,
        head_dtype: torch.dtype | None = None,
        is_coded: bool = False,
    ) -> None:
        """Lay out the tensors `expected` of a model; a head without a type of its own is held as `dtype`."""
        self.config = config
        self.expected = expected
        self.dtype = dtype
        self.head_dtype = dtype if head_dtype is None else head_dtype
        self.is_coded = is_coded

    def joined(self, names: Sequence[str], dtype: torch.dtype) -> AnyMatrix:
        """Return room for the matrices called `names` as one in `dtype`."""
        n_rows, width = self._n_rows(names), self.expected[names[0]][1]
        if self.codes(width, dtype):
            return CodedMatrix.empty(n_rows, width)
        return empty_matrix(n_rows, width, dtype)

    def by_head(self, name: str, bias: Tensor | None) -> HeadLinear:
        """Return room for the map behind attention called `name`, stored by heads."""
        (n_rows, width), n_heads = self.expected[name], self.config.n_kv_heads
        return HeadLinear(empty_matrix(n_rows * n_heads, width // n_heads, self.dtype), n_heads, bias)

    def table(self, *names: str) -> Tensor:
        """Return room for the tensors called `names` as floats and as one."""
        return torch.empty((self._n_rows(names), *self.expected[names[0]][1:]), dtype=self.float_dtype)

    def vector(self, *names: str) -> Tensor:
        """Return room for the vectors called `names` as one, in float32."""
        return torch.empty(self._n_rows(names))

    def records(self, w_in: str, w_out: str, w_up: str | None = None, *, has_bias: bool) -> NeuronRecords:
        """Return room for one record per neuron; each is to be written whole, biases or none."""
        n_neurons, width = self.expected[f"{w_in}.weight"]
        is_coded = self.codes(width, self.dtype)
        return NeuronRecords.unwritten(n_neurons, width, self.dtype, w_up is not None, is_coded)

    def check_tied(self, embed: AnyMatrix, name: str) -> None:
        """Find nothing: what is read as it was packed was held against its source then."""

    def _n_rows(self, names: Sequence[str]) -> int:
        return sum(self.expected[name][0] for name in names)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
