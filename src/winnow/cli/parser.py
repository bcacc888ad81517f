"""Parser: commands, their words, their options.   (floor 8 · cli)

A command line is one command, its words (MODEL, a prompt) and options, in any order; after ``--`` everything
is a word. Every command has a parser of its own, built when it is chosen.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from winnow.base.errors import UsageError
from winnow.cli.version import version


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, raised."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        message = message.removeprefix("argument ")
        option = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        if message.startswith("unrecognized arguments: "):
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            message = f"unknown option {option}" + (f", did you mean {near[0]}?" if near else ".")
        raise UsageError(f"{message.rstrip('.')}. See {self.prog} --help" if "?" not in message else message)


@dataclass(frozen=True)
class Command:
    """One command: its words, those in brackets first and optional, and what adds its options."""

    summary: str
    words: tuple[str, ...]
    add_options: Callable[[Parser], None]
    epilog: str = ""


def read_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of one command line, with `command` and one attribute per word of the command.

    Raises UsageError for what does not parse, SystemExit after ``--help`` and ``--version``.
    """
    head, tail = _split(argv)
    place = _command_place(head)
    if place is None:
        _no_command(head)
    name = head.pop(place)
    command = COMMANDS[name]
    parser = _parser(name, command)
    arguments = parser.parse_intermixed_args(head)
    arguments.command = name
    _take_words(arguments, command, [*arguments.words, *tail])
    return arguments


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first ``--`` and what stands after it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


def _command_place(head: Sequence[str]) -> int | None:
    """Return where the command stands: the first word, options and their values before it aside."""
    for place, word in enumerate(head):
        if word in COMMANDS:
            return place
        if not word.startswith("-") and (place == 0 or not head[place - 1].startswith("-")):
            return None
    return None


def _no_command(head: Sequence[str]) -> NoReturn:
    """Answer a command line without a command."""
    if "--version" in head:
        print(f"winnow {version()}")
        sys.exit(0)
    if "--help" in head or "-h" in head:
        print(_overview())
        sys.exit(0)
    known = ", ".join(COMMANDS)
    words = [word for word in head if not word.startswith("-")]
    if not words:
        raise UsageError(f"no command given; expected one of {known}. See winnow --help")
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"Did you mean {near[0]}?" if near else "See winnow --help"
    raise UsageError(f"{words[0]!r} is no command; expected one of {known}. {hint}")


def _overview() -> str:
    rows = [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: winnow COMMAND ... [options]",
            "",
            "Runs language models by computing only the neurons each token needs.",
            "",
            "commands:",
            *rows,
            "",
            "MODEL is a checkpoint directory or a hub id; left out, it is the bundled pico.",
            "winnow COMMAND --help lists a command's options; winnow --version says which Winnow this is.",
            "",
            '  winnow generate "Once upon a time" --max-tokens 64 --explain',
        ]
    )


def _parser(name: str, command: Command) -> Parser:
    words = " ".join(command.words)
    parser = Parser(
        prog=f"winnow {name}",
        usage=f"winnow {name} {words} [options]" if words else f"winnow {name} [options]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=command.epilog,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    command.add_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes on standard error")
    return parser


def _take_words(arguments: argparse.Namespace, command: Command, words: list[str]) -> None:
    """Give each word of the line to the place it fills; optional places stay empty first."""
    n_optional = sum(place.startswith("[") for place in command.words)
    n_missing = len(command.words) - len(words)
    expected = " ".join(command.words) or "no words"
    if n_missing < 0:
        raise UsageError(f"received {len(words)} words, expected {expected}; quote what holds spaces.")
    if n_missing > n_optional:
        raise UsageError(
            f"{command.words[-1]} is missing, expected {expected}. See winnow {arguments.command} --help"
        )
    for place, word in zip(command.words, [None] * n_missing + words, strict=True):
        setattr(arguments, place.strip("[]").lower(), word)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small, expected at least 1")
    return number


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _dtype(text: str) -> str:
    if text in ("int8", "int4"):
        raise argparse.ArgumentTypeError(f"{text} is not in this version, expected fp32 or bf16")
    if text not in ("fp32", "bf16"):
        raise argparse.ArgumentTypeError(f"{text!r} is unknown, expected fp32 or bf16")
    return text


