"""Line: one command line, read: the command, its words, its options.   (floor 8 · cli)

A command line is one command, its words (MODEL, a prompt) and options, in any order; after ``--`` everything
is a word. Every command has a parser of its own, built when it is chosen.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """One command: its words, those in brackets optional, and what adds its options."""

    summary: str
    words: tuple[str, ...]
    add_options: Callable[[Parser], None]
    epilog: str = ""


def read_line(argv: Sequence[str], commands: Mapping[str, Command]) -> argparse.Namespace:
    """Return the options of one command line, with `command` and one attribute per word of the command.

    Raises UsageError for what does not parse, SystemExit after ``--help`` and ``--version``.
    """
    head, tail = _split(argv)
    place = _command_place(head, commands)
    if place is None:
        _no_command(head, commands)
    name = head.pop(place)
    command = commands[name]
    parser = _parser(name, command)
    arguments = parser.parse_intermixed_args(head)
    arguments.command = name
    _take_words(arguments, command, [*arguments.words, *tail])
    return arguments


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first ``--`` and what stands after it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


def _command_place(head: Sequence[str], commands: Mapping[str, Command]) -> int | None:
    """Return where the command stands: the first word, options and their values before it aside."""
    for place, word in enumerate(head):
        if word in commands:
            return place
        if not word.startswith("-") and (place == 0 or not head[place - 1].startswith("-")):
            return None
    return None


def _no_command(head: Sequence[str], commands: Mapping[str, Command]) -> NoReturn:
    """Answer a command line without a command."""
    if "--version" in head:
        print(f"winnow {version()}")
        sys.exit(0)
    if "--help" in head or "-h" in head:
        print(_overview(commands))
        sys.exit(0)
    known = ", ".join(commands)
    words = [word for word in head if not word.startswith("-")]
    if not words:
        raise UsageError(f"no command given; expected one of {known}. See winnow --help")
    near = difflib.get_close_matches(words[0], commands, n=1)
    hint = f"Did you mean {near[0]}?" if near else "See winnow --help"
    raise UsageError(f"{words[0]!r} is no command; expected one of {known}. {hint}")


def _overview(commands: Mapping[str, Command]) -> str:
    rows = [f"  {name:<11} {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: winnow COMMAND ... [options]",
            "",
            "Runs language models by computing only the neurons each token needs.",
            "",
            "commands:",
            *rows,
            "",
            "MODEL is a checkpoint directory, a hub id, or a bundled model: pico (left out) or pico-llama.",
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
    """Give each word of the line to the place it fills; optional places stay empty first.

    Of a word that an option may give by file, as --prompt-file does PROMPT, the place is then gone.
    """
    given = {f"{word}_file" for word in map(_attribute, command.words)} & vars(arguments).keys()
    filled = {name.removesuffix("_file") for name in given if getattr(arguments, name) is not None}
    places = [place for place in command.words if _attribute(place) not in filled]
    optional = [place for place in places if place.startswith("[")]
    n_missing = len(places) - len(words)
    expected = " ".join(places) or "no words"
    if n_missing < 0:
        raise UsageError(f"received {len(words)} words, expected {expected}; quote what holds spaces.")
    if n_missing > len(optional):
        required = [place for place in places if place not in optional]
        raise UsageError(
            f"{required[-1]} is missing, expected {expected}. See winnow {arguments.command} --help"
        )
    left = iter(words)
    for place in places:
        setattr(arguments, _attribute(place), None if place in optional[:n_missing] else next(left))


def _attribute(place: str) -> str:
    return place.strip("[]").lower()
