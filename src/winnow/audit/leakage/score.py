"""Score: what was found against what was there, each text counted once.   (floor 5 · audit)"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.optimize import linear_sum_assignment

from winnow.audit.leakage.batches import Texts


@final
@dataclass(frozen=True)
class Score:
    """Shares of the truth, 0..1: texts found whole, tokens found in their places, last tokens."""

    exact_match: float
    token_recall: float
    last_token: float


def score(found: Texts, truth: Texts) -> Score:
    """Match `found` to `truth` one to one so that the edit distances are least, and count.

    A found text answers for one true text only, however well it fits a second.
    """
    if not found:
        return Score(0.0, 0.0, 0.0)
    distances = np.array([[edit_distance(a, b) for b in truth] for a in found])
    pairs = zip(*linear_sum_assignment(distances), strict=True)
    exact = tokens = last = 0
    for ours, theirs in pairs:
        guess, true = list(found[ours]), list(truth[theirs])
        exact += guess == true
        tokens += sum(a == b for a, b in zip(guess, true, strict=False))
        last += len(guess) == len(true) and guess[-1] == true[-1]
    return Score(exact / len(truth), tokens / sum(map(len, truth)), last / len(truth))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens must be inserted, removed or replaced to make `b` of `a`."""
    row = list(range(len(b) + 1))
    for place, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], place
        for column, right in enumerate(b, start=1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (left != right)),
            )
    return row[-1]
