"""Values: what an option's text stands for.   (floor 8 · cli)"""

import argparse
from itertools import pairwise
from typing import Literal

ENGINES = ("hf", "llama.cpp", "ctranslate2")
GGUF_PRECISIONS = {"bf16": "bf16", "q8_0": "int8", "q4_0": "int4"}  # llama.cpp's names for Winnow's


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small, expected at least 1")
    return number


def real(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def above_zero(text: str) -> float:
    """Read a finite number above 0."""
    number = real(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return number


def heads(text: str) -> float | Literal["auto"]:
    """Read a share of heads, or auto."""
    if text == "auto":
        return "auto"
    try:
        share = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share of the heads; give MODEL before a bare --heads"
        ) from None
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of the heads, expected one between 0 and 1")
    return share


def not_negative(text: str) -> float:
    """Read a finite number from 0 on."""
    return 0.0 if real(text) == 0 else above_zero(text)


def seed(text: str) -> int:
    """Read a seed."""
    number = whole(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{number} is no seed, expected 0 to 2**63 - 1")
    return number


def lengths(text: str) -> tuple[int, ...]:
    """Read numbers of tokens: 2k..1M in steps of four, or 2k,10k,1M; k is 1024, M is 1024 k."""
    first, dots, last = text.partition("..")
    if not dots:
        found = [_tokens(word) for word in text.split(",")]
    else:
        end, found = _tokens(last), [_tokens(first)]
        while 4 * found[-1] < end:
            found.append(4 * found[-1])
        found += [end] if end != found[-1] else []
    if any(a >= b for a, b in pairwise(found)):
        raise argparse.ArgumentTypeError(f"{text!r} does not ascend, expected 2k..1M or 2k,32k,1M")
    return tuple(found)


def _tokens(text: str) -> int:
    factor = {"k": 1024, "M": 1024**2}.get(text[-1:], 1)
    return positive(text if factor == 1 else text[:-1]) * factor


def bias(text: str) -> tuple[int, float]:
    """Read ID=VALUE."""
    token, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no =, expected ID=VALUE such as 50=-100")
    return whole(token), real(value)


def engines(text: str) -> dict[str, str]:
    """Read a list of engines separated by commas: which, and in which precision; "" is that of --dtype."""
    found: dict[str, str] = {}
    for word in (word.strip() for word in text.split(",")):
        name, _, held = word.partition(":")
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown, expected some of {', '.join(ENGINES)}")
        if ":" in word and (name != "llama.cpp" or held not in GGUF_PRECISIONS):
            among = ", ".join(f"llama.cpp:{each}" for each in GGUF_PRECISIONS)
            raise argparse.ArgumentTypeError(f"{word!r} is unknown, expected one of {among}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is named twice, expected once; run bench again for it")
        found[name] = GGUF_PRECISIONS[held] if held else ""
    return found
