"""Names: exports equal the public namespace, and no file is called after nothing."""

import subprocess
import sys
from types import ModuleType

import pytest

import winnow
from tests.house.rules_names import exports, file_name
from tests.house.source import assert_caught, assert_none, assert_passes, python


def test_every_dunder_all_equals_the_public_namespace():
    assert_none(v for s in python("src/winnow") for v in exports(s))


def test_no_file_is_named_after_nothing():
    assert_none(v for s in python() for v in file_name(s))


def test_the_root_offers_exactly_its_verbs():
    names = set(getattr(winnow, "__all__", ()))
    values = {name: getattr(winnow, name) for name in dir(winnow) if not name.startswith("_")}
    packages = {name for name, value in values.items() if isinstance(value, ModuleType)}
    assert set(values) - packages == names - packages, "dir(winnow) and winnow.__all__ differ"


def test_importing_the_root_imports_no_torch():
    code = "import sys, winnow, winnow.base, winnow.base.errors; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0, "import winnow must not import torch: `winnow --help` waits for it"


BAD = {
    "missing": ("from winnow.linalg.a import verb\n", "no __all__"),
    "unsorted": ('__all__ = ["b", "a"]\ndef a(): ...\ndef b(): ...\n', "not sorted"),
    "twice": ('__all__ = ["a", "a"]\ndef a(): ...\n', "not sorted"),
    "kinds mixed": ('__all__ = ["a", "B"]\ndef a(): ...\nclass B: ...\n', "not sorted"),
    "left out": ('__all__ = ["a"]\ndef a(): ...\nLIMIT = 3\n', "LIMIT is public"),
    "re-export left out": ('__all__ = ["a"]\nfrom winnow.linalg.a import a, b\n', "b is public"),
    "invented": ('__all__ = ["a", "b"]\ndef a(): ...\n', "b is in __all__ but not defined"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_a_wrong_dunder_all_is_caught(text, says):
    assert_caught(exports, "src/winnow/linalg/__init__.py", text, says=says)


def test_ingredients_and_other_packages_are_not_exports():
    text = (
        '__all__ = ["LIMIT", "Verb", "verb"]\n'
        "from torch import Tensor\nfrom winnow.base.errors import UsageError\n"
        "from winnow.linalg.a import Verb, ingredient\n"
        "LIMIT = 3\n_private = 4\ndef verb(): return ingredient()\n"
    )
    assert_passes(exports, "src/winnow/linalg/__init__.py", text)
    assert_passes(exports, "src/winnow/linalg/a.py", "def verb(): ...\n")


def test_an_empty_name_is_caught():
    assert_caught(file_name, "src/winnow/engine/utils.py", "", says="utils")
    assert_caught(file_name, "src/winnow/common/a.py", "", says="common")
    assert_passes(file_name, "src/winnow/engine/process_group.py", "")
