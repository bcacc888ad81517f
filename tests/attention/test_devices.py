"""Attention on a CUDA device, or where there is none on a stand-in that no tensor of the CPU can meet."""

import pytest
import torch
from torch import Tensor

from tests.attention.cases import CASES, operands
from tests.attention.elsewhere import FAR, Elsewhere
from winnow.attention import linear, streaming, taylor
from winnow.attention.one_pass import DyadicSketch, SketchOptions, causal, recover
from winnow.attention.streaming import Rotation
from winnow.base.errors import ResourceError, UsageError
from winnow.base.rng import generator

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SMALL = {"heavy": 8, "clusters": 6, "block": 16, "reservoir": 16}
STREAMS = {
    "absolute": streaming(32, **SMALL),
    "cache": streaming(32, **SMALL, position="cache", rotation=Rotation.of(1e4, 16)),
    "strict": streaming(32, **SMALL, strict=True, tolerance=1e-3, exact_tokens=500),
}


@pytest.fixture
def far(monkeypatch):
    """A device that is not the CPU."""
    if torch.cuda.is_available():
        yield FAR
    else:
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
        with Elsewhere(), torch.no_grad():
            yield FAR


def assert_equal_there(found: Tensor, wanted: Tensor):
    assert found.device == FAR
    torch.testing.assert_close(found.cpu(), wanted, atol=2e-5, rtol=2e-5)


def moved(tensors, device):
    return [x.to(device) for x in tensors]


def test_the_stand_in_refuses_two_devices(far):
    there = torch.ones(3, 2).to(far)
    assert_equal_there(there * 2 + torch.ones(()), torch.full((3, 2), 3.0))
    with pytest.raises(RuntimeError, match="devices"):
        there + torch.ones(2)


@EVERY
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "all"])
def test_every_kind_stays_where_its_keys_are(case, is_causal, far):
    q, k, v = operands(generator(11), spread=0.3)
    mask = torch.rand(2, 71, generator=generator(5)) > 0.2
    found = case.kind(*moved((q, k, v), far), causal=is_causal, mask=mask.to(far))
    assert_equal_there(found, case.kind(q, k, v, causal=is_causal, mask=mask))


@EVERY
def test_every_state_lives_its_life_where_it_began(case, far):
    q, k, v = operands(generator(11), spread=0.3)
    there = moved((q, k, v), far)
    state, other = (case.kind.start(2, 2, 5, 3, device=far) for _ in range(2))
    for at in range(0, 50, 10):
        state.append(*(x[:, :, at : at + 10] for x in there[1:]))
    other.append(*(x[:, :, 50:] for x in there[1:]))
    loaded = case.kind.load(state.save())
    loaded.merge(other)
    plain = case.kind.start(2, 2, 5, 3)
    plain.append(k, v)
    assert_equal_there(loaded.read(there[0]), plain.read(q))
    assert loaded.n_bytes == other.n_bytes or case.kind.label == "softmax"


@pytest.mark.parametrize("kind", STREAMS.values(), ids=STREAMS)
def test_a_stream_lives_its_life_where_it_began(kind, far):
    q, k, v = operands(generator(1), n_queries=200, n_keys=200, widths=(16, 16))
    there = moved((q, k, v), far)
    wanted, certificate = kind.certified(q, k, v)
    found, there_too = kind.certified(*there)
    assert_equal_there(found, wanted)
    torch.testing.assert_close(
        there_too.statistical.error.cpu(), certificate.statistical.error, rtol=1e-3, atol=1e-4
    )
    assert there_too.flags == certificate.flags
    state, plain = kind.start(2, 2, 16, 16, device=far), kind.start(2, 2, 16, 16)
    state.step(*there)
    plain.step(q, k, v)
    order = torch.tensor([1, 0, 1])
    for each in (state, plain):
        each.select(order)
    loaded = kind.load(state.save())
    assert_equal_there(
        loaded.read(there[0][:1].expand(3, -1, -1, -1)), plain.read(q[:1].expand(3, -1, -1, -1))
    )
    assert {x.device for x in loaded.tensors().values()} == {FAR}
    assert loaded.n_bytes == plain.n_bytes