def _engines(text: str) -> tuple[str, ...]:
    """Read a list of engines separated by commas."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name in ("ctranslate2", "llama.cpp"):
            raise argparse.ArgumentTypeError(f"{name} is not in this version, expected hf")
        if name != "hf":
            raise argparse.ArgumentTypeError(f"{name!r} is unknown, expected hf")
    return names


def _add_model_options(parser: Parser, dtype: str = "bf16") -> None:
    parser.add_argument(
        "--dtype", type=_dtype, default=dtype, help=f"fp32 or bf16, in which the weights are held ({dtype})"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: the processors at hand")
    parser.add_argument("--offline", action="store_true", help="never reach for the network")


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_generate(parser: Parser) -> None:
    add = parser.add_argument
    add("--max-tokens", type=_positive, default=64, metavar="N", help="length of the answer (64)")
    add("--temperature", type=_real, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    add(
        "--top-p",
        type=_real,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of this mass (1)",
    )
    add("--top-k", type=_whole, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    add(
        "--min-p",
        type=_real,
        default=0.0,
        metavar="P",
        help="leave out what is less likely than P x the best (0)",
    )
    add("--repetition-penalty", type=_real, default=1.0, metavar="R", help="above 1: fewer repetitions (1)")
    add("--seed", type=_whole, default=0, metavar="S", help="same seed, same tokens (0)")
    add("--stop", action="append", default=[], metavar="STR", help="end before this text; may be repeated")
    add("--ignore-eos", action="store_true", help="go on past the end token")
    add("--logprobs", action="store_true", help="with --json: the log-probability of every token")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dense", action="store_true", help="compute every neuron")
    which.add_argument(
        "--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights"
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default); cuda is not in this version")
    add("--explain", action="store_true", help="per layer: density, recall, bytes, time; on standard error")
    _add_model_options(parser)
    _add_json(parser)


def _add_calibrate(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--text",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="UTF-8 texts to learn from",
    )
    add("--out", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights")
    add("--target-kld", type=_real, default=0.001, metavar="NATS", help="loss allowed per token (0.001)")
    _add_limit(parser)
    _add_model_options(parser, "fp32")


def _add_limit(parser: Parser) -> None:
    parser.add_argument(
        "--limit", type=_positive, metavar="TOKENS", help="read at most this much of the text"
    )


def _add_fidelity(parser: Parser) -> None:
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    parser.add_argument(
        "--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights"
    )
    _add_limit(parser)
    _add_model_options(parser, "fp32")
    _add_json(parser)


def _add_perplexity(parser: Parser) -> None:
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    _add_limit(parser)
    _add_model_options(parser, "fp32")
    _add_json(parser)


def _add_bench(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--shape",
        metavar="NAME",
        help="instead of MODEL, a random one of a known shape: opt-1.3b, opt-6.7b, ...",
    )
    add("--density", type=_real, default=0.1, metavar="SHARE", help="with --shape: neurons that fire (0.1)")
    add("--text", type=Path, metavar="FILE", help="with MODEL: the prompt is the beginning of this text")
    add("--against", type=_engines, default=(), metavar="ENGINES", help="hf: the same model in transformers")
    add("--prompt-tokens", type=_positive, default=128, metavar="N", help="length of the prompt (128)")
    add("--max-tokens", type=_positive, default=64, metavar="N", help="length of the answer (64)")
    add("--repeats", type=_positive, default=5, metavar="N", help="counted rounds; medians are shown (5)")
    _add_model_options(parser)
    _add_json(parser)


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    _add_json(parser)


def _add_doctor(parser: Parser) -> None:
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: the processors at hand")
    _add_json(parser)


def _add_train(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="folders of .txt books",
    )
    add(
        "--out", type=Path, required=True, metavar="DIR", help="the model directory; a run in it is continued"
    )
    add("--tokens", type=_positive, metavar="N", help="train on about N tokens instead of the recipe's")
    add("--compile", action="store_true", help="compile the training step first; quicker in long runs")


COMMANDS = {
    "generate": Command(
        "continue a prompt",
        ("[MODEL]", "PROMPT"),
        _add_generate,
        "The prompt - is read from standard input, without the line break at its end. A prompt that begins "
        "with a dash comes last, after --.",
    ),
    "calibrate": Command("make a model's plan: which neurons its tokens need", ("[MODEL]",), _add_calibrate),
    "fidelity": Command("sparse against dense on a text: what the plan loses", ("[MODEL]",), _add_fidelity),
    "perplexity": Command("score a text with every neuron", ("[MODEL]",), _add_perplexity),
    "bench": Command("time dense and sparse side by side", ("[MODEL]",), _add_bench),
    "inspect": Command("say what a checkpoint and its plan hold", ("[MODEL]",), _add_inspect),
    "doctor": Command("say what this machine offers Winnow", (), _add_doctor),
    "train": Command(
        "train a bundled model from plain-text books", ("RECIPE",), _add_train, "RECIPE is pico or pico-llama."
    ),
}
