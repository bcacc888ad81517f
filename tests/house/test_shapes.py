"""Shapes: the same letter means the same thing in the whole project."""

import pytest

from tests.house.rules_shapes import letters
from tests.house.source import assert_caught, assert_none, assert_passes, python


def test_shapes_are_spelt_with_the_letter_table():
    assert_none(v for s in python("src") for v in letters(s))


@pytest.mark.parametrize("shape", ["X D", " W", "B Dm", "*Q D", "D E_Half", "2*X"])
def test_an_unknown_letter_is_caught(shape):
    assert_caught(
        letters, "src/winnow/a.py", f'x: Float32[Tensor, "{shape}"]\n', says="not in base/shapes.py"
    )


@pytest.mark.parametrize("shape", ["B D", " A", "*B D", "T E_half", "...", "n_bytes 2", "2*K E", ""])
def test_letters_words_and_sizes_pass(shape):
    assert_passes(letters, "src/winnow/a.py", f'def f(x: Float[Tensor, "{shape}"]): ...\n')
