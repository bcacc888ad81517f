"""Refused constructs are absent from the repository, and each is caught when planted."""

import pytest

from tests.house.rules_refused import (
    ALLOWED,
    constructs,
    late_imports,
    machine_paths,
    open_keywords,
    unfinished,
)
from tests.house.source import ROOT, assert_caught, assert_none, assert_passes, files, load, python

BINARY = {".safetensors", ".bin", ".npy", ".png", ".so", ".xz", ".gz", ".pyc"}


def texts():
    for path in files():
        if path.suffix not in BINARY and path.name not in (".coverage", "LICENSE"):
            yield load(path)


def test_no_refused_construct():
    assert_none(v for s in python() for v in constructs(s))


def test_no_open_keywords_in_public():
    assert_none(v for s in python("src") for v in open_keywords(s))


def test_imports_stand_at_the_top():
    assert_none(v for s in python("src") for v in late_imports(s))


def test_every_open_end_has_an_issue():
    sources = [load(p) for p in files(".py", ".cpp", ".hpp") if "tests/house" not in p.as_posix()]
    assert_none(v for s in sources for v in unfinished(s))


def test_no_machine_path_and_no_secret():
    assert_none(v for s in texts() for v in machine_paths(s))


def test_every_exception_names_a_file_that_uses_it():
    for path, construct in ALLOWED:
        assert construct in (ROOT / path).read_text(), (
            f"{path} no longer uses {construct}: drop its exception"
        )


ANYWHERE = {
    "bare except": ("try: f()\nexcept: g()\n", 2, "bare except"),
    "future": ("from __future__ import annotations\n", 1, "string annotations"),
    "torch.load": ("import torch\nx = torch.load(p)\n", 2, "safetensors"),
    "torch.save": ("import torch\ntorch.save(x, p)\n", 2, "safetensors"),
    "pickle": ("import pickle\n", 1, "runs what it loads"),
    "from pickle": ("from pickle import loads\n", 1, "runs what it loads"),
    "numpy pickle": ("x = np.load(p, allow_pickle=True)\n", 1, "allow_pickle"),
    "remote code": ("m = load(p, trust_remote_code=True)\n", 1, "trust_remote_code"),
    "global torch seed": ("torch.manual_seed(0)\n", 1, "torch.Generator"),
    "global cuda seed": ("torch.cuda.manual_seed_all(0)\n", 1, "torch.Generator"),
    "global numpy seed": ("np.random.seed(0)\n", 1, "torch.Generator"),
    "list default": ("def f(a=[]): ...\n", 1, "mutable default"),
    "dict default": ("def f(*, a=dict()): ...\n", 1, "mutable default"),
    "lambda default": ("f = lambda a={}: a\n", 1, "mutable default"),
}


@pytest.mark.parametrize(("text", "line", "says"), ANYWHERE.values(), ids=ANYWHERE)
@pytest.mark.parametrize("path", ["src/winnow/linalg/a.py", "tests/linalg/test_a.py"])
def test_a_refused_construct_is_caught(path, text, line, says):
    assert_caught(constructs, path, text, line=line, says=says)


IN_SRC = {
    "hasattr": ("hasattr(x, 'y')\n", "use types"),
    "globals": ("globals()['x']\n", "use types"),
    "eval": ("eval('1')\n", "use types"),
    "print": ("print('x')\n", "outside cli"),
    "generator seed": ("g = torch.Generator().manual_seed(0)\n", "winnow.base.rng"),
    "environ": ("x = os.environ['HOME']\n", "pass an option"),
    "getenv": ("x = os.getenv('HOME')\n", "pass an option"),
    "from os": ("from os import environ\n", "pass an option"),
    "requests": ("import requests\n", "nothing is sent"),
    "urllib": ("from urllib.request import urlopen\n", "nothing is sent"),
}


@pytest.mark.parametrize(("text", "says"), IN_SRC.values(), ids=IN_SRC)
def test_a_construct_refused_in_src_is_caught(text, says):
    assert_caught(constructs, "src/winnow/linalg/a.py", text, says=says)


