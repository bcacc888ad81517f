"""Tokenizer: text to token ids and back, from a model directory.   (floor 5 · engine)

Either tokenizer.json, or vocab.json with merges.txt: GPT-2's byte-level BPE, as OPT ships it. The
tokenizers library is compiled code that can panic on crafted files, past `except Exception`, and prints a
page about it; every call into it goes through one guard, and those that may meet something new keep the
page back.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from winnow.base.errors import ModelError, UsageError, WinnowError
from winnow.engine.checkpoint import contained, openable
from winnow.engine.config import Fields, brief, read_json

LARGEST_TOKENIZER_BYTES = 64 * 2**20
BYTE_LEVEL_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
OPT_BOS = "</s>"
MOST_HELD_BACK = 3  # a character has at most four bytes, so three can be waiting for the last
REPLACEMENT = "\ufffd"
# Written with the characters that normalisers and splitters treat apart.
TRIED = ("a", " Bü日本語 😀\n\t12-x.", "")
STDERR = 2

T = TypeVar("T")


@final
class Tokenizer:
    """Token ids for text and text for token ids; special tokens are left out of text unless asked for."""

    def __init__(self, inner: tokenizers.Tokenizer, where: str) -> None:
        """Wrap a loaded tokenizer; `where` names its file in messages."""
        self._inner = inner
        self._where = where
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.largest_id: int = max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.largest_id < 0:
            raise ModelError(f"{where} holds no tokens. Download it again.")

    @classmethod
    def open(cls, directory: Path) -> "Tokenizer":
        """Open the tokenizer of a model directory.

        Raises ModelError when there is none, when its files are broken or contradict each other, and for
        sentencepiece models, which must be converted first.
        """
        if (directory / "tokenizer.json").exists():
            path = contained(directory, "tokenizer.json")
            return cls(_from_tokenizer_json(path), str(path))
        if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
            return cls(_from_vocabulary(directory), str(directory / "vocab.json"))
        if (directory / "tokenizer.model").exists():
            raise ModelError(
                f"{directory} holds tokenizer.model only, expected tokenizer.json. Convert it once with "
                "transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        raise ModelError(
            f"{directory} holds no tokenizer, expected tokenizer.json, or vocab.json and merges.txt."
        )

    def check_fits(self, n_rows: int) -> None:
        """Raise ModelError unless every token id has one of the model's `n_rows` embeddings."""
        if self.largest_id >= n_rows:
            raise ModelError(
                f"{self._where} has token ids up to {self.largest_id}, the model knows 0 to {n_rows - 1}. "
                "Does the tokenizer belong to this model?"
            )

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of `text`; `special` adds what belongs around it, such as OPT's leading </s>.

        Raises UsageError for text with lone surrogates, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text holds {error.object[error.start]!r} at position {error.start}, which has no UTF-8."
            ) from error
        return _guarded(
            lambda: _quietly(lambda: self._inner.encode(text, add_special_tokens=special).ids),
            lambda reason: ModelError(f"{self._where} cannot encode this text ({reason})."),
        )

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises UsageError for an id that the tokenizer does not know; ids between its tokens and the
        model's rows, which OPT has, give no text.
        """
        return _guarded(
            lambda: self._inner.decode(list(ids), skip_special_tokens=not special),
            lambda reason: UsageError(f"Token ids {brief(list(ids))} cannot be decoded ({reason})."),
        )

    def token_id(self, token: str) -> int | None:
        """Return the id of one token by its spelling, None when there is no such token."""
        return self._inner.token_to_id(token)


@final
class StreamDecoder:
    """Turns ids into text one by one, holding back characters whose bytes are not all there yet.

    The pieces and the flush together are ``tokenizer.decode`` of all ids. Does not hold for tokenizers with
    byte fallback (Llama 2) on bytes that are no UTF-8: they change text that was already given out.
    Cost: one decode of the last few tokens per id.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start at the beginning of a text."""
        self._tokenizer = tokenizer
        self._context: list[int] = []  # already given out; kept as decoders treat a first token apart
        self._waiting: list[int] = []
        self._n_given = 0  # characters of context and waiting that were given out

    def push(self, token_id: int) -> str:
        """Return the text that is final now that `token_id` follows; may be empty."""
        self._waiting.append(token_id)
        text = self._tokenizer.decode(self._context + self._waiting)
        n_held = _open_characters(text)
        piece = text[self._n_given : len(text) - n_held]
        self._n_given += len(piece)
        if piece and not n_held:
            self._context, self._waiting = self._waiting, []
            self._n_given = len(self._tokenizer.decode(self._context))
        return piece

    def flush(self) -> str:
        """Return what is still held back, as U+FFFD where bytes are missing, and start anew."""
        piece = self._tokenizer.decode(self._context + self._waiting)[self._n_given :]
        self._context, self._waiting, self._n_given = [], [], 0
        return piece


def _open_characters(text: str) -> int:
    n_replaced = len(text) - len(text.rstrip(REPLACEMENT))
    return min(n_replaced, MOST_HELD_BACK)


def _from_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    raw = read_json(path, largest_bytes=LARGEST_TOKENIZER_BYTES)
    if not isinstance(raw.get("model"), dict):
        raise ModelError(
            f"{path}: model is {brief(raw.get('model'))}, expected an object. Download it again."
        )
    return _guarded(
        lambda: _quietly(lambda: _tried(_opened(path))),
        lambda reason: ModelError(f"{path} is broken ({reason}). Download it again."),
    )


def _opened(path: Path) -> tokenizers.Tokenizer:
    with openable(path) as name:
        return tokenizers.Tokenizer.from_file(name)


def _merging(vocab: Path, merges: Path) -> models.BPE:
    with openable(vocab) as vocab_name, openable(merges) as merges_name:
        return models.BPE.from_file(vocab_name, merges_name)


def _tried(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Encode and decode short texts, since some broken files load and fail only when used."""
    # What is cut off or filled up for training batches must not be for prompts.
    inner.no_truncation()
    inner.no_padding()
    for text in TRIED:
        inner.decode(inner.encode(text).ids)
    return inner


