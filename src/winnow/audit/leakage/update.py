"""Update: files that were, or would be, sent: read, checked, audited.   (floor 5 · audit)

An update is a safetensors file whose tensors are named as the model's parameters: gradients, differences of
weights, or new weights, from which the base is then taken. Nothing in a file is ever run.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from winnow.audit.families import check_vocabulary, parameters_of, read_layout
from winnow.audit.model import open_model
from winnow.base.errors import ModelError

PICKLE_MARKS = (b"\x80", b"PK\x03\x04", b"\x1f\x8b")
NEAR = 0.5  # of a base's length: what differs by less are new weights, not a difference


def load_model(directory: Path) -> nn.Module:
    """Return the model in `directory`, if its gradients can be audited; raises ModelError otherwise."""
    model = open_model(directory)
    check_vocabulary(read_layout(model), parameters_of(model))
    return model


def read_update(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the update at `path`, in float32, by the names of `model`'s parameters.

    Raises ModelError for a pickle, a truncated file, a tensor that the model has not, that has another shape
    or holds NaN or infinity, and where layer 0's maps are missing: then nothing can be said.
    """
    tensors = _read(path)
    parameters = parameters_of(model)
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ModelError(f"{path} holds {name}, which the base model has not. Is it this model's update?")
        if tensor.shape != parameters[name].shape:
            raise ModelError(
                f"{path}: {name} is {tuple(tensor.shape)}, the base model's {tuple(parameters[name].shape)}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {name} holds NaN or infinity; expected numbers.")
    _check_complete(path, tensors, model)
    return _differences(tensors, parameters)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            mark = file.read(4)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); expected a safetensors file. Check the path."
        ) from None
    if any(mark.startswith(each) for each in PICKLE_MARKS) and path.suffix != ".safetensors":
        raise ModelError(f"{path} is a pickle or an archive, which is never opened; expected safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error}). Write or copy it again.") from None


def _check_complete(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    layer = read_layout(model).layers[0]
    for place in (*layer.reads, *layer.mlp):
        if place.weight not in tensors:
            raise ModelError(
                f"{path} lacks {place.weight}, from which the audit reads; it cannot be audited."
            )


def _differences(tensors: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors`, less the base where they are its weights with small changes."""
    changed = sum(float((t - parameters[n]).square().sum()) for n, t in tensors.items())
    whole = sum(float(parameters[n].square().sum()) for n in tensors)
    if changed > NEAR**2 * whole:
        return tensors
    return {name: tensor - parameters[name] for name, tensor in tensors.items()}
