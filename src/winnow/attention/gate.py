"""Gate: what comes in is checked once, here; all behind it trusts.   (floor 4 · attention)

Padding is set to zero at the gate, so that whatever stood there, not-a-number included, has no effect.

Sums are kept in float32 whatever the dtype of the model: running sums in bfloat16 stand still after a few
hundred steps. float64 stays float64, so that gradients can be checked. Autocast is turned off inside.
"""

import json
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.base.errors import UsageError


def check_sizes(batch: int, n_kv_heads: int, key_width: int, value_width: int) -> None:
    """Raise UsageError unless all four sizes of a state are positive."""
    sizes = {"batch": batch, "n_kv_heads": n_kv_heads, "key_width": key_width, "value_width": value_width}
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is {size}; expected at least 1.")


def check_queries(q: Float[Tensor, "B H T E"], batch: int, n_kv_heads: int, width: int) -> None:
    """Raise UsageError unless `q` can be asked of keys [batch, n_kv_heads, ..., width]."""
    _check_tensor("q", q, "B H T E")
    if q.shape[0] != batch:
        raise UsageError(f"q has batch {q.shape[0]}, the keys have {batch}; expected equal batches.")
    if q.shape[3] != width:
        raise UsageError(f"q has head width {q.shape[3]}, k has {width}; expected equal widths.")
    if q.shape[1] % n_kv_heads:
        raise UsageError(
            f"q has {q.shape[1]} heads, k has {n_kv_heads}; expected a multiple. Repeat or drop query heads."
        )


def gated_keys(
    k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E_v"], mask: Bool[Tensor, "B T"] | None
) -> tuple[Float[Tensor, "B K T E"], Float[Tensor, "B K T E_v"]]:
    """Return `k` and `v` with padding zeroed; raise UsageError where they or `mask` do not fit together."""
    _check_floats("k", k, "B K T E")
    _check_floats("v", v, "B K T E_v")
    if k.shape[:3] != v.shape[:3]:
        raise UsageError(
            f"k is {tuple(k.shape)}, v is {tuple(v.shape)}; expected the same batch, kv heads and positions."
        )
    check_same_device("k", k, "v", v)
    if mask is not None:
        check_same_device("k", k, "mask", mask)
        if mask.dtype != torch.bool:
            raise UsageError(f"mask is {mask.dtype}; expected torch.bool, True at real tokens.")
        if mask.shape != (k.shape[0], k.shape[2]):
            raise UsageError(
                f"mask is {tuple(mask.shape)}; expected {(k.shape[0], k.shape[2])}, a row of positions per "
                "sequence."
            )
        padding = ~mask[:, None, :, None]
        k, v = k.masked_fill(padding, 0), v.masked_fill(padding, 0)
    _check_finite("k", k)
    _check_finite("v", v)
    return k, v


def check_same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise UsageError unless both tensors lie on one device: nothing here moves what it was given."""
    if x.device != other.device:
        raise UsageError(
            f"{name} lies on {x.device}, {other_name} on {other.device}; move one to the other's device."
        )


def check_causal(n_queries: int, n_keys: int) -> None:
    """Raise UsageError when causal queries outnumber the keys at whose end they stand."""
    if n_queries > n_keys:
        raise UsageError(
            f"{n_queries} causal queries, {n_keys} keys; expected at most as many queries as keys, at whose "
            "end they stand. Pass causal=False, or all keys."
        )


def checked_scale(scale: float | None, default: float) -> float:
    """Return the scale to use; raises UsageError unless it is a finite number."""
    found = default if scale is None else scale
    if not math.isfinite(found):
        raise UsageError(f"scale is {found}; expected a finite number, or None for {default:.4g}.")
    return found


def _check_tensor(name: str, x: Tensor, shape: str) -> None:
    _check_floats(name, x, shape)
    _check_finite(name, x)


def _check_floats(name: str, x: Tensor, shape: str) -> None:
    if x.ndim != 4:
        raise UsageError(f"{name} has shape {tuple(x.shape)}; expected four axes, {shape}.")
    if not x.dtype.is_floating_point:
        raise UsageError(f"{name} is {x.dtype}; expected floating point. Convert it first.")
    if 0 in x.shape:
        raise UsageError(
            f"{name} has shape {tuple(x.shape)}; expected no empty axis. Leave empty chunks out."
        )


def _check_finite(name: str, x: Tensor) -> None:
    if not bool(torch.isfinite(x).all()):
        raise UsageError(
            f"{name} holds a number that is not finite; expected finite ones. Mask padding, or look where "
            "it comes from."
        )


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
