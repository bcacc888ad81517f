"""Products with some heads' blocks of a matrix, and attention with some heads."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, KvBlock, attend, linear, matrix
from winnow.kernels.gathered_linear import (
    by_blocks,
    from_blocks,
    gathered_columns,
    gathered_columns_reference,
    gathered_rows,
    gathered_rows_reference,
)

SIZES = [(1, 1, 32), (4, 3, 64), (3, 16, 96), (5, 8, 416), (12, 64, 768), (7, 5, 1056)]  # blocks, rows, width
LISTS = {"none": 0.0, "some": 0.5, "all": 1.0}


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.int8, torch.int4], ids=str)
def held(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def some_blocks(rng: torch.Generator, n_blocks: int, share: float) -> torch.Tensor:
    """A list in no order: who is listed first is summed first."""
    order = torch.randperm(n_blocks, generator=rng)
    return order[: round(share * n_blocks)].to(torch.int32)


@pytest.mark.parametrize(("n_blocks", "rows", "width"), SIZES)
@pytest.mark.parametrize("share", LISTS.values(), ids=LISTS)
def test_rows_agree_with_their_definition(
    cpu: Cpu, held: torch.dtype, n_blocks: int, rows: int, width: int, share: float, rng: torch.Generator
):
    x, weights = normal(rng, width), matrix(normal(rng, n_blocks * rows, width), held)
    blocks = some_blocks(rng, n_blocks, share)
    y = gathered_rows(x, weights, blocks, n_blocks, cpu=cpu)
    expected = gathered_rows_reference(x.double(), weights.weight, blocks, n_blocks)
    assert torch.equal(y.isnan(), expected.isnan())
    scale = weights.weight.double().abs().sum(-1).max().item() * x.abs().max().item()
    rounded = 0.5 / 127 if held == torch.int4 else 2 * SPLIT
    assert_close(y.nan_to_num(), expected.nan_to_num(), relative=rounded, scale=scale)


@pytest.mark.parametrize("rows", [1, 45, 64])
@pytest.mark.parametrize(
    ("n_blocks", "width"), [(1, 32), (7, 64), (3, 96), (5, 128), (2, 256), (3, 512), (2, 1056)]
)
@pytest.mark.parametrize("share", LISTS.values(), ids=LISTS)
def test_columns_agree_with_their_definition(
    cpu: Cpu, held: torch.dtype, n_blocks: int, rows: int, width: int, share: float, rng: torch.Generator
):
    a, weights = (
        normal(rng, n_blocks * width),
        matrix(by_blocks(normal(rng, rows, n_blocks * width), n_blocks), held),
    )
    blocks = some_blocks(rng, n_blocks, share)
    y = gathered_columns(a, weights, blocks, n_blocks, cpu=cpu)
    meant = from_blocks(weights.weight, n_blocks).double()
    expected = gathered_columns_reference(a.double(), meant, blocks, n_blocks)
    scale = meant.abs().sum(-1).max().item() * a.abs().max().item()
    assert_close(y, expected, relative=0.5 / 127 if held == torch.int4 else 2 * SPLIT, scale=scale)


@pytest.mark.parametrize(("rows", "n_blocks"), [(1, 1), (8, 3), (19, 5), (64, 2)])
def test_blocks_of_columns_come_back_as_they_were(rows: int, n_blocks: int, rng: torch.Generator):
    weight = normal(rng, rows, 6 * n_blocks)
    laid_out = by_blocks(weight, n_blocks)
    assert laid_out.shape == (rows * n_blocks, 6)
    assert torch.equal(laid_out[0], weight[0, :6])
    assert torch.equal(from_blocks(laid_out, n_blocks), weight)


def test_columns_that_the_blocks_do_not_divide_are_refused(rng: torch.Generator):
    with pytest.raises(UsageError, match="3 blocks were asked of 16 columns"):
        by_blocks(normal(rng, 4, 16), 3)


def test_listed_rows_have_the_bits_of_the_whole_product(cpu: Cpu, held: torch.dtype, rng: torch.Generator):
    x, weights = normal(rng, 160), matrix(normal(rng, 6 * 24, 160), held)
    blocks = torch.tensor([4, 1], dtype=torch.int32)
    whole = linear(x, weights, cpu=cpu).view(6, 24)
    some = gathered_rows(x, weights, blocks, 6, cpu=cpu).view(6, 24)
    if cpu.isa != "torch":
        assert torch.equal(some[[4, 1]], whole[[4, 1]])
    assert some[[0, 2, 3, 5]].isnan().all()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, held: torch.dtype, rng: torch.Generator):
    weights, blocks = matrix(normal(rng, 8 * 40, 1184), held), some_blocks(rng, 8, 0.6)
    x, a = normal(rng, 1184), normal(rng, 8 * 1184)
    rows = gathered_rows(x, weights, blocks, 8, cpu=opened(isa, 1)).nan_to_num()
    columns = gathered_columns(a, weights, blocks, 8, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(5):
            cpu = opened(isa, threads)
            assert torch.equal(gathered_rows(x, weights, blocks, 8, cpu=cpu).nan_to_num(), rows)
            assert torch.equal(gathered_columns(a, weights, blocks, 8, cpu=cpu), columns)


def test_blocks_that_are_not_listed_are_not_read(cpu: Cpu, rng: torch.Generator):
    weights = normal(rng, 20, 4 * 8)
    weights.view(20, 4, 8)[:, [0, 3]] = torch.nan
    blocks, a = torch.tensor([1, 2], dtype=torch.int32), normal(rng, 32)
    a.view(4, 8)[[0, 3]] = torch.nan
    held = matrix(by_blocks(weights, 4), torch.float32)
    assert gathered_columns(a, held, blocks, 4, cpu=cpu).isfinite().all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_attention_with_some_heads_has_the_bits_of_attention(
    cpu: Cpu, heads: int, kv_heads: int, rng: torch.Generator
):
    kv, q = KvBlock(kv_heads, 300, 24, torch.bfloat16), normal(rng, heads, 24)
    kv.keys.copy_(normal(rng, *kv.keys.shape))
    kv.values.copy_(normal(rng, *kv.values.shape))
    whole = attend(q, kv, 3, 290, 0.2, cpu=cpu).view(kv_heads, -1)
    listed, count = np.zeros(kv_heads, np.int32), np.array([1])
    listed[0] = kv_heads - 1
    out = np.full((heads, 24), np.nan, np.float32)
    cpu.attend(q.numpy(), kv, np.array([289]), 287, 0.2, out, (listed, count))
    found = torch.from_numpy(out).view(kv_heads, -1)
    assert torch.equal(found[-1], whole[-1])
    assert found[:-1].isnan().all()


@pytest.mark.parametrize("blocks", [[-1], [4], [0, 1, 2, 3, 0]], ids=str)
def test_blocks_outside_the_matrix_are_refused(cpu: Cpu, blocks: list[int]):
    weights, listed = matrix(torch.zeros(8, 32), torch.float32), torch.tensor(blocks, dtype=torch.int32)
    with pytest.raises(UsageError, match="blocks are"):
        gathered_rows(torch.zeros(32), weights, listed, 4, cpu=cpu)
    with pytest.raises(UsageError, match="divisor"):
        gathered_columns(torch.zeros(96), weights, listed, 3, cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("listed", "count"), [([0, 4, 1, 1], 2), ([0, 1, 2, 3], 5), ([0, 1, 2, 3], -1), ([0, 1, 2], 1)]
)
def test_the_hot_calls_check_their_lists(isa: str, listed: list[int], count: int):
    weights, cpu = matrix(torch.zeros(8, 32), torch.float32), opened(isa, 1)
    lists = np.array([listed], np.int32), np.array([count])
    x, out = np.zeros((1, 32), np.float32), np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match=r"0\.\.|divisor"):
        cpu.gathered_rows(x, weights, None, *lists, out)
    with pytest.raises(ValueError, match=r"0\.\.|divisor"):
        cpu.gathered_columns(
            np.zeros((1, 128), np.float32), weights, None, *lists, np.zeros((1, 2), np.float32)
        )


@pytest.mark.compiled
@pytest.mark.parametrize(("a", "bias", "out"), [(127, 2, 2), (128, 3, 2), (128, 2, 3)])
def test_the_hot_call_checks_the_lengths_of_columns(isa: str, a: int, bias: int, out: int):
    weights, listed = matrix(torch.zeros(8, 32), torch.float32), np.array([[0, 1, 2, 3]], np.int32)
    arrays = np.zeros((1, a), np.float32), np.zeros(bias, np.float32), np.zeros((1, out), np.float32)
    with pytest.raises(ValueError, match="expected"):
        opened(isa, 1).gathered_columns(arrays[0], weights, arrays[1], listed, np.array([4]), arrays[2])


def test_biases_are_added_where_something_is_computed(cpu: Cpu, rng: torch.Generator):
    weights, lists = matrix(normal(rng, 8, 64), torch.bfloat16), (np.array([[1, 0]], np.int32), np.array([1]))
    for call, given, n_out in (
        (cpu.gathered_rows, normal(rng, 1, 64).numpy(), 8),
        (cpu.gathered_columns, normal(rng, 1, 128).numpy(), 4),
    ):
        with_bias, without = np.zeros((1, n_out), np.float32), np.zeros((1, n_out), np.float32)
        call(given, weights, np.ones(n_out, np.float32), *lists, with_bias)
        call(given, weights, None, *lists, without)
        touched = without != 0
        assert np.array_equal(with_bias[touched], without[touched] + 1)
        assert not with_bias[~touched].any()