def _from_vocabulary(directory: Path) -> tokenizers.Tokenizer:
    """Return GPT-2's byte-level BPE, with the leading token that tokenizer_config.json asks for, or OPT's."""
    vocab, merges = contained(directory, "vocab.json"), contained(directory, "merges.txt")
    ids = read_json(vocab, largest_bytes=LARGEST_TOKENIZER_BYTES)
    n_ids = len(ids)
    odd = next((each for each in ids.values() if isinstance(each, bool) or not isinstance(each, int)), None)
    if not ids or odd is not None or set(ids.values()) != set(range(n_ids)):
        raise ModelError(
            f"{vocab} gives token ids other than 0 to {n_ids - 1}, each once. Download it again."
        )
    settings = _optional_json(directory, "tokenizer_config.json")
    kind = settings.get("tokenizer_class")
    if kind not in BYTE_LEVEL_CLASSES:
        raise ModelError(
            f"{directory} holds vocab.json for a {brief(kind)}, expected tokenizer.json for this kind. "
            "Convert it once with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    inner = _guarded(
        lambda: _quietly(lambda: tokenizers.Tokenizer(_merging(vocab, merges))),
        lambda reason: ModelError(f"{merges} does not go with {vocab.name} ({reason}). Download both again."),
    )
    fields = Fields(settings, str(directory / "tokenizer_config.json"))
    is_spaced = fields.flag("add_prefix_space", False)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=is_spaced)
    inner.decoder = decoders.ByteLevel()
    roles = _special_tokens(settings, _optional_json(directory, "special_tokens_map.json"))
    known = {role: token for role, token in roles.items() if token in ids}
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in dict.fromkeys(known.values())])
    bos = known.get("bos_token", OPT_BOS if OPT_BOS in ids else None)
    if bos is not None and fields.flag("add_bos_token", bos == OPT_BOS):
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
        )
    return inner


def _special_tokens(*tables: dict[str, Any]) -> dict[str, str]:
    """Return the spelling of each role's token; the first table that has a role decides."""
    roles: dict[str, str] = {}
    for table in tables:
        for role in ROLES:
            value = table.get(role)
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str) and token:
                roles.setdefault(role, token)
    return roles


def _optional_json(directory: Path, name: str) -> dict[str, Any]:
    return read_json(contained(directory, name)) if (directory / name).exists() else {}


def _guarded(call: Callable[[], T], to_error: Callable[[str], WinnowError]) -> T:
    """Return ``call()``; whatever it raises, panics included, becomes ``to_error(reason)``."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic derives from BaseException only
        raise to_error(brief(str(error))) from error


_ONE_AT_A_TIME = threading.Lock()


def _quietly(call: Callable[[], T]) -> T:
    """Return ``call()``; what it writes to standard error is written out at its end, unless it fails.

    A panic prints its trace there before it can be caught. Costs some 20 microseconds, too much for every
    token's decoding. Other threads that reach for standard error meanwhile wait for their lines, and lose
    them only to a failure.
    """
    with _ONE_AT_A_TIME, _held_back():
        return call()


@contextmanager
def _held_back() -> Iterator[None]:
    try:
        real = os.dup(STDERR)
    except OSError:  # closed: there is nothing to keep clean
        yield
        return
    aside = os.memfd_create("stderr")
    os.dup2(aside, STDERR)
    try:
        yield
    except BaseException:
        os.truncate(aside, 0)
        raise
    finally:
        os.dup2(real, STDERR)
        size = os.fstat(aside).st_size
        if size:
            os.write(real, os.pread(aside, size, 0))
        os.close(aside)
        os.close(real)


@final
class CertainText:
    """Text as it becomes certain: whole characters only, and nothing that may yet be a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        """Hold nothing yet; the text ends before the first of the strings `stop`."""
        self.decoder = StreamDecoder(tokenizer)
        self.stop = stop
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return what has become certain with `token`."""
        self.held += self.decoder.push(token)
        return self._release()

    def flush(self) -> str:
        """Return what was held back when the text ends here."""
        if self.stopped:
            return ""
        self.held += self.decoder.flush()
        certain = self._release()
        if self.stopped:
            return certain
        rest, self.held = self.held, ""
        return certain + rest

    def _release(self) -> str:
        ends = [i for i in (self.held.find(s) for s in self.stop) if i >= 0]
        if ends:
            self.stopped = True
            shown, self.held = self.held[: min(ends)], ""
            return shown
        longest = max((_overlap(self.held, s) for s in self.stop), default=0)
        cut = len(self.held) - longest
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
