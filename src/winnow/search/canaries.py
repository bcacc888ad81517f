"""Canaries: pairs planted among the caller's own, to be found or not.   (floor 3 · search)

A copy of a row of a, with exactly as many bits flipped as a heavy pair may differ in, joins the second set;
the share of such pairs that a method finds is its recall on these data. They are taken out of the result.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Int64

from winnow.base.rng import keyed
from winnow.kernels.bit_products.reference import pack_signs_reference
from winnow.search.outcome import Found
from winnow.search.problem import CANARIES, Problem
from winnow.search.reals import Reals
from winnow.search.signs import Signs


@final
@dataclass(frozen=True)
class Planted:
    """A problem with canaries at the end of its second set; `sources` are the rows they were copied from."""

    problem: Problem
    sources: Int64[np.ndarray, " canaries"]

    def apart(self, found: Found) -> tuple[Int64[np.ndarray, "found 3"], int]:
        """Return the caller's pairs, and how many canaries were found."""
        own = len(self.problem.columns) - len(self.sources)
        pairs = found.pairs
        planted = pairs[pairs[:, 1] >= own]
        hits = int((planted[:, 0] == self.sources[planted[:, 1] - own]).sum())
        return pairs[pairs[:, 1] < own], hits


def plant(problem: Problem, count: int) -> Planted:
    """Return the problem with `count` canaries at its limit; the caller's words are copied, not written."""
    sources, draws = _sources(problem, count)
    flips = np.zeros((count, problem.width), bool)
    for row in flips:
        row[draws.choice(problem.width, problem.limit, replace=False)] = True
    copies = Signs(problem.a.words[sources] ^ pack_signs_reference(flips), problem.width)
    return Planted(_with(problem, copies), sources)


def plant_reals(problem: Problem, a: Reals, rho: float, projection: np.ndarray, count: int) -> Planted:
    """Return the problem with the signs of real canaries, each of cosine `rho` to a row of `a`."""
    sources, draws = _sources(problem, count)
    rows = a.unit(sources)
    aside = draws.standard_normal(rows.shape)
    aside -= (aside * rows).sum(axis=1, keepdims=True) * rows
    aside /= np.sqrt((aside * aside).sum(axis=1, keepdims=True))
    copies = Reals(rho * rows + np.sqrt(1 - rho * rho) * aside).signs(projection)
    return Planted(_with(problem, copies), sources)


def _sources(problem: Problem, count: int) -> tuple[np.ndarray, np.random.Generator]:
    draws = keyed(problem.seed, CANARIES)
    return draws.integers(0, len(problem.a), count), draws


def _with(problem: Problem, copies: Signs) -> Problem:
    if problem.b is None:
        return replace(problem, a=problem.a.joined(copies))
    return replace(problem, b=problem.b.joined(copies))
