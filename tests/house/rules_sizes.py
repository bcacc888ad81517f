"""Caps: a number that fails the build keeps every piece small enough to be read whole.

A cap is raised by a commit of its own, with its reason beside the number.
"""

import ast
from collections.abc import Iterator

from tests.house.source import Source, Violation

FILE_LINES = 400
INIT_LINES = 60
BODY_LINES = 60
TRITON_BODY_LINES = 120
REFERENCE_LINES = 39  # "under 40"
SCRIPT_LINES = 15
PACKAGE_FILES = 14
# cli holds one file per command, so that a command's name says where it is: 18 are planned.
COMMAND_FILES = 28
KERNEL_FILES = 24  # one folder per kernel, so that a kernel lies beside its definition
# A model's way from its files to its text, one file or folder per station; context is the eighteenth.
ENGINE_FILES = 18
PARAMETERS = 7
VERB_PARAMETERS = 14
# The public verbs, whose users expect their options in the call; each turns them into a dataclass at once.
VERBS = {
    "load",
    "generate",
    "stream",
    "sparsify",
    "lstsq",
    "heavy_pairs",
    "streaming",
    "gradients",
    "attention",
    "privacy",
    "two_layer",
}
VERB_FOLDERS = {"", "engine", "linalg", "search", "attention", "audit"}


def file_lines(source: Source) -> Iterator[Violation]:
    """Python and C++ files hold 400 lines, `__init__.py` 60, `reference.py` fewer than 40."""
    caps = {"__init__.py": INIT_LINES, "reference.py": REFERENCE_LINES}
    cap = caps.get(source.name, FILE_LINES)
    if len(source.lines) > cap:
        yield source.violation(cap + 1, f"{len(source.lines)} lines; {source.name} holds at most {cap}")


def script_lines(source: Source) -> Iterator[Violation]:
    """A script is one word for a person and at most 15 lines to read."""
    if len(source.lines) > SCRIPT_LINES:
        yield source.violation(SCRIPT_LINES + 1, f"{len(source.lines)} lines; a script holds {SCRIPT_LINES}")


def bodies(source: Source) -> Iterator[Violation]:
    """A function body, its docstring aside, holds 60 lines; a Triton kernel's 120."""
    cap = TRITON_BODY_LINES if source.name == "triton.py" else BODY_LINES
    for node in source.function_nodes():
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > cap:
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            yield source.violation(node, f"the body of {node.name} has {lines} lines; the cap is {cap}")


def parameters(source: Source) -> Iterator[Violation]:
    """A public function takes 7 parameters; a public verb may add keyword-only ones up to 14."""
    for node, is_method in source.public_functions():
        args = node.args
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        positional = len(args.posonlyargs) + len(args.args) + (args.vararg is not None)
        positional -= is_method and not static
        total = positional + len(args.kwonlyargs)
        is_verb = node.name in VERBS and source.folder in VERB_FOLDERS
        cap = VERB_PARAMETERS if is_verb and positional <= PARAMETERS else PARAMETERS
        if total > cap:
            yield source.violation(
                node, f"{node.name} takes {total} parameters, more than {cap}: use a dataclass"
            )


def package_files(init: Source, present: list[str]) -> Iterator[Violation]:
    """A package holds 14 files beside `__init__.py`, engine 18, kernels 24, cli 28; a sub-folder is one."""
    caps = {
        ("winnow", "cli"): COMMAND_FILES,
        ("winnow", "engine"): ENGINE_FILES,
        ("winnow", "kernels"): KERNEL_FILES,
    }
    cap = caps.get(init.module, PACKAGE_FILES)
    if len(present) > cap:
        yield init.violation(1, f"{len(present)} files in one package; {cap} at most")
