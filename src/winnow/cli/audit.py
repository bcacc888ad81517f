"""winnow audit: what gradients and updates give away.   (floor 8 · cli)"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from winnow.audit.leakage import (
    audit_given,
    defence_matrix,
    load_model,
    matrix_finding,
    precheck,
    read_defence,
    read_update,
)
from winnow.audit.leakage import gradients as audit_gradients
from winnow.audit.methods import subject_of
from winnow.audit.privacy import privacy
from winnow.audit.report import Table
from winnow.base.errors import ModelError, UsageError
from winnow.cli import audit_attention, audit_timing
from winnow.cli.audit_models import check_report_options, show_finding
from winnow.cli.opening import read_text
from winnow.engine.checkpoint import find_directory
from winnow.engine.tokenizer import Tokenizer


def run(arguments: argparse.Namespace) -> int:
    """Run the audit that the second word names."""
    audits = {
        "gradients": _gradients,
        "update": _update,
        "attention": audit_attention.run,
        "timing": audit_timing.run,
        "privacy": _privacy,
    }
    return audits[arguments.choice](arguments)


def _gradients(arguments: argparse.Namespace) -> int:
    """Audit the gradient of a batch cut from --text, under one defence or under several."""
    check_report_options(arguments)
    defences = arguments.defence or ["none"]
    for each in defences:
        read_defence(each)  # refused before a model is opened
    directory = find_directory(arguments.model or "pico", offline=arguments.offline)
    tokenizer = Tokenizer.open(directory)
    model = load_model(directory)
    subject = subject_of(model, arguments.method, arguments.seed)
    marks = tokenizer.encode("") if subject.is_encoder else []  # BERT's opening and closing ones
    texts = _batch(tokenizer.encode(read_text(arguments.text), special=False), arguments, marks)
    title = f"a gradient of {directory.name} on {len(texts)} texts"
    if len(defences) > 1:
        rows = defence_matrix(subject.model, texts, defences, seed=arguments.seed, attack=subject.attack)
        return show_finding(matrix_finding(rows, title), arguments)
    audit = audit_gradients(
        subject.model, texts, defence=defences[0], seed=arguments.seed, attack=subject.attack
    )
    return show_finding(audit.finding(title, tokenizer.decode), arguments)


def _update(arguments: argparse.Namespace) -> int:
    """Audit the update file that FILE names, against --base."""
    check_report_options(arguments)
    directory = find_directory(arguments.base or "pico", offline=arguments.offline)
    tokenizer = Tokenizer.open(directory)
    model = load_model(directory)
    given = read_update(Path(arguments.file), model)
    audit = audit_given(model, given, seed=arguments.seed, clip=arguments.clip, records=arguments.records)
    found = audit.finding(arguments.file, tokenizer.decode)
    layers = precheck(model, given, n_layers=1).layers
    ranks = tuple((f"layer {each.layer}, {each.maps}", each.rank, each.width) for each in layers)
    table = Table("distinct inputs, by the maps that read them", ("maps", "rank", "width"), ranks)
    return show_finding(replace(found, tables=(table,)), arguments)


def _privacy(arguments: argparse.Namespace) -> int:
    """Account for the noise of a run, and for what an update of it really holds."""
    check_report_options(arguments)
    model = given = None
    if arguments.update is not None:
        model = load_model(find_directory(arguments.base or "pico", offline=arguments.offline))
        given = read_update(arguments.update, model)
    elif arguments.base is not None:
        raise UsageError("--base belongs to --update FILE; add it, or leave --base out.")
    found = privacy(
        noise=arguments.noise,
        rate=arguments.rate,
        steps=arguments.steps,
        delta=arguments.delta,
        prior=arguments.prior,
        model=model,
        update=given,
        clip=arguments.clip,
        records=arguments.records,
    )
    title = f"noise {arguments.noise:g} over {arguments.steps} steps at rate {arguments.rate:g}"
    return show_finding(found.finding(title), arguments)


def _batch(ids: Sequence[int], arguments: argparse.Namespace, marks: Sequence[int]) -> list[list[int]]:
    """Return --batch texts of --length tokens each, from the beginning of `ids` on, between `marks`."""
    size = max(arguments.length - len(marks), 1)
    wanted = arguments.batch * size
    if len(ids) < wanted:
        raise ModelError(
            f"{arguments.text} has {len(ids)} tokens, expected {wanted} for --batch {arguments.batch} "
            f"--length {arguments.length}. Give a longer text or a smaller batch."
        )
    pieces = [list(ids[at : at + size]) for at in range(0, wanted, size)]
    return [[*marks[:1], *piece, *marks[1:]] for piece in pieces]
