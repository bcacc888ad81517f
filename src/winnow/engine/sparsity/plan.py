"""Plan: the predictors of one model, with what was measured of them, in one file.   (floor 5 · engine)

A plan is a safetensors file. A layer it winnows has ``layers.L.down``, ``.up`` and ``.bias`` (int8 matrices
with their ``_scales`` beside them), or ``layers.L.thresholds`` for the gate; a layer without them runs dense.
Its metadata says which model it belongs to and in which precisions it may run, on which text it was
calibrated, what fidelity was asked, what was measured, and the same for every layer.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.engine.config import ModelConfig
from winnow.engine.sparsity.predictor import GatePredictor, Lookahead, LowRankPredictor, Predictor
from winnow.engine.sparsity.sparse_mlp import LayerCounts
from winnow.kernels import Matrix, QuantisedMatrix

FORMAT = "winnow-plan/2"
KEY = "winnow"
FILE_NAME = "winnow-plan.safetensors"
DENSE = "dense"  # the kind of a layer without predictor


@dataclass(frozen=True)
class Provenance:
    """Where a plan comes from: model, text, mode, what was asked (nats) and what was measured.

    `lookahead` and `predictor` are what was asked for; each layer says what it has. `precisions` are the
    names of the weight types in which the plan may run.
    """

    model_hash: str
    text_hash: str
    lookahead: str
    predictor: str
    target_kld: float
    measured_kld: float
    measured_density: float
    measured_recall: float
    validation_tokens: int
    precisions: tuple[str, ...] = ("fp32", "bf16")


@final
@dataclass(frozen=True)
class Plan:
    """One predictor per layer, or None where the layer runs dense, and what was counted of each.

    `quality` has one row per layer, or none at all where nothing was measured.
    """

    provenance: Provenance
    layers: tuple[Predictor | None, ...]
    quality: tuple[LayerCounts, ...] = ()

    def __post_init__(self) -> None:
        """Refuse counts that leave layers out."""
        if len(self.quality) not in (0, len(self.layers)):
            raise UsageError(f"The plan has {len(self.layers)} layers and counts of {len(self.quality)}.")

    @property
    def n_bytes(self) -> int:
        """Bytes of predictors read per token."""
        return sum(p.n_bytes for p in self.layers if p is not None)

    def save(self, path: Path) -> None:
        """Write the plan whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for index, predictor in enumerate(self.layers):
            if predictor is not None:
                tensors |= _tensors(f"layers.{index}.", predictor)
        # One key: safetensors writes several in any order, and equal plans should be equal files.
        said = {
            "format": FORMAT,
            **asdict(self.provenance),
            "layers": [self._row(i) for i in range(len(self.layers))],
        }
        with replacing(path) as draft:
            save_file(tensors, draft, metadata={KEY: json.dumps(said)})

    def _row(self, index: int) -> dict[str, object]:
        predictor = self.layers[index]
        mode = (
            {"kind": DENSE}
            if predictor is None
            else {"kind": predictor.kind, "lookahead": predictor.lookahead}
        )
        return {**mode, **(asdict(self.quality[index]) if self.quality else {})}


def find_plan(directory: Path) -> Path | None:
    """Return the plan that lies beside the weights, if any."""
    path = directory / FILE_NAME
    return path if path.is_file() else None


def open_plan(path: Path, config: ModelConfig, model_hash: str, precision: str) -> Plan:
    """Read a plan and hold it against the model, and the precision, that it is to run with.

    Raises ModelError as `read_plan` does, and UsageError for a precision that the plan does not list.
    """
    plan = read_plan(path, config, model_hash)
    if precision not in plan.provenance.precisions:
        raise UsageError(
            f"{path} was made for {' and '.join(plan.provenance.precisions)}, the weights are {precision}; "
            f"choose one of those types, run dense, or calibrate with {precision} weights."
        )
    return plan


