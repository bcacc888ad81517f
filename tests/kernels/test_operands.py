"""Operands: their memory is what they say, and what they cannot hold is refused."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from tests.kernels.cases import normal
from winnow.base.errors import UsageError
from winnow.kernels import KvBlock, Matrix, NeuronRecords, QuantisedMatrix
from winnow.kernels.operands import HUGE_PAGE_BYTES, aligned_bytes

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LAYOUTS = [(8, False), (40, True), (33, False), (33, True), (2048, False), (1, True)]


@pytest.mark.parametrize(("width", "gated"), LAYOUTS)
def test_records_hold_what_was_packed(dtype: torch.dtype, width: int, gated: bool, rng: torch.Generator):
    w_in, w_out, w_up = (normal(rng, 5, width, dtype=dtype) for _ in range(3))
    bias, b_up = normal(rng, 5), normal(rng, 5)
    records = NeuronRecords.pack(w_in, w_out, bias, *((w_up, b_up) if gated else ()))
    assert torch.equal(records.w_in, w_in)
    assert torch.equal(records.w_out, w_out)
    assert torch.equal(records.bias, bias)
    assert records.is_gated == gated
    if gated:
        assert torch.equal(records.w_up, w_up)
        assert torch.equal(records.bias_up, b_up)


@pytest.mark.parametrize(("width", "gated"), LAYOUTS)
def test_records_are_aligned_and_no_longer_than_needed(dtype: torch.dtype, width: int, gated: bool):
    records = NeuronRecords.empty(7, width, dtype, gated)
    used = (3 if gated else 2) * width * dtype.itemsize + (8 if gated else 4)
    assert records.storage.data_ptr() % 64 == 0
    assert records.record_bytes % 64 == 0
    assert used <= records.record_bytes < used + 64 + 4
    assert records.storage.shape == (7, records.record_bytes)


def test_parts_of_a_record_are_views(dtype: torch.dtype):
    records = NeuronRecords.empty(3, 10, dtype)
    for part in (records.w_in, records.w_out, records.bias):
        assert part.untyped_storage().data_ptr() == records.storage.untyped_storage().data_ptr()
    records.w_out[1] = 2.0
    assert records.w_out[1].eq(2).all()


@pytest.mark.skipif(not THP.exists(), reason="this system has no transparent huge pages")
def test_large_blocks_ask_for_huge_pages_on_memory_that_was_used_before():
    for n_bytes in (1 << 20, (4 << 20) + 5, (7 << 19) - 64):
        torch.ones(
            n_bytes, dtype=torch.uint8
        )  # freed at once: the next allocation may be handed the same pages
        memory = aligned_bytes(n_bytes)
        assert memory.data_ptr() % HUGE_PAGE_BYTES == 0
        assert memory.shape == (n_bytes,)
        memory.fill_(1)
        assert "hg" in _flags(memory.data_ptr())
    # A mapping, since the C library's own memory may have been asked for it before.
    plain = torch.frombuffer(mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
    assert "hg" not in _flags(plain.data_ptr())


def _flags(address: int) -> list[str]:
    """What the kernel was told of the mapping around `address`."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(found[1], 16) <= address < int(found[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def test_biases_start_at_zero(dtype: torch.dtype):
    records = NeuronRecords.empty(100, 33, dtype, is_gated=True)
    assert records.bias.eq(0).all()
    assert records.bias_up.eq(0).all()


def test_ungated_records_have_no_up(dtype: torch.dtype):
    records = NeuronRecords.empty(3, 10, dtype)
    with pytest.raises(UsageError, match="ungated"):
        _ = records.w_up
    with pytest.raises(UsageError, match="ungated"):
        _ = records.bias_up
    with pytest.raises(UsageError, match="w_up"):
        NeuronRecords.pack(records.w_in, records.w_out, b_up=torch.zeros(3))


def test_a_matrix_is_the_given_memory(rng: torch.Generator):
    weight = normal(rng, 5, 8)
    assert Matrix(weight).weight.data_ptr() == weight.data_ptr()


def test_an_empty_matrix_is_aligned_and_can_be_filled(dtype: torch.dtype):
    matrix = Matrix.empty(9, 33, dtype)
    matrix.weight.fill_(3.0)
    assert matrix.weight.shape == (9, 33)
    assert matrix.weight.dtype == dtype
    assert matrix.weight.data_ptr() % 64 == 0


