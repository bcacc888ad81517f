"""Aggregate: one product stands for a whole group of pairs.   (floor 3 · search)

    U_I = sum of s_x p(x) over x in group I of a      p(x): D products of r sampled coordinates; r = 1: x
    |U_I . V_J| > threshold                           then each pair of the groups I, J is compared

with random groups of g rows and random signs s. A heavy pair adds rho^r D to the product of its groups; the
other g^2 - 1 pairs add noise of deviation g sqrt(D). With several rounds of fresh signs a cell survives where
most of them say so; with several repeats, of fresh groups, where one of them does.

After arXiv:2311.11429 (abstract) and the light bulb algorithms before it; construction ours. With schoolbook
products it saves nothing over fewer coordinates: 16 / rho^(2r) multiply-adds per pair, whatever the group is.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from scipy.stats import norm

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.search.cascade import Cascade
from winnow.search.outcome import Found
from winnow.search.problem import GROUPS, SAMPLE, Problem
from winnow.search.signs import Signs

SAMPLED_ROWS = 1000
SIGNAL, CELL = 4.0, 1.96  # deviations: a heavy pair's share of its cell, and where a cell survives
CORRELATED = 1.3  # background this much above chance is centred
MOST_DEGREE = 4
MOST_COORDINATES = 1 << 14  # of degree 2 and more
MOST_BYTES = 2 << 30  # of group sums, or of votes
TILE_CELLS = 1 << 25
LEAST_GROUPS = 64  # at a time: a product of fewer costs as much


@final
@dataclass(frozen=True)
class Groups:
    """The parameters of a search, and its cost by formula."""

    size: int
    degree: int
    coordinates: int
    rounds: int
    repeats: int
    threshold: float
    centred: bool
    correlation: float  # the background's, root mean square

    def count(self, n_rows: int) -> int:
        """Return how many groups `n_rows` rows make."""
        return -(-n_rows // self.size)

    def multiply_adds(self, n_a: int, n_b: int | None) -> int:
        """Return those of products and sums; comparing the pairs of surviving cells comes on top."""
        h = self.count(n_a)
        cells = h * (h + 1) // 2 if n_b is None else h * self.count(n_b)
        sums = (n_a + (n_b or 0)) * self.degree
        return self.rounds * self.repeats * self.coordinates * (cells + sums)


@final
@dataclass(frozen=True)
class Sampled:
    """Pairs of 1000 x 1000 rows, per coordinate: what the data look like to a product."""

    mean_a: np.ndarray
    mean_b: np.ndarray
    signal: float  # of a pair at the limit
    products: np.ndarray
    is_centred: bool

    def noise(self, degree: int, coordinates: int) -> float:
        """Return the deviation that one background pair adds to a product of `coordinates`."""
        if degree == 1:
            return coordinates * math.sqrt(float((self.products**2).mean()))
        return math.sqrt(coordinates + coordinates**2 * float((self.products ** (2 * degree)).mean()))


@final
@dataclass(frozen=True)
class Aggregate:
    """Groups by the practical rule, or of the paper's size; 0 stands for a choice by measurement."""

    is_paper: bool = False
    degree: int = 0
    repeats: int = 0
    name: ClassVar[str] = "aggregate"
    is_exact: ClassVar[bool] = False

    def find(self, problem: Problem) -> Found:
        """Return heavy pairs; where correlation drowns the signal the cascade searches, with a note."""
        sample = _sample(problem)
        groups = self.groups(problem, sample)
        if groups is None:
            found = Cascade().find(problem)
            note = (
                "aggregate: at every degree background correlation drowns the signal, or group sums exceed "
                "memory; the cascade searched instead"
            )
            return Found(found.pairs, found.candidates, found.multiply_adds, found.bytes, found.plan, (note,))
        codes, work, candidates = [np.zeros(0, np.int64)], 0, 0
        for repeat in range(groups.repeats):
            search = _Repeat(problem, groups, sample, repeat)
            i, j, products = search.surviving()
            near, compared = search.compare(i, j)
            codes.append(near)
            candidates += compared
            work += products + compared * problem.width
            problem.watch(repeat + 1, groups.repeats)
        found = problem.listed(np.concatenate(codes))
        plan = (
            f"aggregate: groups of {groups.size}, degree {groups.degree}, {groups.coordinates} "
            f"coordinates, {groups.rounds} rounds, {groups.repeats} repeats; "
            f"background correlation {groups.correlation:.3g}"
        )
        n_bytes = problem.a.words.nbytes + 4 * groups.count(problem.n_rows) * groups.coordinates
        notes = ("aggregate: the background is correlated, the data were centred",) if groups.centred else ()
        return Found(found, candidates, work, n_bytes, plan, notes)

    def groups(self, problem: Problem, sample: "Sampled | None" = None) -> Groups | None:
        """Return the parameters for these data; None where no degree separates signal from background."""
        sample = sample or _sample(problem)
        if self.is_paper:
            return self._paper(problem, sample)
        for degree in (self.degree,) if self.degree else range(1, MOST_DEGREE + 1):
            most = math.comb(problem.width, degree)
            coordinates = problem.width if degree == 1 else min(most, MOST_COORDINATES)
            signal = coordinates * max(sample.signal, 0.0) ** degree
            size = int(signal / (SIGNAL * sample.noise(degree, coordinates)))
            if size >= 2 and 4 * (problem.n_rows / size) * coordinates <= MOST_BYTES:
                noise = size * sample.noise(degree, coordinates)
                missed = float(norm.cdf(CELL - signal / noise))
                repeats = self.repeats or math.ceil(math.log(1 - problem.recall) / math.log(missed))
                return self._with(sample, (size, degree, coordinates), (1, repeats), CELL * noise)
        return None

    def _paper(self, problem: Problem, sample: Sampled) -> Groups:
        size = max(round(max(len(problem.a), len(problem.columns)) ** (1 / 3)), 2)
        rounds = math.ceil(10 * math.log(max(problem.n_rows, 2)))
        for degree in (self.degree,) if self.degree else range(1, MOST_DEGREE + 1):
            signal = max(sample.signal, 1e-9) ** degree
            wanted = math.ceil((SIGNAL * size / signal) ** 2)
            coordinates = problem.width if degree == 1 else min(wanted, math.comb(problem.width, degree))
            h = problem.n_rows / size
            if coordinates >= wanted and max(4 * h * coordinates, 2 * h * h) <= MOST_BYTES:
                shape = size, degree, coordinates
                return self._with(sample, shape, (rounds, self.repeats or 1), coordinates * signal / 2)
        raise UsageError(
            f"group_size paper is {size} here and needs more coordinates than memory holds or than the "
            f"{problem.width} give, expected a larger rho or width: use group_size auto."
        )

    def _with(
        self, sample: Sampled, shape: tuple[int, int, int], times: tuple[int, int], threshold: float
    ) -> Groups:
        correlation = math.sqrt(float((sample.products**2).mean()))
        return Groups(*shape, *times, threshold, sample.is_centred, correlation)


