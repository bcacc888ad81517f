"""Bit products: every implementation against the definition, at sizes that no block divides."""

from pathlib import Path

import numpy as np
import pytest

from winnow.base.errors import UsageError
from winnow.base.rng import keyed
from winnow.kernels import isa_levels, open_cpu
from winnow.kernels.bit_products import bit_products, bit_products_reference
from winnow.kernels.bit_products.reference import (
    bit_distances_reference,
    pack_signs_reference,
    unpack_signs_reference,
)
from winnow.kernels.bit_products.scan import bit_planes, found_by
from winnow.kernels.operands import BitScan

SIZES = [(1, 1, 1), (3, 9, 1), (5, 17, 2), (257, 300, 3), (6, 8, 4), (259, 1029, 5), (4, 1100, 17)]


def random_words(seed: int, n: int, words: int) -> np.ndarray:
    return keyed(seed, n).integers(0, 2**64, (n, words), dtype=np.uint64)


def naive_distance(x: np.ndarray, y: np.ndarray) -> int:
    return sum(bin(int(u) ^ int(v)).count("1") for u, v in zip(x, y, strict=True))


@pytest.mark.parametrize(("n", "m", "words"), SIZES)
@pytest.mark.parametrize("share", [0.0, 0.45, 0.5, 1.0])
def test_finds_the_pairs_of_its_definition(cpu, n: int, m: int, words: int, share: float):
    a, b = random_words(1, n, words), random_words(2, m, words)
    b[m // 2] = a[n // 2]
    limit = int(share * 64 * words)
    found = bit_products(a, b, limit=limit, cpu=cpu)
    assert np.array_equal(found, bit_products_reference(a, b, limit))
    assert [n // 2, m // 2, 0] in found.tolist()


def test_the_definition_counts_differing_bits():
    a, b = random_words(3, 4, 3), random_words(4, 4, 3)
    expected = [naive_distance(x, y) for x, y in zip(a, b, strict=True)]
    assert bit_distances_reference(a, b).tolist() == expected
    signs = unpack_signs_reference(a, 130).astype(int), unpack_signs_reference(b, 130).astype(int)
    packed = [pack_signs_reference(each > 0) for each in signs]
    products = (signs[0] * signs[1]).sum(axis=1)
    assert np.array_equal(products, 130 - 2 * bit_distances_reference(*packed))


@pytest.mark.parametrize("after", [None, -1, 0, 7, 400])
def test_short_vectors_choose_and_whole_ones_decide(cpu, after: int | None):
    a = random_words(5, 133, 6)
    scan = BitScan(
        np.ascontiguousarray(a[:, :2]), bit_planes(a[:, :2]), len(a), 58, a, a, limit_whole=190, after=after
    )
    found, survivors = found_by(scan, cpu)
    short = bit_products_reference(a[:, :2], a[:, :2], 58)
    short = short if after is None else short[short[:, 1] > short[:, 0] + after]
    whole = bit_distances_reference(a[short[:, 0]], a[short[:, 1]])
    expected = np.column_stack([short[:, :2], whole])[whole <= 190]
    assert survivors == len(short)
    assert np.array_equal(found, expected)
    assert len(found) < len(short) or after == 400


def test_pairs_past_the_room_are_counted_and_not_written(cpu):
    a = random_words(6, 20, 1)
    out = np.full((3, 8), -7, np.int32)
    whole = np.full((3, 16), -7, np.int32)
    whole[:, :8] = out
    n_found, _ = cpu.bit_products(BitScan(a, bit_planes(a), 20, 64), out)
    assert n_found == 400
    assert (out >= 0).all()
    assert len(found_by(BitScan(a, bit_planes(a), 20, 64), cpu, room=3)[0]) == 400


@pytest.mark.parametrize("n_pairs", [0, 1, 13, 5000])
def test_distances_of_listed_pairs(cpu, n_pairs: int):
    a, b, draws = random_words(7, 40, 9), random_words(8, 31, 9), keyed(9, 0)
    rows, columns = (draws.integers(0, n, n_pairs).astype(np.int32) for n in (40, 31))
    out = np.empty(n_pairs, np.int32)
    cpu.bit_distances(a, b, rows, columns, out)
    assert np.array_equal(out, bit_distances_reference(a[rows], b[columns]))


@pytest.mark.parametrize("n", [1, 8, 1025, 2060])
def test_keys_hold_the_bits_at_their_positions(cpu, n: int):
    words, positions = random_words(10, n, 3), np.array([0, 191, 64, 64, 130], np.int32)
    planes = bit_planes(words)
    keys = np.empty(planes.shape[1], np.uint64)
    cpu.bit_keys(planes, positions, keys)
    signs = unpack_signs_reference(words, 192) > 0
    expected = (signs[:, positions] * 2 ** np.arange(5)).sum(axis=1)
    assert np.array_equal(keys[:n], expected.astype(np.uint64))


@pytest.mark.parametrize(("n", "width"), [(1, 1), (65, 7), (3, 64), (70, 203), (2, 1024)])
def test_signs_become_bits_and_anything_else_is_told(cpu, n: int, width: int):
    signs = (2 * keyed(11, width).integers(0, 2, (n, width), dtype=np.int8) - 1).astype(np.int8)
    out = np.empty((n, -(-width // 64)), np.uint64)
    assert cpu.pack_signs(signs, out)
    assert np.array_equal(out, pack_signs_reference(signs > 0))
    assert np.array_equal(unpack_signs_reference(out, width), signs)
    for wrong in (0, 2, -2, 127, -128, 3):
        signs[-1, -1] = wrong
        assert not cpu.pack_signs(signs, out)


@pytest.mark.compiled
def test_the_instruction_that_counts_is_taken_where_the_processor_has_it(isa: str):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fast = "vpopcntdq" if "avx512_vpopcntdq" in flags else "tables"
    assert open_cpu(1, isa).bit_path == {"generic": "portable", "avx2": "tables", "avx512": fast}[isa]


@pytest.mark.compiled
def test_refuses_what_would_read_outside_an_array(isa: str):
    cpu, a = open_cpu(1, isa), random_words(12, 9, 2)
    planes, out, short = bit_planes(a), np.zeros((3, 4), np.int32), np.zeros(3, np.int32)
    wrong = [
        BitScan(a, planes[:, :9].copy(), 9, 3),
        BitScan(a, planes, 17, 3),
        BitScan(a, planes[:1].copy(), 9, 3),
        BitScan(a, planes, 9, 3, a[:8].copy(), a, 3),
        BitScan(a, planes, 9, 3, a, a[:8].copy(), 3),
        BitScan(a, planes, 9, 3, a, None, 3),
    ]
    for scan in wrong:
        with pytest.raises(ValueError, match=r".+"):
            cpu.bit_products(scan, out)
    for listed in ([0, 1, 9], [0, -1, 1]):
        with pytest.raises(ValueError, match="outside"):
            cpu.bit_distances(a, a, np.array(listed, np.int32), short, short.copy())
    with pytest.raises(ValueError, match="outside"):
        cpu.bit_keys(planes, np.array([128], np.int32), np.zeros(16, np.uint64))
    with pytest.raises(ValueError, match="words of out"):
        cpu.pack_signs(np.ones((2, 65), np.int8), np.zeros((2, 1), np.uint64))


def test_the_best_level_is_the_one_with_the_counts():
    assert open_cpu(1).bit_path != "torch" or not isa_levels()


@pytest.mark.parametrize(("left", "right"), [(1, 2), (0, 0)])
def test_refuses_vectors_of_other_lengths(left: int, right: int):
    with pytest.raises(UsageError, match="same number"):
        bit_products(
            np.zeros((2, left), np.uint64), np.zeros((2, right), np.uint64), limit=1, cpu=open_cpu(1)
        )
