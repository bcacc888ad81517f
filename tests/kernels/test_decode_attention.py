"""Decode attention agrees with its definition: GQA, sliding windows, any length, both dtypes of the cache."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import assert_close, normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, KvBlock, attend
from winnow.kernels.decode_attention import append_kv, attend_reference

# heads, kv heads, head width, start, length: both sides of a block of 256 positions, windows that start late,
# sharers of a kv head that no group of query heads divides
CASES = [
    (1, 1, 8, 0, 1),
    (4, 4, 64, 0, 7),
    (4, 2, 40, 0, 256),
    (6, 2, 64, 3, 257),
    (8, 1, 16, 0, 255),
    (2, 2, 80, 250, 300),
    (4, 2, 20, 511, 512),
    (3, 3, 128, 0, 1030),
    (5, 5, 7, 100, 900),
    (14, 2, 64, 1, 300),
    (10, 2, 128, 0, 19),
    (21, 3, 48, 9, 1000),
]


def filled(rng: torch.Generator, kv_heads: int, capacity: int, width: int, dtype: torch.dtype) -> KvBlock:
    kv = KvBlock(kv_heads, capacity, width, dtype)
    kv.keys.copy_(normal(rng, *kv.keys.shape))
    kv.values.copy_(normal(rng, *kv.values.shape))
    return kv


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_its_definition(
    cpu: Cpu, dtype: torch.dtype, case: tuple[int, ...], rng: torch.Generator
):
    heads, kv_heads, width, start, length = case
    kv, q = filled(rng, kv_heads, length + 3, width, dtype), normal(rng, heads, width)
    y = attend(q, kv, start, length, width**-0.5, cpu=cpu)
    kept = kv.keys[:, start:length], kv.values[:, start:length]
    assert_close(y, attend_reference(q.double(), *kept, width**-0.5), relative=5e-6)


def test_the_definition_is_that_of_torch(rng: torch.Generator):
    q, keys, values = (normal(rng, *s).double() for s in ((6, 8), (2, 50, 8), (2, 50, 8)))
    by_torch = torch.nn.functional.scaled_dot_product_attention(
        q[None, :, None], keys[None], values[None], scale=0.3, enable_gqa=True
    )
    assert torch.allclose(attend_reference(q, keys, values, 0.3), by_torch[0, :, 0], rtol=1e-12)


def test_scores_beyond_the_range_of_exp_are_softened(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    kv, q = filled(rng, 2, 600, 64, dtype), normal(rng, 4, 64)
    y = attend(q, kv, 0, 600, 40.0, cpu=cpu)
    assert_close(y, attend_reference(q.double(), kv.keys, kv.values, 40.0), relative=1e-3)


def test_equal_scores_give_the_mean(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    kv = filled(rng, 1, 300, 24, dtype)
    kv.keys.zero_()
    y = attend(normal(rng, 1, 24), kv, 0, 300, 1.0, cpu=cpu)
    assert_close(y, kv.values.double().mean(1), relative=1e-5)


def test_positions_outside_the_range_are_not_read(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    kv = filled(rng, 2, 40, 20, dtype)
    for tensor in (kv.keys, kv.values):
        tensor[:, :5] = torch.nan
        tensor[:, 33:] = torch.nan
    assert attend(normal(rng, 2, 20), kv, 5, 33, 1.0, cpu=cpu).isfinite().all()


@pytest.mark.parametrize("where", ["keys", "values", "query"])
def test_what_is_not_a_number_is_not_hidden(cpu: Cpu, dtype: torch.dtype, where: str, rng: torch.Generator):
    kv, q = filled(rng, 1, 300, 20, dtype), normal(rng, 1, 20)
    tensor = {"keys": kv.keys[0, 270], "values": kv.values[0, 270], "query": q[0]}[where]
    tensor[19] = torch.nan
    assert attend(q, kv, 0, 300, 1.0, cpu=cpu).isnan()[0, 19]


def test_appended_positions_are_rounded_as_torch_rounds(cpu: Cpu, dtype: torch.dtype, rng: torch.Generator):
    kv, k, v = KvBlock(3, 10, 21, dtype), normal(rng, 3, 21), normal(rng, 3, 21) * 1e4
    append_kv(kv, 9, k, v, cpu=cpu)
    append_kv(kv, 0, v, k, cpu=cpu)
    assert torch.equal(kv.keys[:, 9], k.to(dtype))
    assert torch.equal(kv.values[:, 9], v.to(dtype))
    assert torch.equal(kv.keys[:, 0], v.to(dtype))
    assert kv.keys[:, 1:9].eq(0).all()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, dtype: torch.dtype, rng: torch.Generator):
    kv, q = filled(rng, 3, 900, 40, dtype), normal(rng, 6, 40)
    once = attend(q, kv, 1, 900, 0.2, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(10):
            assert torch.equal(attend(q, kv, 1, 900, 0.2, cpu=opened(isa, threads)), once)


@pytest.mark.compiled
@pytest.mark.parametrize("width", [64, 40])
def test_a_head_has_the_bits_that_it_would_have_without_the_other_kv_heads(
    isa: str, dtype: torch.dtype, width: int, rng: torch.Generator
):
    cpu, kv, q = opened(isa, 2), filled(rng, 3, 700, width, dtype), normal(rng, 9, width)
    alone = KvBlock(1, 700, width, dtype)
    alone.keys.copy_(kv.keys[2:])
    alone.values.copy_(kv.values[2:])
    together = attend(q, kv, 2, 700, 0.2, cpu=cpu)
    assert torch.equal(together[6:], attend(q[6:], alone, 2, 700, 0.2, cpu=cpu))


@pytest.mark.parametrize(("start", "length"), [(0, 0), (5, 5), (6, 5), (-1, 5), (0, 41), (40, 41)])
def test_refuses_empty_ranges_and_ranges_outside_the_cache(cpu: Cpu, start: int, length: int):
    with pytest.raises(UsageError, match="capacity"):
        attend(torch.zeros(2, 8), KvBlock(2, 40, 8, torch.float32), start, length, 1.0, cpu=cpu)


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_refuses_heads_that_do_not_share_evenly(cpu: Cpu, heads: int):
    with pytest.raises(UsageError, match="multiple"):
        attend(torch.zeros(heads, 8), KvBlock(2, 40, 8, torch.float32), 0, 1, 1.0, cpu=cpu)


@pytest.mark.parametrize("position", [-1, 40, 1000])
def test_refuses_positions_outside_the_cache(cpu: Cpu, position: int):
    kv = KvBlock(2, 40, 8, torch.float32)
    with pytest.raises(UsageError, match=r"0\.\.39"):
        append_kv(kv, position, torch.zeros(2, 8), torch.zeros(2, 8), cpu=cpu)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("position", "window", "heads"), [(40, 0, 2), (-1, 0, 2), (3, -1, 2), (3, 0, 3), (3, 0, 0)]
)
def test_the_hot_call_checks_ranges(isa: str, position: int, window: int, heads: int):
    q, kv = np.zeros((heads, 8), np.float32), KvBlock(2, 40, 8, torch.float32)
    with pytest.raises(ValueError, match=r"cache|heads|window"):
        opened(isa, 1).attend(q, kv, np.array([position]), window, 1.0, q.copy())


@pytest.mark.compiled
@pytest.mark.parametrize(("position", "heads", "width"), [(40, 2, 8), (-1, 2, 8), (0, 1, 8), (0, 2, 9)])
def test_the_hot_append_checks_ranges(isa: str, position: int, heads: int, width: int):
    k, kv = np.zeros((heads, width), np.float32), KvBlock(2, 40, 8, torch.float32)
    with pytest.raises(ValueError, match=r"cache|expected"):
        opened(isa, 1).append_kv(kv, np.array([position]), k, k)
