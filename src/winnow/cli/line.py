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
    """An argparse parser whose errors are one line, raised; `places` are those that words fill."""

    places: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        message = message.removeprefix("argument ")
        option = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        if message.startswith("unrecognized arguments: "):
            place = option.lstrip("-").upper()
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            message = f"unknown option {option}" + (f", did you mean {near[0]}?" if near else ".")
            if place in {each.strip("[]") for each in self.places}:
                message = f"unknown option {option}: {place} is a word, expected {' '.join(self.places)}."
        raise UsageError(f"{message.rstrip('.')}. See {self.prog} --help" if "?" not in message else message)


@dataclass(frozen=True)
class Command:
    """One command: its words, optional ones in brackets and side by side, and what adds its options."""

    summary: str
    words: tuple[str, ...]
    add_options: Callable[[Parser], None]
    epilog: str = ""


@dataclass(frozen=True)
class Group:
    """Commands that share their first word, as ``solve lstsq``: the next one chooses among them."""

    summary: str
    commands: Mapping[str, Command]
    words: tuple[str, ...] = ()


def read_line(argv: Sequence[str], commands: Mapping[str, Command | Group]) -> argparse.Namespace:
    """Return the options of one command line, with `command` and one attribute per word of the command.

    Of a group, `command` is its first word and `choice` the next.

    Raises UsageError for what does not parse, SystemExit after ``--help`` and ``--version``.
    """
    head, tail = _split(argv)
    place = _command_place(head, commands)
    if place is None:
        _no_command(head, commands)
    name = head.pop(place)
    command, choice = commands[name], ""
    if isinstance(command, Group):
        choice = _choice(name, command, head)
        command = command.commands[choice]
    full_name = f"{name} {choice}".rstrip()
    arguments = _parser(full_name, command).parse_intermixed_args(head)
    arguments.command, arguments.choice = name, choice
    _take_words(arguments, command, [*arguments.words, *tail], full_name)
    return arguments


def _choice(name: str, group: Group, head: list[str]) -> str:
    """Take the word that chooses among the group's commands out of the line."""
    place = _command_place(head, group.commands)
    if place is not None:
        return head.pop(place)
    known = ", ".join(group.commands)
    if "--help" in head or "-h" in head:
        print(_group_overview(name, group))
        sys.exit(0)
    words = [word for word in head if not word.startswith("-")]
    received = f"{words[0]!r} is no {name} command" if words else f"winnow {name} lacks its second word"
    raise UsageError(f"{received}; expected one of {known}. See winnow {name} --help")


def _group_overview(name: str, group: Group) -> str:
    width = max(map(len, group.commands))
    return "\n".join(
        [
            f"usage: winnow {name} {'|'.join(group.commands)} ... [options]",
            "",
            f"{group.summary[0].upper()}{group.summary[1:]}.",
            "",
            "commands:",
            *(f"  {each:<{width}}  {command.summary}" for each, command in group.commands.items()),
            "",
            "options:",
            f"  winnow {name} COMMAND --help lists them",
        ]
    )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first ``--`` and what stands after it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


def _command_place(head: Sequence[str], commands: Mapping[str, Command | Group]) -> int | None:
    """Return where the command stands: the first word, options and their values before it aside."""
    for place, word in enumerate(head):
        if word in commands:
            return place
        if not word.startswith("-") and (place == 0 or not head[place - 1].startswith("-")):
            return None
    return None


def _no_command(head: Sequence[str], commands: Mapping[str, Command | Group]) -> NoReturn:
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


def _overview(commands: Mapping[str, Command | Group]) -> str:
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
    parser.places = command.words
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    command.add_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes on standard error")
    return parser


def _take_words(arguments: argparse.Namespace, command: Command, words: list[str], name: str) -> None:
    """Give each word of the line to the place it fills; optional places stay empty, the first ones first.

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
        last = [place for place in places if place not in optional][-1]
        raise UsageError(f"{last} is missing, expected {expected}. See winnow {name} --help")
    given_words = iter(words)
    for place in places:
        word = None if place in optional[:n_missing] else next(given_words)
        setattr(arguments, _attribute(place), word)


def _attribute(place: str) -> str:
    return place.strip("[]").lower()
