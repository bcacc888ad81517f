"""Documents: every block is run or plainly text, every figure has an address, every link leads somewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.house.source import ROOT, Source, Violation

FENCE = re.compile(r"^```(\S*) *(.*)$")
RUN = ("python", "console")
PLAIN = ("text", "json", "toml")  # shown, not run
MARKED = re.compile(r"<!-- from .*?<!-- end -->", re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]*`")
UNIT = r"(tok(ens?)?/s|tokens per second|Gi?B/s|MB/token|ms\b|x\b|times (as )?(fast|faster)|\u00d7|nats\b)"
FIGURE = re.compile(rf"\d[\d.,]*\s?({UNIT}|%)", re.IGNORECASE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
FIRST_SCREEN_LINES = 40


@dataclass(frozen=True)
class Block:
    """A fenced block: the line its first code line stands on, its language, the rest of the info string."""

    line: int
    language: str
    info: str
    code: str


def blocks(source: Source) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    code: list[str] = []
    for number, line in enumerate(source.lines, start=1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, code = (number + 1, fence[1], fence[2].strip()), []
        elif fence and opened is not None:
            found.append(Block(*opened, "\n".join(code)))
            opened = None
        else:
            code.append(line)
    return found


def guarded_blocks(source: Source) -> Iterator[Violation]:
    """A block is ```python or ```console, which run, or says that it is text, json or toml."""
    for block in blocks(source):
        if block.language not in RUN + PLAIN:
            yield source.violation(
                block.line - 1,
                f"a ```{block.language} block is neither run ({', '.join(RUN)}) nor plain text",
            )


def prose(source: Source) -> str:
    """The text with markers, fenced blocks and code spans blanked, its lines where they were."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"^```.*?^```$", blank, source.text, flags=re.DOTALL | re.MULTILINE)
    return CODE_SPAN.sub(blank, MARKED.sub(blank, text))


def figures(source: Source) -> Iterator[Violation]:
    """A measured figure stands between markers that name its result file and key."""
    for number, line in enumerate(prose(source).splitlines(), start=1):
        for match in FIGURE.finditer(line):
            yield source.violation(
                number, f"`{match[0]}` has no address: generate it (CONTRIBUTING.md, Figures)"
            )


def tone(source: Source) -> Iterator[Violation]:
    """No exclamation marks."""
    for number, line in enumerate(prose(source).splitlines(), start=1):
        if "!" in line.replace("<!--", "").replace("![", ""):
            yield source.violation(number, "an exclamation mark")


def links(source: Source) -> Iterator[Violation]:
    """A relative link leads to a file of the repository."""
    folder = (ROOT / source.path).parent
    for number, line in enumerate(source.lines, start=1):
        for target in LINK.findall(line):
            if not re.match(r"^(https?|mailto):", target) and not (folder / target).exists():
                yield source.violation(number, f"the link to {target} leads nowhere")


def first_screen(source: Source) -> Iterator[Violation]:
    """README's first 40 lines: the two commands, one measured table, whom it serves, what it refuses."""
    screen = "\n".join(source.lines[:FIRST_SCREEN_LINES])
    wanted = {
        "make demo": "the command `make demo`",
        "make test": "the command `make test`",
        "ReLU": "for which models it pays (ReLU)",
        "refuse": "what it refuses to do",
    }
    for text, what in wanted.items():
        if text not in screen:
            yield source.violation(1, f"the first {FIRST_SCREEN_LINES} lines lack {what}")
    if not any(" as table " in match[0] for match in MARKED.finditer(screen)):
        yield source.violation(1, f"the first {FIRST_SCREEN_LINES} lines lack one measured table, whole")
