"""Plan: the predictors of one model, with what was measured of them, in one file.   (floor 5 · engine)

A plan is a safetensors file. For each layer that it winnows it holds ``layers.L.down``, ``.up``, ``.bias``:
int8 matrices with their ``_scales`` beside them; a layer without them runs dense. Its metadata says which
model it belongs to, on which text it was calibrated, what fidelity was asked and what was measured.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.engine.config import ModelConfig
from winnow.engine.sparsity.predictor import LowRankPredictor
from winnow.kernels import Matrix, QuantisedMatrix

FORMAT = "winnow-plan/1"
KEY = "winnow"
FILE_NAME = "winnow-plan.safetensors"


@dataclass(frozen=True)
class Provenance:
    """Where a plan comes from: model, text, mode, what was asked (nats) and what was measured."""

    model_hash: str
    text_hash: str
    lookahead: str
    predictor: str
    target_kld: float
    measured_kld: float
    measured_density: float
    measured_recall: float
    validation_tokens: int


@final
@dataclass(frozen=True)
class Plan:
    """One predictor per layer, or None where the layer runs dense."""

    provenance: Provenance
    layers: tuple[LowRankPredictor | None, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of predictors read per token."""
        return sum(p.n_bytes for p in self.layers if p is not None)

    def save(self, path: Path) -> None:
        """Write the plan whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for index, predictor in enumerate(self.layers):
            if predictor is not None:
                tensors |= _stored(f"layers.{index}.down", predictor.down)
                tensors |= _stored(f"layers.{index}.up", predictor.up)
                tensors[f"layers.{index}.bias"] = predictor.bias
        # One key: safetensors writes several in any order, and equal plans should be equal files.
        metadata = {KEY: json.dumps({"format": FORMAT, **asdict(self.provenance)})}
        with replacing(path) as draft:
            save_file(tensors, draft, metadata=metadata)


def find_plan(directory: Path) -> Path | None:
    """Return the plan that lies beside the weights, if any."""
    path = directory / FILE_NAME
    return path if path.is_file() else None


def open_plan(path: Path, config: ModelConfig, model_hash: str) -> Plan:
    """Read a plan and hold it against the model it is to run with.

    Raises ModelError when the file is missing, broken, of another format version or for another model.
    """
    if not path.is_file():
        raise ModelError(f"No plan at {path}; expected a file written by `winnow calibrate`.")
    try:
        with safe_open(path, framework="pt") as file:
            provenance = _provenance(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a plan: {error}. Calibrate the model again.") from None
    if provenance.model_hash != model_hash:
        raise ModelError(
            f"{path} belongs to the model {provenance.model_hash[:12]}, this one is {model_hash[:12]}; "
            "calibrate this model or name its own plan."
        )
    layers = tuple(_predictor(path, tensors, index, config) for index in range(config.n_layers))
    return Plan(provenance, layers)


def _provenance(path: Path, metadata: dict[str, str]) -> Provenance:
    try:
        values = json.loads(metadata[KEY])
        found = values["format"]
        if found != FORMAT:
            raise ModelError(f"{path} has format {found}, this Winnow reads {FORMAT}; calibrate again.")
        return Provenance(**{f.name: f.type(values[f.name]) for f in fields(Provenance)})  # pyright: ignore
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({error!r}); calibrate the model again.") from None


def _predictor(
    path: Path, tensors: dict[str, Tensor], index: int, config: ModelConfig
) -> LowRankPredictor | None:
    stem = f"layers.{index}."
    if not any(name.startswith(stem) for name in tensors):
        return None
    down, up, bias = (tensors.get(stem + name) for name in ("down", "up", "bias"))
    if down is None or up is None or bias is None:
        raise ModelError(f"{path} holds only part of layer {index}; calibrate the model again.")
    wanted = ((down.shape[0], config.width), (config.n_neurons, down.shape[0]), (config.n_neurons,))
    received = (tuple(down.shape), tuple(up.shape), tuple(bias.shape))
    if received != wanted:
        raise ModelError(f"{path} has shapes {received} in layer {index}, the model needs {wanted}.")
    try:
        scales = [tensors.get(f"{stem}{name}_scales") for name in ("down", "up")]
        return LowRankPredictor(_matrix(down, scales[0]), _matrix(up, scales[1]), bias)
    except UsageError as error:
        raise ModelError(f"{path} has a broken layer {index}: {error} Calibrate the model again.") from None


def _stored(name: str, matrix: Matrix | QuantisedMatrix) -> dict[str, Tensor]:
    if isinstance(matrix, QuantisedMatrix):
        return {name: matrix.values, f"{name}_scales": matrix.scales}
    return {name: matrix.weight}


def _matrix(values: Tensor, scales: Tensor | None) -> Matrix | QuantisedMatrix:
    return Matrix(values) if scales is None else QuantisedMatrix(values, scales)
