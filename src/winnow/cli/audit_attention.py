"""winnow audit attention: which text a file of attention maps gives away.   (floor 8 · cli)"""

import argparse
from typing import Any

import torch

from winnow.audit.attention import attention, read_maps
from winnow.base.errors import UsageError
from winnow.cli.audit_models import check_report_options, open_transformer, show_finding


def run(arguments: argparse.Namespace) -> int:
    """Read the maps, read the text back, show the finding."""
    check_report_options(arguments)
    if arguments.layer < 0 or (arguments.top_k is not None and arguments.top_k < 1):
        raise UsageError(
            f"--layer {arguments.layer}, --top-k {arguments.top_k}; expected a layer from 0, entries from 1."
        )
    maps, stored = read_maps(arguments.maps, arguments.layer, arguments.tensor)
    model, tokenizer = open_transformer(arguments)
    n_tokens = model.get_input_embeddings().num_embeddings
    for token in (arguments.first, *(_pair(arguments.anchors) or ())):
        if token is not None and not 0 <= token < n_tokens:
            raise UsageError(f"token {token} is outside the vocabulary; expected 0 to {n_tokens - 1}.")
    finding = attention(
        model,
        maps,
        layer=arguments.layer,
        top_k=arguments.top_k,
        first=_first(arguments, model, maps),
        anchors=_pair(arguments.anchors) or _marks(tokenizer),
        likeliest=arguments.likeliest,
        stored=torch.float32 if stored == torch.uint8 else stored,
        decode=None if tokenizer is None else lambda ids: tokenizer.decode(ids, special=True),
        exposures=arguments.exposures,
        rng=arguments.seed,
    )
    return show_finding(finding, arguments)


def _first(arguments: argparse.Namespace, model: Any, maps: Any) -> int | None:
    """Return the first token: as named, or the model's mark of beginning where maps alone do not name it."""
    is_hidden = arguments.layer > 0 or maps.ndim == 2 or 1 in maps.shape[:-2]
    return model.config.bos_token_id if arguments.first is None and is_hidden else arguments.first


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--anchors {text} are no two ids; expected such as 101,102.")
    return int(parts[0]), int(parts[1])


def _marks(tokenizer: Any) -> tuple[int, int] | None:
    """Return the tokens that the tokenizer puts around a text, where it puts one on each side."""
    if tokenizer is None:
        return None
    marks = tokenizer.encode("")
    return (marks[0], marks[-1]) if len(marks) == 2 else None
