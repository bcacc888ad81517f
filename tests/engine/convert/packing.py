"""Models on disk, packed and read again: what the tests of packed files share."""

from pathlib import Path

import torch

from tests.cli import checkpoint as tiny
from tests.engine.opt_files import random_tensors, write
from winnow.engine import Checkpoint, load_weights
from winnow.engine.convert import Form, pack, read_packed
from winnow.engine.convert.parts import parts
from winnow.engine.synthetic import llama_config
from winnow.engine.weights import DTYPES, Weights

LLAMA = {**llama_config(2, 64, 96, 4, 2, vocab_size=311), "max_position_embeddings": 160}
WIDE = {**llama_config(2, 256, 384, 4, 2, vocab_size=311), "max_position_embeddings": 160}  # bf16 is coded
INT8 = Form("int8", "int8")


def model(directory: Path, raw: dict | None = None) -> Path:
    """Write a model of the shape `raw`, with a tokenizer."""
    tiny.write(directory)
    if raw is not None:
        tensors = random_tensors(raw)
        scaled = {k: t * 1.5 / t.shape[1] ** 0.5 if t.ndim == 2 else 1 + 0.3 * t for k, t in tensors.items()}
        write(directory, scaled, raw)
    return directory


def packed_now(directory: Path, form: Form) -> Weights:
    types = DTYPES[form.dtype], DTYPES[form.head_dtype]
    return load_weights(Checkpoint.open(directory), types[0], head_dtype=types[1], by_head=form.by_head)


def packed_file(directory: Path, form: Form = INT8) -> Path:
    return pack(Checkpoint.open(directory), form, directory).path


def read(path: Path, form: Form = INT8) -> Weights:
    return read_packed(path, Checkpoint.open(path.parent), form)


def same_bits(left: Weights, right: Weights) -> bool:
    a, b = parts(left), parts(right)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )
