"""Tokenizers: both file layouts, panics contained, and streams that never show half a character."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.engine import StreamDecoder, Tokenizer
from winnow.engine.tokenizer import _guarded, _quietly

TEXT = "The heavy grain falls, the light chaff flies. 12 naïve cafés, 3 日本語 and 4 😀 emoji!\n" * 4
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
SAMPLES = [
    "",
    " ",
    "The grain",
    " leading and trailing ",
    "naïve café\n\n\tx",
    "日本語😀🏽‍",
    "a\0b",
    "</s> inside <pad>",
]


def trained() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return inner


@pytest.fixture(scope="module")
def opt_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer files that OPT ships: vocab.json, merges.txt and the two maps of special tokens."""
    directory = tmp_path_factory.mktemp("opt")
    trained().model.save(str(directory))
    token = {"__type": "AddedToken", "content": "</s>", "normalized": True, "special": True}
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": token,
                "eos_token": token,
                "add_bos_token": True,
                "tokenizer_class": "GPT2Tokenizer",
            }
        )
    )
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"})
    )
    return directory


@pytest.fixture(scope="module")
def opt(opt_files: Path) -> Tokenizer:
    return Tokenizer.open(opt_files)


@pytest.fixture
def copied(opt_files: Path, tmp_path: Path) -> Path:
    shutil.copytree(opt_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("text", SAMPLES)
def test_vocabulary_and_merges_encode_as_transformers_does(
    opt: Tokenizer, opt_files: Path, text: str
) -> None:
    specials = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    theirs = GPT2Tokenizer(
        vocab=str(opt_files / "vocab.json"),
        merges=str(opt_files / "merges.txt"),
        add_bos_token=True,
        **specials,
    )
    assert opt.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", [text for text in SAMPLES if "</s>" not in text])
def test_decoding_undoes_encoding(opt: Tokenizer, text: str) -> None:
    assert opt.decode(opt.encode(text)) == text


def test_the_leading_token_is_special(opt: Tokenizer) -> None:
    bos = opt.token_id("</s>")
    assert opt.encode("grain") == [bos, *opt.encode("grain", special=False)]
    assert opt.decode(opt.encode("grain"), special=True) == "</s>grain"


def test_without_settings_the_leading_token_is_opts(copied: Path) -> None:
    (copied / "tokenizer_config.json").unlink()
    (copied / "special_tokens_map.json").unlink()
    tokenizer = Tokenizer.open(copied)
    assert tokenizer.encode("grain")[0] == tokenizer.token_id("</s>")


def test_settings_can_turn_the_leading_token_off(copied: Path) -> None:
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": False}))
    tokenizer = Tokenizer.open(copied)
    assert tokenizer.encode("grain") == tokenizer.encode("grain", special=False)


def test_tokenizer_json_gives_the_same_ids(opt: Tokenizer, tmp_path: Path) -> None:
    inner = trained()
    inner.enable_truncation(3)  # saved by some trainers; a prompt must not be cut
    inner.enable_padding(length=50)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode(TEXT) == opt.encode(TEXT, special=False)
    assert tokenizer.vocab_size == 320 and tokenizer.largest_id == 319


def test_a_tokenizer_larger_than_the_embedding_is_refused_and_a_smaller_one_is_legal(opt: Tokenizer) -> None:
    opt.check_fits(320)
    opt.check_fits(336)
    with pytest.raises(ModelError, match="token ids up to 319, the model knows 0 to 318"):
        opt.check_fits(319)


# Broken files


def refused(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Tokenizer.open(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xff", b"[]", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_tokenizer_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json" in refused(tmp_path)


def test_a_panic_prints_nothing_and_other_words_come_through(
    opt: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    strips = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    strips.pre_tokenizer = pre_tokenizers.FixedLength(length=0)
    with pytest.raises(ModelError, match="chunk size must be non-zero"):
        Tokenizer(strips, "tokenizer.json").encode("a")
    assert capfd.readouterr().err == ""
    assert _quietly(lambda: os.write(2, b"a warning\n")) == 10
    assert capfd.readouterr().err == "a warning\n"


def test_a_closed_standard_error_is_left_closed(opt: Tokenizer) -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        ids = opt.encode("grain")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(2, b"x")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert ids == opt.encode("grain")


def test_a_panic_becomes_an_error_and_an_interrupt_does_not() -> None:
    class Panic(BaseException):  # as pyo3's
        pass

    def panics() -> None:
        raise Panic("index out of bounds")

    def interrupts() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ModelError, match="index out of bounds"):
        _guarded(panics, ModelError)
    with pytest.raises(KeyboardInterrupt):
        _guarded(interrupts, ModelError)


def test_merges_of_another_vocabulary_are_refused(copied: Path) -> None:
    (copied / "merges.txt").write_text("#version: 0.2\nq zz\n")
    assert "merges.txt does not go with vocab.json" in refused(copied)


@pytest.mark.parametrize(
    "ids", [{}, {"a": 0, "b": 2}, {"a": 0, "b": 0}, {"a": -1}, {"a": "0"}, {"a": True}, {"a": 2**70}]
)
def test_ids_with_gaps_or_doubles_are_refused(copied: Path, ids: dict) -> None:
    (copied / "vocab.json").write_text(json.dumps(ids))
    assert "vocab.json gives token ids other than" in refused(copied)


def test_a_vocabulary_of_another_kind_must_be_converted(copied: Path) -> None:
    (copied / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert "save_pretrained" in refused(copied)


@pytest.mark.parametrize(
    ("file", "named"), [("tokenizer.model", "save_pretrained"), ("readme", "holds no tokenizer")]
)
def test_a_directory_without_a_readable_tokenizer_says_what_to_do(
    tmp_path: Path, file: str, named: str
) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert named in refused(tmp_path)


def test_a_lone_surrogate_is_a_usage_error(opt: Tokenizer) -> None:
    with pytest.raises(UsageError, match="at position 1, which has no UTF-8"):
        opt.encode("a\ud800b")


@pytest.mark.parametrize("token_id", [-1, 2**32, 2**70])
def test_an_id_out_of_range_is_a_usage_error(opt: Tokenizer, token_id: int) -> None:
    with pytest.raises(UsageError, match="cannot be decoded"):
        opt.decode([token_id])


def test_rows_without_a_token_give_no_text(opt: Tokenizer) -> None:
    grain = opt.encode("grain", special=False)
    assert opt.decode([*grain, 335]) == "grain"


# Streams


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40))
def test_a_stream_is_the_text_and_shows_no_half_character(text: str) -> None:
    ids = BYTES.encode(text, special=False)
    pieces = streamed(BYTES, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 319), max_size=60))
