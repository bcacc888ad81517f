"""Audit options: what each audit of maps and times takes.   (floor 8 · cli)"""

import argparse
from pathlib import Path

from winnow.base.errors import UsageError

SIGNALS = ("latency", "active")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add what every audit takes."""
    add = parser.add_argument
    add("--html", type=Path, metavar="FILE", help="write the report as one page that loads nothing")
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with 1 if the finding meets it, such as exact_match>0; may be repeated",
    )


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add what `winnow audit attention MODEL` takes."""
    add = parser.add_argument
    add("--maps", type=Path, metavar="FILE", help="attention: maps in .safetensors or .npy")
    add("--tensor", metavar="NAME", help="of several tensors in FILE, this one")
    add("--layer", type=int, default=0, metavar="L", help="the layer that the maps belong to (0)")
    add("--top-k", type=int, metavar="K", help="FILE keeps only the K largest entries of each row")
    add("--first", type=int, metavar="ID", help="the first token, where it is known")
    add("--anchors", metavar="ID,ID", help="of an encoder: first and last token (default: the tokenizer's)")
    add("--likeliest", type=int, metavar="N", help="of later layers: try the N likeliest tokens first")
    add("--exposures", action="store_true", help="also show a planted text in every other way")


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add what `winnow audit timing MODEL` takes."""
    add = parser.add_argument
    add("--signal", choices=SIGNALS, default="latency", help="seconds per token (latency), or active neurons")
    add("--prompts", type=int, default=40, metavar="N", help="pieces taken of each text (40)")
    add("--prompt-tokens", type=int, default=32, metavar="N", help="length of each (32)")
    add("--max-tokens", type=int, default=24, metavar="N", help="length of each answer (24)")
    add("--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights")
    add("--dtype", choices=("fp32", "bf16", "int8", "int4"), default="bf16", help="of the weights (bf16)")
    add("--threads", type=int, metavar="N", help="default: the processors at hand")
    parser.set_defaults(head_dtype=None, check_tensors=False)


def topic_of(text: str) -> tuple[str, Path]:
    """Read TOPIC=FILE. Raises UsageError."""
    topic, equals, path = text.partition("=")
    if not (equals and topic and path):
        raise UsageError(f"--text {text!r} has no topic; expected TOPIC=FILE such as law=law.txt.")
    return topic, Path(path)