def test_what_is_allowed_passes():
    text = "import os\ntry: f()\nexcept OSError: g()\nmodel.eval()\nnp.load(p, allow_pickle=False)\n"
    assert_passes(constructs, "src/winnow/linalg/a.py", text)
    assert_passes(constructs, "src/winnow/cli/a.py", "print('x')\n")
    assert_passes(constructs, "tests/linalg/test_a.py", "g = torch.Generator().manual_seed(0)\n")
    assert_passes(constructs, "src/winnow/base/rng.py", "g = torch.Generator().manual_seed(0)\n")
    assert_passes(constructs, "src/winnow/server/a.py", "import socket\n")


def test_open_keywords_are_caught():
    path = "src/winnow/linalg/a.py"
    assert_caught(open_keywords, path, "def f(a, **kwargs): ...\n", says="takes **kwargs")
    assert_caught(
        open_keywords, path, "class A:\n    def __init__(self, **o): ...\n", line=2, says="takes **o"
    )
    assert_passes(open_keywords, path, "def _f(**kwargs): ...\nclass _A:\n    def f(self, **o): ...\n")


def test_late_imports_are_caught():
    text = "def f():\n    import numpy\n"
    assert_caught(late_imports, "src/winnow/linalg/a.py", text, line=2, says="numpy inside a function")
    assert_caught(
        late_imports,
        "src/winnow/engine/a.py",
        "def f():\n    from winnow.base import rng\n",
        line=2,
        says="winnow",
    )


def test_a_late_import_in_an_inner_function_is_reported_once():
    text = "def f():\n    def g():\n        import numpy\n"
    assert_caught(late_imports, "src/winnow/linalg/a.py", text, line=3, says="numpy inside a function")


def test_the_exceptions_for_late_imports_pass():
    assert_passes(late_imports, "src/winnow/kernels/a/triton.py", "def f():\n    import triton\n")
    assert_passes(late_imports, "src/winnow/cli/a.py", "def f():\n    from winnow.engine import load\n")
    assert_passes(late_imports, "src/winnow/__init__.py", "def __getattr__(n):\n    import importlib\n")
    assert_passes(late_imports, "src/winnow/engine/a.py", "def f():\n    import transformers\n")
    assert_passes(
        late_imports, "src/winnow/base/a.py", "try:\n    import numpy\nexcept ImportError:\n    x = 1\n"
    )


@pytest.mark.parametrize("text", ["x = 1  # TODO later\n", "# FIXME\n", "# TODO(soon): y\n", "# TODO(#3):\n"])
def test_a_bare_todo_is_caught(text):
    assert_caught(unfinished, "src/winnow/linalg/a.py", text, says="TODO(#issue)")


def test_a_reasoned_todo_passes():
    assert_passes(unfinished, "src/a.py", 'x = "TODO"  # TODO(#12): waits for the server\n')
    assert_caught(unfinished, "src/a.cpp", "// TODO\n", says="TODO(#issue)")


@pytest.mark.parametrize("text", ["x = '/home/you'\n", "see /root/.cache\n", "(/tmp/x)\n", "/home/me/x\n"])
def test_a_machine_path_is_caught(text):
    assert_caught(machine_paths, "docs/a.md", text, says="one machine")
    assert_passes(machine_paths, "tests/a.py", text)


def test_a_word_with_a_slash_is_no_machine_path():
    assert_passes(machine_paths, "docs/a.md", "a site/home/page, tests/tmp/x, https://example.org/home/x\n")


@pytest.mark.parametrize(
    "secret", ["hf_" + "a1" * 17, "ghp_" + "A" * 36, "-----BEGIN RSA PRIVATE " + "KEY-----"]
)
def test_a_secret_is_caught(secret):
    assert_caught(machine_paths, "tests/a.py", f"x = '{secret}'\n", says="a secret")
