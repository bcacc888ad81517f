"""Shapes: one table, single letters, sorted."""

import pytest

from winnow.base.shapes import LETTERS


def test_the_table_is_sorted_single_letters_with_a_meaning():
    assert list(LETTERS) == sorted(LETTERS)
    assert all(len(letter) == 1 and letter.isupper() and meaning for letter, meaning in LETTERS.items())
    assert len(set(LETTERS.values())) == len(LETTERS)


def test_nobody_can_add_a_letter_in_passing():
    with pytest.raises(TypeError):
        LETTERS["Z"] = "something else"  # pyright: ignore
