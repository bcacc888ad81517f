"""winnow audit: what gradients and updates give away.   (floor 8 · cli)"""

import argparse
import operator
import re
from collections.abc import Sequence
from pathlib import Path

from winnow.audit.leakage import (
    Audit,
    Row,
    audit_given,
    defence_matrix,
    load_model,
    precheck,
    read_defence,
    read_update,
)
from winnow.audit.leakage import gradients as audit_gradients
from winnow.base.errors import ModelError, UsageError
from winnow.cli import audit_attention, audit_timing
from winnow.cli.opening import read_text
from winnow.cli.show import show_json, show_pairs, show_table
from winnow.engine.checkpoint import find_directory
from winnow.engine.tokenizer import Tokenizer

FAILED = 1
CONDITION = re.compile(r"(exact_match|token_recall)\s*(>=|>)\s*([0-9.]+)")
COMPARE = {">": operator.gt, ">=": operator.ge}


def run(arguments: argparse.Namespace) -> int:
    """Run the audit that the second word names."""
    audits = {
        "gradients": _gradients,
        "update": _update,
        "attention": audit_attention.run,
        "timing": audit_timing.run,
    }
    return audits[arguments.choice](arguments)


def _gradients(arguments: argparse.Namespace) -> int:
    """Audit the gradient of a batch cut from --text, under one defence or under several."""
    condition = _condition(arguments.fail_if)
    defences = arguments.defence or ["none"]
    for each in defences:
        read_defence(each)  # refused before a model is opened
    directory = find_directory(arguments.model or "pico", offline=arguments.offline)
    tokenizer = Tokenizer.open(directory)
    model = load_model(directory)
    texts = _batch(tokenizer.encode(read_text(arguments.text), special=False), arguments)
    if len(defences) > 1:
        rows = defence_matrix(model, texts, defences, seed=arguments.seed)
        audits = [row.audit for row in rows]
        if arguments.json:
            show_json({**audits[0].as_json(), "defences": [_row_json(row) for row in rows]})
        else:
            _show_matrix(rows)
    else:
        audits = [audit_gradients(model, texts, defence=defences[0], seed=arguments.seed)]
        _show(audits[0], arguments, tokenizer)
    return _code(audits, condition)


def _update(arguments: argparse.Namespace) -> int:
    """Audit the update file that FILE names, against --base."""
    directory = find_directory(arguments.base or "pico", offline=arguments.offline)
    tokenizer = Tokenizer.open(directory)
    model = load_model(directory)
    given = read_update(Path(arguments.file), model)
    audit = audit_given(model, given, seed=arguments.seed)
    if not arguments.json:
        check = precheck(model, given, n_layers=1)
        ranks = [(f"layer {c.layer}, {c.maps}", f"{c.rank} of {c.width}") for c in check.layers]
        show_pairs("distinct inputs of", ranks)
    _show(audit, arguments, tokenizer)
    return _code([audit], None)


def _batch(ids: Sequence[int], arguments: argparse.Namespace) -> list[list[int]]:
    """Return --batch texts of --length tokens each, from the beginning of `ids` on."""
    wanted = arguments.batch * arguments.length
    if len(ids) < wanted:
        raise ModelError(
            f"{arguments.text} has {len(ids)} tokens, expected {wanted} for --batch {arguments.batch} "
            f"--length {arguments.length}. Give a longer text or a smaller batch."
        )
    return [list(ids[at : at + arguments.length]) for at in range(0, wanted, arguments.length)]


def _condition(text: str | None) -> tuple[str, str, float] | None:
    if text is None:
        return None
    match = CONDITION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--fail-if {text!r} is not understood; expected such as 'exact_match>0'.")
    return match[1], match[2], float(match[3])


def _code(audits: Sequence[Audit], condition: tuple[str, str, float] | None) -> int:
    """Return 1 where an audit is void or meets --fail-if."""
    if any(audit.verdict == "void" for audit in audits):
        return FAILED
    if condition is None:
        return 0
    key, sign, least = condition
    scores = [audit.score for audit in audits if audit.score is not None]
    values = [score.exact_match if key == "exact_match" else score.token_recall for score in scores]
    return FAILED if any(COMPARE[sign](value, least) for value in values) else 0


def _show(audit: Audit, arguments: argparse.Namespace, tokenizer: Tokenizer) -> None:
    texts = [tokenizer.decode(list(text)) for text in audit.recovery.texts] if arguments.show_text else []
    found = audit.as_json()
    if arguments.json:
        show_json({**found, **({"texts": texts} if arguments.show_text else {})})
        return
    controls = audit.controls
    pairs = [
        ("verdict", audit.verdict),
        *([] if audit.score is None else [("texts found whole", f"{100 * audit.score.exact_match:.1f} %")]),
        *([] if audit.score is None else [("tokens found", f"{100 * audit.score.token_recall:.1f} %")]),
        ("texts read", str(len(audit.recovery.texts))),
        ("certificate", _error(audit.recovery.certificate)),
        ("distinct inputs", ", ".join(map(str, audit.recovery.ranks)) or "-"),
        ("seconds", f"{audit.recovery.seconds:.2f}"),
        ("planted text found", "yes" if controls.planted_found else "no: void"),
        ("text found in noise", "yes: void" if controls.noise_found else "no"),
        *([("because", audit.recovery.reason)] if audit.recovery.reason else []),
        ("does not show", str(found["does_not_show"])),
    ]
    show_pairs(f"gradient, defence {audit.defence}", pairs)
    for text in texts:
        print(f"  | {text!r}")


def _error(certificate: float | None) -> str:
    return "none" if certificate is None else f"{certificate:.1e}, relative error of the gradient they make"


def _row_json(row: Row) -> dict[str, object]:
    return {
        **row.audit.as_json(),
        "epsilon_server": None if row.account is None else row.account.server,
        "epsilon_final_model": None if row.account is None else row.account.final_model,
        "recovery_bound": row.bound,
        "loss_before": row.loss_before,
        "loss_after": row.loss_after,
    }


def _show_matrix(rows: Sequence[Row]) -> None:
    columns = ("defence", "verdict", "texts", "tokens", "eps server", "eps final", "bound", "loss")
    cells = []
    for row in rows:
        score, known = row.audit.score, row.account
        cells.append(
            [
                row.audit.defence,
                row.audit.verdict,
                "-" if score is None else f"{100 * score.exact_match:.1f} %",
                "-" if score is None else f"{100 * score.token_recall:.1f} %",
                "none" if known is None else f"{known.server:.3g}",
                "none" if known is None else f"{known.final_model:.3g}",
                f"{row.bound:.3g}",
                f"{row.loss_before:.3f} to {row.loss_after:.3f}",
            ]
        )
    show_table("one gradient under each defence", columns, cells)
