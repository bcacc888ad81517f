"""Vectors with heavy pairs planted in them, and what plain numpy says of them."""

import numpy as np

from winnow.base.rng import keyed
from winnow.search import Pairs

Triples = list[tuple[int, int, float]]


def random_signs(seed: int, n: int, width: int) -> np.ndarray:
    return (2 * keyed(seed, n).integers(0, 2, (n, width), dtype=np.int8) - 1).astype(np.int8)


def planted_signs(seed: int, n: int, width: int, rho: float, count: int) -> tuple[np.ndarray, set]:
    """Random rows; `count` disjoint pairs of them differ in as many coordinates as a heavy pair may."""
    vectors, draws = random_signs(seed, n, width), keyed(seed, n + 1)
    chosen = draws.permutation(n)[: 2 * count].reshape(2, count)
    flips = int((1 - rho) * width / 2 + 1e-9)
    for i, j in chosen.T:
        vectors[j] = vectors[i]
        vectors[j, draws.choice(width, flips, replace=False)] *= -1
    return vectors, set(map(tuple, np.sort(chosen.T, axis=1).tolist()))


def listed(pairs: Pairs) -> Triples:
    return list(zip(pairs.i.tolist(), pairs.j.tolist(), pairs.product.tolist(), strict=True))


def found(pairs: Pairs) -> set:
    return {(i, j) for i, j, _ in listed(pairs)}


def by_definition(a: np.ndarray, b: np.ndarray | None, rho: float) -> Triples:
    """Every pair by whole-number products, ascending."""
    wide = a.astype(np.int64)
    products = wide @ (wide if b is None else b.astype(np.int64)).T
    i, j = np.nonzero(products >= rho * a.shape[1] - 1e-9)
    kept = i < j if b is None else np.ones(len(i), bool)
    i, j = i[kept], j[kept]
    return list(zip(i.tolist(), j.tolist(), products[i, j].tolist(), strict=True))
