"""Streaming attention: exact while the budget lasts, indifferent to cuts, and nothing is lost."""

import pytest
import torch

from tests.attention.streaming.cases import drawn, exact
from winnow.attention.streaming import streaming
from winnow.attention.streaming.reference import streaming_reference
from winnow.base.errors import UsageError

N = 203


@pytest.fixture
def qkv(rng):
    return drawn(rng, 2, 4, N, 16), drawn(rng, 2, 2, N, 16), drawn(rng, 2, 2, N, 12)


def tight(**changes):
    return streaming(**{"window": 40, "heavy": 20, "clusters": 16, "block": 7, "reservoir": 32, **changes})


@pytest.mark.parametrize(
    "kind",
    [
        streaming(N, heavy=0),
        tight(window=50, heavy=N - 50, sinks=0),
        tight(clusters=N),
        tight(window=N, remainder="off"),
    ],
    ids=["window", "window and heavy", "a cluster each", "nothing to leave off"],
)
def test_a_budget_that_holds_all_tokens_is_exact_attention(kind, qkv):
    torch.testing.assert_close(kind(*qkv).double(), exact(*qkv), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 5, 32, 100])
def test_any_cut_into_steps_gives_the_same_outputs(size, qkv):
    kind = tight()
    state = kind.start(2, 2, 16, 12)
    steps = zip(*(x.split(size, 2) for x in qkv), strict=True)
    out = torch.cat([state.step(*step) for step in steps], 2)
    torch.testing.assert_close(out, kind(*qkv), atol=1e-5, rtol=0)
    assert state.seen == N


def test_appending_and_reading_one_token_is_a_step(qkv):
    kind = tight()
    state, out = kind.start(2, 2, 16, 12), []
    for q, k, v in zip(*(x.split(1, 2) for x in qkv), strict=True):
        state.append(k, v)
        out.append(state.read(q))
    torch.testing.assert_close(torch.cat(out, 2), kind(*qkv), atol=1e-5, rtol=0)


