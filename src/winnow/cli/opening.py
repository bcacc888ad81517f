"""Opening: models, prompts and texts that the arguments name.   (floor 8 · cli)"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from winnow.base.errors import ModelError, UsageError
from winnow.base.room import check_memory
from winnow.cli.failures import say
from winnow.engine.checkpoint import Checkpoint, check_finite
from winnow.engine.context import StreamingContext
from winnow.engine.convert import Form, open_weights
from winnow.engine.generate import Engine, load
from winnow.engine.sparsity import windows
from winnow.engine.sparsity.fidelity import WINDOW_TOKENS
from winnow.engine.weights import Weights

NO_LAZY = "--kv lazy changes nothing here: every head is computed"


def open_engine(
    arguments: argparse.Namespace,
    plan: str | Path | None,
    device: str = "cpu",
    kv: str = "dense",
    context: StreamingContext | None = None,
    constant_work: bool = False,
) -> Engine:
    """Return the engine for MODEL with `plan`: "auto", a path, or None for dense; says where `kv` is in vain.

    Raises ResourceError, before a weight is read, when they need more memory than is free; with
    ``--check-tensors`` ModelError for a weight that is NaN or infinite.
    """
    checkpoint = open_checkpoint(arguments)
    for note in checkpoint.notes:
        say(note)
    if arguments.check_tensors:
        check_finite(checkpoint)
    engine = load(
        arguments.model,
        plan=plan,
        dtype=arguments.dtype,
        device=device,
        threads=arguments.threads,
        offline=arguments.offline,
        kv=kv,
        head_dtype=arguments.head_dtype,
        kv_dtype=arguments.kv_dtype,
        context="exact" if context is None else context,
        constant_work=constant_work,
        packed=arguments.packed or "auto",
    )
    if engine.kv.is_lazy and not (engine.plan and engine.plan.has_heads) and not arguments.quiet:
        say(f"{NO_LAZY}; take a plan that leaves heads out.")
    return engine


def read_context(arguments: argparse.Namespace) -> StreamingContext | None:
    """Return the budget that the options name, None for an exact context; refuses a budget for that."""
    names = ("window", "heavy", "sinks", "clusters", "remainder", "position")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.context == "streaming":
        return StreamingContext(**given)
    if given:
        raise UsageError(f"--{next(iter(given))} is a stream's; add --context streaming, or leave it out.")
    return None


def open_exact(arguments: argparse.Namespace) -> Weights:
    """Return the weights of MODEL in fp32; raises ResourceError where they do not fit beside what is held."""
    checkpoint = open_checkpoint(arguments)
    check_memory(checkpoint.memory_bytes(torch.float32), f"{checkpoint.directory} in fp32, to compare with")
    return open_weights(checkpoint, Form("fp32", "fp32"), "auto")


def open_checkpoint(arguments: argparse.Namespace) -> Checkpoint:
    """Return the files of MODEL; left out, those of the bundled pico."""
    model = "pico" if arguments.model is None else arguments.model
    return Checkpoint.open(model, offline=arguments.offline)


def read_prompt(prompt: str) -> str:
    """Return the prompt itself, or for ``-`` what standard input holds, without the line break at its end.

    Raises UsageError for input that is not UTF-8.
    """
    if prompt != "-":
        return prompt
    if sys.stdin is None:
        raise UsageError("standard input is closed; pipe a prompt in, or give it as a word.")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 at byte {error.start}; convert it, say with iconv."
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def read_text(path: Path, option: str = "--text") -> str:
    """Return the text of the file that `option` names; raises ModelError when it is missing or not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 at byte {error.start}; convert it, say with iconv.") from None
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); expected a text file. Check {option}."
        ) from None


def cut(engine: Engine, texts: Sequence[str], limit: int | None) -> tuple[list[Tensor], int]:
    """Return the windows of `texts`, each text cut by itself, and how many bytes of text they cover.

    `limit` is the number of tokens taken in all.
    """
    tokenizer = engine.tokenizer
    begin = tokenizer.encode("")
    size = min(WINDOW_TOKENS, engine.weights.config.n_positions)
    found: list[Tensor] = []
    n_bytes = n_tokens = 0
    for text in texts:
        ids = tokenizer.encode(text, special=False)
        taken = ids if limit is None else ids[: limit - n_tokens]
        if taken:
            found += windows(taken, begin, size)
            n_tokens += len(taken)
            n_bytes += len((text if len(taken) == len(ids) else tokenizer.decode(taken)).encode())
    return (found or windows([], begin, size)), n_bytes
