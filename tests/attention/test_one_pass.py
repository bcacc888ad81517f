"""One pass: what stands out is found, at the stated width, and refused where nothing does."""

import pytest
import torch

from tests.attention.cases import operands
from winnow.attention import linear, polynomial, softmax, taylor
from winnow.attention.one_pass import (
    CountSketch,
    DyadicSketch,
    SketchOptions,
    causal,
    noncausal_two_phase,
    recover,
    sketch_error,
)
from winnow.attention.one_pass.hashing import PRIME, Hashing
from winnow.attention.one_pass.reference import (
    best_reference,
    median_reference,
    sketch_matrix,
    three_sketches_reference,
)
from winnow.base.errors import UsageError
from winnow.base.rng import generator

K = 20


def stream(seed: int, n: int = 20_000, n_columns: int = 3) -> torch.Tensor:
    """Return columns with K entries of size 1 over noise of norm 1."""
    rng = generator(seed)
    y = torch.randn(n, n_columns, generator=rng) / n**0.5
    for column in range(n_columns):
        at = torch.randperm(n, generator=rng)[:K]
        y[at, column] = 2.0 * torch.randint(2, (K,), generator=rng) - 1
    return y


def error_ratios(y: torch.Tensor, sketch, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """Return error over best-k error, and certificate over error, of each column."""
    for part in torch.arange(len(y)).split(4096):
        sketch.add(part, y[part])
    found = recover(sketch, k, tail_limit=1.0)
    error = (y - torch.zeros_like(y).scatter_(0, found.positions, found.values)).norm(dim=0)
    return error / (y - best_reference(y, k)).norm(dim=0), found.certificate / error


@pytest.mark.parametrize("seed", range(3))
def test_twelve_k_over_eps_and_15_rows_come_within_5_percent_of_the_best(seed):
    ratios, certificates = error_ratios(stream(seed), CountSketch.empty(SketchOptions(K), 3, seed=seed))
    assert float(ratios.max()) <= 1.05
    assert float((certificates - 1).abs().max()) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_four_k_and_9_rows_do_not(seed):
    options = SketchOptions(K, n_rows=9, width_factor=4)
    ratios, _ = error_ratios(stream(seed), CountSketch.empty(options, 3, seed=seed))
    assert float(ratios.min()) > 1.5


@pytest.mark.parametrize("seed", range(3))
def test_dyadic_levels_find_the_same_without_a_scan(seed):
    sketch = DyadicSketch.empty(SketchOptions(K), 3, seed=seed, n_positions=20_000)
    ratios, _ = error_ratios(stream(seed), sketch)
    assert float(ratios.max()) <= 1.05
    assert len(sketch.candidates(K)) == 4 * K  # of 20,000 positions


@pytest.mark.parametrize("seed", range(3))
def test_large_neighbours_do_not_hide_each_other_in_their_block(seed):
    y = torch.randn(20_000, 1, generator=generator(seed)) / 20_000**0.5
    where = [at + step for at in range(1000, 20_000, 2000) for step in (0, 1)]
    y[where] = 1.0
    sketch = DyadicSketch.empty(SketchOptions(K), 1, seed=seed, n_positions=20_000)
    sketch.add(torch.arange(20_000), y)
    assert sorted(recover(sketch, K).positions[:, 0].tolist()) == where


def test_dense_columns_are_refused(rng):
    y = torch.randn(5000, 2, generator=rng)
    y[7, 0] = 500.0  # the first column is sparse, the second is not
    sketch = CountSketch.empty(SketchOptions(5), 2, seed=1)
    sketch.add(torch.arange(5000), y)
    with pytest.raises(UsageError, match=r"Column 1 keeps 0\.9\d of its norm outside its 5 largest"):
        recover(sketch, 5)
    found = recover(sketch, 5, tail_limit=1.0)
    assert int(found.positions[0, 0]) == 7
    assert float(found.tail_ratio[0]) < 0.3
    assert float(found.tail_ratio[1]) > 0.9


def test_the_table_is_the_matrix_times_the_stream(rng):
    y = torch.randn(300, 2, generator=rng)
    sketch = CountSketch.empty(SketchOptions(3, n_rows=5), 2, seed=4)
    sketch.add(torch.arange(300), y)
    positions = torch.arange(300)
    buckets, signs = sketch.hashing.buckets(positions, 36), sketch.hashing.signs(positions)
    phi = sketch_matrix(buckets, signs, 36)
    table = phi @ y.double()
    assert torch.allclose(sketch.table.double(), table, atol=1e-5)
    assert torch.allclose(sketch.estimates(positions).double(), median_reference(phi, table), atol=1e-5)


def test_both_streams_equal_their_definition_and_are_read_once():
    q, k, v = (x[0, 0] for x in operands(generator(0), batch=1, heads=(1, 1), n_queries=150, n_keys=150))
    kind, options = polynomial(2), SketchOptions(4, n_rows=5)
    parts = [slice(0, 1), slice(1, 90), slice(90, 150)]
    pulled = []

    def once(what):
        for part in parts:
            pulled.append(part)
            yield what(part)

    found = noncausal_two_phase(once(lambda p: (k[p], v[p])), once(lambda p: q[p]), kind, options, rng=9)
    assert pulled == parts + parts  # keys and values, then queries, each chunk once
    positions = torch.arange(150)
    phi = sketch_matrix(found.hashing.buckets(positions, 48), found.hashing.signs(positions), 48)
    u1, u2 = kind.features.queries(q.double() * 5**-0.5), kind.features.keys(k.double())
    wanted = three_sketches_reference(phi, u1, u2, v.double())
    assert torch.allclose(found.table.double(), wanted, atol=1e-4)
    pulled.clear()
    found = causal(once(lambda p: (q[p], k[p], v[p])), kind, options, rng=9)
    assert pulled == parts
    outputs = kind(*(x[None, None].double() for x in (q, k, v)))[0, 0]
    assert torch.allclose(found.table.double(), phi @ outputs, atol=1e-3)


def test_memory_does_not_depend_on_the_length():
    def chunks(n):
        rng = generator(3)
        return ((torch.randn(500, 4, generator=rng),) * 3 for _ in range(n // 500))

    short, long = (causal(chunks(n), linear(), SketchOptions(3), rng=0) for n in (1000, 100_000))
    assert short.n_bytes == long.n_bytes
    assert (short.end, long.end) == (1000, 100_000)


def test_the_sketched_error_says_where_an_approximation_failed():
    # Flat attention everywhere but at three queries that point at one key each: there taylor(2) fails.
    rng = generator(5)
    q, k = (0.3 * torch.randn(1, 1, 900, 8, generator=rng) for _ in range(2))
    v = torch.randn(1, 1, 900, 4, generator=rng)
    where = [100, 455, 899]
    for at in where:
        q[0, 0, at] = 40 * k[0, 0, at // 2]
    exact, approximate = (kind(q, k, v)[0, 0] for kind in (softmax(), taylor(2)))
    options = SketchOptions(3)
    pairs = zip(exact.split(64), approximate.split(64), strict=True)
    found = recover(sketch_error(pairs, options, rng=2), 3)
    assert all(set(column) == set(where) for column in found.positions.T.tolist())
    outputs = sketch_error(((x, torch.zeros_like(x)) for x in exact.split(64)), options, rng=2)
    with pytest.raises(UsageError, match="it is dense"):
        recover(outputs, 3)  # the outputs themselves are not sparse


def test_merged_sketches_are_the_sketch_of_both(rng):
    y = torch.randn(100, 2, generator=rng)
    whole, one, two = (CountSketch.empty(SketchOptions(2), 2, seed=6) for _ in range(3))
    whole.add(torch.arange(100), y)
    one.add(torch.arange(60), y[:60])
    two.add(torch.arange(60, 100), y[60:])
    merged = one.merge(two)
    assert torch.allclose(merged.table, whole.table, atol=1e-5)
    assert merged.end == 100
    with pytest.raises(UsageError, match="another seed"):
        one.merge(CountSketch.empty(SketchOptions(2), 2, seed=7))
    with pytest.raises(UsageError, match="same options"):
        one.merge(CountSketch.empty(SketchOptions(3), 2, seed=6))


def test_hashes_spread_evenly_and_signs_cancel():
    positions = torch.arange(30_000)
    hashing = Hashing.drawn(7, 1, 0)
    counts = torch.stack([torch.bincount(row, minlength=60) for row in hashing.buckets(positions, 60)])
    assert int(counts.min()) > 400  # 500 each, were they dealt out
    assert int(counts.max()) < 600
    signs = hashing.signs(positions)
    assert set(signs.unique().tolist()) == {-1, 1}
    assert float(signs.double().mean(1).abs().max()) < 0.03
    together = signs[:, 1:] * signs[:, :-1]
    assert float(together.double().mean(1).abs().max()) < 0.03


def test_positions_beyond_int32_are_exact():
    hashing = Hashing.drawn(3, 1, 0)
    positions = torch.tensor([2**31 - 2, 2**31, 2**40 + 5, 2**62 - 1])
    a, b, c = (hashing.coefficients[:, i].tolist() for i in (1, 2, 0))
    for row in range(3):
        for i, bucket in zip(positions.tolist(), hashing.buckets(positions, 97)[row].tolist(), strict=True):
            x = (i % 2**31 + c[row] * (i // 2**31)) % PRIME  # Python's own integers
            assert bucket == (a[row] * x + b[row]) % PRIME % 97
    sketch = DyadicSketch.empty(SketchOptions(2), 1, seed=0, n_positions=2**40)
    sketch.add(torch.tensor([2**39 + 12345]), torch.tensor([[5.0]]))
    sketch.add(torch.tensor([77]), torch.tensor([[-3.0]]))
    found = recover(sketch, 2)
    assert found.positions[:, 0].tolist() == [2**39 + 12345, 77]
    assert found.values[:, 0].tolist() == [5.0, -3.0]


WRONG = {
    "negative": (lambda s: s.add(torch.tensor([-1]), torch.ones(1, 2)), "expected 0 <= position"),
    "too far": (lambda s: s.add(torch.tensor([2**62]), torch.ones(1, 2)), "expected 0 <= position"),
    "columns": (lambda s: s.add(torch.tensor([1]), torch.ones(1, 3)), "a row per position"),
    "k": (lambda s: recover(s, 3), "k is 3; expected 1 to 2"),
    "k of 0": (lambda s: recover(s, 0), "k is 0"),
    "limit": (lambda s: recover(s, 1, tail_limit=0.0), "tail_limit is 0.0"),
    "no columns": (lambda s: CountSketch.empty(SketchOptions(1), 0, seed=1), "n_columns is 0"),
    "no positions": (lambda s: DyadicSketch.empty(SketchOptions(1), 1, seed=1, n_positions=0), "n_positions"),
    "options": (lambda s: SketchOptions(0), "k, n_rows and width_factor"),
    "eps": (lambda s: SketchOptions(1, eps=0.0), "0 < eps <= 1"),
    "nothing": (lambda s: causal(iter([]), linear(), SketchOptions(1), rng=0), "stream yielded nothing"),
    "no keys": (
        lambda s: noncausal_two_phase([], [], linear(), SketchOptions(1), rng=0),
        "keys_values yield",
    ),
}


@pytest.mark.parametrize(("call", "says"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_refused_in_one_line(call, says):
    sketch = CountSketch.empty(SketchOptions(1), 2, seed=0)
    sketch.add(torch.tensor([0, 1]), torch.ones(2, 2))
    with pytest.raises(UsageError, match=says) as caught:
        call(sketch)
    assert "\n" not in str(caught.value)
