"""Budgets per head: each head reads what it would read alone, and gets what its own keys need."""

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from tests.attention.streaming.cases import drawn, exact
from winnow.attention.streaming import PerHead, Streaming, StreamingOptions, calibrate_remainder
from winnow.base.errors import UsageError
from winnow.base.rng import generator

SHARED = {"window": 24, "block": 8, "sinks": 2, "reservoir": 2}
ONE = StreamingOptions(**SHARED, heavy=4, clusters=1)
MANY = StreamingOptions(**SHARED, heavy=4, clusters=24)
OFF = StreamingOptions(**SHARED, heavy=4, clusters=1, remainder="off")
N, E = 300, 16


@pytest.fixture
def mixed():
    """Two heads of queries over each of two kv heads: one of noise, one of 12 tight clusters."""
    rng = generator(4)
    q, k, v = drawn(rng, 1, 4, N, E), drawn(rng, 1, 2, N, E), drawn(rng, 1, 2, N, E)
    at = torch.randint(12, (N,), generator=rng)
    k[:, 1], v[:, 1] = (2 * drawn(rng, 12, E)[at] + 0.1 * drawn(rng, N, E) for _ in range(2))
    k[:, 0] *= 0.3
    v[:, 0] += 3.0  # a mean that attention over noise keeps
    return q, k, v


def test_noise_gets_one_cluster_and_clusters_get_theirs(mixed):
    found = calibrate_remainder(*mixed, [ONE, MANY], target=0.1)
    assert found.chosen == (0, 1)
    assert found.is_met == (True, True)
    assert found.total_bytes == sum(found.n_bytes) < 2 * found.n_bytes[1]
    assert "[" in str(found).splitlines()[1]


def test_the_error_is_that_of_each_heads_own_output(mixed):
    q, k, v = mixed
    found = calibrate_remainder(q, k, v, [ONE, OFF, MANY], target=0.1)
    wanted = exact(q, k, v)[:, :, ONE.held :]
    out = Streaming(MANY)(q, k, v)[:, :, MANY.held :].double()
    off = (out - wanted)[:, 2:].norm() / wanted[:, 2:].norm()
    torch.testing.assert_close(found.error[1, 2], off, rtol=1e-4, atol=1e-6)
    # The control: what is forgotten altogether is missed.
    assert float(found.error[0, 1]) > 2 * float(found.error[0, 0])


def test_a_target_out_of_reach_is_said_and_gets_the_best(mixed):
    found = calibrate_remainder(*mixed, [ONE, MANY], target=1e-9)
    assert found.is_met == (False, False)
    assert found.chosen == tuple(found.error.argmin(1).tolist())
    assert "above the target" in str(found)


def test_a_budget_of_bytes_gets_the_least_error_it_can_hold(mixed):
    small, large = (Streaming(x).start(1, 1, E, E).n_bytes for x in (ONE, MANY))
    tight = calibrate_remainder(*mixed, [ONE, OFF, MANY], budget_bytes=small)
    assert tight.chosen == (0, int(tight.error[1, :2].argmin()))
    wide = calibrate_remainder(*mixed, [ONE, OFF, MANY], budget_bytes=large)
    assert wide.chosen == tuple(wide.error.argmin(1).tolist())


def test_each_head_reads_what_it_would_alone(mixed):
    q, k, v = mixed
    out = PerHead((MANY, ONE))(q, k, v)
    torch.testing.assert_close(
        out[:, :2], Streaming(MANY)(q[:, :2], k[:, :1], v[:, :1]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(out[:, 2:], Streaming(ONE)(q[:, 2:], k[:, 1:], v[:, 1:]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, PerHead((ONE, MANY))(q, k, v), atol=1e-3)
    # Heads of one budget share a state, whatever lies between them.
    three = [torch.cat([x, x[:, : x.shape[1] // 2]], 1) for x in (q, k, v)]
    again = PerHead((MANY, ONE, MANY))(*three)
    torch.testing.assert_close(again[:, 4:], out[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again[:, :4], out, rtol=1e-5, atol=1e-5)


def test_a_saved_state_is_loaded_by_the_heads_that_it_had_alone(mixed):
    q, k, v = (torch.cat([x, x[:, : x.shape[1] // 2]], 1) for x in mixed)
    state = PerHead((MANY, ONE, MANY)).start(1, 3, E, E)
    state.step(q, k, v)
    saved = state.save()
    assert PerHead((MANY, ONE, MANY)).load(saved).seen == N
    for options in ((MANY, MANY, ONE), (MANY, MANY, MANY), (MANY, ONE)):
        with pytest.raises(UsageError, match="whose heads have these budgets"):
            PerHead(options).load(saved)
    with pytest.raises(UsageError, match="whose heads have these budgets"):
        PerHead((MANY, ONE, MANY)).load({name: x for name, x in saved.items() if name != "heads"})


def test_a_state_of_several_budgets_lives_its_life(mixed):
    q, k, v = (torch.cat([x, x.flip(2)]) for x in mixed)
    kind = PerHead((MANY, ONE))
    whole = kind(q, k, v)
    state = kind.start(2, 2, E, E)
    outs = [state.step(*(x[:, :, at : at + 70] for x in (q, k, v))) for at in range(0, N, 70)]
    torch.testing.assert_close(torch.cat(outs, 2), whole, rtol=1e-4, atol=1e-4)
    assert (state.seen, state.sizes) == (N, (2, 2, E, E))
    loaded = kind.load(from_bytes(to_bytes(state.save())))
    assert torch.equal(loaded.read(q), state.read(q))
    assert loaded.n_bytes == state.n_bytes == kind.start(2, 2, E, E).n_bytes
    loaded.select(torch.tensor([1, 0]))
    torch.testing.assert_close(loaded.read(q.flip(0)), state.read(q).flip(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(
        kind(q, k, v, causal=False).isfinite(), torch.ones_like(v[:, :1]).bool().expand(2, 4, N, E)
    )
    one, two = (kind.start(2, 2, E, E) for _ in range(2))
    one.append(k[:, :, :280], v[:, :, :280])
    two.append(k[:, :, 280:], v[:, :, 280:])
    one.merge(two)
    assert one.seen == N


@pytest.mark.parametrize(
    ("candidates", "asked", "says"),
    [
        ([], {"target": 0.1}, "candidates is empty"),
        ([ONE], {}, "give exactly one"),
        ([ONE], {"target": 0.1, "budget_bytes": 9}, "give exactly one"),
        ([ONE], {"target": -0.5}, "expected a relative error above 0"),
        ([ONE], {"budget_bytes": 1000}, "the smallest candidate takes"),
        ([StreamingOptions(window=400)], {"target": 0.1}, "give more tokens"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(candidates, asked, says, mixed):
    with pytest.raises(UsageError, match=says):
        calibrate_remainder(*mixed, candidates, **asked)


def test_budgets_that_do_not_fit_are_refused(mixed):
    q, k, v = mixed
    with pytest.raises(UsageError, match="there are options for 3"):
        PerHead((ONE, ONE, MANY))(q, k, v)
    state, other = PerHead((ONE, MANY)).start(1, 2, E, E), PerHead((MANY, ONE)).start(1, 2, E, E)
    with pytest.raises(UsageError, match="merge received a state of other options"):
        state.merge(other)
    with pytest.raises(UsageError, match="a multiple of 2 kv heads"):
        state.read(q[:, :3])
