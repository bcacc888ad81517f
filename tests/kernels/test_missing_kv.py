"""Keys and values that are computed late, and whose turn it is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.cases import assert_close, normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu, KvBlock, LazyKv, isa_levels, linear, matrix
from winnow.kernels.missing_kv import due_heads, due_heads_reference, missing_kv, missing_kv_reference

EPS = 1e-5
SIZES = [(1, 1, 32, 2), (5, 10, 96, 7), (3, 16, 416, 16), (8, 6, 1056, 3)]  # heads, head width, width, window


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.int8, torch.int4], ids=str)
def held(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@dataclass
class Case:
    """A layer's map with everything that may follow it, and a cache of another."""

    lazy: LazyKv
    angles: tuple[Tensor, Tensor]  # of every position

    @property
    def weight(self) -> Tensor:
        return self.lazy.matrix.weight

    def note(self, position: int) -> None:
        """Write the angles of a position, as a step does."""
        if self.lazy.angles is not None:
            for table, every in zip(self.lazy.angles, self.angles, strict=True):
                table[position % self.lazy.window] = every[position].numpy()


def case(
    rng: torch.Generator, held: torch.dtype, sizes, cached=torch.float32, *, is_bare: bool = False
) -> Case:
    heads, head_width, width, window = sizes
    rows, half = 2 * heads * head_width, head_width // 2
    weights = matrix(normal(rng, rows, width, scale=width**-0.5), held)
    turns = normal(rng, 60, half)
    is_turned = head_width % 2 == 0 and not is_bare
    lazy = LazyKv(
        KvBlock(heads, 60, head_width, cached),
        weights,
        None if is_bare else normal(rng, rows).numpy(),
        None if is_bare else ((1 + normal(rng, head_width, scale=0.1)).numpy(), EPS),
        (np.zeros((window, half), np.float32), np.zeros((window, half), np.float32)) if is_turned else None,
        window,
    )
    return Case(lazy, (turns.cos(), turns.sin()))


def some_heads(rng: torch.Generator, n_heads: int, share: float | int = 0.4) -> Tensor:
    order = torch.randperm(n_heads, generator=rng)
    return order[torch.rand(n_heads, generator=rng) < share].to(torch.int32)


def walked(
    made: Case, rng: torch.Generator, cpu: Cpu, n_steps: int, each: Callable[[int, Tensor], None]
) -> None:
    """Take steps with heads selected at random, then complete every head."""
    lazy = made.lazy
    for position in range(n_steps):
        x = normal(rng, lazy.inputs.shape[1])
        made.note(position)
        each(position, x)
        due, _ = due_heads(lazy, position, some_heads(rng, lazy.kv.n_kv_heads), cpu=cpu)
        missing_kv(x, lazy, position, due, cpu=cpu)
    missing_kv(x, lazy, position, torch.arange(lazy.kv.n_kv_heads, dtype=torch.int32), cpu=cpu)


