"""Audit texts: a GPT-2 shape, a tokenizer of its size, and batches of texts that neither was made from."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from winnow.base.files import replacing
from winnow.base.rng import generator

VOCABULARY = 50_257
LENGTHS = (24, 25)  # in turns: of 32 texts 752 tokens are inputs, in 768 dimensions


def shape_of_gpt2() -> GPT2LMHeadModel:
    """Return GPT-2's shape with weights of its own initial distribution."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY)).eval()
    rng = generator(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                spread = 0.02 / (24**0.5 if name.endswith("c_proj.weight") else 1.0)
                parameter.copy_(spread * torch.randn(parameter.shape, generator=rng))
    return model


def books_of(folder: Path) -> list[Path]:
    """Return the texts in `folder`, in the order of their names."""
    books = sorted(folder.glob("*.txt"))
    if not books:
        raise SystemExit(f"{folder} holds no .txt files; expected a folder of books")
    return books


def byte_pairs(corpus: Path, kept: Path) -> Tokenizer:
    """Return a byte-level BPE of GPT-2's size trained on `corpus`; read from `kept` where it is there."""
    if kept.exists():
        return Tokenizer.from_file(str(kept))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(list(map(str, books_of(corpus))), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"{corpus} makes {tokenizer.get_vocab_size()} tokens; expected {VOCABULARY}")
    with replacing(kept) as draft:
        tokenizer.save(str(draft))
    return tokenizer


def batch_of(ids: Tensor, n_texts: int, number: int) -> list[list[int]]:
    """Return batch `number` of `n_texts` texts from random places of `ids`; the same at every call."""
    rng = generator(1000 * n_texts + number)
    starts = torch.randint(0, len(ids) - max(LENGTHS), (n_texts,), generator=rng).tolist()
    return [ids[at : at + LENGTHS[place % 2]].tolist() for place, at in enumerate(starts)]


class Kept:
    """Rows that survive an interruption: one JSON object a line, by what was measured."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run has written; a last line that was cut off is dropped."""
        self.path = path
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        self.rows = [json.loads(line) for line in lines]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), encoding="utf-8")

    def find(self, **key: object) -> dict | None:
        """Return the row of `key`, if it was written."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: dict) -> None:
        """Write one more row."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")
