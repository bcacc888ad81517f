"""Corpus: a folder of plain-text books becomes a tokenizer and one flat file of ids.   (floor 5 · train)"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from winnow.base.errors import ModelError
from winnow.base.files import replacing
from winnow.base.progress import Progress
from winnow.base.rng import keyed

END = "</s>"
SPECIAL_TOKENS = ["<s>", "<pad>", END, "<unk>"]  # ids 0..3, as in OPT: </s> begins and ends a text
END_ID = SPECIAL_TOKENS.index(END)


def books(folders: list[Path]) -> list[Path]:
    """Return every `.txt` file below `folders`, sorted by name, then by path: the same order everywhere."""
    found = sorted((p for f in folders for p in f.rglob("*.txt")), key=lambda p: (p.name, p.as_posix()))
    if not found:
        names = ", ".join(map(str, folders))
        raise ModelError(f"No .txt file below {names}; expected plain-text books. Give --corpus a folder.")
    return found


def train_tokenizer(paths: list[Path], vocab_size: int, sample_bytes: int = 40_000_000) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on an even sample of `paths`, deterministic.

    Any text round-trips; names of special tokens in it are read as those. A text is encoded as ``</s>``
    followed by its pieces.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = max(sample_bytes // len(paths), 1)
    tokenizer.train_from_iterator(_samples(paths, share), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, END_ID)]
    )
    return tokenizer


def _samples(paths: list[Path], characters: int) -> Iterator[str]:
    for path in paths:
        yield _text(path)[:characters]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not UTF-8 at byte {error.start}; expected plain text in UTF-8. Convert or remove it."
        ) from None


def encode(tokenizer: Tokenizer, paths: list[Path], out: Path, *, quiet: bool = False) -> np.ndarray:
    """Write the ids of all `paths`, each begun by ``</s>``, to `out` (.npy, uint16); return a memory map."""
    if not out.exists():
        progress = Progress("encoding books", len(paths), quiet=quiet)
        pieces = []
        for done, path in enumerate(paths, start=1):
            ids = tokenizer.encode(_text(path)).ids
            pieces.append(np.asarray(ids, dtype=np.uint16))
            progress.update(done)
        with replacing(out) as draft, draft.open("wb") as file:
            np.save(file, np.concatenate(pieces))
    return np.load(out, mmap_mode="r")


def batch(ids: np.ndarray, row_tokens: int, n_rows: int, seed: int, step: int) -> np.ndarray:
    """Return rows (n_rows, row_tokens) of `ids` drawn by (seed, step) alone, each begun by ``</s>``.

    No state is kept between steps: a resumed run sees what an unbroken one would have seen.
    """
    starts = keyed(seed, step).integers(0, len(ids) - row_tokens, size=n_rows)
    rows = np.stack([ids[s : s + row_tokens] for s in starts]).astype(np.int64)
    rows[:, 0] = END_ID
    return rows
