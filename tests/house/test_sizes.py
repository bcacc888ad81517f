"""Caps hold over the whole repository, and each is seen to bite."""

import pytest

from tests.house.rules_sizes import bodies, file_lines, package_files, parameters, script_lines
from tests.house.source import ROOT, Source, assert_caught, assert_none, assert_passes, files, load, python
from tests.house.test_floors import PACKAGES, files_of


def test_no_file_is_longer_than_its_cap():
    sources = [load(path) for path in files(".py", ".cpp", ".hpp", ".cu", ".h")]
    assert_none(v for s in sources for v in file_lines(s))


def test_no_body_is_longer_than_its_cap():
    assert_none(v for s in python() for v in bodies(s))


def test_no_public_function_takes_too_many_parameters():
    assert_none(v for s in python("src") for v in parameters(s))


def test_no_package_holds_too_many_files():
    assert_none(v for init in PACKAGES.values() for v in package_files(init, files_of(init)))


def test_scripts_are_short():
    scripts = [load(path) for folder in ("scripts", ".ci") for path in files(below=folder)]
    assert scripts, "no scripts found"
    assert_none(v for s in scripts for v in script_lines(s))


@pytest.mark.parametrize(
    ("path", "cap"),
    [("src/a.py", 400), ("src/a.cpp", 400), ("src/__init__.py", 60), ("src/reference.py", 39)],
)
def test_one_line_too_many_is_caught(path, cap):
    assert_passes(file_lines, path, "\n" * cap)
    assert_caught(file_lines, path, "\n" * (cap + 1), line=cap + 1, says="at most")


def test_a_long_script_is_caught():
    assert_passes(script_lines, "scripts/x", "\n" * 15)
    assert_caught(script_lines, "scripts/x", "\n" * 16, line=16, says="a script holds 15")


@pytest.mark.parametrize(("path", "cap"), [("src/winnow/a.py", 60), ("src/winnow/kernels/a/triton.py", 120)])
def test_a_long_body_is_caught(path, cap):
    head = 'def f():\n    """Law.\n\n    More.\n    """\n'
    assert_passes(bodies, path, head + "    x = 1\n" * cap)
    assert_caught(bodies, path, head + "    x = 1\n" * (cap + 1), says="the body of f")


def test_an_inner_body_counts_too():
    inner = "".join(["class A:\n    def f(self):\n", "        x = 1\n" * 61])
    assert_caught(bodies, "src/winnow/a.py", inner, line=2, says="the body of f has 61 lines")


PARAMETERS = {
    "function": "def f(a, b, c, d, e, f, g, h): ...",
    "keyword-only": "def f(a, b, c, *, d, e, f, g, h): ...",
    "method": "class A:\n    def f(self, a, b, c, d, e, f, g, h): ...",
    "constructor": "class A:\n    def __init__(self, a, b, c, d, e, f, g, h): ...",
    "variadic": "def f(a, b, c, d, e, f, g, *more): ...",
    "verb by position": "def generate(a, b, c, d, e, f, g, h): ...",
    "verb, fifteen": f"def generate(*, {', '.join('abcdefghijklmno')}): ...",
}


@pytest.mark.parametrize("text", PARAMETERS.values(), ids=PARAMETERS)
def test_an_eighth_parameter_is_caught(text):
    line = 2 if "class" in text else 1
    assert_caught(parameters, "src/winnow/engine/a.py", text, line=line, says="use a dataclass")


def test_private_functions_verbs_and_self_are_counted_as_designed():
    path = "src/winnow/engine/a.py"
    assert_passes(parameters, path, "class A:\n    def f(self, a, b, c, d, e, f, g): ...")
    assert_passes(parameters, path, "def _f(a, b, c, d, e, f, g, h): ...")
    assert_passes(parameters, path, f"def generate(prompt, *, {', '.join('abcdefghijklm')}): ...")
    assert_caught(
        parameters,
        "src/winnow/cli/a.py",
        "def generate(*, a, b, c, d, e, f, g, h): ...",
        says="generate takes 8",
    )


def test_a_fifteenth_file_is_caught():
    init = Source("src/winnow/linalg/__init__.py", "")
    names = [f"f{i}.py" for i in range(14)]
    assert not list(package_files(init, names))
    assert [v.rule for v in package_files(init, [*names, "deep/"])] == ["15 files in one package; 14 at most"]
    commands = Source("src/winnow/cli/__init__.py", "")
    assert not list(package_files(commands, [*names, *names]))
    assert [v.rule[:8] for v in package_files(commands, [*names, *names, "deep/"])] == ["29 files"]


def test_the_root_of_the_walk_is_the_repository():
    assert (ROOT / "pyproject.toml") in files(".toml")
