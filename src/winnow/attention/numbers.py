"""Numbers: the type of sums, the shape of shared heads, the label of a state.   (floor 4 · attention)

Sums are kept in float32 whatever the dtype of the model: running sums in bfloat16 stand still after a few
hundred steps. float64 stays float64, so that gradients can be checked. Autocast is turned off inside.
"""

import json

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError


def working_type(*tensors: Tensor) -> torch.dtype:
    """Return float64 when any tensor is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def exactly(device: torch.device) -> torch.autocast:
    """Return a block in which autocast does not round products."""
    return torch.autocast(device.type, enabled=False)


def grouped(q: Float[Tensor, "B H T E"], n_kv_heads: int) -> Float[Tensor, "B K group T E"]:
    """Return the query heads by the kv head that they share."""
    return q.unflatten(1, (n_kv_heads, -1))


def signed(label: str) -> Tensor:
    """Return a kind's label as a tensor, to be saved beside its state."""
    return torch.frombuffer(bytearray(json.dumps(label).encode()), dtype=torch.uint8)


def check_signed(tensors: dict[str, Tensor], label: str, names: tuple[str, ...]) -> None:
    """Raise UsageError unless `tensors` are the state of the kind with this label, whole."""
    missing = [name for name in ("kind", *names) if name not in tensors]
    if missing:
        raise UsageError(
            f"The saved state lacks {', '.join(missing)}; expected all that save() gave. Save it again."
        )
    found = bytes(tensors["kind"].cpu().tolist()).decode(errors="replace")
    if found != json.dumps(label):
        raise UsageError(
            f"The saved state is of {found}, this kind is {json.dumps(label)}; load it by a kind "
            "made with the same arguments and seed."
        )
