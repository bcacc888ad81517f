"""Rope: rotary positions, their frequencies and tables.   (floor 5 · engine)

Coordinates e and e + E/2 of a head turn together by the angle ``position * frequency[e]``:

    frequency[e] = theta ** (-2e / E)          default
    linear     divides every frequency by `factor`
    llama3     divides the slow ones, leaves the fast ones, blends between
    yarn       as llama3, with a ramp over e, and scales cosine and sine
"""

import math

import torch
from jaxtyping import Float32
from torch import Tensor

from winnow.engine.config import Fields, Rope

KINDS = ("default", "linear", "llama3", "yarn")


def parse_rope(fields: Fields, head_width: int) -> Rope:
    """Return the rotary positions of a config, in the spelling of transformers 4 or 5.

    v4: ``rope_theta`` and ``rope_scaling {type | rope_type, factor, ...}``; v5: ``rope_parameters``.
    Raises ModelError for other kinds, partial rotation and odd head widths.
    """
    if head_width % 2:
        raise fields.unfit("head_dim", head_width, "an even number, as rotary positions pair coordinates")
    key = "rope_scaling" if fields.has("rope_scaling") else "rope_parameters"
    table = fields.raw.get(key) or {}
    if not isinstance(table, dict):
        raise fields.unfit(key, table, "an object")
    if any(isinstance(value, dict) for value in table.values()):
        raise fields.unfit(key, table, "one set of values for all layers")
    own = Fields(_with_outer(table, fields), f"{fields.where}, {key}")
    if own.real("partial_rotary_factor", 1.0) != 1.0:
        raise own.unfit("partial_rotary_factor", own.raw["partial_rotary_factor"], "1")
    kind = own.choice("rope_type", "default", KINDS)
    # Yarn takes logarithms to the base theta.
    theta = own.real("rope_theta", 10_000.0, low=1.0 if kind != "yarn" else 1.0001)
    if kind == "default":
        return Rope(kind, theta)
    factor = own.real("factor", low=1.0)
    if kind == "linear":
        return Rope(kind, theta, factor)
    n_positions = fields.whole("max_position_embeddings", high=2**24)
    original = own.whole("original_max_position_embeddings", n_positions, high=2**24)
    if kind == "llama3":
        low = own.real("low_freq_factor", low=1e-6)
        high = own.real("high_freq_factor", low=1e-6)
        if high <= low:
            raise own.unfit("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
        return Rope(kind, theta, factor, low, high, original)
    return _parse_yarn(own, theta, factor, original)


def _with_outer(table: dict, fields: Fields) -> dict:
    """Fill the keys of `table` that older spellings write elsewhere."""
    outer = {key: fields.raw[key] for key in ("rope_theta", "partial_rotary_factor") if fields.has(key)}
    own = {key: value for key, value in table.items() if value is not None}
    if "type" in own:
        outer["rope_type"] = own["type"]
    merged = {**outer, **own}
    if fields.has("original_max_position_embeddings"):
        merged["original_max_position_embeddings"] = fields.raw["original_max_position_embeddings"]
    return merged


def _parse_yarn(own: Fields, theta: float, factor: float, original: int) -> Rope:
    if own.has("attention_factor"):
        scale = own.real("attention_factor")
    elif own.has("mscale") and own.has("mscale_all_dim"):
        scale = _attention_scale(factor, own.real("mscale")) / _attention_scale(
            factor, own.real("mscale_all_dim")
        )
    else:
        scale = _attention_scale(factor, 1.0)
    return Rope(
        "yarn",
        theta,
        factor,
        low=own.real("beta_slow", 1.0, low=1e-6),
        high=own.real("beta_fast", 32.0, low=1e-6),
        original_positions=original,
        scale=scale,
        truncate=own.flag("truncate", True),
    )


def _attention_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def frequencies(rope: Rope, head_width: int) -> Float32[Tensor, " E_half"]:
    """Return the angle per position of each pair of coordinates of a head."""
    powers = torch.arange(0, head_width, 2).float() / head_width
    plain = 1.0 / rope.theta**powers
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, head_width, rope.theta**powers)
    return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    # A pair that turns more than `high` times over the original context is left as it is, one that
    # turns less than `low` times is slowed by `factor`; between them the two are blended.
    turns = rope.original_positions / (2 * math.pi / plain)
    kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(rope: Rope, head_width: int, periods: Tensor) -> Tensor:
    first, last = (_pair_that_turns(n, rope, head_width) for n in (rope.high, rope.low))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_width - 1)
    last = last + 0.001 if first == last else last
    ramp = ((torch.arange(head_width // 2).float() - first) / (last - first)).clamp(0, 1)
    return ramp / (rope.factor * periods) + (1 - ramp) / periods


def _pair_that_turns(n_turns: float, rope: Rope, head_width: int) -> float:
    """Which pair, as a fraction of an index, turns `n_turns` times over the original context."""
    return (
        head_width * math.log(rope.original_positions / (n_turns * 2 * math.pi)) / (2 * math.log(rope.theta))
    )


def rotary_table(
    rope: Rope, head_width: int, start: int, count: int
) -> tuple[Float32[Tensor, "T E_half"], Float32[Tensor, "T E_half"]]:
    """Return cosine and sine for the positions start .. start + count - 1."""
    positions = torch.arange(start, start + count).float()
    angles = positions[:, None] * frequencies(rope, head_width)
    return angles.cos() * rope.scale, angles.sin() * rope.scale


def rotate(
    x: Float32[Tensor, "T N E"], cos: Float32[Tensor, "T E_half"], sin: Float32[Tensor, "T E_half"]
) -> Float32[Tensor, "T N E"]:
    """Return every head of `x` turned by its position's angles: coordinate e pairs with e + E/2."""
    left, right = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
