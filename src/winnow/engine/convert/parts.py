"""Parts: the memory of a model's weights, each piece by a name.   (floor 5 · engine)

The names are those of the fields in `Weights`; a tied head is the embedding, which is named once.
"""

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from winnow.engine.weights import HeadLinear, Layer, LayerNorm, Linear, RmsNorm, Weights
from winnow.kernels import AnyMatrix, CodedMatrix, Int4Matrix, Matrix, NeuronRecords, QuantisedMatrix

Operand = AnyMatrix | NeuronRecords | Tensor


def parts(weights: Weights) -> dict[str, Tensor]:
    """Return all memory that `weights` read, by name; every tensor is contiguous."""
    return {name: tensor for stem, held in _operands(weights) for name, tensor in _memory(stem, held)}


def first_broken(weights: Weights) -> str | None:
    """Return the name of the first operand with a scale, or vector with an entry, that is not finite."""
    for name, held in _operands(weights):
        if not all(bool(torch.isfinite(each).all()) for each in _floats(held)):
            return name
    return None


def first_unsound(weights: Weights) -> str | None:
    """Return the name of the first operand with coded rows whose patches lead out of them."""
    for name, held in _operands(weights):
        if not all(each.is_sound() for each in _coded(held)):
            return name
    return None


def is_coded(weights: Weights) -> bool:
    """Return whether any weights are held as coded bfloat16."""
    return any(True for _, held in _operands(weights) for _ in _coded(held))


def _operands(weights: Weights) -> Iterator[tuple[str, Operand]]:
    seen: set[int] = set()
    for name, held in _walk("", weights):
        if id(held) not in seen:
            seen.add(id(held))
            yield name, held


def _walk(stem: str, value: object) -> Iterator[tuple[str, Operand]]:
    match value:
        case Matrix() | CodedMatrix() | QuantisedMatrix() | Int4Matrix() | NeuronRecords() | Tensor():
            yield stem, value
        case tuple():
            for index, each in enumerate(value):
                yield from _walk(f"{stem}.{index}", each)
        case Weights() | Layer() | Linear() | HeadLinear() | LayerNorm() | RmsNorm():
            for field in fields(value):
                yield from _walk(f"{stem}.{field.name}".lstrip("."), getattr(value, field.name))


def _memory(stem: str, held: Operand) -> Iterator[tuple[str, Tensor]]:
    match held:
        case Tensor():
            yield stem, held
        case Matrix():
            yield stem, held.weight
        case CodedMatrix():
            yield stem, held.storage
        case QuantisedMatrix():
            yield from ((f"{stem}.values", held.values), (f"{stem}.scales", held.scales))
        case Int4Matrix():
            yield from ((f"{stem}.groups", held.groups), (f"{stem}.scales", held.scales))
        case NeuronRecords():
            yield stem, held.storage


def _floats(held: Operand) -> Iterator[Tensor]:
    """Yield what is held in floats beside the weights themselves."""
    match held:
        case Tensor() if held.ndim == 1:
            yield held
        case QuantisedMatrix() | Int4Matrix():
            yield held.scales
        case NeuronRecords():
            yield held.bias
            if held.is_gated:
                yield held.bias_up
            for name in ("w_in", "w_up", "w_out") if held.is_gated else ("w_in", "w_out"):
                yield from _floats(held.part(name))


def _coded(held: Operand) -> Iterator[CodedMatrix]:
    match held:
        case CodedMatrix():
            yield held
        case NeuronRecords() if held.is_coded:
            for name in ("w_in", "w_up", "w_out") if held.is_gated else ("w_in", "w_out"):
                part = held.part(name)
                if isinstance(part, CodedMatrix):
                    yield part
