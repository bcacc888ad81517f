"""Fixed states: what a long stream, a half-precision stream and a damaged file do to them."""

import pytest
import torch
from benchmarks.separation import DEGREES, picture, rows_of

from tests.attention.cases import operands
from winnow.attention import Needle, linear, poly_sketch, polynomial
from winnow.base.errors import UsageError
from winnow.base.rng import generator


def drift(kind, k: torch.Tensor, v: torch.Tensor) -> float:
    """Return how far token by token moves the state from its float64 twin."""
    state, twin = (kind.start(1, 1, k.shape[3], v.shape[3]) for _ in range(2))
    twin.append(k.double(), v.double())
    for t in range(k.shape[2]):
        state.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
    found, wanted = state.save()["sums"].double(), twin.save()["sums"]
    assert found.dtype == wanted.dtype == torch.float64
    assert state.save()["sums"].dtype == torch.float32
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.usefixtures("gate_alone")
@pytest.mark.parametrize("kind", [linear(), polynomial(2)], ids=lambda kind: kind.label)
def test_a_state_of_bfloat16_inputs_does_not_drift(kind):
    # benchmarks/fixed_state.py does so for a million tokens.
    rng = generator(1)
    k, v = ((torch.randn(1, 1, 8000, 4, generator=rng) + 0.5).bfloat16() for _ in range(2))
    assert drift(kind, k, v) < 1e-5
    # Positive control: a running sum in bfloat16 stands still long before.
    total = torch.zeros(4, dtype=torch.bfloat16)
    for row in v[0, 0]:
        total += row
    assert float((total.double() - v.double().sum((0, 1, 2))).norm() / v.double().sum((0, 1, 2)).norm()) > 0.1


@pytest.mark.usefixtures("gate_alone")
def test_equal_tokens_leave_the_mean_where_it_is():
    # The same rounding at every step would add up in a sum; a mean does not move at all.
    k = torch.full((1, 1, 8000, 2), 0.1)
    assert drift(linear(), k, k) < 1e-6


def test_counts_do_not_overflow(rng):
    _, k, v = operands(rng, batch=1, heads=(1, 1))
    state = linear().start(1, 1, 5, 3)
    state.append(k, v)
    for _ in range(40):  # doubles the count 40 times: far beyond int32 and the integers of float32
        state.merge(state)
    assert state.seen == 71 * 2**40
    assert state.save()["counts"].tolist() == [71 * 2**40]
    one = linear().start(1, 1, 5, 3)
    one.append(k, v)
    q = k[:, :, :4]
    assert torch.allclose(state.read(q), one.read(q), atol=1e-6)
    state.append(k, v)
    assert state.save()["counts"].tolist() == [71 * 2**40 + 71]


def test_a_damaged_file_is_refused(rng):
    _, k, v = operands(rng)
    kind = poly_sketch(2, 16, rng=3)
    state = kind.start(2, 2, 5, 3)
    state.append(k, v)
    tensors = state.save()
    with pytest.raises(UsageError, match="The saved sums are"):
        kind.load(tensors | {"sums": tensors["sums"][:, :, 1:]})
    with pytest.raises(UsageError, match="same arguments and seed"):
        poly_sketch(2, 16, rng=4).load(tensors)
    with pytest.raises(UsageError, match="lacks centre"):
        kind.load({name: x for name, x in tensors.items() if name != "centre"})


@pytest.mark.usefixtures("gate_alone")
def test_extend_takes_as_many_queries_as_keys(rng):
    q, k, v = operands(rng)
    state = linear().start(2, 2, 5, 3)
    with pytest.raises(UsageError, match="extend received 9 queries, 71 keys"):
        state.extend(q[:, :, :9], k, v)
    assert torch.equal(state.extend(q, k, v), linear()(q, k, v))


def test_the_picture_has_a_cell_per_length_and_degree():
    rows = rows_of(Needle(), range(6, 9), trials=2)
    assert picture(rows, Needle()).count("<rect x=") == 3 * len(DEGREES)
    assert all(row["is_within_2"] for row in rows)
