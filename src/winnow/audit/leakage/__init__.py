"""Leakage: what a gradient, or an update made of gradients, gives away of its texts.   (floor 5 · audit)

batches.py     the gradient that a batch makes, as a client would send it
spans.py       the subspace that a map's inputs lie in, and when a row lies there too
candidates.py  tokens at positions whose inputs of the first layer lie there
search.py      texts from candidates, one position after the other
ends.py        repetitions, ends and last tokens from the head's gradient
attack.py      all of these in turn, with a certificate
score.py       found against true, each text counted once
lora.py        what the gradients of low-rank adapters tell, by rounds
meters.py      noise that is really there, its epsilon, and what noise would cost an unbiased attacker
precheck.py    ranks, tokens and lengths in seconds, without an attack
defences.py    what a client may do to a gradient before it sends it
audit.py       an attack between its controls, and the matrix of defences
update.py      files: read, checked, audited
"""

from winnow.audit.leakage.attack import Attack, Recovery, span_attack
from winnow.audit.leakage.audit import (
    Audit,
    Row,
    Training,
    audit_given,
    defence_matrix,
    gradients,
    matrix_finding,
)
from winnow.audit.leakage.batches import gradients_of
from winnow.audit.leakage.defences import Defence, read_defence
from winnow.audit.leakage.meters import identifiability, implied, noise_of
from winnow.audit.leakage.precheck import Precheck, precheck
from winnow.audit.leakage.score import Score, score
from winnow.audit.leakage.update import load_model, read_update

__all__ = [
    "Attack",
    "Audit",
    "Defence",
    "Precheck",
    "Recovery",
    "Row",
    "Score",
    "Training",
    "audit_given",
    "defence_matrix",
    "gradients",
    "gradients_of",
    "identifiability",
    "implied",
    "load_model",
    "matrix_finding",
    "noise_of",
    "precheck",
    "read_defence",
    "read_update",
    "score",
    "span_attack",
]
