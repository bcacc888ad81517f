"""Audit models: transformers' model of MODEL, and a finding on the terminal or in files.   (floor 8 · cli)"""

import argparse
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from winnow.audit.report import Condition, Finding, as_html, as_json, exit_code
from winnow.base.errors import ModelError, UsageError
from winnow.base.files import replacing
from winnow.cli.show import share, show_json, show_pairs
from winnow.engine.checkpoint import find_directory
from winnow.engine.tokenizer import Tokenizer


def show_finding(finding: Finding, arguments: argparse.Namespace) -> int:
    """Print the finding, write --html, and return the exit code: 1 where a condition holds or it is void."""
    code = exit_code(finding, [Condition.read(text) for text in arguments.fail_if])
    if arguments.html is not None:
        with replacing(arguments.html) as draft:
            draft.write_text(as_html(finding, show_text=arguments.show_text), encoding="utf-8")
    if arguments.json:
        show_json(as_json(finding, show_text=arguments.show_text))
        return code
    texts = [(piece.name, piece.text if arguments.show_text else "redacted") for piece in finding.recovered]
    controls = finding.controls
    show_pairs(
        f"audit of {finding.subject}",
        [
            ("verdict", finding.headline),
            ("read back whole", share(finding.exact_match)),
            ("tokens read back", share(finding.token_recall)),
            ("planted secret", "found" if controls.planted_found else "not found"),
            ("secret in noise", "found" if controls.noise_found else "none"),
            *((key.replace("_", " "), str(value)) for key, value in finding.certificate.items()),
            *texts,
        ],
    )
    return code


def check_report_options(arguments: argparse.Namespace) -> None:
    """Refuse conditions and files that would fail after the work is done. Raises UsageError."""
    for text in arguments.fail_if:
        Condition.read(text)
    if arguments.html is not None and arguments.html.suffix not in (".html", ".htm"):
        raise UsageError(f"--html {arguments.html} does not end in .html; name the file report.html, say.")


def open_transformer(arguments: argparse.Namespace) -> tuple[Any, Tokenizer | None]:
    """Return transformers' model of MODEL in fp32, and the tokenizer where the directory has one.

    Weights are read from safetensors alone and code beside them is never imported. Raises ModelError for what
    transformers cannot open.
    """
    directory = find_directory(arguments.model or "pico", offline=arguments.offline)
    logging.disable_progress_bar()  # errors stay one line
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        is_causal = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
        kind = AutoModelForCausalLM if is_causal or not config.architectures else AutoModel
        model = kind.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{directory} is no model that transformers opens ({reason}). Check MODEL."
        ) from None
    try:
        return model, Tokenizer.open(directory)
    except ModelError:
        return model, None
