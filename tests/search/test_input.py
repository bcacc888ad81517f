"""What heavy_pairs takes, and what it refuses in one line."""

import numpy as np
import pytest
import torch

from tests.search.planted import by_definition, listed, planted_signs, random_signs
from winnow.base.errors import UsageError
from winnow.kernels.bit_products.reference import pack_signs_reference
from winnow.search import heavy_pairs

RHO = 0.6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return planted_signs(1, 120, 250, RHO, 9)[0]


def test_bool_integers_words_and_tensors_say_the_same(vectors: np.ndarray):
    expected = by_definition(vectors, None, RHO)
    words = pack_signs_reference(vectors > 0)
    forms = [vectors > 0, vectors.astype(np.int64), vectors.astype(np.int16), torch.from_numpy(vectors)]
    for form in forms:
        assert listed(heavy_pairs(form, rho=RHO, method="exact")) == expected
    assert listed(heavy_pairs(words, rho=RHO, method="exact", width=250)) == expected
    assert listed(heavy_pairs(vectors, words, rho=RHO, method="exact", width=250)) == by_definition(
        vectors, vectors, RHO
    )


def test_arrays_that_are_read_only_or_have_gaps_are_taken_and_left_as_they_were(vectors: np.ndarray):
    expected = by_definition(vectors, None, RHO)
    wide = np.zeros((240, 500), np.int8)
    wide[::2, ::2] = vectors
    before = wide.copy()
    for form in (wide[::2, ::2], np.asfortranarray(vectors), vectors[::-1][::-1]):
        form.flags.writeable = False
        for method in ("cascade", "lsh", "aggregate", "gemm"):
            assert listed(heavy_pairs(form, rho=RHO, method=method, recall=0.9999)) == expected
    assert np.array_equal(wide, before)
    words = pack_signs_reference(vectors > 0)
    kept = words.copy()
    heavy_pairs(words, rho=RHO, method="cascade", width=250)
    assert np.array_equal(words, kept)


def test_a_mapped_file_is_searched(tmp_path, vectors: np.ndarray):
    np.save(tmp_path / "x.npy", vectors)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert listed(heavy_pairs(mapped, rho=RHO, method="exact")) == by_definition(vectors, None, RHO)


def test_one_row_has_no_pairs():
    for method in ("auto", "exact", "cascade", "lsh", "gemm", "aggregate"):
        assert len(heavy_pairs(random_signs(2, 1, 256), rho=0.9, method=method)) == 0


def test_large_products_of_sizes_do_not_overflow():
    a = np.zeros((70_000, 1), np.uint64)
    a[:, 0] = np.arange(70_000)
    pairs = heavy_pairs(a[-2:], a, rho=1.0, method="exact", max_pairs=10)
    assert (pairs.i.tolist(), pairs.j.tolist()) == ([0, 1], [69_998, 69_999])
    report = heavy_pairs(a, rho=1.0, method="exact").report
    assert report.candidates == 70_000 * 69_999 // 2


SIGNS = np.ones((4, 256), np.int8)
REFUSED = [
    ({"A": np.zeros((0, 5), np.int8)}, "shape"),
    ({"A": np.zeros((5, 0), np.int8)}, "shape"),
    ({"A": np.ones(5, np.int8)}, "shape"),
    ({"A": np.ones((2, 3, 4), np.int8)}, "shape"),
    ({"A": np.array([[1, -1, 0]], np.int8)}, "holds 0"),
    ({"A": np.array([[1, -1, 257]], np.int64)}, "holds 257"),
    ({"A": np.array([[1, -1, -128]], np.int8)}, "holds -128"),
    ({"A": np.ones((3, 3), np.uint8)}, "uint8"),
    ({"A": np.ones((3, 3), complex)}, "complex"),
    ({"A": np.array([["a", "b"]])}, "<U1"),
    ({"A": np.array([[None, 1]], object)}, "object"),
    ({"A": np.array([[1.0, np.nan], [1, 1]])}, "row 0"),
    ({"A": np.array([[1.0, 2], [np.inf, 1]], np.float32)}, "row 1"),
    ({"A": SIGNS, "B": np.ones((4, 250), np.int8)}, "256"),
    ({"A": SIGNS, "B": np.ones((4, 256))}, "float64"),
    ({"A": np.ones((4, 3)), "B": np.ones((4, 5))}, "width 3"),
    ({"A": SIGNS, "width": 7}, "width"),
    ({"A": np.ones((2, 2), np.uint64), "width": 64}, r"65\.\.128"),
    ({"A": np.full((2, 1), 2**63, np.uint64), "width": 63}, "past width"),
    ({"A": SIGNS, "rho": 0.0}, "rho"),
    ({"A": SIGNS, "rho": -0.5}, "rho"),
    ({"A": SIGNS, "rho": 1.01}, "rho"),
    ({"A": SIGNS, "rho": float("nan")}, "rho"),
    ({"A": SIGNS, "recall": 1.0}, "recall"),
    ({"A": SIGNS, "recall": 0.0}, "recall"),
    ({"A": SIGNS, "max_pairs": 0}, "max_pairs"),
    ({"A": SIGNS, "max_pairs": 3}, "max_pairs"),
    ({"A": SIGNS, "canaries": -1}, "canaries"),
    ({"A": SIGNS, "rng": -1}, "seed"),
    ({"A": SIGNS, "threads": 0}, "threads"),
    ({"A": SIGNS, "degree": -1}, "degree"),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED)
