"""Audit options: what each audit of maps and times takes.   (floor 8 · cli)"""

from pathlib import Path

from winnow.base.errors import UsageError
from winnow.cli.line import Parser
from winnow.cli.model_options import add_json
from winnow.cli.values import positive, real, whole

SIGNALS = ("latency", "active")
METHODS = ("auto", "matching")


def add_gradients(parser: Parser) -> None:
    """Add what `winnow audit gradients` takes."""
    add = parser.add_argument
    add(
        "--text",
        type=Path,
        required=True,
        metavar="FILE",
        help="a UTF-8 text, whose beginning makes the batch",
    )
    add("--batch", type=positive, default=4, metavar="B", help="texts in the batch (4)")
    add("--length", type=positive, default=24, metavar="N", help="tokens of each text (24)")
    add(
        "--defence",
        action="append",
        metavar="NAME",
        help="none, clip=C, noise=S, bf16, int8, top-k=F, dropout, freeze=NAME, sum=K, lora=R; several "
        "make a matrix",
    )
    add(
        "--method",
        choices=METHODS,
        default="auto",
        help="read spans (auto), or fit one short text to the gradient (matching)",
    )
    _add_report(parser)


def add_update(parser: Parser) -> None:
    """Add what `winnow audit update` takes."""
    parser.add_argument("--base", metavar="MODEL", help="the model that the update changes (pico)")
    parser.add_argument(
        "--clip",
        type=real,
        metavar="C",
        help="the norm each record was cut to: measured noise is then worth an epsilon",
    )
    parser.add_argument(
        "--records", type=positive, default=1, metavar="B", help="with --clip: records in the mean (1)"
    )
    _add_report(parser)


def add_privacy(parser: Parser) -> None:
    """Add what `winnow audit privacy` takes."""
    add = parser.add_argument
    add("--noise", type=real, required=True, metavar="S", help="noise multiplier: sigma over the clip norm")
    add("--rate", type=real, default=1.0, metavar="Q", help="share of the records in a step (1)")
    add("--steps", type=positive, default=1, metavar="T", help="noisy steps in all (1)")
    add("--delta", type=real, default=1e-5, metavar="D", help="mass that epsilon need not cover (1e-5)")
    add("--prior", type=real, default=0.1, metavar="P", help="chance of a right guess beforehand (0.1)")
    add("--update", type=Path, metavar="FILE", help="measure the noise in this update, in safetensors")
    add("--base", metavar="MODEL", help="with --update: the model that it changes (pico)")
    add("--clip", type=real, metavar="C", help="with --update: the norm each record was cut to")
    add("--records", type=positive, metavar="B", help="with --update: records in the mean")
    _add_report(parser)


def add_attention(parser: Parser) -> None:
    """Add what `winnow audit attention MODEL` takes."""
    add = parser.add_argument
    add("--maps", type=Path, metavar="FILE", required=True, help="maps in .safetensors or .npy")
    add("--tensor", metavar="NAME", help="of several tensors in FILE, this one")
    add("--layer", type=int, default=0, metavar="L", help="the layer that the maps belong to (0)")
    add("--top-k", type=int, metavar="K", help="FILE keeps only the K largest entries of each row")
    add("--first", type=int, metavar="ID", help="the first token, where it is known")
    add("--anchors", metavar="ID,ID", help="of an encoder: first and last token (default: the tokenizer's)")
    add("--likeliest", type=int, metavar="N", help="of later layers: try the N likeliest tokens first")
    add("--exposures", action="store_true", help="also show a planted text in every other way")
    _add_report(parser)


def add_timing(parser: Parser) -> None:
    """Add what `winnow audit timing MODEL` takes."""
    add = parser.add_argument
    add("--text", action="append", default=[], metavar="TOPIC=FILE", help="a UTF-8 text, once per topic")
    add("--signal", choices=SIGNALS, default="latency", help="seconds per token (latency), or active neurons")
    add("--prompts", type=int, default=40, metavar="N", help="pieces taken of each text (40)")
    add("--prompt-tokens", type=int, default=32, metavar="N", help="length of each (32)")
    add("--max-tokens", type=int, default=24, metavar="N", help="length of each answer (24)")
    add("--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights")
    add("--dtype", choices=("fp32", "bf16", "int8", "int4"), default="bf16", help="of the weights (bf16)")
    add("--threads", type=int, metavar="N", help="default: the processors at hand")
    parser.set_defaults(head_dtype=None, kv_dtype=None, packed=None, check_tensors=False)
    _add_report(parser)


def _add_report(parser: Parser) -> None:
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
    add("--show-text", action="store_true", help="print what was recovered; left out, only how much")
    add("--seed", type=whole, default=0, metavar="S", help="of planted texts and noise (0)")
    add("--offline", action="store_true", help="never reach for the network")
    add_json(parser)


def topic_of(text: str) -> tuple[str, Path]:
    """Read TOPIC=FILE. Raises UsageError."""
    topic, equals, path = text.partition("=")
    if not (equals and topic and path):
        raise UsageError(f"--text {text!r} has no topic; expected TOPIC=FILE such as law=law.txt.")
    return topic, Path(path)