def test_a_stream_of_any_tokens_is_what_decoding_them_together_gives(ids: list[int]) -> None:
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids)


def test_a_character_is_given_out_with_its_last_byte(opt: Tokenizer) -> None:
    ids = opt.encode("😀a", special=False)
    pieces = streamed(opt, ids)
    assert len(ids) > 2, "the emoji must span tokens"
    assert pieces[-3:] == ["😀", "a", ""] and not any(pieces[:-3])


def test_a_flush_shows_what_never_became_a_character(opt: Tokenizer) -> None:
    first_bytes = opt.encode("😀", special=False)[:-1]
    assert streamed(opt, first_bytes) == [*([""] * len(first_bytes)), "\ufffd"]


def test_invalid_bytes_are_held_back_at_most_three_characters(opt: Tokenizer) -> None:
    invalid = opt.token_id("ÿ")  # byte 0xff in the byte-level alphabet
    assert invalid is not None
    pieces = streamed(opt, [invalid] * 40)
    assert "".join(pieces) == "\ufffd" * 40
    assert len(pieces[-1]) == 3


def test_a_decoder_is_fresh_after_a_flush(opt: Tokenizer) -> None:
    decoder = StreamDecoder(opt)
    texts = []
    for _ in range(2):
        pieces = [decoder.push(token_id) for token_id in opt.encode("naïve grain")]
        texts.append("".join([*pieces, decoder.flush()]))
    assert texts == ["naïve grain"] * 2


def test_a_stream_keeps_the_spaces_of_sentencepiece_like_tokenizers(tmp_path: Path) -> None:
    # Their decoder drops the space of a first token, so that pieces cannot be decoded one by one.
    vocab = {"<unk>": 0, "<s>": 1, "▁light": 2, "▁grain": 3, "s": 4}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert streamed(tokenizer, [1, 2, 3, 4, 2]) == ["", "light", " grain", "s", " light", ""]
    assert streamed(tokenizer, [2, 1, 3]) == ["light", "", " grain", ""]


BYTES = Tokenizer(trained(), "a test")


def test_long_streams_of_random_tokens_agree_too() -> None:
    ids = torch.randint(4, 320, (2000,), generator=generator(1)).tolist()
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids)
