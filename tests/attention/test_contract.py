"""One battery for every kind of attention."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from tests.attention.cases import CASES, EXACT, operands, streamed
from winnow.attention import Kind, State, linear, poly_sketch, polynomial, softmax, taylor
from winnow.attention.reference import attend_reference
from winnow.base.errors import UsageError
from winnow.base.rng import generator

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
DIRECT = ["product", "tensor"]  # whose weights can be negative


def assert_near(a, b, within=2e-5):
    torch.testing.assert_close(a, b, atol=within, rtol=within)


def fixed(case):
    """Return inputs whose weights have a clear positive sum; where they cancel, rounding is amplified."""
    return operands(generator(11), spread=spread_of(case))


def spread_of(case):
    """Exponentials and elu never come near zero; powers and estimates do where scores are large."""
    return 1.0 if case.kind.label in ("softmax", "linear(elu)") else 0.3


@EVERY
def test_every_kind_keeps_the_contract(case):
    assert isinstance(case.kind, Kind)
    assert isinstance(case.kind.start(1, 1, 4, 4), State)


@EVERY
@BOTH
@pytest.mark.parametrize(("n_queries", "n_keys"), [(71, 71), (1, 1), (3, 140), (64, 128)])
def test_exact_when_compared_with_its_definition(case, causal, n_queries, n_keys, rng):
    sizes = {"n_queries": n_queries, "n_keys": n_keys, "spread": spread_of(case)}
    q, k, v = operands(rng, **sizes, dtype=torch.float64)
    scale = case.scale_at(5)
    wanted = attend_reference(case.definition(), q, k, v, causal=causal, scale=scale)
    assert_near(case.kind(q, k, v, causal=causal), wanted, 1e-8)
    wanted = attend_reference(case.definition(), q, k, v, causal=causal, scale=0.31)
    assert_near(case.kind(q, k, v, causal=causal, scale=0.31), wanted, 1e-8)


@EVERY
def test_float32_is_as_exact_as_float32_can_be(case, rng):
    q, k, v = fixed(case)
    wanted = attend_reference(case.definition(), q.double(), k.double(), v.double(), scale=case.scale_at(5))
    assert_near(case.kind(q, k, v).double(), wanted, 1e-4)


@EVERY
def test_rows_are_convex_combinations_or_says_not(case, rng):
    q, k, v = operands(rng, n_queries=200, n_keys=200, spread=2.0)
    ones = torch.ones_like(v)
    assert torch.allclose(case.kind(q, k, ones), torch.ones(2, 4, 200, 3), atol=1e-3)  # weights sum to one
    out = case.kind(q, k, v, causal=False)
    low, high = (x.repeat_interleave(2, dim=1) for x in (v.amin(2, keepdim=True), v.amax(2, keepdim=True)))
    inside = bool(((out >= low - 1e-4) & (out <= high + 1e-4)).all())
    assert inside or not case.kind.is_convex


@pytest.mark.parametrize("name", DIRECT)
def test_a_kind_that_says_it_is_not_convex_can_leave_the_hull(name):
    q, k, v = operands(generator(0), n_queries=200, n_keys=4, spread=2.0)
    assert not CASES[name].kind.is_convex
    out = CASES[name].kind(q, k, v, causal=False)
    assert bool((out > v.amax(2, keepdim=True).repeat_interleave(2, dim=1) + 0.01).any())


@EVERY
def test_permuting_keys_changes_nothing(case, rng):
    q, k, v = fixed(case)
    order = torch.randperm(71, generator=rng)
    assert_near(
        case.kind(q, k[:, :, order], v[:, :, order], causal=False), case.kind(q, k, v, causal=False), 1e-4
    )


@EVERY
def test_the_future_changes_nothing(case):
    q, k, v = fixed(case)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 40:] += 1.0
    v2[:, :, 40:] -= 3.0
    assert torch.equal(case.kind(q, k2, v2)[:, :, :40], case.kind(q, k, v)[:, :, :40])
    assert not torch.equal(case.kind(q, k2, v2)[:, :, 40:], case.kind(q, k, v)[:, :, 40:])


@EVERY
def test_inputs_are_not_modified(case, rng):
    q, k, v = operands(rng)
    mask = torch.rand(2, 71, generator=rng) > 0.3
    before = [x.clone() for x in (q, k, v, mask)]
    case.kind(q, k, v, mask=mask)
    streamed(case.kind, q, k, v, mask, step=30)
    assert all(torch.equal(x, y) for x, y in zip(before, (q, k, v, mask), strict=True))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_keeps_dtype_and_device(case, dtype):
    q, k, v = (x.to(dtype) for x in fixed(case))
    out = case.kind(q, k, v)
    assert (out.dtype, out.device) == (dtype, v.device)
    state = case.kind.start(2, 2, 5, 3, device="cpu")
    state.append(k, v)
    assert state.read(q).dtype == dtype
    # Half-precision inputs lose their own rounding, nothing more: sums are float32.
    wanted = case.kind(q.double(), k.double(), v.double())
    assert_near(out.double(), wanted, {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-4))


@EVERY
def test_survives_equal_scores_and_minus_inf(case):
    v = torch.randn(1, 1, 9, 3, generator=generator(2))
    same = torch.ones(1, 1, 9, 4)
    assert_near(case.kind(same, same, v, causal=False), v.mean(2, keepdim=True).expand(1, 1, 9, 3), 1e-4)
    zero = torch.zeros(1, 1, 9, 4)
    assert_near(case.kind(zero, zero, v, causal=False), v.mean(2, keepdim=True).expand(1, 1, 9, 3), 1e-4)
    hidden = torch.zeros(1, 9, dtype=torch.bool)  # every score is minus infinity
    assert torch.equal(case.kind(same, same, v, mask=hidden), torch.zeros(1, 1, 9, 3))
    assert bool(torch.isfinite(case.kind(100 * same, -100 * same, v)).all())


@EVERY
@pytest.mark.parametrize("step", [1, 7, 64, 71])
def test_chunks_agree_with_token_by_token(case, step):
    q, k, v = fixed(case)
    mask = torch.rand(2, 71, generator=generator(5)) > 0.2
    mask[:, 0] = True
    ends = [min(at + step, 71) - 1 for at in range(0, 71, step)]
    assert_near(streamed(case.kind, q, k, v, mask, step), case.kind(q, k, v, mask=mask)[:, :, ends])


@EVERY
def test_fewer_queries_stand_at_the_end(case):
    q, k, v = fixed(case)
    assert_near(case.kind(q[:, :, 50:], k, v), case.kind(q, k, v)[:, :, 50:])


@EVERY
@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_shorter_input(case, causal, side):
    q, k, v = fixed(case)
    real = slice(20, 71) if side == "left" else slice(0, 51)
    mask = torch.zeros(2, 71, dtype=torch.bool)
    mask[:, real] = True
    for x in (k, v):
        x.masked_fill_(~mask[:, None, :, None], torch.nan)  # what stands in padding has no effect
    found = case.kind(q, k, v, causal=causal, mask=mask)[:, :, real]
    assert_near(found, case.kind(q[:, :, real], k[:, :, real], v[:, :, real], causal=causal))


@EVERY
def test_sequences_of_a_batch_do_not_meet(case):
    q, k, v = fixed(case)
    assert_near(case.kind(q, k, v)[1:], case.kind(q[1:], k[1:], v[1:]), 1e-6)


@EVERY
@BOTH
def test_gqa_equals_repeated_heads(case, causal):
    q, k, v = fixed(case)
    many = (x.repeat_interleave(2, dim=1) for x in (k, v))
    assert_near(case.kind(q, k, v, causal=causal), case.kind(q, *many, causal=causal), 1e-5)


@EVERY
@BOTH
def test_gradients_are_those_of_the_function(case, causal):
    # 66 positions: gradients cross from one chunk of a fixed state into the next.
    q, k, v = operands(generator(4), batch=1, heads=(2, 1), n_queries=3, n_keys=66, widths=(3, 2), spread=0.4)
    mask = torch.arange(66)[None] != 5
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    call = lambda q, k, v: case.kind(q, k, v, causal=causal, mask=mask)  # noqa: E731 (gradcheck takes a function)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@EVERY
def test_a_state_survives_a_round_trip(case):
    q, k, v = fixed(case)
    state = case.kind.start(2, 2, 5, 3)
    mask = torch.rand(2, 50, generator=generator(1)) > 0.3
    state.append(k[:, :, :50].bfloat16(), v[:, :, :50].bfloat16(), mask)
    loaded = case.kind.load(from_bytes(to_bytes(state.save())))
    assert torch.equal(loaded.read(q), state.read(q))
    assert (loaded.seen, loaded.n_bytes) == (50, state.n_bytes)
    for each in (state, loaded):
        each.append(k[:, :, 50:], v[:, :, 50:])
    assert torch.equal(loaded.read(q), state.read(q))


@EVERY
def test_merged_shards_equal_the_whole(case):
    q, k, v = fixed(case)
    mask = torch.rand(2, 71, generator=generator(1)) > 0.3
    mask[0, :20] = False  # one shard of one sequence is all padding
    whole, *shards = (case.kind.start(2, 2, 5, 3) for _ in range(4))
    whole.append(k, v, mask)
    for shard, part in zip(shards, (slice(0, 20), slice(20, 60), slice(60, 71)), strict=True):
        shard.append(k[:, :, part], v[:, :, part], mask[:, part])
    one, two, three = shards
    again = case.kind.load(one.save())
    for other in (two, three):
        before = other.read(q)
        one.merge(other)
        assert torch.equal(other.read(q), before)
    assert_near(one.read(q), whole.read(q))
    two.merge(three)
    again.merge(two)
    assert_near(again.read(q), whole.read(q))
    assert one.seen == again.seen == 71
    empty = case.kind.start(2, 2, 5, 3)
    empty.merge(whole)
    assert_near(empty.read(q), whole.read(q))
    one.merge(case.kind.start(2, 2, 5, 3))
    assert_near(one.read(q), whole.read(q))


@EVERY
def test_two_kinds_do_not_merge_nor_load_each_other(case):
    other = linear("elu") if case.kind.label == "softmax" else softmax()
    mine, theirs = case.kind.start(2, 2, 5, 3), other.start(2, 2, 5, 3)
    with pytest.raises(UsageError, match="merge received"):
        mine.merge(theirs)
    with pytest.raises(UsageError, match="The saved state"):
        case.kind.load(theirs.save())
    tensors = mine.save()
    del tensors["kind"]
    with pytest.raises(UsageError, match="lacks kind"):
        case.kind.load(tensors)
    with pytest.raises(UsageError, match=r"start\s+a\s+new|sizes|the state has"):
        mine.merge(case.kind.start(2, 2, 5, 4))


@EVERY
def test_memory_is_constant_but_for_softmax(case, rng):
    sizes = []
    for n in (64, 1024):
        _, k, v = operands(rng, n_queries=1, n_keys=n)
        state = case.kind.start(2, 2, 5, 3)
        state.append(k, v)
        assert state.seen == n
        sizes.append(state.n_bytes)
        assert state.n_bytes == sum(
            x.nbytes for name, x in state.save().items() if name not in ("kind", "sizes")
        )
    assert sizes[1] == (16 if case.kind.label == "softmax" else 1) * sizes[0]


@EVERY
def test_autocast_does_not_round_the_sums(case):
    q, k, v = fixed(case)
    wanted = case.kind(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case.kind(q, k, v), wanted)
        state = case.kind.start(2, 2, 5, 3)
        state.append(k, v)
        found = state.read(q)
    plain = case.kind.start(2, 2, 5, 3)
    plain.append(k, v)
    assert torch.equal(found, plain.read(q))


def test_same_seed_same_bits(rng):
    q, k, v = operands(rng, spread=0.3)
    for kind in ("tensor", "product", "nonnegative"):
        made = [poly_sketch(4, 64, kind, rng=seed, bias=1.0)(q, k, v) for seed in (7, 7, 8)]
        drawn = [poly_sketch(4, 64, kind, rng=generator(7), bias=1.0)(q, k, v) for _ in range(2)]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])
        assert torch.equal(drawn[0], drawn[1])


def test_error_falls_with_degree(rng):
    q, k, v = operands(rng, dtype=torch.float64)
    exact = softmax()(q, k, v)
    errors = [float((taylor(degree)(q, k, v) - exact).norm() / exact.norm()) for degree in (2, 4, 6, 8)]
    assert all(after < 0.6 * before for before, after in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("kind", ["tensor", "product"])
def test_error_falls_with_size(kind, rng):
    q, k, v = operands(rng, batch=1, heads=(1, 1), n_queries=31, n_keys=31, dtype=torch.float64, spread=0.5)
    exact = polynomial(4, 1.0)(q, k, v, causal=False)

    def error(size: int) -> float:
        made = [poly_sketch(4, size, kind, rng=seed, bias=1.0)(q, k, v, causal=False) for seed in range(9)]
        errors = torch.stack([(each - exact).norm() / exact.norm() for each in made])
        return float(errors.median())

    small, large = error(144), error(2304)
    assert large < small / 2.5  # 1 / sqrt(size) would be a quarter


def test_the_stated_bound_of_taylor_holds_in_200_draws():
    sizes = {"batch": 200, "heads": (1, 1), "n_queries": 9, "n_keys": 9, "spread": 0.6}
    q, k, v = operands(generator(0), **sizes, dtype=torch.float64)
    largest = (q @ k.mT).abs().amax((1, 2, 3)) * 5**-0.5
    exact = softmax()(q, k, v, causal=False)
    for degree in (2, 4, 6):
        eps = (2 * largest).exp() * largest ** (degree + 1) / math.factorial(degree + 1)
        off = (taylor(degree)(q, k, v, causal=False) - exact).abs().amax((1, 2, 3))
        within = off <= 2 * eps / (1 - eps) * v.abs().amax((1, 2, 3))
        assert bool(within[eps < 1].all())
        assert int((eps < 1).sum()) > {2: 60, 4: 170, 6: 190}[degree]  # the bound says something


WRONG = {
    "integers": (lambda q, k, v: (q, k.long(), v, None), "k is torch.int64; expected floating point"),
    "integer queries": (lambda q, k, v: (q.int(), k, v, None), "q is torch.int32"),
    "not a number": (lambda q, k, v: (q, k.where(k < 1, torch.nan), v, None), "k holds a number that is not"),
    "infinite value": (lambda q, k, v: (q, k, v.where(v < 1, torch.inf), None), "v holds a number that is"),
    "heads": (lambda q, k, v: (q[:, :3], k, v, None), "q has 3 heads, k has 2; expected a multiple"),
    "batch": (lambda q, k, v: (q[:1], k, v, None), "q has batch 1, the keys have 2"),
    "width": (lambda q, k, v: (q[..., :4], k, v, None), "q has head width 4, k has 5"),
    "length": (lambda q, k, v: (q, k, v[:, :, 1:], None), "expected the same batch, kv heads and positions"),
    "queries": (lambda q, k, v: (q, k[:, :, :9], v[:, :, :9], None), "71 causal queries, 9 keys"),
    "axes": (lambda q, k, v: (q[0], k, v, None), "expected four axes"),
    "empty keys": (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0], None), "no empty axis"),
    "empty queries": (lambda q, k, v: (q[:, :, :0], k, v, None), "no empty axis"),
    "mask length": (lambda q, k, v: (q, k, v, torch.ones(2, 70, dtype=torch.bool)), r"mask is \(2, 70\)"),
    "mask type": (lambda q, k, v: (q, k, v, torch.ones(2, 71)), "mask is torch.float32; expected torch.bool"),
}


@pytest.mark.usefixtures("gate_alone")
@pytest.mark.parametrize(("spoil", "says"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["softmax", "polynomial-2", "tensor"])
def test_wrong_input_is_refused_in_one_line(name, spoil, says, rng):
    q, k, v, mask = spoil(*operands(rng))
    with pytest.raises(UsageError, match=says) as caught:
        CASES[name].kind(q, k, v, mask=mask)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gate_alone")
@pytest.mark.parametrize("case", [EXACT["softmax"], EXACT["elu"]], ids=["softmax", "elu"])
def test_wrong_chunks_are_refused_and_leave_the_state_alone(case, rng):
    q, k, v = operands(rng)
    state = case.kind.start(2, 2, 5, 3)
    with pytest.raises(UsageError, match="The state is empty"):
        state.read(q)
    state.append(k, v)
    before = state.read(q)
    wrong = [(k[:, :, :0], v[:, :, :0]), (k[:1], v[:1]), (k[..., :4], v), (k[:, :1], v[:, :1]), (k / 0, v)]
    for bad_k, bad_v in wrong:
        with pytest.raises(UsageError):
            state.append(bad_k, bad_v)
    with pytest.raises(UsageError, match="3 heads"):
        state.read(q[:, :3])
    for scale in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="expected a finite number"):
            state.read(q, scale)
    assert torch.equal(state.read(q), before)
    for sizes in [(0, 2, 5, 3), (2, -1, 5, 3), (2, 2, 0, 3), (2, 2, 5, 0)]:
        with pytest.raises(UsageError, match="expected at least 1"):
            case.kind.start(*sizes)
