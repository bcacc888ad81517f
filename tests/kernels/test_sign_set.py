"""The sign set is its definition, bit for bit, in every implementation."""

import numpy as np
import pytest
import torch

from tests.kernels.cases import normal
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import Cpu
from winnow.kernels.active_set.sign_set import sign_set, sign_set_reference

SIZES = [(1, 1), (17, 3), (513, 2), (1003, 5)]  # neurons, words


def case(rng: torch.Generator, neurons: int, words: int) -> tuple:
    """Projections, signs, cosines, sizes and biases of which about half of the neurons pass."""
    n = 64 * words
    signs = torch.randint(-(2**63), 2**63 - 1, (neurons, words), generator=rng).numpy().view(np.uint64)
    cosines = torch.cos(torch.arange(n + 1) * (torch.pi / n))
    return normal(rng, n), signs, cosines, torch.rand(neurons, generator=rng), 0.05 * normal(rng, neurons)


def defined(projected: torch.Tensor, signs: np.ndarray, *floats: torch.Tensor) -> list[int]:
    return sign_set_reference(projected.numpy(), signs, *(each.numpy() for each in floats)).tolist()


@pytest.mark.parametrize(("neurons", "words"), SIZES)
def test_is_its_definition(cpu: Cpu, neurons: int, words: int, rng: torch.Generator):
    given = case(rng, neurons, words)
    expected = defined(*given)
    assert sign_set(*given, cpu=cpu).tolist() == expected
    assert neurons < 100 or 0.2 * neurons < len(expected) < 0.8 * neurons


def test_the_definition_is_the_angle_between_signs(rng: torch.Generator):
    projected, signs, cosines, sizes, _ = case(rng, 50, 3)
    own = torch.from_numpy(np.unpackbits(signs.view(np.uint8), axis=1, bitorder="little")).double() * 2 - 1
    share = (1 - own @ projected.sign().double() / 192) / 2
    scores = sizes.double() * projected.double().square().mean().sqrt() * torch.cos(torch.pi * share)
    for level in (-0.05, 0.01, 0.1):
        chosen = defined(projected, signs, cosines, sizes, torch.full((50,), -level))
        assert chosen == torch.nonzero(scores > level).squeeze(1).tolist()


@pytest.mark.compiled
def test_rows_and_threads_change_no_list(isa: str, rng: torch.Generator):
    _, signs, cosines, sizes, bias = case(rng, 1003, 3)
    rows = normal(rng, 5, 192)
    alone = [defined(row, signs, cosines, sizes, bias) for row in rows]
    for threads in (1, 2, 3):
        indices, count = np.empty((5, 1003), np.int32), np.zeros(5, np.int64)
        arrays = cosines.numpy(), sizes.numpy(), bias.numpy()
        opened(isa, threads).sign_set(rows.numpy(), signs, *arrays, indices, count)
        assert [listed[:n].tolist() for listed, n in zip(indices, count, strict=True)] == alone


def test_a_tape_reads_its_projections_anew(cpu: Cpu, rng: torch.Generator):
    projected, signs, cosines, sizes, bias = case(rng, 90, 2)
    indices, count, tape = np.empty((1, 90), np.int32), np.zeros(1, np.int64), cpu.tape()
    row, arrays = projected[None].numpy(), (cosines.numpy(), sizes.numpy(), bias.numpy())
    tape.sign_set(row, signs, *arrays, indices, count)
    for turn in (1, -1):
        row *= turn
        tape.run()
        assert indices[0, : count[0]].tolist() == defined(projected, signs, cosines, sizes, bias)


def test_a_score_of_zero_is_left_out_and_none_at_all_is_selected(cpu: Cpu):
    signs, zeros = np.zeros((3, 1), np.uint64), torch.zeros(3)
    bias = torch.tensor([0.0, 1e-30, torch.nan])
    assert sign_set(torch.ones(64), signs, torch.zeros(65), zeros, bias, cpu=cpu).tolist() == [1, 2]


def test_a_projection_that_is_not_a_number_selects_all(cpu: Cpu, rng: torch.Generator):
    projected, signs, cosines, sizes, bias = case(rng, 30, 2)
    projected[77] = torch.nan
    assert sign_set(projected, signs, cosines, sizes, bias, cpu=cpu).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("place", "length", "message"),
    [
        (0, 127, "projected has length 127 and signs 2 words"),
        (2, 128, r"cosines has shape \(128,\), expected \(129,\)"),
        (3, 29, r"sizes has shape \(29,\), expected \(30,\)"),
        (4, 31, r"bias has shape \(31,\), expected \(30,\)"),
    ],
)
def test_shapes_that_do_not_chain_are_refused(place, length, message, rng: torch.Generator):
    given = list(case(rng, 30, 2))
    given[place] = torch.zeros(length)
    with pytest.raises(UsageError, match=message):
        sign_set(*given, cpu=opened("torch", 1))


@pytest.mark.compiled
@pytest.mark.parametrize("place", [0, 2, 3, 4, 5, 6])
def test_no_call_reads_outside_an_array(isa: str, place: int, rng: torch.Generator):
    projected, signs, cosines, sizes, bias = case(rng, 30, 2)
    arrays = [projected[None].numpy(), signs, cosines.numpy(), sizes.numpy(), bias.numpy()]
    arrays += [np.empty((1, 30), np.int32), np.zeros(1, np.int64)]
    arrays[place] = np.ascontiguousarray(arrays[place][..., :-1])
    with pytest.raises(ValueError, match="has length"):
        opened(isa, 1).sign_set(*arrays)
