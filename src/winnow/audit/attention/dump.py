"""Dump: maps as a file holds them; nothing is run, what is no map is refused.   (floor 5 · audit)"""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from winnow.base.arrays import map_array
from winnow.base.errors import ModelError

LARGEST_BYTES = 2**34
TOLERANCE = 1e-3  # of a row's sum, beside what rounding explains
ZERO = 1e-6
MOST_TOKENS = 2**15
CODE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # pickles, and archives of them


def read_maps(path: Path, layer: int = 0, name: str | None = None) -> tuple[Tensor, torch.dtype]:
    """Return the tensor of maps in `path`, float32, and the type it was stored in.

    A .npy file holds one array; grey levels (uint8) are read as shares of 255. Of a .safetensors file with
    several tensors the one called `name` is taken, or the one whose name has `layer` as its only number.
    Raises ModelError for files of other kinds, truncated ones, pickles and numbers that are none.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes; expected less than 16 GiB of maps.")
        array = (
            torch.from_numpy(map_array(path).copy())
            if path.suffix == ".npy"
            else _safetensors(path, layer, name)
        )
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}). Check --maps.") from None
    stored = array.dtype
    if stored == torch.uint8:
        return array.float() / 255, stored
    if not stored.is_floating_point:
        raise ModelError(f"{path} holds {stored}; expected floating-point maps, or grey levels in uint8.")
    return array.float(), stored


def _safetensors(path: Path, layer: int, name: str | None) -> Tensor:
    with path.open("rb") as file:
        if file.read(4).startswith(CODE):
            raise ModelError(f"{path} is a pickle or an archive; expected .safetensors or .npy. Save it so.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return file.get_tensor(_chosen(path, names, layer, name))
    except SafetensorError as error:
        raise ModelError(f"{path} is no whole safetensors file ({error}). Write it again.") from None


def _chosen(path: Path, names: list[str], layer: int, name: str | None) -> str:
    if name is not None:
        if name not in names:
            raise ModelError(f"{path} has no tensor {name}; it has {', '.join(sorted(names)[:8])}.")
        return name
    if len(names) == 1:
        return names[0]
    fitting = [each for each in names if [int(number) for number in re.findall(r"\d+", each)] == [layer]]
    if len(fitting) != 1:
        raise ModelError(
            f"{path} has {len(names)} tensors ({', '.join(sorted(names)[:8])}); expected one, or one named "
            f"after layer {layer}. Name it with --tensor."
        )
    return fitting[0]


def per_layer(maps: Tensor, layer: int, n_layers: int) -> Float[Tensor, "H T T"]:
    """Return the maps of `layer` and of the first text, as (heads, T, T).

    Taken are (T, T), (heads, T, T), (layers or batch, heads, T, T) and (layers, batch, heads, T, T); of four
    axes the first is layers where it has as many as the model. Raises ModelError for other shapes.
    """
    shape = tuple(maps.shape)
    if maps.ndim not in (2, 3, 4, 5) or shape[-1] != shape[-2] or 0 in shape:
        raise ModelError(f"the maps have shape {shape}; expected (heads, T, T), or layers before that.")
    if shape[-1] > MOST_TOKENS:
        raise ModelError(f"the maps cover {shape[-1]} tokens; expected at most {MOST_TOKENS}.")
    if maps.ndim == 5 or (maps.ndim == 4 and shape[0] == n_layers):
        if layer >= shape[0]:
            raise ModelError(
                f"the maps have {shape[0]} layers; expected layer {layer} among them. Check --layer."
            )
        maps = maps[layer]
    if maps.ndim == 4:
        maps = maps[0]
    return maps[None] if maps.ndim == 2 else maps


def check_maps(maps: Float[Tensor, "H T T"], slack: float, *, is_causal: bool, is_partial: bool) -> None:
    """Refuse maps that no softmax makes: NaN, entries outside 0..1, rows that do not sum to 1, a future seen.

    `slack` is what rounding may do to one entry. Raises ModelError.
    """
    if not bool(torch.isfinite(maps).all()):
        raise ModelError(
            "the maps hold NaN or infinity; expected probabilities. Check how they were written."
        )
    low, high = float(maps.min()), float(maps.max())
    if low < -ZERO or high > 1 + TOLERANCE:
        raise ModelError(
            f"the maps hold {low:.4g} to {high:.4g}; expected 0..1. Are these scores before softmax?"
        )
    off = maps.sum(-1) - 1
    allowed = TOLERANCE + slack * maps.shape[-1]
    worst = float((off if is_partial else off.abs()).max())
    if worst > allowed:
        total = 1 + float(off.flatten()[(off if is_partial else off.abs()).argmax()])
        raise ModelError(
            f"a row of the maps sums to {total:.4g}; expected 1. If only the largest entries were kept, say "
            "how many with --top-k."
        )
    if is_causal and maps.shape[-1] > 1 and float(maps.triu(1).max()) > ZERO:
        raise ModelError("the maps look ahead, the model does not; expected its own maps. Check MODEL.")