def _sample(problem: Problem) -> Sampled:
    draws, a, b = keyed(problem.seed, SAMPLE + 1), problem.a, problem.columns
    rows, columns = (np.sort(draws.permutation(len(each))[:SAMPLED_ROWS]) for each in (a, b))
    x, y = (Signs(s.words[at], s.width).rows(0, len(at)) for s, at in ((a, rows), (b, columns)))
    x, y = x.astype(np.float32), y.astype(np.float32)
    partner = x.copy()
    for row in partner:
        row[draws.choice(problem.width, problem.limit, replace=False)] *= -1
    other = np.ones((len(x), len(y)), bool)
    if problem.b is None and len(a) > 1:
        other = rows[:, None] != columns[None, :]
    mean_a, mean_b = x.mean(axis=0) * 0, y.mean(axis=0) * 0
    products = (x @ y.T / problem.width)[other]
    is_centred = math.sqrt(float((products**2).mean())) > CORRELATED / math.sqrt(problem.width)
    if is_centred:
        mean_a, mean_b = x.mean(axis=0), y.mean(axis=0)
        products = ((x - mean_a) @ (y - mean_b).T / problem.width)[other]
    signal = float(((x - mean_a) * (partner - mean_b)).mean())
    return Sampled(mean_a, mean_b, signal, products, is_centred)