def test_one_cluster_is_its_definition(qkv):
    q, k, v = (x[:1].double() for x in qkv)
    kind = tight(window=20, heavy=0, clusters=1, sinks=3)
    state = kind.start(1, 2, 16, 12)
    state.append(k[:, :, :90], v[:, :, :90])
    out = state.read(q[:, :, :3])
    kept = torch.cat([torch.arange(3), torch.arange(90 - state.fill, 90)])
    for head in range(4):
        keys, values = k[0, head // 2], v[0, head // 2]
        group = (keys[3 : 90 - state.fill], values[3 : 90 - state.fill])
        for at in range(3):
            wanted = streaming_reference(q[0, head, at], (keys[kept], values[kept]), [group], 16**-0.5)
            torch.testing.assert_close(out[0, head, at], wanted, atol=1e-5, rtol=0)


def test_many_clusters_are_their_definition(rng):
    """Tight groups, far apart, and a cluster for each: the split is known without asking."""
    at = torch.arange(60) % 4
    k = 10 * torch.eye(4, 8)[at] + 0.3 * drawn(rng, 60, 8)
    v, q = drawn(rng, 60, 5), drawn(rng, 1, 1, 2, 8)
    state = streaming(4, sinks=0, heavy=0, clusters=4, block=4).start(1, 1, 8, 5)
    state.append(k[None, None], v[None, None])
    out, n = state.read(q, 0.5), 60 - state.fill
    groups = [(k[:n][at[:n] == g].double(), v[:n][at[:n] == g].double()) for g in range(4)]
    for i in range(2):
        wanted = streaming_reference(q[0, 0, i].double(), (k[n:].double(), v[n:].double()), groups, 0.5)
        torch.testing.assert_close(out[0, 0, i].double(), wanted, atol=1e-5, rtol=0)


def totals(state):
    """Count, sums and second moments of all that a state holds, per row."""
    c = state.clusters
    n = c.count.double()[..., None]
    real = torch.cat([state.kept.is_real, state.window.is_real[:, : state.fill]], 1).double()[..., None]
    keys = torch.cat([state.kept.key, state.window.key[:, : state.fill]], 1).double()
    values = torch.cat([state.kept.value, state.window.value[:, : state.fill]], 1).double()
    count = real.sum(1) + n.sum(1)
    k_sum = (real * keys).sum(1) + (n * c.key).sum(1)
    v_sum = (real * values).sum(1) + (n * c.value).sum(1)
    within = n.sum(1, keepdim=True)
    kk = (real * keys).mT @ keys + (n * c.key).mT @ c.key.double() + within * c.pooled
    kv = (real * keys).mT @ values + (n * c.key).mT @ c.value.double() + within * c.cross
    return count, k_sum, v_sum, kk, kv


def test_no_token_is_lost(qkv):
    _, k, v = qkv
    state = tight().start(2, 2, 16, 12)
    state.append(k, v)
    keys, values = k.double().flatten(0, 1), v.double().flatten(0, 1)
    wanted = (
        torch.full((4, 1), float(N)).double(),
        keys.sum(1),
        values.sum(1),
        keys.mT @ keys,
        keys.mT @ values,
    )
    for found, sums in zip(totals(state), wanted, strict=True):
        torch.testing.assert_close(found, sums, atol=1e-3, rtol=1e-5)


def test_the_remainder_is_what_makes_the_difference(qkv):
    truth = exact(*qkv)
    off = {how: float((tight(remainder=how)(*qkv) - truth).norm()) for how in ("on", "off", "zero")}
    assert off["on"] < 0.5 * off["zero"] < 0.5 * off["off"], off


def test_more_clusters_err_less(qkv):
    truth = exact(*qkv)
    errors = [float((tight(clusters=c)(*qkv) - truth).norm()) for c in (2, 30, 120)]
    assert errors[0] > errors[1] > errors[2]


def test_heavy_keys_are_kept(rng):
    """Three keys that one query in ten asks for, among noise: held exactly, they leave next to no error."""
    q, k, v = drawn(rng, 1, 1, 300, 16), 0.3 * drawn(rng, 1, 1, 300, 16), drawn(rng, 1, 1, 300, 4)
    direction = torch.nn.functional.normalize(drawn(rng, 16), dim=0)
    k[..., [20, 60, 90], :] = 12 * direction
    q[..., ::10, :] = 4 * direction
    truth = exact(q, k, v)[:, :, 200::10]
    with_heavy, without = (
        streaming(40, heavy=h, clusters=1, block=8)(q, k, v)[:, :, 200::10] for h in (8, 0)
    )
    assert (with_heavy - truth).norm() < 0.02 * truth.norm()
    assert (without - truth).norm() > 10 * (with_heavy - truth).norm()


def test_the_future_changes_nothing(qkv):
    q, k, v = qkv
    longer = tight()(q, k, v)
    k, v = k.clone(), v.clone()
    k[:, :, 150:] += 5
    v[:, :, 150:] -= 5
    torch.testing.assert_close(tight()(q, k, v)[:, :, :150], longer[:, :, :150], atol=1e-6, rtol=0)


def test_an_entry_of_a_batch_stands_alone(qkv):
    alone = torch.cat([tight()(*(x[i : i + 1] for x in qkv)) for i in range(2)])
    torch.testing.assert_close(tight()(*qkv), alone, atol=1e-5, rtol=0)


def test_masked_tokens_count_for_nothing_whatever_they_hold(qkv):
    q, k, v = qkv
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[0, :9] = False
    poisoned = k.clone()
    poisoned[0, :, :9] = torch.nan
    out = streaming(N)(q, poisoned, v, mask=mask)
    torch.testing.assert_close(
        out[:1, :, 9:].double(), exact(q[:1, :, 9:], k[:1, :, 9:], v[:1, :, 9:]), atol=1e-5, rtol=0
    )
    assert not out[0, :, :9].any()
    state = tight().start(2, 2, 16, 12)
    state.append(poisoned, v, mask)
    assert totals(state)[0].flatten().tolist() == [N - 9, N - 9, N, N]


def test_sinks_are_the_first_real_tokens(qkv):
    _, k, v = qkv
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[0, :9] = False
    state = tight(sinks=4).start(2, 2, 16, 12)
    state.append(k, v, mask)
    assert torch.equal(state.kept.key[0, :4], k[0, 0, 9:13])
    assert torch.equal(state.kept.key[2, :4], k[1, 0, :4])


def test_bytes_never_change_and_are_what_save_writes(qkv):
    _, k, v = qkv
    state = tight().start(2, 2, 16, 12)
    before = state.n_bytes
    state.append(k, v)
    assert state.n_bytes == before == sum(t.nbytes for n, t in state.save().items() if n != "counts")


def test_output_has_the_type_of_v_and_the_state_float32(qkv):
    q, k, v = (x.bfloat16() for x in qkv)
    out = tight()(q, k, v)
    assert out.dtype == torch.bfloat16
    truth = tight()(q.float(), k.float(), v.float())
    torch.testing.assert_close(out.float(), truth, atol=0.02, rtol=0.01)


def test_not_causal_reads_everything(qkv):
    q, k, v = qkv
    out = streaming(N)(q[:, :, :5], k, v, causal=False)
    torch.testing.assert_close(out.double(), exact(q[:, :, :5], k, v, causal=False), atol=1e-5, rtol=0)


def test_inputs_stay_as_they_were(qkv):
    copies = [x.clone() for x in qkv]
    tight()(*qkv)
    assert all(torch.equal(a, b) for a, b in zip(qkv, copies, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": -3}, "window is -3"),
        ({"window": 0}, "window is 0"),
        ({"heavy": -1}, "heavy is -1"),
        ({"sinks": -7}, "sinks is -7"),
        ({"clusters": 0}, "clusters is 0"),
        ({"remainder": "maybe"}, "one of on, off, zero"),
        ({"position": "cache"}, "rotation=Rotation.of"),
        ({"tolerance": -0.5}, "positive error"),
    ],
)
def test_impossible_budgets_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        tight(**options)


def test_wrong_inputs_are_refused_and_leave_the_state_alone(qkv):
    q, k, v = qkv
    state = tight().start(2, 2, 16, 12)
    broken = k.clone()
    broken[1, 1, 100, 3] = torch.nan
    ragged = torch.ones(2, N - 1, dtype=torch.bool)
    wrong = {
        "k holds NaN or infinity in 1 tokens": (q, broken, v),
        "same B, K and T": (q, k, v[:, :, 1:]),
        "expected a multiple of 2": (q[:, :3], k, v),
        "one query per token": (q[:, :, 1:], k, v),
        "holds no tokens": (q[:, :, :0], k[:, :, :0], v[:, :, :0]),
        r"mask is torch.bool \[2, 202\]": (q, k, v, ragged),
        "mask is torch.float32": (q, k, v, torch.ones(2, N)),
        "scale is -1": (q, k, v, None, -1.0),
        "no gradients": (q, k.clone().requires_grad_(), v),
    }
    for says, arguments in wrong.items():
        with pytest.raises(UsageError, match=says):
            state.step(*arguments)
    with pytest.raises(UsageError, match="this state takes"):
        state.append(k[..., :8], v)
    assert state.seen == 0
    with pytest.raises(UsageError, match="append some"):
        state.read(q)
    state.seen = 2**31 - 100
    with pytest.raises(UsageError, match="counts up to 2147483647"):
        state.append(k, v)