@pytest.mark.parametrize("is_bare", [False, True], ids=["whole", "bare"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_late_agrees_with_the_definition(cpu: Cpu, held: torch.dtype, sizes, is_bare, rng: torch.Generator):
    made = case(rng, held, sizes, is_bare=is_bare)
    lazy, seen = made.lazy, []
    walked(made, rng, cpu, 40, lambda _, x: seen.append(x))
    n_heads, width = lazy.kv.n_kv_heads, lazy.kv.head_width
    weight = made.weight.double().unflatten(0, (2, n_heads, width))
    bias = None if lazy.bias is None else torch.from_numpy(lazy.bias).double().view(2, n_heads, width)
    norm = None if lazy.norm is None else (torch.from_numpy(lazy.norm[0]).double(), lazy.norm[1])
    angles = None if lazy.angles is None else tuple(each[:40].double() for each in made.angles)
    for head in range(n_heads):
        k, v = missing_kv_reference(
            torch.stack(seen).double(),
            weight[:, head].flatten(0, 1),
            None if bias is None else bias[:, head].flatten(),
            norm,
            angles,
        )
        relative = 0.02 if held == torch.int4 else 2e-4  # int4 rounds its input to bytes
        assert_close(lazy.kv.keys[head, :40], k, relative=relative, scale=4 * max(1, k.abs().max().item()))
        assert_close(lazy.kv.values[head, :40], v, relative=relative, scale=4 * v.abs().max().item())


@pytest.mark.compiled
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_late_has_the_bits_of_at_once(isa: str, held: torch.dtype, sizes, cached, rng: torch.Generator):
    made, cpu = case(rng, held, sizes, cached), opened(isa, 2)
    lazy, heads = made.lazy, (made.lazy.kv.n_kv_heads, made.lazy.kv.head_width)
    whole = KvBlock(heads[0], 60, heads[1], cached)
    bias, norm = torch.from_numpy(lazy.bias), lazy.norm[0]

    def at_once(position: int, x: Tensor) -> None:
        k, v = linear(x, lazy.matrix, bias, cpu=cpu).view(2, *heads).numpy().copy()
        cpu.rms_norm(k, norm, EPS, k)
        if lazy.angles is not None:
            cpu.rotate(k, *(table[position].numpy() for table in made.angles))
        cpu.append_kv(whole, np.array([position]), k, v)

    walked(made, rng, cpu, 45, at_once)
    assert torch.equal(lazy.kv.keys[:, :45], whole.keys[:, :45])
    assert torch.equal(lazy.kv.values[:, :45], whole.values[:, :45])
    assert not lazy.kv.keys[:, 45:].any()
    assert not lazy.kv.values[:, 45:].any()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(isa: str, held: torch.dtype, rng: torch.Generator):
    found = []
    for threads in (1, 2, 3):
        draws = torch.Generator().manual_seed(11)
        made = case(draws, held, (9, 24, 608, 5), torch.bfloat16)
        walked(made, draws, opened(isa, threads), 20, lambda *_: None)
        found.append((made.lazy.kv.keys, made.lazy.kv.values))
    assert all(torch.equal(a, b) for each in found[1:] for a, b in zip(each, found[0], strict=True))


@pytest.mark.compiled
@pytest.mark.parametrize("isa", [each for each in isa_levels() if each != "generic"])
def test_inputs_kept_by_one_instruction_set_serve_another(isa: str, held: torch.dtype):
    found = []
    for others in (opened(isa, 1), opened("generic", 1)):
        draws = torch.Generator().manual_seed(12)
        made, cpus = case(draws, held, (5, 16, 1056, 6)), (opened(isa, 1), others)
        for position in range(30):
            made.note(position)
            cpu, due = cpus[position % 2], torch.tensor([position % 5], dtype=torch.int32)
            missing_kv(normal(draws, 1056), made.lazy, position, due, cpu=cpu)
        found.append((made.lazy.kv.keys[:, :26], made.lazy.kv.values[:, :26]))
    for alone, mixed in zip(*found, strict=True):
        assert_close(mixed, alone.double(), relative=0.02 if held == torch.int4 else 2e-4, scale=8.0)


def test_heads_that_are_not_listed_are_neither_read_nor_written(cpu: Cpu, rng: torch.Generator):
    made = case(rng, torch.float32, (4, 8, 64, 5))
    lazy = made.lazy
    made.weight.view(2, 4, 8, 64)[:, [0, 3]] = torch.nan
    lazy.kv.keys.fill_(7.0)
    for position in range(3):
        missing_kv(normal(rng, 64), lazy, position, torch.tensor([2, 1], dtype=torch.int32), cpu=cpu)
    assert lazy.kv.keys[1:3, :3].isfinite().all()
    assert (lazy.kv.keys[[0, 3]] == 7.0).all()
    assert not lazy.kv.values[[0, 3]].any()
    assert lazy.filled.tolist() == [0, 3, 3, 0]


def test_a_head_that_lacks_nothing_is_left_as_it_is(cpu: Cpu, rng: torch.Generator):
    made = case(rng, torch.bfloat16, (2, 8, 64, 4))
    lazy = made.lazy
    lazy.filled[:] = 9, 30
    lazy.kv.keys.fill_(7.0)
    missing_kv(normal(rng, 64), lazy, 11, torch.tensor([1, 0], dtype=torch.int32), cpu=cpu)
    assert (lazy.kv.keys[1] == 7.0).all()
    assert (lazy.kv.keys[0] == 7.0).all(-1).tolist() == [p not in (9, 10, 11) for p in range(60)]
    assert lazy.filled.tolist() == [12, 30]


@pytest.mark.parametrize(("n_heads", "window"), [(1, 1), (5, 7), (12, 4), (32, 8), (8, 16), (7, 3)])
def test_due_heads_are_those_of_the_definition(cpu: Cpu, n_heads: int, window: int, rng: torch.Generator):
    made = case(rng, torch.float32, (n_heads, 2, 32, window))
    lazy = made.lazy
    for position in range(16, 46):
        lazy.filled[:] = position + 1 - torch.randint(0, window + 1, (n_heads,), generator=rng).numpy()
        selected = some_heads(rng, n_heads)
        due, most = due_heads(lazy, position, selected, cpu=cpu)
        missing = torch.from_numpy(lazy.missing(position))
        assert due.tolist() == due_heads_reference(missing, selected, window).tolist()
        assert most == max(missing[due.long()].tolist(), default=0)


@pytest.mark.parametrize("window", range(1, 17))
@pytest.mark.parametrize("n_heads", [1, 5, 8, 12, 32])
def test_no_head_lacks_more_than_the_window_and_no_step_computes_a_crowd(
    n_heads: int, window: int, rng: torch.Generator
):
    per_step = -(-n_heads // window)
    for habit in ("none", "few", "half", "bursts", "favourites"):
        missing, waited = torch.zeros(n_heads, dtype=torch.int64), 0
        for step in range(6 * window):
            missing += 1
            share = {"none": 0, "few": 0.1, "half": 0.5, "bursts": float(step % 5 == 0), "favourites": 0.7}[
                habit
            ]
            selected = some_heads(rng, n_heads, share)
            selected = selected[selected < n_heads // 2] if habit == "favourites" else selected
            due = due_heads_reference(missing, selected, window).long()
            assert missing.max() <= window
            assert len(due) <= len(selected) + per_step
            waited += len(due) - len(selected)
            missing[due] = 0
        if habit == "none" and n_heads % window == 0:  # the same number of heads at every step
            assert waited == 6 * n_heads


@pytest.mark.parametrize(("n_heads", "window"), [(5, 3), (8, 4), (32, 8), (7, 16)])
def test_one_head_fewer_would_crowd_a_later_step(n_heads: int, window: int, rng: torch.Generator):
    per_step, n_seen = -(-n_heads // window), 0
    missing = torch.zeros(n_heads, dtype=torch.int64)
    for _ in range(20 * window):
        missing += 1
        selected = some_heads(rng, n_heads, 0.15)
        due = due_heads_reference(missing, selected, window).long()
        if len(due) > len(selected):
            n_seen += 1
            later = missing.clone()
            later[due[:-1]] = 0
            crowds = []
            for _ in range(window):  # the longest first, as many as a step may, and none selected
                later += 1
                crowds.append(int((later > window).sum()))
                later[later.argsort(descending=True)[:per_step]] = 0
            assert max(crowds) > 0
        missing[due] = 0
    assert n_seen > 10


def test_a_tape_looks_at_its_cells_when_it_runs(cpu: Cpu, rng: torch.Generator):
    made = case(rng, torch.bfloat16, (6, 4, 32, 3))
    lazy, tape, x = made.lazy, cpu.tape(), np.zeros(32, np.float32)
    position, count, most = (np.zeros(1, np.int64) for _ in range(3))
    due, selected = (np.zeros(6, np.int32), count), (np.array([5, 4, 0, 0, 0, 0], np.int32), np.array([2]))
    tape.due_heads(lazy, position, selected, due, most)
    tape.missing_kv(x, lazy, position, due)
    tape.run()
    assert lazy.filled.tolist() == [0, 0, 0, 0, 1, 1]
    position[0], selected[1][0] = 1, 0
    tape.run()
    assert lazy.filled.tolist() == [2, 2, 0, 0, 1, 1]
    assert count[0] == 2
    assert most[0] == 2
    for wrong, message in ((60, "cache of 60"), (-1, "cache of 60"), (3, "head 2 holds 0 positions")):
        position[0] = wrong
        with pytest.raises(ValueError, match=message):
            tape.run()
    assert lazy.filled.tolist() == [2, 2, 0, 0, 1, 1]


@pytest.mark.parametrize("filled", [-1, -(2**62), 4])
def test_heads_whose_inputs_are_gone_are_refused(cpu: Cpu, filled: int, rng: torch.Generator):
    lazy = case(rng, torch.float32, (2, 4, 32, 3)).lazy
    lazy.filled[:] = 8, filled
    position, lists = np.array([7]), (np.array([0, 0], np.int32), np.array([1]))
    with pytest.raises(ValueError, match="head 1 holds"):
        cpu.missing_kv(np.zeros(32, np.float32), lazy, position, lists)
    with pytest.raises(ValueError, match="head 1 holds"):
        cpu.due_heads(lazy, position, lists, (np.zeros(2, np.int32), np.zeros(1, np.int64)), np.array([0]))


@pytest.mark.compiled
def test_the_hot_calls_check_their_lists(isa: str, rng: torch.Generator):
    lazy, cpu = case(rng, torch.float32, (2, 4, 32, 3)).lazy, opened(isa, 1)
    x, position, due = np.zeros(32, np.float32), np.array([0]), (np.zeros(2, np.int32), np.array([0]))
    for listed, count in (([0, 2], 2), ([-1, 0], 1), ([0, 1], 3), ([0, 1], -1)):
        lists = np.array(listed, np.int32), np.array([count])
        with pytest.raises(ValueError, match=r"0\.\."):
            cpu.missing_kv(x, lazy, position, lists)
        with pytest.raises(ValueError, match=r"0\.\."):
            cpu.due_heads(lazy, position, lists, due, np.array([0]))
    twice = np.array([1, 1], np.int32), np.array([2])
    cpu.due_heads(lazy, position, twice, due, np.array([0]))
    assert due[1][0] == 1
    with pytest.raises(ValueError, match="x has length 31"):
        cpu.missing_kv(x[:31].copy(), lazy, position, twice)
    with pytest.raises(ValueError, match="due has length 1"):
        cpu.due_heads(lazy, position, twice, (np.zeros(1, np.int32), due[1]), np.array([0]))


def test_what_does_not_fit_is_refused(cpu: Cpu):
    kv, weights, bias = KvBlock(2, 9, 6, torch.float32), matrix(torch.zeros(24, 32), torch.float32), None
    table = np.zeros((4, 3), np.float32)
    for wrong, message in (
        ((kv, weights, bias, None, None, 0), "window is 0"),
        ((kv, weights, bias, None, None, 65), "window is 65"),
        ((kv, matrix(torch.zeros(12, 32), torch.float32), bias, None, None, 4), "rows of matrix"),
        ((kv, weights, np.zeros(23, np.float32), None, None, 4), "bias is"),
        ((kv, weights, np.zeros(48, np.float32)[::2], None, None, 4), "strided"),
        ((kv, weights, bias, (np.zeros(5, np.float32), EPS), None, 4), "norm is"),
        ((kv, weights, bias, None, (table[:3], table[:3]), 4), "cos is"),
        ((kv, weights, bias, None, (table, table.T.copy().T), 4), "sin is float32 or strided"),
    ):
        with pytest.raises(UsageError, match=message):
            LazyKv(*wrong)
    odd = KvBlock(4, 9, 3, torch.float32), matrix(torch.zeros(24, 32), torch.float32)
    with pytest.raises(UsageError, match="expected an even one"):
        LazyKv(*odd, None, None, (np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)), 4)
    lazy = LazyKv(kv, weights, bias, None, (table, table), 4)
    with pytest.raises(UsageError, match="position is 9"):
        missing_kv(torch.zeros(32), lazy, 9, torch.tensor([0], dtype=torch.int32), cpu=cpu)
    with pytest.raises(UsageError, match="blocks are"):
        due_heads(lazy, 0, torch.tensor([2], dtype=torch.int32), cpu=cpu)
