"""Unpack writes the bits of its definition, on every instruction set, of matrices and parts of records."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import CodedMatrix, Cpu, Matrix, NeuronRecords, int4, matrix
from winnow.kernels.unpack import unpack, unpack_into, unpack_reference

SIZES = [(1, 32), (7, 64), (17, 96), (200, 160), (33, 320), (1000, 256), (50, 2080)]
HELD = [torch.float32, torch.bfloat16, torch.int8, int4]


@pytest.fixture(params=HELD, ids=["fp32", "bf16", "int8", "int4"])
def held(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_the_bits_are_those_of_the_definition(
    cpu: Cpu, held: torch.dtype, dtype: torch.dtype, rows: int, width: int, rng: torch.Generator
):
    made = matrix(normal(rng, rows, width), held)
    assert torch.equal(unpack(made, dtype, cpu=cpu), unpack_reference(made, dtype))


@pytest.mark.parametrize("shift", [0, 1], ids=["whole lines", "parts of lines"])
def test_coded_rows_that_are_more_than_caches_hold_have_the_bits_too(
    cpu: Cpu, dtype: torch.dtype, shift: int, rng: torch.Generator
):
    weight = normal(rng, 1039, 2048).bfloat16()
    made = CodedMatrix.of(weight)
    assert made is not None  # 4.3 MB as bfloat16, written past the caches where lines are whole
    out = torch.empty(1039 * 2048 + shift, dtype=dtype)[shift:].view(1039, 2048)
    unpack_into(made, 0, out, cpu=cpu)
    assert torch.equal(out, weight.to(dtype))


@pytest.mark.parametrize("width", [1, 3, 15, 17, 31, 33, 70, 100])
@pytest.mark.parametrize("held", HELD[:3], ids=["fp32", "bf16", "int8"])
def test_rows_may_have_any_length(cpu: Cpu, held: torch.dtype, dtype: torch.dtype, width: int, rng):
    made = matrix(normal(rng, 21, width), held)
    assert torch.equal(unpack(made, dtype, cpu=cpu), unpack_reference(made, dtype))


@pytest.mark.parametrize("part", ["w_in", "w_up", "w_out"])
def test_parts_of_records_are_read_where_they_lie(
    cpu: Cpu, held: torch.dtype, dtype: torch.dtype, part: str, rng: torch.Generator
):
    weights = [normal(rng, 77, 96) for _ in range(3)]
    records = NeuronRecords.pack(weights[0], weights[2], w_up=weights[1], dtype=held)
    assert torch.equal(unpack(records.part(part), dtype, cpu=cpu), getattr(records, part).to(dtype))


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 40), (13, 20), (39, 1), (40, 0)])
def test_some_rows_are_written_and_no_others(
    cpu: Cpu, held: torch.dtype, dtype: torch.dtype, first: int, count: int, rng: torch.Generator
):
    made, out = matrix(normal(rng, 40, 96), held), torch.full((count + 2, 96), torch.nan, dtype=dtype)
    unpack_into(made, first, out[1:-1], cpu=cpu)
    assert torch.equal(out[1:-1], made.weight[first : first + count].to(dtype))
    assert out[[0, -1]].isnan().all()


def test_rounds_to_the_nearest_ties_to_even(cpu: Cpu):
    ties = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20, 3.3e38, torch.inf]])
    assert torch.equal(unpack(Matrix(ties), torch.bfloat16, cpu=cpu), ties.bfloat16())


def test_what_is_not_a_number_stays_so(cpu: Cpu, held: torch.dtype, dtype: torch.dtype, rng: torch.Generator):
    weight = normal(rng, 20, 64)
    weight[11, 40] = torch.nan
    out = unpack(matrix(weight, held), dtype, cpu=cpu)
    assert out.isnan().any(1).nonzero().squeeze(1).tolist() == [11]


def test_a_recorded_call_reads_what_the_matrix_holds_when_it_runs(cpu: Cpu, held: torch.dtype, rng):
    made, tape, out = matrix(normal(rng, 9, 64), held), cpu.tape(), np.zeros((9, 64), np.float32)
    tape.unpack(made, 0, out)
    assert not out.any()
    made.put(normal(rng, 9, 64))
    tape.run()
    assert torch.equal(torch.from_numpy(out), made.weight.float())


@pytest.mark.parametrize(
    ("first", "shape", "message"),
    [
        (-1, (3, 64), "asked from row -1"),
        (8, (3, 64), "asked from row 8"),
        (0, (11, 64), "asked from row 0"),
        (0, (3, 63), "asked from row 0"),
    ],
)
def test_refuses_rows_that_are_not_there(cpu: Cpu, first: int, shape: tuple[int, int], message: str):
    with pytest.raises(UsageError, match=message):
        unpack_into(Matrix(torch.zeros(10, 64)), first, torch.zeros(shape), cpu=cpu)


def test_refuses_what_is_no_plain_float_or_strided(cpu: Cpu):
    with pytest.raises(UsageError, match=r"expected torch\.float32"):
        unpack(Matrix(torch.zeros(10, 64)), torch.float16, cpu=cpu)
    with pytest.raises(UsageError, match="not contiguous"):
        unpack_into(Matrix(torch.zeros(10, 64)), 0, torch.zeros(64, 10).T, cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize(("first", "rows", "width"), [(-1, 3, 64), (8, 3, 64), (2**62, 3, 64), (0, 3, 65)])
def test_the_hot_call_checks_rows_and_width(isa: str, first: int, rows: int, width: int):
    with pytest.raises(ValueError, match=r"asked of|expected"):
        opened(isa, 1).unpack(Matrix(torch.zeros(10, 64)), first, np.zeros((rows, width), np.float32))