def read_plan(path: Path, config: ModelConfig, model_hash: str) -> Plan:
    """Read a plan and hold it against the model it belongs to.

    Raises ModelError when the file is missing, broken, of another format version or for another model.
    """
    if not path.is_file():
        raise ModelError(f"No plan at {path}; expected a file written by `winnow calibrate`.")
    try:
        with safe_open(path, framework="pt") as file:
            said = _header(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a plan: {error}. Calibrate the model again.") from None
    provenance = _provenance(path, said)
    if provenance.model_hash != model_hash:
        raise ModelError(
            f"{path} belongs to the model {provenance.model_hash[:12]}, this one is {model_hash[:12]}; "
            "calibrate this model or name its own plan."
        )
    rows = _rows(path, said, config.n_layers)
    layers = tuple(_predictor(path, tensors, index, row, config) for index, row in enumerate(rows))
    return Plan(provenance, layers, _quality(path, rows))


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        said = json.loads(metadata[KEY])
        found = said["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({error!r}); calibrate the model again.") from None
    if found != FORMAT:
        raise ModelError(f"{path} has format {found}, this Winnow reads {FORMAT}; calibrate the model again.")
    return said


def _provenance(path: Path, said: Mapping[str, object]) -> Provenance:
    try:
        if not isinstance(said["precisions"], list):
            raise TypeError(f"precisions are {said['precisions']!r}")
        return Provenance(**{f.name: f.type(said[f.name]) for f in fields(Provenance)})  # pyright: ignore
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({error!r}); calibrate the model again.") from None


def _rows(path: Path, said: Mapping[str, object], n_layers: int) -> list[dict]:
    rows = said.get("layers")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ModelError(f"{path} has a broken header (no list of layers); calibrate the model again.")
    if len(rows) != n_layers:
        raise ModelError(f"{path} has {len(rows)} layers, the model has {n_layers}; calibrate this model.")
    return rows


def _quality(path: Path, rows: list[dict]) -> tuple[LayerCounts, ...]:
    names = [f.name for f in fields(LayerCounts)]
    if not any(name in row for row in rows for name in names):
        return ()
    try:
        return tuple(LayerCounts(**{name: float(row[name]) for name in names}) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({error!r}); calibrate the model again.") from None


def _predictor(
    path: Path, tensors: Mapping[str, Tensor], index: int, row: Mapping[str, str], config: ModelConfig
) -> Predictor | None:
    stem = f"layers.{index}."
    found = {name.removeprefix(stem): tensor for name, tensor in tensors.items() if name.startswith(stem)}
    try:
        kind = row.get("kind")
        if kind == DENSE:
            return None
        if kind == GatePredictor.kind:
            return _gate(path, found, index, config)
        if kind in ("svd", "low-rank"):
            return LowRankPredictor(*_low_rank(path, found, index, config), kind, Lookahead(row["lookahead"]))
        raise ValueError(f"{kind!r} is no kind of predictor.")
    except (UsageError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} has a broken layer {index}: {error} Calibrate the model again.") from None


def _gate(path: Path, found: Mapping[str, Tensor], index: int, config: ModelConfig) -> GatePredictor:
    thresholds = found.get("thresholds")
    if thresholds is None:
        raise ModelError(f"{path} holds only part of layer {index}; calibrate the model again.")
    if not config.is_gated:
        raise ModelError(
            f"{path} has a gate in layer {index}, the model's MLPs have none; calibrate it again."
        )
    _check_shapes(path, index, (tuple(thresholds.shape),), ((config.n_neurons,),))
    return GatePredictor(thresholds.float())


def _low_rank(
    path: Path, found: Mapping[str, Tensor], index: int, config: ModelConfig
) -> tuple[Matrix | QuantisedMatrix, Matrix | QuantisedMatrix, Tensor]:
    """Return `down`, `up` and `bias` of a layer, their shapes checked."""
    down, up, bias = (found.get(name) for name in ("down", "up", "bias"))
    if down is None or up is None or bias is None:
        raise ModelError(f"{path} holds only part of layer {index}; calibrate the model again.")
    wanted = ((down.shape[0], config.width), (config.n_neurons, down.shape[0]), (config.n_neurons,))
    _check_shapes(path, index, (tuple(down.shape), tuple(up.shape), tuple(bias.shape)), wanted)
    return _matrix(down, found.get("down_scales")), _matrix(up, found.get("up_scales")), bias


def _check_shapes(path: Path, index: int, received: tuple, wanted: tuple) -> None:
    if received != wanted:
        raise ModelError(f"{path} has shapes {received} in layer {index}, the model needs {wanted}.")


def _tensors(stem: str, predictor: Predictor) -> dict[str, Tensor]:
    if isinstance(predictor, GatePredictor):
        return {f"{stem}thresholds": predictor.thresholds}
    down, up = _stored(f"{stem}down", predictor.down), _stored(f"{stem}up", predictor.up)
    return {**down, **up, f"{stem}bias": predictor.bias}


def _stored(name: str, matrix: Matrix | QuantisedMatrix) -> dict[str, Tensor]:
    if isinstance(matrix, QuantisedMatrix):
        return {name: matrix.values, f"{name}_scales": matrix.scales}
    return {name: matrix.weight}


def _matrix(values: Tensor, scales: Tensor | None) -> Matrix | QuantisedMatrix:
    return Matrix(values) if scales is None else QuantisedMatrix(values, scales)
