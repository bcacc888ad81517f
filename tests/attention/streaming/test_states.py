"""States: saved, loaded, merged, selected, and turned where keys are rotary."""

import pytest
import torch

from tests.attention.streaming.cases import drawn, exact
from tests.attention.streaming.test_streaming import N, tight, totals
from winnow.attention.streaming import Rotation, streaming
from winnow.base.errors import UsageError


@pytest.fixture
def qkv(rng):
    return drawn(rng, 2, 4, N, 16), drawn(rng, 2, 2, N, 16), drawn(rng, 2, 2, N, 12)


def test_a_loaded_state_goes_on_as_the_saved_one(qkv):
    kind = tight()
    state = kind.start(2, 2, 16, 12)
    state.step(*(x[:, :, :130] for x in qkv))
    copy = kind.load(state.save())
    rest = [x[:, :, 130:] for x in qkv]
    assert torch.equal(state.step(*rest), copy.step(*rest))


def test_a_state_of_other_options_is_refused(qkv):
    saved = tight().start(2, 2, 16, 12).save()
    with pytest.raises(UsageError, match="load it with the options"):
        tight(heavy=21).load(saved)
    with pytest.raises(UsageError, match="hold no streaming state"):
        tight().load({})


@pytest.mark.parametrize("cut", [30, 120])
def test_merged_shards_hold_every_token_once(cut, qkv):
    _, k, v = qkv
    whole, first, second = (tight().start(2, 2, 16, 12) for _ in range(3))
    whole.append(k, v)
    first.append(k[:, :, :cut], v[:, :, :cut])
    second.append(k[:, :, cut:], v[:, :, cut:])
    first.merge(second)
    assert first.seen == N
    for found, sums in zip(totals(first), totals(whole), strict=True):
        torch.testing.assert_close(found, sums, atol=1e-3, rtol=1e-5)
    assert (first.reservoir.label.max() < 16) and bool(
        (first.clusters.count.gather(1, first.reservoir.label) > 0).all()
    )


def test_merged_shards_read_as_well_as_one_stream(qkv):
    q, k, v = qkv
    first, second = (tight().start(2, 2, 16, 12) for _ in range(2))
    first.append(k[:, :, :120], v[:, :, :120])
    second.append(k[:, :, 120:], v[:, :, 120:])
    first.merge(second)
    whole = tight().start(2, 2, 16, 12)
    whole.append(k, v)
    truth = exact(q, k, v, causal=False)
    assert (first.read(q) - truth).norm() < 1.3 * (whole.read(q) - truth).norm()


def test_a_short_second_shard_equals_reading_on(qkv):
    q, k, v = qkv
    first, second, whole = (tight().start(2, 2, 16, 12) for _ in range(3))
    whole.append(k, v)
    first.append(k[:, :, :170], v[:, :, :170])
    second.append(k[:, :, 170:], v[:, :, 170:])
    first.merge(second)
    torch.testing.assert_close(first.read(q), whole.read(q), atol=1e-5, rtol=0)


def test_states_that_do_not_fit_are_not_merged():
    state = tight().start(1, 1, 8, 8)
    with pytest.raises(UsageError, match="expected another one"):
        state.merge(tight(heavy=3).start(1, 1, 8, 8))
    with pytest.raises(UsageError, match="expected another one"):
        state.merge(state)


def test_selected_rows_go_on_as_their_origins(qkv):
    kind, order = tight(), torch.tensor([1, 0, 1])
    state = kind.start(2, 2, 16, 12)
    state.step(*(x[:, :, :130] for x in qkv))
    state.select(order)
    out = state.step(*(x[order][:, :, 130:] for x in qkv))
    torch.testing.assert_close(out, kind(*qkv)[order][:, :, 130:], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="outside"):
        state.select(torch.tensor([3]))


ROTATION = Rotation.of(100.0, 16)


def rotated(x, positions):
    return ROTATION.turned(x, positions)


