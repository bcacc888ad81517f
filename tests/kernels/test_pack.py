"""Pack writes the bits of its definition, on every instruction set, from every layout of a checkpoint."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from winnow.base.errors import UsageError
from winnow.kernels import NeuronRecords, int4, matrix
from winnow.kernels.matrices import empty_matrix
from winnow.kernels.pack import GROUP, pack, to_int4, to_int8

SIZES = [(1, 32), (7, 64), (33, 96), (100, 320), (1000, 128), (64, 2080)]
STORED = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
HELD = [torch.float32, torch.bfloat16, torch.int8, int4]


def room(rows: int, width: int, held: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Memory for packed weights, filled with what no weight is."""
    if held == int4:
        groups = torch.full((rows, width // 2), 0x5A, dtype=torch.uint8)
        return groups, torch.full((rows, width // 32), torch.nan, dtype=torch.bfloat16)
    if held == torch.int8:
        return torch.full((rows, width), 77, dtype=torch.int8), torch.full((rows,), torch.nan)
    return torch.full((rows, width), torch.nan, dtype=held), None


def same_bits(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def packed(weight: torch.Tensor, held: torch.dtype, isa: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    values, scales = room(*weight.shape, held)
    pack(weight, values, scales, isa=isa)
    return values, scales


@pytest.fixture(params=HELD, ids=["fp32", "bf16", "int8", "int4"])
def held(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.compiled
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("is_transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_the_bits_are_those_of_the_definition(
    isa: str, held: torch.dtype, stored: torch.dtype, is_transposed: bool, rows: int, width: int, rng
):
    weight = (
        normal(rng, width, rows, dtype=stored).T if is_transposed else normal(rng, rows, width, dtype=stored)
    )
    for ours, theirs in zip(packed(weight, held, isa), packed(weight, held, "torch"), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.compiled
@pytest.mark.parametrize("width", [1, 3, 31, 33, 100])
@pytest.mark.parametrize("held", HELD[:3], ids=["fp32", "bf16", "int8"])
def test_rows_of_any_length_have_the_bits_of_the_definition(isa: str, held: torch.dtype, width: int, rng):
    weight = normal(rng, 45, width)
    for ours, theirs in zip(packed(weight, held, isa), packed(weight, held, "torch"), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.compiled
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 3e-37, 1e30, 3e38 / 5])
def test_the_smallest_and_the_largest_weights_have_the_bits_of_the_definition(
    isa: str, held: torch.dtype, scale: float, rng
):
    weight = normal(rng, 37, 64, scale=1.0).clamp_(-5, 5) * scale
    weight[3] = 0
    weight[4, :32] = -0.0
    for ours, theirs in zip(packed(weight, held, isa), packed(weight, held, "torch"), strict=True):
        assert same_bits(ours, theirs)


@pytest.fixture(params=[False, True], ids=["", "subnormals-flushed"])
def flushing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some libraries make the processor take subnormal floats for zero, for the rest of the process."""
    was_on = float(torch.tensor([1e-40]) * 1) == 0
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(was_on)


@pytest.mark.compiled
@pytest.mark.usefixtures("flushing")
def test_every_half_float_is_widened_exactly(isa: str):
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).view(64, 1024)
    values, _ = packed(halves, torch.float32, isa)
    assert torch.equal(values.nan_to_num(nan=7.0), halves.float().nan_to_num(nan=7.0))
    assert torch.equal(values.isnan(), halves.isnan())


@pytest.mark.compiled
def test_of_two_peaks_the_first_gives_the_sign(isa: str):
    weight = torch.zeros(3, 32)
    weight[0, [4, 9]] = torch.tensor([2.0, -2.0])
    weight[1, [4, 9]] = torch.tensor([-2.0, 2.0])
    _, scales = packed(weight, int4, isa)
    assert scales is not None and scales[:2, 0].sign().tolist() == [-1, 1]
    assert same_bits(scales, packed(weight, int4, "torch")[1])


def lost(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The squared error of each group, given its scale."""
    grouped, scale = weight.double().unflatten(-1, (-1, GROUP)), scales.double()[..., None]
    return (grouped - (grouped / scale).round().clamp(-8, 7) * scale).square().sum(-1)


@pytest.mark.parametrize("isa", ["best", "torch"])
def test_no_other_scale_of_a_group_loses_less(isa: str, rng):
    weight = normal(rng, 100, 320)
    _, scales = packed(weight, int4, isa)
    assert scales is not None
    grouped = weight.unflatten(-1, (-1, GROUP))
    peaks = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    others = torch.stack([lost(weight, (peaks / -steps).bfloat16()) for steps in np.arange(7.5, 9.25, 0.25)])
    assert (lost(weight, scales) <= others.amin(0) * 1.001).all()
    assert lost(weight, scales).sum() < 0.92 * lost(weight, (peaks / -8).bfloat16()).sum()


@pytest.mark.parametrize("isa", ["best", "torch"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(held: torch.dtype, isa: str, broken: float, rng):
    weight, made = normal(rng, 40, 64), empty_matrix(40, 64, held)
    weight[11, 40] = broken
    pack(weight, *(getattr(made, name) for name in _fields(held)), isa=isa)
    assert (~made.weight.isfinite()).any(1).nonzero().squeeze(1).tolist() == [11]


def _fields(held: torch.dtype) -> tuple[str, ...]:
    return {torch.int8: ("values", "scales"), int4: ("groups", "scales")}.get(held, ("weight",))


def test_nothing_is_written_beside_the_rows(held: torch.dtype, rng):
    made = empty_matrix(50, 64, held)
    made.put(torch.zeros(50, 64))
    weight = normal(rng, 13, 64)
    made.put(weight, 20)
    assert torch.equal(made.weight[20:33], matrix(weight, held).weight)
    assert not made.weight[:20].any() and not made.weight[33:].any()


@pytest.mark.parametrize("is_gated", [False, True])
def test_a_part_of_a_record_is_a_matrix_in_its_memory(held: torch.dtype, is_gated: bool, rng):
    records = NeuronRecords.empty(37, 96, held, is_gated)
    names = ("w_in", "w_up", "w_out") if is_gated else ("w_in", "w_out")
    weights = {name: normal(rng, 37, 96) for name in names}
    for name, weight in weights.items():
        records.put(name, weight)
    for name, weight in weights.items():
        assert torch.equal(records.part(name).weight, matrix(weight, held).weight)
        assert torch.equal(getattr(records, name), records.part(name).weight)
    assert not records.bias.any()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(held: torch.dtype, rng):
    weight, before = normal(rng, 1001, 96), torch.get_num_threads()
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(packed(weight, held, "best"))
    torch.set_num_threads(before)
    assert all(same_bits(a, b) for each in made[1:] for a, b in zip(each, made[0], strict=True))


@pytest.mark.parametrize(
    ("values", "scales", "message"),
    [
        (torch.zeros(3, 64, dtype=torch.int8), torch.zeros(4), "expected"),
        (torch.zeros(4, 64, dtype=torch.int8), None, "expected"),
        (torch.zeros(4, 64), torch.zeros(4), "expected"),
        (torch.zeros(4, 64, dtype=torch.int16), None, "expected"),
        (torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.bfloat16), "expected"),
        (torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 2), "expected"),
        (torch.zeros(64, 4).T, None, "strided"),
    ],
)
def test_refuses_what_it_cannot_fill(values: torch.Tensor, scales: torch.Tensor | None, message: str):
    with pytest.raises(UsageError, match=message):
        pack(torch.zeros(4, 64), values, scales)


def test_what_is_packed_is_what_was_meant(rng):
    weight = normal(rng, 9, 64)
    assert (to_int8(weight)[0].float() * to_int8(weight)[1][:, None] - weight).abs().max() < 0.02
    assert to_int4(weight)[0].shape == (9, 32)
