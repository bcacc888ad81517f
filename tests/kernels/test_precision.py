"""int8 and int4: every kernel that reads weights agrees with the weights that the bytes stand for."""

import pytest
import torch

from tests.kernels.cases import assert_close, normal, some_neurons
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import (
    Cpu,
    Int4Matrix,
    Matrix,
    NeuronRecords,
    QuantisedMatrix,
    dense_mlp,
    gate_set,
    gathered_mlp,
    linear,
    matrix,
    relu,
    silu,
)
from winnow.kernels.gate_set import gate_set_reference
from winnow.kernels.gathered_mlp import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.linear import linear_reference

# The input is rounded to 16 bits of its largest magnitude at most for int8, to 8 of its group's for int4.
ROUNDED = {torch.int8: 2.2e-5, torch.int4: 0.5 / 127 + 1e-5}
SIZES = [(1, 32), (7, 64), (17, 96), (200, 160), (33, 320), (1000, 256), (50, 2080)]
KINDS = [(relu, False), (relu, True), (silu, False), (silu, True)]


@pytest.fixture(params=[torch.int8, torch.int4], ids=["int8", "int4"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].name}{'-gated' * kind[1]}")
def kind(request: pytest.FixtureRequest):
    return request.param


def records_of(
    rng: torch.Generator, neurons: int, width: int, dtype: torch.dtype, gated: bool = False
) -> NeuronRecords:
    parts = [normal(rng, neurons, width, scale=width**-0.5) for _ in range(3)]
    return NeuronRecords.pack(
        parts[0],
        parts[1],
        normal(rng, neurons),
        parts[2] if gated else None,
        normal(rng, neurons) if gated else None,
        dtype=dtype,
    )


