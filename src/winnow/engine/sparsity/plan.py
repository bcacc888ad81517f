"""Plan: the predictors of one model, with what was measured of them, in one file.   (floor 5 · engine)

A plan is a safetensors file. A layer it winnows has ``layers.L.down``, ``.up`` and ``.bias`` (int8 matrices
with their ``_scales`` beside them), or ``layers.L.thresholds`` for the gate, or ``layers.L.projection``,
``.offset``, ``.signs``, ``.sizes`` and ``.bias`` for the index; a layer without them runs dense.
Where heads are left out too, ``heads.L.down`` and the rest foretell the kv heads of layer L.
Its metadata says which model it belongs to and in which precisions it may run, on which text it was
calibrated, what fidelity was asked, what was measured, and the same for every layer.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.engine.checkpoint import openable
from winnow.engine.config import ModelConfig, brief
from winnow.engine.sparsity.predictor import (
    GatePredictor,
    HeadPredictor,
    Lookahead,
    LowRankPredictor,
    Predictor,
    described,
    predictor_of,
)
from winnow.engine.sparsity.sparse_mlp import LayerCounts

FORMAT = "winnow-plan/2"
KEY = "winnow"
FILE_NAME = "winnow-plan.safetensors"


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
    measured_head_density: float = 1.0  # older files do not say it and leave no heads out

    def check_model(self, model_hash: str, name: str) -> None:
        """Raise ModelError when the plan, which the message calls `name`, belongs to another model."""
        if self.model_hash != model_hash:
            raise ModelError(
                f"{name} belongs to the model {self.model_hash[:12]}, this one is {model_hash[:12]}; "
                "calibrate this model or name its own plan."
            )

    def check_precision(self, precision: str, name: str) -> None:
        """Raise UsageError when the plan does not list `precision`, the type of the weights."""
        if precision not in self.precisions:
            raise UsageError(
                f"{name} was made for {' and '.join(self.precisions)} weights, these are {precision}; "
                f"choose a type it was made for, run dense, or calibrate with {precision} weights."
            )


@final
@dataclass(frozen=True)
class Plan:
    """One predictor per layer, or None where the layer runs dense, and what was counted of each.

    `quality` has one row per layer, or none at all where nothing was measured; `heads` has one predictor of
    heads per layer, or None where all are computed, or none at all.
    """

    provenance: Provenance
    layers: tuple[Predictor | None, ...]
    quality: tuple[LayerCounts, ...] = ()
    heads: tuple[HeadPredictor | None, ...] = ()

    def __post_init__(self) -> None:
        """Refuse counts and heads that leave layers out."""
        for said, rows in (("counts", self.quality), ("predictors of heads", self.heads)):
            if len(rows) not in (0, len(self.layers)):
                raise UsageError(f"The plan has {len(self.layers)} layers and {said} of {len(rows)}.")

    @property
    def has_heads(self) -> bool:
        """Whether heads are left out anywhere."""
        return any(predictor is not None for predictor in self.heads)

    @property
    def n_bytes(self) -> int:
        """Bytes of predictors read per token."""
        return sum(p.n_bytes for p in (*self.layers, *self.heads) if p is not None)

    def check_fits(self, config: ModelConfig, name: str) -> None:
        """Raise ModelError when the plan's shapes are not those of the model."""
        if len(self.layers) != config.n_layers:
            raise ModelError(
                f"{name} has {len(self.layers)} layers, the model {config.n_layers}; calibrate this model."
            )
        for index, predictor in enumerate(self.layers):
            if isinstance(predictor, GatePredictor) and not config.is_gated:
                raise ModelError(
                    f"{name} has a gate in layer {index}, the model's MLPs have none; calibrate this model."
                )
            _check_shapes(predictor, config.width, config.n_neurons, f"{name} has shapes", index)
        for index, predictor in enumerate(self.heads):
            _check_shapes(predictor, config.width, config.n_kv_heads, f"{name} has head shapes", index)

    def save(self, path: Path) -> None:
        """Write the plan whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for stem, predictors in (("layers", self.layers), ("heads", self.heads)):
            for index, predictor in enumerate(predictors):
                if predictor is not None:
                    # Copies: layers may share a tensor, which safetensors refuses to write.
                    held = predictor.tensors.items()
                    tensors |= {f"{stem}.{index}.{name}": each.clone() for name, each in held}
        # One key: safetensors writes several in any order, and equal plans should be equal files.
        said = {
            "format": FORMAT,
            **asdict(self.provenance),
            "layers": [self._row(i) for i in range(len(self.layers))],
        }
        with replacing(path) as draft:
            save_file(tensors, draft, metadata={KEY: json.dumps(said)})

    def _row(self, index: int) -> dict[str, object]:
        return {**described(self.layers[index]), **(asdict(self.quality[index]) if self.quality else {})}


NAMED = fields(Provenance)


def find_plan(directory: Path) -> Path | None:
    """Return the plan that lies beside the weights, if any."""
    path = directory / FILE_NAME
    return path if path.is_file() else None


def open_plan(path: Path, config: ModelConfig, model_hash: str, precision: str) -> Plan:
    """Read a plan and hold it against the model, and the precision, that it is to run with.

    Raises ModelError as `read_plan` does, and UsageError for a precision that the plan does not list.
    """
    plan = read_plan(path, config, model_hash)
    plan.provenance.check_precision(precision, str(path))
    return plan


def read_plan(path: Path, config: ModelConfig, model_hash: str) -> Plan:
    """Read a plan and hold it against the model it belongs to.

    Raises ModelError when the file is missing, broken, of another format version or for another model.
    """
    said, tensors = _contents(path)
    provenance = _provenance(path, said)
    provenance.check_model(model_hash, str(path))
    rows = _rows(path, said)
    layers = tuple(_predictor(path, tensors, index, row) for index, row in enumerate(rows))
    plan = Plan(provenance, layers, _quality(path, rows), _heads(path, tensors, len(rows)))
    plan.check_fits(config, str(path))
    return plan


def read_provenance(path: Path) -> Provenance:
    """Return what a plan says of itself, for a model whose hash is not known; raises as `read_plan` does."""
    return _provenance(path, _contents(path)[0])


def _contents(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(f"No plan at {path}; expected a file written by `winnow calibrate`.")
    try:
        with openable(path) as name, safe_open(name, framework="pt") as file:
            said = _header(path, file.metadata() or {})
            return said, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a plan: {brief(str(error), 200)}. Calibrate it again.") from None


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        said = json.loads(metadata[KEY])
        found = said["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} has a broken header ({brief(error, 200)}); calibrate it again.") from None
    if found != FORMAT:
        raise ModelError(
            f"{path} has format {brief(found)}, this Winnow reads {FORMAT}; calibrate the model again."
        )
    return said


def _provenance(path: Path, said: Mapping[str, object]) -> Provenance:
    try:
        names = said["precisions"]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"precisions are {names!r}")
        found = {f.name: said[f.name] if f.default is MISSING else said.get(f.name, f.default) for f in NAMED}
        return Provenance(**{f.name: f.type(found[f.name]) for f in NAMED})  # pyright: ignore
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({brief(error, 200)}); calibrate it again.") from None


def _rows(path: Path, said: Mapping[str, object]) -> list[dict]:
    rows = said.get("layers")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ModelError(f"{path} has a broken header (no list of layers); calibrate the model again.")
    return rows


def _quality(path: Path, rows: list[dict]) -> tuple[LayerCounts, ...]:
    names = [f.name for f in fields(LayerCounts)]
    if not any(name in row for row in rows for name in names):
        return ()
    try:
        return tuple(LayerCounts(**{name: float(row[name]) for name in names}) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has a broken header ({brief(error, 200)}); calibrate it again.") from None


def _heads(path: Path, tensors: Mapping[str, Tensor], n_layers: int) -> tuple[HeadPredictor | None, ...]:
    if not any(name.startswith("heads.") for name in tensors):
        return ()
    found: list[HeadPredictor | None] = []
    for index in range(n_layers):
        has_any = any(name.startswith(f"heads.{index}.") for name in tensors)
        row = {"kind": "svd" if has_any else "dense", "lookahead": Lookahead.SAME}
        predictor = _predictor(path, tensors, index, row, "heads")
        found.append(predictor if isinstance(predictor, LowRankPredictor) else None)
    return tuple(found)


def _predictor(
    path: Path, tensors: Mapping[str, Tensor], index: int, row: Mapping[str, Any], of: str = "layers"
) -> Predictor | None:
    stem = f"{of}.{index}."
    found = {name.removeprefix(stem): tensor for name, tensor in tensors.items() if name.startswith(stem)}
    try:
        return predictor_of(row, found)
    except KeyError as error:
        raise ModelError(
            f"{path} holds only part of layer {index}, no {error}; calibrate the model again."
        ) from None
    except (UsageError, ValueError, TypeError) as error:
        reason = brief(str(error), 300)
        raise ModelError(
            f"{path} has a broken layer {index} ({reason}); calibrate the model again."
        ) from None


def _check_shapes(predictor: Predictor | None, width: int, n_outputs: int, begins: str, index: int) -> None:
    wanted = () if predictor is None else predictor.shapes_for(width, n_outputs)
    if predictor is not None and predictor.shapes != wanted:
        raise ModelError(
            f"{begins} {predictor.shapes} in layer {index}, the model needs {wanted}; calibrate this model."
        )