def test_a_cache_starts_at_zero(dtype: torch.dtype):
    kv = KvBlock(2, 30, 8, dtype)
    assert kv.keys.shape == kv.values.shape == (2, 30, 8)
    assert kv.keys.eq(0).all()
    assert kv.values.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_other_dtypes_are_refused(dtype: torch.dtype):
    with pytest.raises(
        (UsageError, TypeError), match=r"bfloat16|type"
    ):  # the test run checks annotations first
        Matrix(torch.zeros(3, 8, dtype=dtype))
    with pytest.raises(UsageError, match="bfloat16"):
        Matrix.empty(3, 8, dtype)
    if dtype != torch.int8:
        with pytest.raises(UsageError, match="bfloat16"):
            NeuronRecords.empty(3, 8, dtype)
        with pytest.raises(UsageError, match="bfloat16"):
            KvBlock(1, 3, 8, dtype)


def test_columns_must_be_contiguous():
    with pytest.raises(UsageError, match="contiguous"):
        Matrix(torch.zeros(8, 3).T)


def test_a_matrix_needs_columns():
    with pytest.raises(UsageError, match="D > 0"):
        Matrix(torch.zeros(3, 0))


def test_other_devices_are_refused():
    with pytest.raises(UsageError, match="CPU"):
        Matrix(torch.zeros(3, 8, device="meta"))


@pytest.mark.parametrize("sizes", [(0, 8), (-3, 8), (8, 0), (8, -1)])
def test_records_need_neurons_and_width(sizes: tuple[int, int]):
    with pytest.raises(UsageError, match="at least 1"):
        NeuronRecords.empty(*sizes, torch.float32)


@pytest.mark.parametrize("sizes", [(0, 8, 8), (1, 0, 8), (1, 8, -2)])
def test_a_cache_needs_every_size(sizes: tuple[int, int, int]):
    with pytest.raises(UsageError, match="at least 1"):
        KvBlock(*sizes, torch.float32)


def test_records_refuse_memory_of_another_layout():
    storage = NeuronRecords.empty(4, 20, torch.float32).storage
    with pytest.raises(UsageError, match="shape"):
        NeuronRecords(storage, 40, torch.float32, False)
    with pytest.raises(UsageError, match="shape"):
        NeuronRecords(storage[::2], 20, torch.float32, False)
    shifted = torch.zeros(65 + 192, dtype=torch.uint8)
    offset = (-shifted.data_ptr()) % 64 + 1
    with pytest.raises(UsageError, match="64-byte"):
        NeuronRecords(shifted[offset : offset + 192].view(1, 192), 20, torch.float32, False)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (40, 136)])
def test_int8_is_off_by_half_a_step_at_most(shape, rng: torch.Generator):
    weight = torch.randn(*shape, generator=rng)
    matrix = QuantisedMatrix.of(weight)
    steps = weight.abs().amax(-1, keepdim=True) / 127
    assert ((matrix.weight - weight).abs() <= 0.5001 * steps).all()
    assert matrix.n_bytes == weight.numel() + 4 * len(weight)


def test_a_row_of_zeros_stays_zero_in_int8():
    matrix = QuantisedMatrix.of(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert matrix.weight[0].tolist() == [0.0, 0.0]
    assert matrix.weight[1, 1].item() == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("values", "scales", "message"),
    [
        (torch.zeros(3, 4), torch.ones(3), "expected int8"),
        (torch.zeros(4, dtype=torch.int8), torch.ones(4), "expected int8"),
        (torch.zeros(3, 0, dtype=torch.int8), torch.ones(3), "expected int8"),
        (torch.zeros(3, 4, dtype=torch.int8), torch.ones(4), "expected float32"),
        (torch.zeros(3, 4, dtype=torch.int8), torch.ones(3).double(), "expected float32"),
        (torch.zeros(4, 3, dtype=torch.int8).T, torch.ones(3), "not contiguous"),
    ],
)
def test_int8_refuses_what_it_cannot_read(values, scales, message):
    with pytest.raises(UsageError, match=message):
        QuantisedMatrix(values, scales)
