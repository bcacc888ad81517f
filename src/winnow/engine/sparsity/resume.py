"""Resume: what an interrupted calibration has finished, kept beside its plan.   (floor 5 · engine)

One safetensors file per finished stage or layer, written whole or not at all. The folder belongs to one
calibration: model, text and options stand in each file, and another calibration refuses it by name.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.engine.sparsity.frontier import Choice
from winnow.engine.sparsity.predictor import described, predictor_of

KEY = "winnow-calibration"
FORMAT = 2


def partial_directory(plan: Path) -> Path:
    """Return the folder that keeps what is finished of the calibration which writes `plan`."""
    return plan.with_name(f"{plan.name}.partial")


@dataclass(frozen=True)
class Stage:
    """What one file holds: tensors, and whatever else JSON can say."""

    tensors: dict[str, Tensor]
    said: Any


class Stages:
    """The finished stages of one calibration; without a folder nothing is kept."""

    def __init__(self, directory: Path | None, binding: Mapping[str, object]) -> None:
        """Open the folder; `binding` is what the calibration is of, by the names its user knows.

        Raises UsageError where the folder holds another calibration: it says what differs.
        """
        self.directory = directory
        self.binding = json.loads(json.dumps({"format": FORMAT, **binding}))
        if directory is None:
            return
        for path in sorted(directory.glob("*.safetensors")):
            self._read(path)

    def load(self, name: str) -> Stage | None:
        """Return what was saved as `name`, None where nothing was."""
        path = None if self.directory is None else self.directory / f"{name}.safetensors"
        if path is None or not path.is_file():
            return None
        said = self._read(path)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return Stage(tensors, said)

    def save(self, name: str, tensors: Mapping[str, Tensor], said: object = None) -> None:
        """Keep a finished stage; a stage of this name that lies there is replaced."""
        if self.directory is None:
            return
        with replacing(self.directory / f"{name}.safetensors") as draft:
            header = json.dumps({"binding": self.binding, "said": said})
            save_file(dict(tensors), draft, metadata={KEY: header})

    def remove(self, name: str) -> None:
        """Drop a stage that nothing needs any more."""
        if self.directory is not None:
            (self.directory / f"{name}.safetensors").unlink(missing_ok=True)

    def _read(self, path: Path) -> object:
        """Return what a file says beside its tensors, after holding it against the binding."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[KEY])
                binding, said = dict(header["binding"]), header["said"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} is no state of a calibration ({error}); delete its folder and calibrate again."
            ) from None
        names = [key for key in self.binding if binding.get(key) != self.binding[key]]
        if names:
            differing = ", ".join(
                f"{n} ({_short(binding.get(n))}, now {_short(self.binding[n])})" for n in names
            )
            raise UsageError(
                f"{path.parent} keeps an unfinished calibration that differs in {differing}; finish "
                "that one, name another --out, or delete the folder."
            )
        return said


def _short(value: object) -> str:
    """Return what can be read in a message: of a hash its beginning."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def forget(plan: Path) -> None:
    """Remove what was kept for `plan`, which is finished."""
    shutil.rmtree(partial_directory(plan), ignore_errors=True)


def packed(choices: Sequence[Choice]) -> tuple[dict[str, Tensor], list[list]]:
    """Return the settings of one layer as tensors and a table; a tensor that several share is kept once."""
    tensors: dict[str, Tensor] = {}
    table: list[list] = []
    names: dict[int, str] = {}
    for number, each in enumerate(choices):
        held = {} if each.predictor is None else each.predictor.tensors
        for part, tensor in held.items():
            if id(tensor) not in names:
                names[id(tensor)] = f"{number}.{part}"
                tensors[f"{number}.{part}"] = tensor
        places = {part: names[id(tensor)] for part, tensor in held.items()}
        table.append([described(each.predictor), places, each.density, each.n_bytes, each.loss])
    return tensors, table


def unpacked(stage: Stage) -> tuple[Choice, ...]:
    """Return the settings that `packed` was given."""
    found = []
    for row, places, density, n_bytes, loss in stage.said:
        held = {part: stage.tensors[name] for part, name in places.items()}
        found.append(Choice(predictor_of(row, held), density, n_bytes, loss))
    return tuple(found)
