"""Gemm: all products as floats, block by block, the plain way.   (floor 3 · search)"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from winnow.search.outcome import Found
from winnow.search.problem import Problem
from winnow.search.reals import Reals
from winnow.search.signs import Signs

TILE_ROWS, TILE_COLUMNS = 4096, 4096


@final
@dataclass(frozen=True)
class Gemm:
    """Every product in float32, on torch's threads."""

    name: ClassVar[str] = "gemm"
    is_exact: ClassVar[bool] = True

    def find(self, problem: Problem) -> Found:
        """Return every heavy pair; products of +-1 are whole numbers, exact below 2^24 coordinates."""
        a, b, width = problem.a, problem.columns, problem.width
        found, n_found = [np.zeros((0, 3), np.int64)], 0
        for start in range(0, len(a), TILE_ROWS):
            rows = _floats(a, start, start + TILE_ROWS)
            for column in range(start if problem.b is None else 0, len(b), TILE_COLUMNS):
                products = rows @ _floats(b, column, column + TILE_COLUMNS).T
                i, j = (
                    each.numpy() for each in torch.nonzero(products >= width - 2 * problem.limit).unbind(1)
                )
                distances = (width - products[i, j].numpy().astype(np.int64)) // 2
                pairs = np.column_stack([i + start, j + column, distances])
                found.append(pairs if problem.b is not None else pairs[pairs[:, 0] < pairs[:, 1]])
                n_found += len(found[-1])
                problem.check_found(n_found)
            problem.watch(min(start + TILE_ROWS, len(a)), len(a))
        pairs = np.concatenate(found)
        plan = f"gemm: {problem.n_pairs} pairs of {width} float32"
        n_bytes = a.words.nbytes + 4 * (TILE_ROWS * TILE_COLUMNS + (TILE_ROWS + TILE_COLUMNS) * width)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return Found(pairs[order], problem.n_pairs, problem.n_pairs * width, n_bytes, plan)


def near_cosines(a: Reals, b: Reals | None, rho: float) -> np.ndarray:
    """Return (i, j) of all pairs whose cosine may reach `rho`: float32, and its worst rounding below it."""
    columns, slack = a if b is None else b, (a.width + 8) * 2.0**-23
    found = [np.zeros((0, 2), np.int64)]
    row_step, column_step = min(a.step, TILE_ROWS), min(columns.step, TILE_COLUMNS)
    for start in range(0, len(a), row_step):
        rows = torch.from_numpy(a.unit(slice(start, start + row_step)).astype(np.float32))
        first = start // column_step * column_step if b is None else 0
        for column in range(first, len(columns), column_step):
            part = columns.unit(slice(column, column + column_step)).astype(np.float32)
            near = torch.nonzero(rows @ torch.from_numpy(part).T >= rho - slack)
            pairs = near.numpy() + np.array([start, column])
            found.append(pairs if b is not None else pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def _floats(signs: Signs, start: int, end: int) -> torch.Tensor:
    return torch.from_numpy(signs.rows(start, end)).float()