def test_turning_twice_is_turning_by_the_sum(rng):
    x, by = drawn(rng, 3, 16), torch.tensor([5, -2, 1000])
    torch.testing.assert_close(rotated(rotated(x, by), by), rotated(x, 2 * by), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated(x, by)[:1] @ rotated(x, by)[0], x[:1] @ x[0], atol=1e-5, rtol=0)


def test_a_shift_of_all_positions_changes_no_output(qkv):
    q, k, v = qkv
    near, far = torch.arange(N), torch.arange(N) + 777
    kind = tight(clusters=1)  # variances of axes turn with none of them
    a = kind(rotated(q, near), rotated(k, near), v)
    b = kind(rotated(q, far), rotated(k, far), v)
    torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


@pytest.mark.parametrize("trained", [90, 150])
def test_clamped_tokens_stand_no_farther_than_trained(trained, qkv):
    """With a cluster or a heavy slot for each token, it is exact attention at the clamped distances."""
    q, k, v = (x[:1, :1] for x in qkv)
    kind = tight(heavy=N, position="clamp", rotation=ROTATION, trained=trained)
    positions = torch.arange(N)
    out = kind(rotated(q, positions), rotated(k, positions), v)
    state = kind.start(1, 1, 16, 12)
    left = torch.full((N,), 10**9)  # the number of tokens seen when a token left the buffer
    for i in range(N):
        before = state.fill
        state.append(k[:, :, i : i + 1], v[:, :, i : i + 1])
        if state.fill <= before:
            left[i - before : i - state.fill + 1] = i
    for p in (100, 170, N - 1):
        is_old = left[: p + 1] <= p
        frozen = torch.maximum(left[: p + 1], torch.tensor(trained - 1)) - positions[: p + 1]
        distance = torch.where(is_old, torch.minimum(p - positions[: p + 1], frozen), p - positions[: p + 1])
        assert int(distance.max()) < trained
        logits = (rotated(k[0, 0, : p + 1], -distance) @ q[0, 0, p]) * 0.25
        torch.testing.assert_close(out[0, 0, p], logits.softmax(0) @ v[0, 0, : p + 1], atol=2e-4, rtol=0)


def test_cache_is_the_clamp_at_the_buffer(qkv):
    q, k, v = qkv
    positions = torch.arange(N)
    inputs = rotated(q, positions), rotated(k, positions), v
    cache = tight(position="cache", rotation=ROTATION)(*inputs)
    clamp = tight(position="clamp", rotation=ROTATION, trained=47)(*inputs)
    assert torch.equal(cache, clamp)
    assert not torch.allclose(cache, tight()(*inputs), atol=1e-3)
    within = tight(position="clamp", rotation=ROTATION, trained=N)(*inputs)
    torch.testing.assert_close(within, tight()(*inputs), atol=1e-5, rtol=0)


def test_cuts_do_not_matter_to_turned_states_either(qkv):
    positions = torch.arange(N)
    inputs = rotated(qkv[0], positions), rotated(qkv[1], positions), qkv[2]
    kind = tight(position="clamp", rotation=ROTATION, trained=90)
    state = kind.start(2, 2, 16, 12)
    steps = zip(*(x.split(13, 2) for x in inputs), strict=True)
    out = torch.cat([state.step(*step) for step in steps], 2)
    torch.testing.assert_close(out, kind(*inputs), atol=1e-5, rtol=0)


def test_moved_states_do_not_merge(qkv):
    kind = tight(position="cache", rotation=ROTATION)
    first, second = kind.start(2, 2, 16, 12), kind.start(2, 2, 16, 12)
    first.append(*qkv[1:])
    second.append(*qkv[1:])
    with pytest.raises(UsageError, match="old tokens move"):
        first.merge(second)


@pytest.mark.parametrize(("theta", "width"), [(-1.0, 16), (0.0, 16), (100.0, 7), (100.0, -2)])
def test_impossible_rotations_are_refused(theta, width):
    with pytest.raises(UsageError, match="A rotation got"):
        Rotation.of(theta, width)


def test_a_clamp_shorter_than_the_buffer_is_refused():
    with pytest.raises(UsageError, match="block = 47"):
        streaming(40, block=7, position="clamp", rotation=ROTATION, trained=46)
