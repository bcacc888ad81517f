"""Documents: their examples run, their links lead somewhere, their first screen says what matters."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.rules_docs import Block, blocks, figures, first_screen, guarded_blocks, links, tone
from tests.house.source import ROOT, Source, assert_caught, assert_none, assert_passes, load
from winnow.base.shapes import LETTERS

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUNNABLE = [load(path) for path in [README, ROOT / "CONTRIBUTING.md", *PAGES] if path.exists()]
WRITTEN = [*RUNNABLE, load(ROOT / "CHANGELOG.md")]
TIMEOUT_S = 240


def test_the_readme_exists():
    assert README.exists(), "README.md is missing: what it is, for which models, two commands, one table"


def test_the_first_screen_of_the_readme_says_what_matters():
    assert_none(first_screen(load(README)))


@pytest.mark.parametrize("rule", [guarded_blocks, tone, links], ids=lambda rule: rule.__name__)
def test_every_document_obeys(rule):
    assert_none(v for s in WRITTEN for v in rule(s))


def test_every_figure_has_an_address():
    # The log is exempt: it keeps what was seen on its day, also what no file can bring back.
    assert_none(v for s in WRITTEN if s.name != "log.md" for v in figures(s))


def test_the_index_links_every_page():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert {p.name for p in PAGES if f"({p.name})" not in index} == {"index.md"}


def test_the_glossary_prints_the_letter_table():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| ([A-Z]) \| (.+?) \|$", text, re.MULTILINE)) == dict(LETTERS)


def run_python(source: Source, block: Block, namespace: dict[str, object]) -> None:
    """Run one block; a failure's traceback shows the line of the document."""
    code = compile("\n" * (block.line - 1) + block.code, source.path, "exec")
    exec(code, namespace)


@pytest.mark.parametrize("source", RUNNABLE, ids=lambda s: s.path)
def test_python_examples_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(source):
        if block.language == "python":
            run_python(source, block, namespace)
    assert "__name__" in namespace


@pytest.mark.parametrize("source", RUNNABLE, ids=lambda s: s.path)
def test_console_examples_run(source, tmp_path):
    prepare(tmp_path)
    failures = [
        f for block in blocks(source) if block.language == "console" for f in run_console(block, tmp_path)
    ]
    assert not failures, "\n" + "\n".join(f"{source.path}:{f}" for f in failures)


def prepare(folder: Path) -> None:
    """Examples may read book.txt: the first pages of the held-out text that ships with the bundled model."""
    for text in sorted((ROOT / "src/winnow/zoo").rglob("*.txt"))[:1]:
        (folder / "book.txt").write_text(text.read_text(encoding="utf-8")[:20_000], encoding="utf-8")


def run_console(block: Block, folder: Path) -> list[str]:
    """Run every `$ ` line in `folder`; exit code 0 is asked for, and the output too after `output=exact`."""
    failures = []
    for number, command, expected in commands(block):
        if command.startswith("make "):  # would run this suite again: CI runs it, here it must only exist
            target = command[5:]
            named = rf"^(?:[\w-]+ )*{re.escape(target)}(?: [\w-]+)*:"
            known = re.search(named, makefile(), re.MULTILINE)
            if not known or not os.access(ROOT / "scripts" / target, os.X_OK):
                failures.append(f"{number}: the Makefile or scripts/ has no `{target}`")
            continue
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            failures.append(f"{number}: `{command}` exited with {done.returncode}: {done.stderr.strip()}")
        elif "output=exact" in block.info and not same_output(expected, done.stdout):
            failures.append(f"{number}: `{command}` printed {done.stdout!r}, the document shows {expected!r}")
    return failures


def commands(block: Block) -> list[tuple[int, str, str]]:
    """(line, command, shown output) of each `$ ` line; a backslash carries a command onto the next line."""
    found: list[tuple[int, str, list[str]]] = []
    carried = False
    for number, line in enumerate(block.code.split("\n"), start=block.line):
        if carried:
            start, command, output = found.pop()
            found.append((start, f"{command[:-1]}{line.strip()}", output))
        elif line.startswith("$ "):
            found.append((number, line[2:], []))
        elif found:
            found[-1][2].append(line)
        carried = bool(found) and (carried or line.startswith("$ ")) and line.endswith("\\")
    return [(number, command, "".join(f"{line}\n" for line in output)) for number, command, output in found]


