"""Exposure: what is shown of maps, and how wrong a number may be.   (floor 5 · audit)

per head, fp32        the maps themselves
fp16, bf16            rounded relative to their size
4, 3, 2 decimals      rounded on a grid
8 bits                the grey levels of a picture, 0 to 255
averaged              over the heads of a layer
top k                 only each row's k largest entries
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

ARITHMETIC = 3e-5  # relative: what two float32 programs make of the same softmax
GRIDS = {"2 decimals": 100, "8 bits": 255, "3 decimals": 1000, "4 decimals": 10_000}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# How wrong a number of that type may be: relative half a unit in the last place, and the same near zero.
HALF_UNITS = {"bf16": (2.0**-8, 1e-40), "fp16": (2.0**-11, 2.0**-25)}


@final
@dataclass(frozen=True)
class Precision:
    """A shown number p lies within ``relative * p + absolute`` of the true one."""

    name: str
    relative: float = ARITHMETIC
    absolute: float = 1e-12

    def slack(self, shown: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return how far each true number may lie from the shown one."""
        return self.relative * shown + self.absolute


@final
@dataclass(frozen=True)
class Exposure:
    """What a reader of the maps is shown: `rounding` by name, heads averaged or not, the `top_k` of a row."""

    rounding: str = "fp32"
    is_averaged: bool = False
    top_k: int | None = None

    @property
    def name(self) -> str:
        """The exposure in words."""
        heads = "averaged over heads" if self.is_averaged else "per head"
        top = "" if self.top_k is None else f", top {self.top_k}"
        return f"{heads}{top}, {self.rounding}"

    def show(self, maps: Float[Tensor, "H T T"]) -> Float[Tensor, "H_shown T T"]:
        """Return what is shown of `maps`: heads averaged first, then the largest kept, then rounded."""
        shown = maps.mean(0, keepdim=True) if self.is_averaged else maps
        if self.top_k is not None:
            least = shown.topk(min(self.top_k, shown.shape[-1]), -1).values[..., -1:]
            shown = torch.where(shown >= least, shown, 0.0)
        if self.rounding in GRIDS:
            return (shown * GRIDS[self.rounding]).round() / GRIDS[self.rounding]
        return shown.to(HALVES[self.rounding]).float() if self.rounding in HALVES else shown


EXPOSURES = (
    *(Exposure(rounding) for rounding in ("fp32", "fp16", "bf16", *reversed(GRIDS))),
    *(Exposure(rounding, is_averaged=True) for rounding in ("fp32", "fp16", "2 decimals", "8 bits")),
    Exposure("fp32", top_k=4),
)


def precision(maps: Float[Tensor, "H T T"], stored: torch.dtype = torch.float32) -> Precision:
    """Return the precision that `maps` were rounded to, read off the numbers themselves.

    Maps whose numbers all lie on a coarse grid were rounded to it; 0 and 1 alone prove nothing. `stored` is
    the type of the file: a half type counts even where every number would fit a coarser one.
    """
    telling = maps[(maps > 0) & (maps < 1)].double()
    for name, steps in GRIDS.items() if len(telling) > 0 else ():
        scaled = telling * steps
        if float((scaled - scaled.round()).abs().max()) < steps * 1e-7:
            return Precision(name, ARITHMETIC, 0.5 / steps)
    for name, dtype in HALVES.items():
        if stored == dtype or (len(telling) > 0 and bool((telling.to(dtype).double() == telling).all())):
            relative, absolute = HALF_UNITS[name]
            return Precision(name, relative + ARITHMETIC, absolute)
    return Precision("fp32")