@final
class _Repeat:
    """One grouping of the rows, and what is found in it."""

    def __init__(self, problem: Problem, groups: Groups, sample: Sampled, repeat: int) -> None:
        self.problem, self.groups, self.sample = problem, groups, sample
        self.seed_at = GROUPS + repeat * 100_000
        draws, size = keyed(problem.seed, self.seed_at), groups.size
        self.members = []
        for each in [problem.a] if problem.b is None else [problem.a, problem.b]:
            padded = np.full(groups.count(len(each)) * size, -1, np.int64)
            padded[: len(each)] = draws.permutation(len(each))
            self.members.append(padded.reshape(-1, size))
        one, r = groups.degree == 1, groups.degree
        shape = (groups.coordinates, r)
        self.chosen = None if one else np.argsort(draws.random((shape[0], problem.width)), axis=1)[:, :r]

    def surviving(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the cells (I, J) that survive, and the multiply-adds of sums and products."""
        groups, h = self.groups, [len(each) for each in self.members]
        votes = np.zeros((h[0], h[-1]), np.int16) if groups.rounds > 1 else None
        cells, work = [np.zeros((0, 2), np.int64)], 0
        for turn in range(groups.rounds):
            sums = [self._sums(side, turn) for side in range(len(self.members))]
            work += self.problem.n_rows * groups.degree * groups.coordinates
            step = max(min(TILE_CELLS // h[-1], h[0] // 128), LEAST_GROUPS)
            for start in range(0, h[0], step):
                first = start if self.problem.b is None else 0
                products = (sums[0][start : start + step] @ sums[-1][first:].T).abs_() > groups.threshold
                work += products.numel() * groups.coordinates
                if votes is None:
                    cells.append(torch.nonzero(products).numpy() + np.array([start, first]))
                else:
                    votes[start : start + step, first:] += products.numpy()
        listed = np.concatenate(cells) if votes is None else np.argwhere(2 * votes > groups.rounds)
        if self.problem.b is None:
            listed = listed[listed[:, 0] <= listed[:, 1]]
        return listed[:, 0], listed[:, 1], work

    def compare(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the heavy pairs of the cells as codes, and how many pairs were compared."""
        problem, size = self.problem, self.groups.size
        step, compared, codes = max((1 << 22) // size**2, 1), 0, [np.zeros(0, np.int64)]
        for at in range(0, len(i), step):
            left = np.repeat(self.members[0][i[at : at + step]], size, axis=1).ravel()
            right = np.tile(self.members[-1][j[at : at + step]], (1, size)).ravel()
            kept = (left >= 0) & (right >= 0)
            if problem.b is None:
                inside = np.repeat(i[at : at + step] == j[at : at + step], size**2)
                kept &= ~inside | (left < right)
                left, right = np.minimum(left, right), np.maximum(left, right)
            left, right = left[kept].astype(np.int32), right[kept].astype(np.int32)
            codes.append(problem.heavy_codes(left, right))
            compared += len(left)
            problem.check_found(sum(map(len, codes)))
        return np.concatenate(codes), compared

    def _sums(self, side: int, turn: int) -> torch.Tensor:
        """Return the signed sums of one side's groups, [groups, coordinates]."""
        members, problem = self.members[side], self.problem
        signs, mean = (problem.a, self.sample.mean_a) if side == 0 else (problem.columns, self.sample.mean_b)
        flips = keyed(problem.seed, self.seed_at + 1 + 2 * turn + side).integers(0, 2, members.shape) * 2 - 1
        flips = np.where(members < 0, 0, flips).astype(np.float32)
        out = torch.empty(len(members), self.groups.coordinates)
        step = max(TILE_CELLS // (self.groups.size * max(problem.width, self.groups.coordinates)), 1)
        for at in range(0, len(members), step):
            rows = members[at : at + step]
            x = Signs(signs.words[rows.ravel()], problem.width).rows(0, rows.size) - mean
            if self.chosen is not None:
                x = _products(np.ascontiguousarray(x.T), self.chosen).T
            x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).view(*rows.shape, -1)
            out[at : at + step] = torch.einsum("hg,hgd->hd", torch.from_numpy(flips[at : at + step]), x)
        return out


def _products(coordinates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the products of the chosen coordinates, one row each: [coordinates, rows]."""
    product = coordinates[chosen[:, 0]]
    for factor in chosen.T[1:]:
        product *= coordinates[factor]
    return product