def test_refuses_in_one_line(arguments: dict, told: str):
    with pytest.raises(UsageError, match=told) as caught:
        heavy_pairs(**{"rho": 0.9, **arguments})
    assert "\n" not in str(caught.value)


def test_a_threshold_that_chance_passes_is_refused_with_the_hits_it_would_give():
    a = random_signs(3, 2000, 128)
    for method in ("auto", "cascade", "lsh", "aggregate"):
        with pytest.raises(UsageError, match=r"about [\d.]+e?\+?\d* random pairs"):
            heavy_pairs(a, rho=0.3, method=method)
    expected = by_definition(a, None, 0.3)
    assert listed(heavy_pairs(a, rho=0.3, method="exact")) == expected
    assert len(expected) > 500
    assert len(heavy_pairs(a, rho=0.3, method="cascade", max_pairs=len(expected))) <= len(expected)


def test_an_exact_search_refuses_millions_of_random_hits():
    a = random_signs(4, 4000, 16)
    with pytest.raises(UsageError, match="chance"):
        heavy_pairs(a, rho=0.1, method="exact")
    assert len(heavy_pairs(a, rho=0.1, method="exact", max_pairs=8_000_000)) > 1_000_000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_real_vectors_are_searched_by_cosine(dtype: type):
    draws = np.random.default_rng(5)
    a = draws.standard_normal((900, 100)).astype(dtype)
    for i in range(20):
        a[2 * i] = (3.0 * a[2 * i + 1] + 0.5 * a[2 * i]).astype(dtype)
    a[500] = 0
    wide = a.astype(np.float64)
    size = np.sqrt((wide * wide).sum(axis=1))
    cosine = wide @ wide.T / np.where(size > 0, size, 1)[:, None] / np.where(size > 0, size, 1)
    expected = [(i, j) for i, j in np.argwhere(np.triu(cosine, 1) >= 0.9).tolist()]
    assert len(expected) >= 20
    for method in ("auto", "exact", "gemm", "cascade", "lsh", "aggregate"):
        pairs = heavy_pairs(a, rho=0.9, method=method, recall=0.9999)
        assert list(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)) == expected
        assert np.allclose(pairs.product, cosine[pairs.i, pairs.j], atol=1e-9)


def test_lengths_of_real_vectors_do_not_matter_and_do_not_overflow():
    draws = np.random.default_rng(6)
    a = draws.standard_normal((300, 64))
    a[7] = 2 * a[8]
    scaled = a * 10.0 ** draws.integers(-150, 150, 300)[:, None]
    scaled[5] *= 1e150 / np.abs(scaled[5]).max()
    plain, moved = (heavy_pairs(x, rho=0.95, method="cascade", recall=0.999) for x in (a, scaled))
    assert plain.i.tolist() == moved.i.tolist() == [7]
    assert moved.product[0] == pytest.approx(1.0)


def test_real_copies_pass_at_rho_one():
    a = np.random.default_rng(7).standard_normal((200, 37))
    a[3] = a[150]
    for method in ("exact", "lsh", "cascade"):
        assert found_at(a, method) == [(3, 150)]


def found_at(a: np.ndarray, method: str) -> list:
    pairs = heavy_pairs(a, rho=1.0, method=method)
    return list(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))


def test_generators_are_seeds(vectors: np.ndarray, rng: torch.Generator):
    from winnow.base.rng import generator

    one, same = (heavy_pairs(vectors, rho=RHO, method="lsh", recall=0.5, rng=generator(3)) for _ in "ab")
    assert listed(one) == listed(same)
    assert heavy_pairs(vectors, rho=RHO, method="lsh", rng=rng).report.canaries == 512
