"""Corpus: any text round-trips, order is the names', batches depend on (seed, step) alone."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from winnow.base.errors import ModelError
from winnow.train.corpus import END, END_ID, SPECIAL_TOKENS, batch, books, encode, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(books([corpus]), vocab_size=300)


def test_books_come_in_the_order_of_their_names(corpus):
    assert [p.name for p in books([corpus])] == ["one.txt", "three.txt", "two.txt"]
    assert books([corpus / "b", corpus / "a"]) == [corpus / "b/one.txt", corpus / "a/two.txt"]


def test_a_folder_without_books_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(
        ModelError, match=r"No \.txt file below .*; expected plain-text books\. Give --corpus"
    ):
        books([tmp_path])


def test_books_of_one_name_come_in_the_order_of_their_paths(tmp_path):
    for folder in ("c", "a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(folder)
    assert [p.parent.name for p in books([tmp_path])] == ["a", "b", "c"]


def test_a_book_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "old.txt").write_bytes("Caf\u00e9".encode("latin-1"))
    with pytest.raises(ModelError, match=r"old\.txt is not UTF-8 at byte 3"):
        train_tokenizer(books([tmp_path]), vocab_size=300)


def test_any_text_round_trips(tokenizer):
    @given(st.text())
    @example("<s>")
    @example(" <pad> grain</s>")
    def check(text):
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate is no text
            return
        # Special tokens written out in the text are read as such, so none may be skipped here.
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == END + text

    check()


@pytest.mark.parametrize(
    "text", ["", " ", "\r\n\t", "風と共に", "a\x00b", "  two  spaces  ", "🌾" * 5, "Ünïcödé"]
)
def test_awkward_texts_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_byte_has_a_token_and_no_text_is_unknown(tokenizer):
    everything = "".join(map(chr, range(0x500)))
    ids = tokenizer.encode(everything).ids
    assert tokenizer.token_to_id("<unk>") not in ids
    assert tokenizer.decode(ids) == everything


def test_a_text_begins_with_the_end_token(tokenizer):
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.encode("grain").ids[0] == END_ID == 2
    assert END_ID not in tokenizer.encode("grain").ids[1:]


def test_the_vocabulary_is_as_large_as_asked_and_the_same_each_time(corpus, tokenizer):
    again = train_tokenizer(books([corpus]), vocab_size=300)
    assert again.get_vocab_size() == 300
    assert again.to_str() == tokenizer.to_str()


def test_only_a_sample_of_each_book_is_read(corpus):
    narrow = train_tokenizer(books([corpus]), vocab_size=300, sample_bytes=9)  # three letters of each
    assert narrow.get_vocab_size() < 300


def test_books_become_one_file_of_ids_each_begun_by_the_end_token(corpus, tokenizer, tmp_path):
    ids = encode(tokenizer, books([corpus]), tmp_path / "ids.npy", quiet=True)
    assert ids.dtype == np.uint16
    assert (np.flatnonzero(ids == END_ID).size, ids[0]) == (3, END_ID)
    whole = "".join(p.read_text(encoding="utf-8") for p in books([corpus]))
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=True) == whole


def test_encoded_books_are_not_encoded_again(corpus, tokenizer, tmp_path):
    first = encode(tokenizer, books([corpus]), tmp_path / "ids.npy", quiet=True)
    again = encode(tokenizer, [], tmp_path / "ids.npy", quiet=True)
    assert np.array_equal(first, again)


IDS = (np.arange(5000) % 251 + 4).astype(np.uint16)


def test_a_batch_depends_on_seed_and_step_alone():
    forward = [batch(IDS, 17, 5, seed=3, step=step) for step in range(7)]
    backward = [batch(IDS, 17, 5, seed=3, step=step) for step in reversed(range(7))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not np.array_equal(forward[0], forward[1])
    assert not np.array_equal(forward[0], batch(IDS, 17, 5, seed=4, step=0))


def test_rows_are_pieces_of_the_text_begun_by_the_end_token():
    rows = batch(IDS, 17, 5, seed=3, step=2)
    assert rows.shape == (5, 17)
    assert rows.dtype == np.int64
    assert (rows[:, 0] == END_ID).all()
    assert (np.diff(rows[:, 1:]) % 251 == 1).all()


def test_a_row_may_reach_the_last_token():
    rows = batch(IDS[:20], 19, 64, seed=0, step=0)
    assert set(rows[:, -1].tolist()) == {int(IDS[18])}