def same_output(expected: str, printed: str) -> bool:
    """As doctest compares: `...` stands for anything."""
    return doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """The PATH of this interpreter, a `winnow` on it even where none is installed, and no network."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    home = Path(sys.executable).parent
    if not (home / "winnow").exists():
        script = "import sys; from winnow.cli import main; sys.exit(main())"
        (tools / "winnow").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{script}' \"$@\"\n")
        (tools / "winnow").chmod(0o755)
    path = f"{home}{os.pathsep}{tools}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {**os.environ, "PATH": path, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"}


# The checkers themselves, on planted faults.

DOCUMENT = Source(
    "docs/a.md", "# A\n\n```console\n$ true\nshown\n$ echo a \\\n    b\nc\n```\n\n```python\nx = 1\n```\n"
)


def test_blocks_and_commands_are_found_where_they_stand():
    console, python = blocks(DOCUMENT)
    assert commands(console) == [(4, "true", "shown\n"), (6, "echo a b", "c\n")]
    assert (python.line, python.code) == (12, "x = 1")


def test_a_failing_example_is_caught_with_its_line(tmp_path):
    bad = Block(7, "console", "", "$ true\n$ exit 3")
    assert [f.split(":")[0] for f in run_console(bad, tmp_path)] == ["8"]
    with pytest.raises(ZeroDivisionError) as caught:
        run_python(DOCUMENT, Block(30, "python", "", "x = 1\n1 / 0"), {})
    assert (caught.traceback[-1].lineno + 1, str(caught.traceback[-1].path)) == (31, "docs/a.md")


def test_output_is_compared_only_when_asked(tmp_path):
    text = "$ echo one two"
    assert not run_console(Block(1, "console", "", f"{text}\nthree"), tmp_path)
    assert run_console(Block(1, "console", "output=exact", f"{text}\nthree"), tmp_path)
    assert not run_console(Block(1, "console", "output=exact", f"{text}\none ..."), tmp_path)


def test_an_invented_make_target_is_caught(tmp_path):
    assert run_console(Block(1, "console", "", "$ make nothing"), tmp_path)
    assert not run_console(Block(1, "console", "", "$ make check"), tmp_path)


def test_the_examples_find_the_command_line(tmp_path):
    assert not run_console(
        Block(1, "console", "", "$ command -v winnow\n$ python -c 'import winnow'"), tmp_path
    )


def test_an_unguarded_block_is_caught():
    assert_caught(guarded_blocks, "docs/a.md", "x\n\n```bash\nls\n```\n", line=3, says="neither run")
    assert_caught(guarded_blocks, "docs/a.md", "```\nls\n```\n", says="neither run")
    assert_passes(guarded_blocks, "docs/a.md", "```text\nls\n```\n")


@pytest.mark.parametrize(
    "text",
    ["38.2 tokens/s", "1.7x", "98 %", "98%", "45 GB/s", "3 ms per token", "2 times faster", "0.001 nats"],
)
def test_a_figure_without_an_address_is_caught(text):
    assert_caught(figures, "docs/a.md", f"One\nis {text} here.\n", line=2, says="has no address")


def test_settings_names_and_generated_figures_pass():
    text = "`0.001 nats`, OPT-1.3B, 2048 positions\n<!-- from a.json: b as .1f -->3.2 tokens/s<!-- end -->\n"
    assert_passes(figures, "docs/a.md", f"{text}```text\n98 %\n```\n")


def test_a_raised_voice_and_a_dead_link_are_caught():
    assert_caught(tone, "docs/a.md", "a\nFast!\n", line=2, says="exclamation")
    assert_passes(tone, "docs/a.md", "<!-- note -->\n![plot](x.svg)\n`a != b`\n")
    assert_caught(links, "docs/a.md", "see [it](nowhere.md)\n", says="leads nowhere")
    assert_passes(links, "docs/a.md", "[limits](limits.md) [web](https://example.org) [part](limits.md#x)\n")


SCREEN = (
    "# Winnow\nFor ReLU models. It refuses pickles.\n```console\n$ make demo\n$ make test\n```\n"
    "<!-- from a.json: rows as table engine -->\n| x |\n<!-- end -->\n"
)


def test_an_incomplete_first_screen_is_caught():
    assert_passes(first_screen, "README.md", SCREEN)
    assert_caught(first_screen, "README.md", SCREEN.replace("make test", ""), says="make test")
    assert_caught(first_screen, "README.md", SCREEN.replace("ReLU", ""), says="ReLU")
    late = SCREEN.replace("<!-- from", "\n" * 34 + "<!-- from")
    assert_caught(first_screen, "README.md", late, says="one measured table")
