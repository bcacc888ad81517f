"""Products with some heads' blocks of a matrix, and attention with some heads."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import SPLIT, assert_close, normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, KvBlock, attend, linear, matrix
from winnow.kernels.gathered_linear import (
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


@pytest.mark.parametrize(("n_blocks", "rows", "width"), SIZES)
@pytest.mark.parametrize("share", LISTS.values(), ids=LISTS)
def test_columns_agree_with_their_definition(
    cpu: Cpu, held: torch.dtype, n_blocks: int, rows: int, width: int, share: float, rng: torch.Generator
):
    a, weights = normal(rng, n_blocks * rows), matrix(normal(rng, n_blocks * rows, width), held)
    blocks = some_blocks(rng, n_blocks, share)
    y = gathered_columns(a, weights, blocks, n_blocks, cpu=cpu)
    expected = gathered_columns_reference(a.double(), weights.weight, blocks, n_blocks)
    scale = (weights.weight.double().abs().T @ a.double().abs()).max().item()
    assert_close(y, expected, scale=scale)


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
    x, a = normal(rng, 1184), normal(rng, 8 * 40)
    rows = gathered_rows(x, weights, blocks, 8, cpu=opened(isa, 1)).nan_to_num()
    columns = gathered_columns(a, weights, blocks, 8, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(5):
            cpu = opened(isa, threads)
            assert torch.equal(gathered_rows(x, weights, blocks, 8, cpu=cpu).nan_to_num(), rows)
            assert torch.equal(gathered_columns(a, weights, blocks, 8, cpu=cpu), columns)


def test_blocks_that_are_not_listed_are_not_read(cpu: Cpu, rng: torch.Generator):
    weights = normal(rng, 4 * 8, 64)
    weights.view(4, 8, 64)[[0, 3]] = torch.nan
    blocks, a = torch.tensor([1, 2], dtype=torch.int32), normal(rng, 32)
    a.view(4, 8)[[0, 3]] = torch.nan
    assert gathered_columns(a, matrix(weights, torch.float32), blocks, 4, cpu=cpu).isfinite().all()


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
        gathered_columns(torch.zeros(8), weights, listed, 3, cpu=cpu)


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
        cpu.gathered_columns(out, weights, None, *lists, x)


def test_biases_are_added_where_something_is_computed(cpu: Cpu, rng: torch.Generator):
    weights, lists = matrix(normal(rng, 8, 64), torch.bfloat16), (np.array([[1, 0]], np.int32), np.array([1]))
    x, a = normal(rng, 64), normal(rng, 8)
    for call, given, bias in (
        (cpu.gathered_rows, x, np.ones(8, np.float32)),
        (cpu.gathered_columns, a, np.ones(64, np.float32)),
    ):
        with_bias, without = np.zeros((1, len(bias)), np.float32), np.zeros((1, len(bias)), np.float32)
        call(given[None].numpy(), weights, bias, *lists, with_bias)
        call(given[None].numpy(), weights, None, *lists, without)
        touched = without != 0
        assert np.array_equal(with_bias[touched], without[touched] + 1)
        assert not with_bias[~touched].any()
