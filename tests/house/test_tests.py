"""Every test of the repository checks something."""

import pytest

from tests.house.rules_tests import checks, early_returns
from tests.house.source import assert_caught, assert_none, assert_passes, python


def test_every_test_has_a_check():
    sources = [s for s in python("tests") if s.name.startswith("test_")]
    assert sources, "no tests found"
    assert_none(v for s in sources for v in checks(s))


def test_no_test_returns_early():
    assert_none(v for s in python("tests") for v in early_returns(s))


EMPTY = {
    "computes only": "def test_a():\n    f(1)\n",
    "method": "class TestA:\n    def test_a(self):\n        f(1)\n",
    "compares only": "def test_a():\n    f(1) == 2\n",
}


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY)
def test_a_test_without_a_check_is_caught(text):
    assert_caught(checks, "tests/test_a.py", text, line=2 if "class" in text else 1, says="checks nothing")


CHECKING = {
    "assert": "def test_a():\n    assert f(1)\n",
    "in a loop": "def test_a():\n    for x in y:\n        assert x\n",
    "inner": "def test_a():\n    @given(x)\n    def inner(x):\n        assert x\n    inner()\n",
    "raises": "def test_a():\n    with pytest.raises(ValueError):\n        f(1)\n",
    "assert_close": "def test_a():\n    torch.testing.assert_close(a, b)\n",
    "house": "def test_a():\n    assert_within(a, b)\n",
    "no test": "def helper():\n    f(1)\n",
}


@pytest.mark.parametrize("text", CHECKING.values(), ids=CHECKING)
def test_a_test_with_a_check_passes(text):
    assert_passes(checks, "tests/test_a.py", text)


def test_an_early_return_is_caught():
    text = "def test_a():\n    if hard:\n        return\n    assert f(1)\n"
    assert_caught(early_returns, "tests/test_a.py", text, line=3, says="xfail")


def test_an_inner_return_passes():
    text = "def test_a():\n    def f():\n        return 1\n    assert f()\n"
    assert_passes(early_returns, "tests/test_a.py", text)
