"""Which implementation a machine gets, with and without a compiler; the promises of the threads."""

import os
import threading

import pytest
import torch

from tests.kernels.cases import normal, random_records
from tests.kernels.conftest import opened
from winnow.base.errors import UsageError
from winnow.kernels import (
    Matrix,
    NeuronRecords,
    dense_mlp,
    isa_levels,
    linear,
    open_cpu,
    read_bandwidth,
    relu,
)
from winnow.kernels.compiled import NativeCpu
from winnow.kernels.gathered_mlp import dense_mlp_reference


@pytest.mark.compiled
def test_the_best_level_is_the_last(isa: str):
    assert open_cpu(1).isa == isa_levels()[-1]
    assert open_cpu(1, isa).isa == isa
    assert isa_levels()[0] == "generic"


def test_threads_are_kept(cpu):
    assert open_cpu(3, cpu.isa).threads == 3


@pytest.mark.parametrize("threads", [0, -1, -100, 257, 100_000])
def test_refuses_other_numbers_of_threads(threads: int):
    with pytest.raises(UsageError, match=r"1\.\.256"):
        open_cpu(threads)


@pytest.mark.parametrize("isa", ["", "AVX2", "sse9"])
def test_names_the_instruction_sets_it_has(isa: str):
    with pytest.raises(UsageError, match="best"):
        open_cpu(1, isa)


@pytest.mark.usefixtures("without_compiled")
def test_without_a_compiler_it_warns_once_and_runs_the_definitions(rng: torch.Generator):
    with pytest.warns(RuntimeWarning, match="compiler") as caught:
        cpu = open_cpu(2)
    assert len(caught) == 1
    assert (cpu.isa, cpu.threads, isa_levels()) == ("torch", 2, ())
    x, records = normal(rng, 8), random_records(rng, 5, 8, torch.float32)
    assert records.handle is None
    assert torch.equal(dense_mlp(x, records, activation=relu, cpu=cpu), dense_mlp_reference(x, records, relu))


@pytest.mark.usefixtures("without_compiled")
def test_without_a_compiler_levels_are_refused():
    with pytest.raises(UsageError, match="torch"):
        open_cpu(1, "generic")
    with pytest.raises(UsageError, match="open_cpu"):
        NativeCpu(1, "generic")
    assert Matrix.empty(2, 2, torch.float32).handle is None
    assert NeuronRecords.empty(2, 2, torch.float32).handle is None


def test_measures_a_bandwidth(cpu):
    assert 1e6 < read_bandwidth(cpu, 1 << 22, 0.01) < 1e13  # bytes a second, on a crowded machine too


@pytest.mark.parametrize(("n_bytes", "seconds"), [(0, 1.0), (1 << 19, 1.0), (1 << 20, 0.0), (1 << 20, -1.0)])
def test_refuses_a_bandwidth_of_nothing(n_bytes: int, seconds: float):
    with pytest.raises(UsageError, match="1 MiB"):
        read_bandwidth(open_cpu(1, "torch"), n_bytes, seconds)


@pytest.mark.compiled
def test_several_callers_share_one_object(isa: str, rng: torch.Generator):
    cpu = opened(isa, 2)
    cases = [(normal(rng, 100 + n), Matrix(normal(rng, 400, 100 + n))) for n in range(4)]
    expected = [linear(x, matrix, cpu=cpu) for x, matrix in cases]
    wrong = []

    def call(n: int) -> None:
        for _ in range(200):
            if not torch.equal(linear(*cases[n], cpu=cpu), expected[n]):
                wrong.append(n)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.compiled
def test_objects_come_and_go(isa: str, rng: torch.Generator):
    x, matrix = normal(rng, 40), Matrix(normal(rng, 300, 40))
    expected = linear(x, matrix, cpu=opened(isa, 1))
    before = threading.active_count()
    for _ in range(20):
        assert torch.equal(linear(x, matrix, cpu=open_cpu(3, isa)), expected)
    assert threading.active_count() == before


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of any fork with threads
def test_a_forked_child_computes_alone(isa: str, rng: torch.Generator):
    cpu, x, records = open_cpu(2, isa), normal(rng, 40), random_records(rng, 300, 40, torch.bfloat16)
    arrays = x[None].numpy(), torch.zeros(1, 40).numpy()
    expected = dense_mlp(x, records, activation=relu, cpu=cpu).numpy()
    child = os.fork()
    if child == 0:
        cpu.dense_mlp(arrays[0], records, relu, arrays[1])
        same = bool((arrays[1] == expected).all())
        del cpu
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
