"""Coded bfloat16: not a bit of a weight is lost, and every kernel that reads weights reads these."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, magnitude, normal, some_neurons
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import (
    CodedMatrix,
    Cpu,
    KvBlock,
    LazyKv,
    Matrix,
    NeuronRecords,
    dense_mlp,
    gate_set,
    gathered_mlp,
    linear,
    relu,
    silu,
)
from winnow.kernels.gathered_linear import gathered_rows
from winnow.kernels.gathered_mlp import dense_mlp_reference, gathered_mlp_reference
from winnow.kernels.linear import linear_reference
from winnow.kernels.pack import coded_row_bytes, from_coded, pack_coded, to_coded
from winnow.kernels.unpack import unpack

SIZES = [(1, 256), (7, 384), (33, 2048), (130, 640), (17, 2176)]
KINDS = [(relu, False), (relu, True), (silu, True)]
ODD = (0.0, -0.0, 1e-39, 3e38, -1e-20)  # some of them patches in a row of ordinary weights


def weights(rng: torch.Generator, rows: int, width: int) -> torch.Tensor:
    """Rows of ordinary weights in bfloat16, two of three with patches: too many weights of their own kind."""
    made = normal(rng, rows, width, dtype=torch.bfloat16, scale=width**-0.5)
    odd = torch.cat([-(2.0 ** torch.arange(2, 14, 2.0)), 2.0 ** torch.arange(-60, -52, 2.0)]).bfloat16()
    for row in range(rows):
        places = torch.randperm(width, generator=rng)[: (0, 8, 10)[row % 3]]
        made[row, places] = odd[: len(places)]
    return made


def coded(weight: torch.Tensor) -> CodedMatrix:
    held = CodedMatrix.of(weight)
    assert held is not None
    return held


def n_patches(held: CodedMatrix) -> torch.Tensor:
    front = coded_row_bytes(held.width) - held.width * 3 // 2
    return held.storage[:, front - 20 : front - 16].contiguous().view(torch.int32).flatten()


def records_of(rng: torch.Generator, neurons: int, width: int, is_gated: bool) -> NeuronRecords:
    made = NeuronRecords.empty(neurons, width, torch.bfloat16, is_gated, is_coded=True)
    for name in ("w_in", "w_up", "w_out") if is_gated else ("w_in", "w_out"):
        assert made.put(name, weights(rng, neurons, width))
    made.bias.copy_(normal(rng, neurons))
    return made


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def test_every_number_of_bfloat16_comes_back(cpu: Cpu) -> None:
    bits = torch.arange(2**16).to(torch.int16).view(256, 256)  # a row for each high byte
    weight, held = bits.view(torch.bfloat16), coded(bits.view(torch.bfloat16))
    assert n_patches(held).tolist() == [0] * 256
    for found in (unpack(held, torch.bfloat16, cpu=cpu), held.weight):
        assert torch.equal(found.isnan(), weight.isnan())
        is_number = ~weight.isnan()  # what else is said of none may be lost when it is rounded
        assert torch.equal(found.view(torch.int16)[is_number], bits[is_number])


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_weights_come_back_bit_by_bit_patches_among_them(cpu: Cpu, dtype, rows: int, width: int, rng) -> None:
    weight = weights(rng, rows, width)
    weight[0, : len(ODD)] = torch.tensor(ODD).bfloat16()
    held = coded(weight)
    assert rows == 1 or n_patches(held).max() > 0
    assert same_bits(held.weight, weight)
    assert same_bits(from_coded(held.storage, width), weight)
    assert same_bits(unpack(held, dtype, cpu=cpu), weight.to(dtype))
    assert same_bits(held.rows(torch.tensor([rows - 1, 0])), weight[[rows - 1, 0]].float())


@pytest.mark.compiled
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("is_transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_the_bytes_are_those_of_the_definition(isa, stored, is_transposed: bool, rows, width, rng) -> None:
    weight = normal(rng, rows, width, dtype=stored, scale=width**-0.5)
    weight[rows // 2, :9] = 2.0**-14
    weight[rows // 2, 9::2] = 0
    weight = weight.T.contiguous().T if is_transposed else weight
    ours = torch.full((rows, coded_row_bytes(width)), 0x5A, dtype=torch.uint8)
    assert pack_coded(weight, ours, isa=isa)
    expected = to_coded(weight)
    assert expected is not None
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("width", "most"), [(256, 11), (2048, 11), (2176, 27), (4096, 27), (16384, 123)])
def test_a_row_has_room_for_some_patches_and_no_more(width: int, most: int, rng: torch.Generator) -> None:
    weight = torch.full((3, width), 0.5).bfloat16()
    weight[1, ::2] = -0.5
    # Each with a high byte of its own: sixteen have codes, two of them those above.
    values = 2.0 ** torch.cat([torch.arange(-124, 0, 2.0), torch.arange(2, 126, 2.0)])
    odd = torch.cat([values, -values])[: 14 + most]
    weight[1, : len(odd)] = odd.bfloat16()
    held = CodedMatrix.of(weight)
    assert held is not None
    assert n_patches(held).tolist() == [0, most, 0]
    assert same_bits(held.weight, weight)
    weight[1, len(odd)] = 3e38
    assert CodedMatrix.of(weight) is None
    assert to_coded(weight) is None


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_a_product_agrees_with_its_definition(cpu: Cpu, batch: int, rows: int, width: int, rng) -> None:
    weight, bias, x = weights(rng, rows, width), normal(rng, rows), normal(rng, batch, width)
    held, y = coded(weight), torch.empty(batch, rows)
    cpu.linear(x.numpy(), held, bias.numpy(), y.numpy())
    for one, ours in zip(x, y, strict=True):
        scale = (weight.double().abs() @ one.double().abs()).max().item()
        assert_close(ours, linear_reference(one.double(), weight, bias), relative=SPLIT, scale=scale)


@pytest.mark.compiled
def test_bits_depend_on_no_thread_neighbour_or_part(isa: str, rng: torch.Generator) -> None:
    held, x = coded(weights(rng, 700, 384)), normal(rng, 5, 384)
    alone = [linear(one, held, cpu=opened(isa, 1)) for one in x]
    together = torch.empty(5, 700)
    opened(isa, 2).linear(x.numpy(), held, None, together.numpy())
    assert torch.equal(torch.stack(alone), together)
    assert torch.equal(linear(x[0], held.part(100, 300), cpu=opened(isa, 2)), alone[0][100:300])
    some = gathered_rows(x[1], held, torch.tensor([3, 0], dtype=torch.int32), 7, cpu=opened(isa, 2))
    assert torch.equal(some[300:400], alone[1][300:400])
    assert torch.equal(some[:100], alone[1][:100])


@pytest.mark.parametrize("kind", KINDS, ids=["relu", "relu-gated", "silu-gated"])
@pytest.mark.parametrize(("neurons", "width"), SIZES)
def test_an_mlp_agrees_with_its_definition(cpu: Cpu, kind, neurons: int, width: int, rng) -> None:
    activation, is_gated = kind
    x, records = normal(rng, width), records_of(rng, neurons, width, is_gated)
    indices = some_neurons(rng, neurons)
    y = gathered_mlp(x, records, indices, activation=activation, cpu=cpu)
    expected = gathered_mlp_reference(x.double(), records, indices, activation)
    every = torch.arange(neurons, dtype=torch.int32)
    assert_close(y, expected, relative=2 * SPLIT, scale=magnitude(x, records, indices))
    y = dense_mlp(x, records, activation=activation, cpu=cpu)
    expected = dense_mlp_reference(x.double(), records, activation)
    assert_close(y, expected, relative=2 * SPLIT, scale=magnitude(x, records, every))


@pytest.mark.compiled
def test_neurons_that_do_not_fire_change_no_bit_of_sums_with_patches(isa: str, rng) -> None:
    records, x = records_of(rng, 900, 256, False), normal(rng, 256)
    # Patches of many neurons in the same few columns: the order in which they are added shows.
    out = weights(rng, 900, 256)
    out[:, 5], out[::2, 77] = 2.0**-30, -(2.0**7)
    assert records.put("w_out", out)
    records.bias.sub_(1.0)
    scores = records.w_in.double() @ x.double() + records.bias.double()
    exact = torch.nonzero(scores > -0.1).squeeze(1).to(torch.int32)
    assert 100 < len(exact) < 600
    assert n_patches(records.part("w_out")).sum() > 1000
    dense = dense_mlp(x, records, activation=relu, cpu=opened(isa, 1))
    for threads in (1, 2):
        cpu = opened(isa, threads)
        assert torch.equal(gathered_mlp(x, records, exact, activation=relu, cpu=cpu), dense)
        padded = torch.cat([exact, some_neurons(rng, 900, 0.4)]).unique().to(torch.int32)
        assert torch.equal(gathered_mlp(x, records, padded, activation=relu, cpu=cpu), dense)


@pytest.mark.compiled
def test_a_batch_gives_the_bits_of_each_alone(isa: str, rng: torch.Generator) -> None:
    records, x = records_of(rng, 500, 256, True), normal(rng, 4, 256)
    lists = [some_neurons(rng, 500, share) for share in (0.1, 0.5, 0.9, 0.3)]
    room = np.zeros((4, 500), np.int32)
    for row, listed in zip(room, lists, strict=True):
        row[: len(listed)] = listed.numpy()
    counts, y = np.array([len(listed) for listed in lists]), torch.empty(4, 256)
    opened(isa, 2).gathered_mlp(x.numpy(), records, room, counts, silu, y.numpy())
    for one, listed, ours in zip(x, lists, y, strict=True):
        assert torch.equal(gathered_mlp(one, records, listed, activation=silu, cpu=opened(isa, 1)), ours)


@pytest.mark.compiled
def test_gates_found_beforehand_give_the_same_bits(isa: str, rng: torch.Generator) -> None:
    records, x, cpu = records_of(rng, 300, 384, True), normal(rng, 384), opened(isa, 2)
    indices, gates = gate_set(x, records, torch.full((300,), 0.2), activation=silu, cpu=cpu)
    assert 10 < len(indices) < 290
    found = gathered_mlp(x, records, indices, activation=silu, cpu=cpu, gates=gates)
    assert torch.equal(found, gathered_mlp(x, records, indices, activation=silu, cpu=cpu))


def test_keys_and_values_computed_late_are_those_of_the_product(cpu: Cpu, rng: torch.Generator) -> None:
    weight, kv = weights(rng, 4 * 16, 256), KvBlock(2, 8, 16, torch.float32)
    lazy, x = LazyKv(kv, coded(weight), None, None, None, 4), normal(rng, 3, 256)
    for at, one in enumerate(x):
        heads = np.array([0, 1], np.int32), np.array([2 if at == 2 else 0])
        cpu.missing_kv(one.numpy(), lazy, np.array([at]), heads)
    expected = (x.double() @ weight.double().T).view(3, 2, 2, 16)  # position, keys or values, head
    assert_close(kv.keys[:, :3], expected[:, 0].transpose(0, 1), relative=1e-4)
    assert_close(kv.values[:, :3], expected[:, 1].transpose(0, 1), relative=1e-4)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_input_or_weight_is_not_hidden(cpu: Cpu, broken: float, rng: torch.Generator) -> None:
    x, weight = normal(rng, 256), weights(rng, 20, 256)
    weight[11, 40] = broken
    y = linear(x, coded(weight), cpu=cpu)
    assert (~y.isfinite()).nonzero().squeeze(1).tolist() == [11]
    x[255] = broken
    assert not linear(x, coded(weight), cpu=cpu).isfinite().any()


def test_takes_three_quarters_of_the_memory_and_a_line_per_row() -> None:
    held, plain = CodedMatrix.empty(100, 4096), Matrix.empty(100, 4096, torch.bfloat16)
    assert held.n_bytes == 0.75 * plain.n_bytes + 100 * 2 * 64
    assert CodedMatrix.empty(100, 256).n_bytes < Matrix.empty(100, 256, torch.bfloat16).n_bytes


@pytest.mark.parametrize("width", [128, 200, 320, 16512])
def test_widths_that_are_not_coded_are_refused(width: int) -> None:
    with pytest.raises(UsageError, match="multiple of 128"):
        CodedMatrix.of(torch.zeros(2, width))
    with pytest.raises(UsageError, match="multiple of 128"):
        NeuronRecords.empty(2, width, torch.bfloat16, is_coded=True)


def test_other_rows_than_coded_ones_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected torch\.bfloat16"):
        NeuronRecords.empty(2, 256, torch.float32, is_coded=True)
    with pytest.raises(UsageError, match="expected uint8"):
        CodedMatrix(torch.zeros(2, 400, dtype=torch.uint8), 256)
    with pytest.raises(UsageError, match="were to be coded into"):
        pack_coded(torch.zeros(3, 256), torch.zeros(2, 448, dtype=torch.uint8))


@pytest.mark.parametrize("word", [12, -1, 2**31 - 1])
def test_rows_that_claim_patches_they_have_no_room_for_are_unsound(word: int, rng: torch.Generator) -> None:
    held = coded(weights(rng, 4, 256))
    assert held.is_sound()
    held.storage[2, 44:48] = torch.tensor([word], dtype=torch.int32).view(torch.uint8)
    assert not held.is_sound()


def test_a_patch_beyond_its_row_is_unsound(rng: torch.Generator) -> None:
    held = coded(weights(rng, 4, 256))
    assert n_patches(held)[1] > 0
    held.storage[1, 40:42] = torch.tensor([255, 0], dtype=torch.uint8)
    assert held.is_sound()
    held.storage[1, 40:42] = torch.tensor([0, 1], dtype=torch.uint8)
    assert not held.is_sound()