def reach(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What an inner product could be, were all of the input as large as its largest element."""
    return weight.double().abs().sum(-1) * x.double().abs().max()


def mlp_reach(x: torch.Tensor, records: NeuronRecords) -> float:
    values = reach(x, records.w_in) + records.bias.double().abs()
    if records.is_gated:
        values = values * (reach(x, records.w_up) + records.bias_up.double().abs())
    return (values @ records.w_out.double().abs()).max().item()


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_a_product_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, rows: int, width: int, rng: torch.Generator
):
    x, bias, held = normal(rng, width), normal(rng, rows), matrix(normal(rng, rows, width), dtype)
    y = linear(x, held, bias, cpu=cpu)
    expected = linear_reference(x.double(), held.weight, bias)
    assert_close(y, expected, relative=ROUNDED[dtype], scale=reach(x, held.weight).max().item())


@pytest.mark.parametrize("width", [1, 3, 31, 33, 70, 100])
def test_int8_rows_may_have_any_length(cpu: Cpu, width: int, rng: torch.Generator):
    x, held = normal(rng, width), matrix(normal(rng, 21, width), torch.int8)
    expected = linear_reference(x.double(), held.weight, None)
    scale = reach(x, held.weight).max().item()
    assert_close(linear(x, held, cpu=cpu), expected, relative=ROUNDED[torch.int8], scale=scale)


@pytest.mark.parametrize("width", [16, 33, 48, 1])
def test_int4_rows_are_whole_groups(width: int):
    with pytest.raises(UsageError, match="groups of 32"):
        Int4Matrix.of(torch.zeros(3, width))
    with pytest.raises(UsageError, match="groups of 32"):
        NeuronRecords.empty(3, width, torch.int4)


def test_the_extremes_of_weights_and_input_do_not_overflow(cpu: Cpu, dtype: torch.dtype):
    width = 8192
    for sign in (1.0, -1.0):
        x, weight = torch.full((width,), sign), torch.ones(9, width)
        weight[1::2] = -1.0
        y = linear(x, matrix(weight, dtype), cpu=cpu)
        assert torch.allclose(y, linear_reference(x, matrix(weight, dtype).weight, None), rtol=1e-4)


def test_an_input_of_zeros_gives_the_bias(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    bias, held = normal(rng, 20), matrix(normal(rng, 20, 64), dtype)
    assert torch.equal(linear(torch.zeros(64), held, bias, cpu=cpu), bias)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_input_or_weight_is_not_hidden(
    cpu: Cpu, dtype: torch.dtype, broken: float, rng: torch.Generator
):
    x, weight = normal(rng, 64), normal(rng, 20, 64)
    x[63] = broken
    assert not linear(x, matrix(weight, dtype), cpu=cpu).isfinite().any()
    weight[11, 40] = broken
    y = linear(normal(rng, 64), matrix(weight, dtype), cpu=cpu)
    assert (~y.isfinite()).nonzero().squeeze(1).tolist() == [11]


@pytest.mark.parametrize(("neurons", "width"), SIZES)
def test_an_mlp_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, kind, neurons: int, width: int, rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, width), records_of(rng, neurons, width, dtype, gated)
    indices, scale = some_neurons(rng, neurons), mlp_reach(x, records)
    y = gathered_mlp(x, records, indices, activation=activation, cpu=cpu)
    expected = gathered_mlp_reference(x.double(), records, indices, activation)
    assert_close(y, expected, relative=2 * ROUNDED[dtype], scale=scale)
    y = dense_mlp(x, records, activation=activation, cpu=cpu)
    assert_close(
        y, dense_mlp_reference(x.double(), records, activation), relative=2 * ROUNDED[dtype], scale=scale
    )


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_eight_equal_neurons_of_extreme_weights_do_not_overflow(cpu: Cpu, dtype: torch.dtype, sign: float):
    x, weights = torch.full((160,), 1e3), torch.ones(8, 160)
    records = NeuronRecords.pack(weights, sign * weights, torch.zeros(8), dtype=dtype)
    y = dense_mlp(x, records, activation=relu, cpu=cpu)
    assert_close(y, dense_mlp_reference(x.double(), records, relu), relative=2 * ROUNDED[dtype])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_input_of_an_mlp_is_not_hidden(
    cpu: Cpu, dtype: torch.dtype, kind, broken: float, rng: torch.Generator
):
    activation, gated = kind
    x, records = normal(rng, 160), records_of(rng, 100, 160, dtype, gated)
    x[3] = broken
    assert not dense_mlp(x, records, activation=activation, cpu=cpu).isfinite().any()


@pytest.mark.compiled
def test_neurons_that_do_not_fire_change_no_bit(isa: str, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 160), records_of(rng, 1500, 160, dtype)
    records.bias.sub_(1.5)
    scores = records.w_in.double() @ x.double() + records.bias.double()
    exact = torch.nonzero(scores > -0.1).squeeze(1).to(torch.int32)
    cpu = opened(isa, 2)
    dense = dense_mlp(x, records, activation=relu, cpu=cpu)
    assert 0 < len(exact) < 600
    assert torch.equal(gathered_mlp(x, records, exact, activation=relu, cpu=cpu), dense)
    padded = torch.cat([exact, some_neurons(rng, 1500, 0.3)]).unique().to(torch.int32)
    assert torch.equal(gathered_mlp(x, records, padded, activation=relu, cpu=cpu), dense)


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, dtype: torch.dtype, kind, rng: torch.Generator):
    activation, gated = kind
    x, records, held = normal(rng, 544), records_of(rng, 1000, 544, dtype, gated), normal(rng, 3001, 544)
    indices, wide = some_neurons(rng, 1000), matrix(held, dtype)
    mlp = gathered_mlp(x, records, indices, activation=activation, cpu=opened(isa, 1))
    product = linear(x, wide, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(5):
            again = gathered_mlp(x, records, indices, activation=activation, cpu=opened(isa, threads))
            assert torch.equal(again, mlp)
            assert torch.equal(linear(x, wide, cpu=opened(isa, threads)), product)


def test_gates_select_as_their_definition_does(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 96), records_of(rng, 300, 96, dtype, gated=True)
    thresholds = torch.full((300,), 0.2)
    indices, gates = gate_set(x, records, thresholds, activation=silu, cpu=cpu)
    chosen, expected = gate_set_reference(x.double(), records, thresholds, silu)
    near = ((expected.abs() - 0.2).abs() < 4 * ROUNDED[dtype]).nonzero().squeeze(1).tolist()
    assert set(indices.tolist()) ^ set(chosen.tolist()) <= set(near)
    assert_close(gates, expected, relative=ROUNDED[dtype], scale=reach(x, records.w_in).max().item())
    known = gathered_mlp(x, records, indices, activation=silu, cpu=cpu, gates=gates)
    again = gathered_mlp(x, records, indices, activation=silu, cpu=cpu)
    assert torch.equal(known, again) or (cpu.isa == "torch" and torch.allclose(known, again, rtol=1e-5))


def test_neurons_that_are_not_listed_are_not_read(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    x, records = normal(rng, 64), records_of(rng, 90, 64, dtype)
    records.storage.view(torch.float32)[1::2] = torch.nan
    indices = torch.arange(0, 90, 2, dtype=torch.int32)
    assert gathered_mlp(x, records, indices, activation=relu, cpu=cpu).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (40, 160)])
def test_int4_is_off_by_less_than_two_steps(shape: tuple[int, int], rng: torch.Generator):
    weight = normal(rng, *shape)
    held = Int4Matrix.of(weight)
    steps = weight.unflatten(-1, (-1, 32)) / held.scales.float()[..., None]
    off = (steps - held.weight.unflatten(-1, (-1, 32)) / held.scales.float()[..., None]).abs()
    beyond = torch.maximum(steps - 7.5, -8.5 - steps).clamp_min(0)
    assert (off <= 0.5001 + beyond).all()
    assert beyond.max() <= 1.52  # the largest magnitude lies at 9 steps at most
    assert off.median() < 0.3
    assert held.n_bytes == weight.numel() * 9 // 16
    assert held.shape == shape


def test_sixteen_values_are_held_exactly_in_int4():
    weight = torch.arange(-8.0, 8.0).repeat(2)[None].mul(0.25)
    assert torch.equal(Int4Matrix.of(weight).weight, weight)
    assert torch.equal(Int4Matrix.of(-weight).weight, -weight)
    assert torch.equal(Int4Matrix.of(torch.zeros(2, 32)).weight, torch.zeros(2, 32))


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.int8, torch.int4], ids=str)
def test_rows_are_those_of_the_matrix_that_is_meant(held: torch.dtype, rng: torch.Generator):
    made, ids = matrix(normal(rng, 9, 64), held), torch.tensor([3, 3, 0, 8])
    assert made.dtype == held
    assert torch.equal(made.rows(ids), made.weight.float()[ids])
    assert isinstance(made, {torch.int8: QuantisedMatrix, torch.int4: Int4Matrix}.get(held, Matrix))


@pytest.mark.parametrize(
    ("groups", "scales", "message"),
    [
        (torch.zeros(3, 16), torch.zeros(3, 1, dtype=torch.bfloat16), "expected uint8"),
        (torch.zeros(3, 15, dtype=torch.uint8), torch.zeros(3, 1, dtype=torch.bfloat16), "whole groups"),
        (torch.zeros(3, 16, dtype=torch.uint8), torch.zeros(3, 1), "expected bfloat16"),
        (torch.zeros(3, 16, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.bfloat16), "expected bfloat16"),
        (torch.zeros(3, 0, dtype=torch.uint8), torch.zeros(3, 0, dtype=torch.bfloat16), "above 0"),
        (
            torch.zeros(16, 16, dtype=torch.uint8).T,
            torch.zeros(16, 1, dtype=torch.bfloat16),
            "not contiguous",
        ),
    ],
)
def test_int4_refuses_what_it_cannot_read(groups, scales, message):
    with pytest.raises((UsageError, TypeError), match=rf"{message}|type"):  # annotations are checked first
        Int4Matrix(groups, scales)


def test_parts_are_written_one_by_one(dtype: torch.dtype, rng: torch.Generator):
    parts = [normal(rng, 5, 64) for _ in range(3)]
    whole = NeuronRecords.pack(parts[0], parts[2], torch.ones(5), parts[1], dtype=dtype)
    filled = NeuronRecords.empty(5, 64, dtype, is_gated=True)
    for name, part in zip(("w_out", "w_in", "w_up"), (parts[2], parts[0], parts[1]), strict=True):
        filled.put(name, part)
    filled.bias.fill_(1.0)
    assert torch.equal(filled.w_in, whole.w_in)
    assert torch.equal(filled.w_up, whole.w_up)
    assert torch.equal(filled.w_out, whole.w_out)
    assert torch.equal(filled.bias, whole.bias)
    assert not whole.bias_up.any()
