"""Passes over rows agree with their definitions, in any pieces and on any number of threads."""

import numpy as np
import pytest

from winnow.base.errors import UsageError
from winnow.kernels import isa_levels
from winnow.kernels.row_sketch import (
    SEGMENT,
    TILE,
    RowPasses,
    open_passes,
    philox,
    sign_entries,
    sketch_rows_reference,
)

SHAPES = [(1, 1), (10, 3), (3001, 17), (2 * SEGMENT + 1, 50), (4097, 130)]
CHOICES = [("torch", 1), *((isa, n) for isa in isa_levels() for n in (1, 2))]


@pytest.fixture(params=CHOICES, ids=lambda choice: f"{choice[0]}-{choice[1]}")
def passes(request: pytest.FixtureRequest) -> RowPasses:
    isa, threads = request.param
    return open_passes(threads, isa)


def drawn(shape: tuple[int, ...], dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sketched(passes: RowPasses, a: np.ndarray, first: int, height: int, nonzeros: int = 8) -> np.ndarray:
    out = np.zeros((-(-a.shape[1] // TILE), height, TILE))
    passes.sketch(a, first, 7, nonzeros, out)
    return out.transpose(1, 0, 2).reshape(height, -1)[:, : a.shape[1]]


def test_philox_gives_the_published_answers():
    full = 0xFFFFFFFF
    assert philox(0, np.zeros((1, 4), np.uint64)).tolist() == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ]
    words = philox(full << 32 | full, np.full((1, 4), full, np.uint64)).tolist()
    assert words == [[0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]]


@pytest.mark.parametrize(("nonzeros", "height"), [(1, 40), (3, 33), (8, 64)])
def test_a_column_of_signs_has_one_entry_in_each_part(nonzeros, height):
    places, signs = sign_entries(3, 2**33, 500, nonzeros, height)
    assert (places // (height // nonzeros) == np.arange(nonzeros)).all()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    counts = np.bincount(places.ravel(), minlength=height)
    assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 2 * height  # chi-square


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("nonzeros", "height"), [(1, 7), (5, 45), (8, 512)])
def test_sketch_agrees_with_its_definition(passes, shape, dtype, nonzeros, height):
    a = drawn(shape, dtype)
    expected = sketch_rows_reference(a.astype(np.float64), 11, 7, nonzeros, height)
    np.testing.assert_allclose(
        sketched(passes, a, 11, height, nonzeros), expected, rtol=0, atol=1e-12 * shape[0]
    )


@pytest.mark.parametrize("step", [1, 333, 2048, 2049])
def test_sketch_has_the_same_bits_in_any_pieces(passes, step):
    a = drawn((2500, 37))
    whole = sketched(passes, a, 5, 64)
    out = np.zeros((3, 64, TILE))
    for start in range(0, 2500 if step > 1 else 60, step):
        passes.sketch(a[start : start + step], 5 + start, 7, 8, out)
    whole = whole if step > 1 else sketched(passes, a[:60], 5, 64)
    assert (out.transpose(1, 0, 2).reshape(64, -1)[:, :37] == whole).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_normal_and_scores_agree_with_their_definitions(passes, shape, dtype):
    a = drawn(shape, dtype)
    wide, x, b = a.astype(np.float64), drawn((3, shape[1]), seed=1), drawn((3, shape[0]), seed=2)
    gram, out, squares, scores = np.zeros((shape[1],) * 2), np.zeros(x.shape), np.zeros(3), np.empty(shape[0])
    passes.gram(a, gram)
    passes.normal(a, x, b, out, squares)
    passes.scores(a, x, scores)
    v = x @ wide.T - b
    np.testing.assert_allclose(np.triu(gram), np.triu(wide.T @ wide), rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(out, v @ wide, rtol=1e-11, atol=1e-10)
    np.testing.assert_allclose(squares, np.square(v).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scores, np.square(wide @ x.T).sum(axis=1), rtol=1e-12)
    passes.normal(a, x, None, out, squares)
    np.testing.assert_allclose(out, (v + x @ wide.T) @ wide, rtol=1e-11, atol=1e-10)


@pytest.mark.compiled
@pytest.mark.parametrize("isa", isa_levels())
def test_threads_and_whole_segments_do_not_change_a_bit(isa):
    a, x, b = drawn((5 * SEGMENT + 77, 61)), drawn((2, 61), seed=1), drawn((2, 5 * SEGMENT + 77), seed=2)

    def run(threads: int, step: int) -> list[np.ndarray]:
        passes = open_passes(threads, isa)
        found = np.zeros((61, 61)), np.zeros((2, 61)), np.zeros(2)
        for start in range(0, len(a), step):
            piece = a[start : start + step]
            passes.gram(piece, found[0])
            passes.normal(piece, x, b[:, start : start + step].copy(), found[1], found[2])
        return [np.triu(found[0]), *found[1:]]

    once = run(1, len(a))
    for threads, step in ((2, len(a)), (3, 2 * SEGMENT), (1, SEGMENT)):
        for _ in range(3):
            assert all((p == q).all() for p, q in zip(run(threads, step), once, strict=True))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 61, 200])
def test_the_triangle_is_that_of_cholesky_and_solves(passes, n):
    a, x = drawn((n + 5, n)), drawn((3, n), seed=1)
    g = a.T @ a
    r = g.copy()
    assert passes.cholesky(r) == n
    r = np.triu(r)
    np.testing.assert_allclose(r.T @ r, g, rtol=1e-11, atol=1e-11)
    for transposed, back in ((False, r.T), (True, r)):
        y = x.copy()
        passes.solve(r, transposed, y)
        np.testing.assert_allclose(y @ back, x, rtol=1e-7, atol=1e-9)


def test_cholesky_says_where_it_stops(passes):
    g = np.diag([1.0, 2.0, -1.0, 4.0])
    assert passes.cholesky(g) == 2
    assert passes.cholesky(np.array([[np.nan]])) == 0


@pytest.mark.compiled
def test_the_hot_calls_check_lengths():
    passes = open_passes(1)
    a, x = np.zeros((4, 3)), np.zeros((1, 3))
    with pytest.raises(ValueError, match="divisor"):
        passes.sketch(a, 0, 0, 8, np.zeros((1, 12, TILE)))
    with pytest.raises(ValueError, match="expected 1"):
        passes.sketch(a, 0, 0, 4, np.zeros((2, 12, TILE)))
    with pytest.raises(ValueError, match="0 or more"):
        passes.sketch(a, -1, 0, 4, np.zeros((1, 12, TILE)))
    for out, squares, b in (((1, 4), 1, None), ((2, 3), 1, None), ((1, 3), 2, None), ((1, 3), 1, (1, 5))):
        right = None if b is None else np.zeros(b)
        with pytest.raises(ValueError, match="expected"):
            passes.normal(a, x, right, np.zeros(out), np.zeros(squares))
    with pytest.raises(ValueError, match="expected"):
        passes.gram(a, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="expected"):
        passes.scores(a, x, np.zeros(3))
    with pytest.raises(ValueError, match="expected"):
        passes.solve(np.zeros((3, 3)), False, np.zeros((1, 4)))
    with pytest.raises(ValueError, match="expected"):
        passes.cholesky(np.zeros((3, 4)))


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_refuses_a_number_of_threads(threads):
    with pytest.raises(UsageError, match=r"expected 1\.\.256"):
        open_passes(threads)


def test_refuses_an_unknown_instruction_set():
    with pytest.raises(UsageError, match="have: best"):
        open_passes(1, "mmx")
