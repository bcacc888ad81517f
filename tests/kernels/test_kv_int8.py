"""Keys and values in int8 agree with their definition, and with themselves however they were written."""

import pytest
import torch

from tests.kernels.cases import assert_close, normal
from tests.kernels.conftest import opened
from tests.kernels.test_decode_attention import CASES
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, KvBlock, attend, int4
from winnow.kernels.decode_attention import append_kv, attend_reference
from winnow.kernels.pack import to_int8


def filled(rng: torch.Generator, kv_heads: int, capacity: int, width: int) -> KvBlock:
    kv, shape = KvBlock(kv_heads, capacity, width, torch.int8), (kv_heads, capacity, width)
    sizes = 10.0 ** torch.randint(-3, 3, (*shape[:2], 1), generator=rng)
    kv.put(0, normal(rng, *shape), normal(rng, *shape) * sizes)
    return kv


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_its_definition(cpu: Cpu, case: tuple[int, ...], rng: torch.Generator):
    heads, kv_heads, width, start, length = case
    kv, q = filled(rng, kv_heads, length + 3, width), normal(rng, heads, width)
    y = attend(q, kv, start, length, width**-0.5, cpu=cpu)
    kept = (each.double() for each in kv.floats(start, length))
    assert_close(y, attend_reference(q.double(), *kept, width**-0.5), relative=5e-6)


@pytest.mark.parametrize("width", [64, 21])
def test_appended_positions_are_rounded_as_the_definition_rounds(cpu: Cpu, width: int, rng: torch.Generator):
    kv, k, v = KvBlock(40, 10, width, torch.int8), normal(rng, 40, width), normal(rng, 40, width) * 1e4
    k[1], v[2] = 0.0, 1e-44
    append_kv(kv, 9, k, v, cpu=cpu)
    assert kv.scales is not None
    for x, held, scales in zip((k, v), (kv.keys, kv.values), kv.scales, strict=True):
        steps, sizes = to_int8(x)
        assert torch.equal(held[:, 9], steps)
        assert torch.equal(scales[:, 9], sizes)
        assert held[:, :9].eq(0).all()


def test_what_is_read_back_is_within_half_a_step(rng: torch.Generator):
    kv, k = KvBlock(3, 50, 24, torch.int8), normal(rng, 3, 50, 24)
    kv.put(0, k, -k)
    half = k.abs().amax(-1, keepdim=True) / 254
    for back, x in zip(kv.floats(0, 50), (k, -k), strict=True):
        assert ((back - x).abs() <= 1.00001 * half).all()


def test_one_head_is_stored_as_all_are(rng: torch.Generator):
    whole, by_head, k = KvBlock(3, 9, 8, torch.int8), KvBlock(3, 9, 8, torch.int8), normal(rng, 3, 5, 8)
    whole.put(2, k, k)
    for head in range(3):
        by_head.put(2, k[head : head + 1], k[head : head + 1], head)
    for one, other in zip(whole.floats(0, 9), by_head.floats(0, 9), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("where", ["keys", "values"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_is_not_hidden(cpu: Cpu, where: str, bad: float, rng: torch.Generator):
    kv, k = filled(rng, 1, 300, 20), {"keys": normal(rng, 1, 20), "values": normal(rng, 1, 20)}
    k[where][0, 19] = bad
    append_kv(kv, 270, k["keys"], k["values"], cpu=cpu)
    assert not attend(normal(rng, 1, 20), kv, 0, 300, 1.0, cpu=cpu).isfinite()[0, 19]


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, rng: torch.Generator):
    kv, q = filled(rng, 3, 900, 40), normal(rng, 12, 40)
    once = attend(q, kv, 1, 900, 0.2, cpu=opened(isa, 1))
    for threads in (2, 3):
        for _ in range(10):
            assert torch.equal(attend(q, kv, 1, 900, 0.2, cpu=opened(isa, threads)), once)


def test_a_larger_block_takes_what_is_held(rng: torch.Generator):
    kv, larger = filled(rng, 2, 20, 8), KvBlock(2, 31, 8, torch.int8)
    larger.take(kv, 13)
    for mine, theirs in zip(larger.floats(0, 31), kv.floats(0, 20), strict=True):
        assert torch.equal(mine[:, :13], theirs[:, :13])
        assert mine[:, 13:].eq(0).all()


def test_a_position_takes_its_bytes_and_two_scales():
    assert KvBlock(2, 5, 64, torch.int8).position_bytes == 2 * (64 + 4)
    assert KvBlock(2, 5, 64, torch.bfloat16).position_bytes == 2 * 128
    assert KvBlock(2, 5, 64, torch.int8).n_bytes == 2 * 5 * 2 * 68


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, int4], ids=str)
def test_refuses_other_types_in_one_line(dtype: torch.dtype):
    with pytest.raises(UsageError, match=r"expected torch\.float32, torch\.bfloat16 or torch\.int8\.$"):
        KvBlock(2, 5, 64, dtype)