def test_streams_merge_where_they_are(far):
    q, k, v = operands(generator(1), n_queries=200, n_keys=200, widths=(16, 16))
    kind, reads = STREAMS["absolute"], []
    for queries, keys, values, device in ((*moved((q, k, v), far), far), (q, k, v, "cpu")):
        one, two = (kind.start(2, 2, 16, 16, device=device) for _ in range(2))
        one.append(keys[:, :, :90], values[:, :, :90])
        two.append(keys[:, :, 90:], values[:, :, 90:])
        one.merge(two)
        reads.append(one.read(queries))
    assert_equal_there(*reads)


def test_sketches_recover_where_their_stream_is(far):
    q, k, v = (x[0, 0] for x in operands(generator(2), n_queries=90, n_keys=90))
    there = moved((q, k, v), far)
    found = recover(causal([tuple(there)], linear(), SketchOptions(3), rng=0), 3, tail_limit=1.0)
    wanted = recover(causal([(q, k, v)], linear(), SketchOptions(3), rng=0), 3, tail_limit=1.0)
    assert_equal_there(found.values, wanted.values)
    assert torch.equal(found.positions.cpu(), wanted.positions)
    options = {"seed": 1, "n_positions": 1000}
    levels, plain = (
        DyadicSketch.empty(SketchOptions(3), 3, **options, device=far),
        DyadicSketch.empty(SketchOptions(3), 3, **options),
    )
    levels.add(torch.arange(90).to(far), there[2])
    plain.add(torch.arange(90), v)
    assert_equal_there(recover(levels, 3, tail_limit=1.0).values, recover(plain, 3, tail_limit=1.0).values)


def test_two_devices_are_refused_in_one_line(far):
    q, k, v = operands(generator(1), widths=(16, 16))
    mask = torch.ones(2, 71, dtype=torch.bool)
    for kind in (CASES["softmax"].kind, linear(), STREAMS["absolute"]):
        state = kind.start(2, 2, 16, 16, device=far)
        calls = [
            lambda kind=kind: kind(q, k.to(far), v.to(far)),
            lambda kind=kind: kind(q, k, v.to(far)),
            lambda state=state: state.append(k, v),
            lambda state=state: (state.append(k.to(far), v.to(far)), state.read(q)),
        ]
        other = kind.start(2, 2, 16, 16)
        other.append(k, v)
        calls.append(lambda state=state, other=other: state.merge(other))
        if kind is not STREAMS["absolute"]:  # which takes its mask where it needs it
            calls.append(lambda kind=kind: kind(*moved((q, k, v), far), mask=mask))
        for call in calls:
            with pytest.raises(UsageError, match=r"lies on .*move one to the other's device") as caught:
                call()
            assert "\n" not in str(caught.value)


def test_the_room_of_a_state_is_that_of_its_device(far, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(ResourceError, match="1 kB are free"):
        taylor(4).start(1, 1, 16, 16, device=far)
    assert taylor(4).start(1, 1, 16, 16).seen == 0


@pytest.mark.parametrize("name", ["taylor-4", "polynomial-4", "tensor", "product", "nonnegative"])
def test_a_first_call_in_inference_mode_bars_no_later_gradient(name):
    # 7 and 2 are widths that no other test has: the maps are made here.
    q, k, v = (x.double() for x in operands(generator(1), widths=(7, 2), spread=0.3))
    with torch.inference_mode():
        CASES[name].kind(q.clone(), k.clone(), v.clone())
    leaf = k.clone().requires_grad_()
    CASES[name].kind(q, leaf, v).sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad != 0).any())


def test_autocast_does_not_reach_a_stream():
    q, k, v = operands(generator(1), n_queries=120, n_keys=120, widths=(16, 16))
    wanted = STREAMS["absolute"](q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(STREAMS["absolute"](q, k, v), wanted)
