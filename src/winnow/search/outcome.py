"""Outcome: the pairs found, and how sure and how dear the finding was.   (floor 3 · search)"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import beta


@final
@dataclass(frozen=True)
class Report:
    """How a search went. Counts are of what was done, canaries included; seconds are of the wall clock.

    `recall` is the share of planted canary pairs that were found and `recall_interval` its Clopper-Pearson
    interval of 95 %: canaries stand exactly at the threshold, and heavier pairs are found at least as often.
    Where a method leaves nothing out there are no canaries, and recall is 1 by construction. `candidates`
    were compared whole; `multiply_adds` of one bit each, or of floats where a product is one of floats;
    `bytes` is what the search held beside the caller's arrays. It does not show how often pairs are found
    that differ from each other in one common way, as copies made by one program may.
    """

    method: str
    recall: float
    recall_interval: tuple[float, float]
    canaries: int
    candidates: int
    multiply_adds: int
    bytes: int
    seconds: float
    threads: int
    plan: str
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Pairs:
    """The heavy pairs, ascending by i, then j; `product` is the cosine where the vectors are real."""

    i: Int64[np.ndarray, " found"]
    j: Int64[np.ndarray, " found"]
    product: Int64[np.ndarray, " found"] | Float64[np.ndarray, " found"]
    report: Report

    def __len__(self) -> int:
        """Return how many pairs were found."""
        return len(self.i)


@final
@dataclass(frozen=True)
class Found:
    """What a method found: (i, j, distance) ascending, each pair once, all of them verified."""

    pairs: Int64[np.ndarray, "found 3"]
    candidates: int
    multiply_adds: int
    bytes: int
    plan: str
    notes: tuple[str, ...] = ()


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share seen as `hits` of `trials`; it misses at most 1 - confidence."""
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high
