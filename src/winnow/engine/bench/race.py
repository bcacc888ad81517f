"""Race: who runs, in which order, which turns count; medians.   (floor 5 · engine)

Engines take turns round by round in one process, with the same threads, weights, prompt and length. The read
bandwidth is probed between turns. A machine with other tenants flips between states that differ twofold, and
a median over all turns would mix two machines: only the turns of one state count, that in which every engine
has had turns enough first, by the probes on both sides of a turn. Within a turn the median step counts, and
the mean is reported beside it: now and then a step is held up for as long as several take.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from winnow.base.errors import UsageError
from winnow.base.timing import commit, cpu_model
from winnow.engine.bench.report import BenchReport, Machine, Row
from winnow.engine.bench.runners import Runner, Turn
from winnow.kernels import Cpu, read_bandwidth

DENSITY_TOLERANCE = 0.01
HEAD_TOLERANCE_FACTOR = 5  # heads are few, and what they read drifts from what they were set on
LEAST_DISTINCT = 0.5  # share of the answer's tokens; a model that repeats itself checks nothing
SETTLE_S = 0.2  # after a turn, for the spinning threads of its engine to fall asleep
PROBE_S = 0.1
STEADY = 0.85  # the lowest probe of a state as a share of its highest
ROUNDS_PER_REPEAT = 6  # at most, until every engine has its counted turns


@dataclass(frozen=True)
class BenchOptions:
    """How long, how often, and on what name the figures are filed."""

    shape: str
    prompt_tokens: int = 128
    new_tokens: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse runs that measure nothing."""
        if min(self.prompt_tokens, self.repeats) < 1 or self.new_tokens < 2:
            raise UsageError(
                f"prompt {self.prompt_tokens}, new {self.new_tokens}, repeats {self.repeats}; "
                "expected at least 1, 2 and 1."
            )


@dataclass(frozen=True)
class Expected:
    """What is known of a synthetic model's sparse engine before it runs.

    With exact predictors its tokens are those of the dense engine; with others they need not be.
    """

    density: float
    is_exact: bool
    head_density: float = 1.0


@dataclass(frozen=True)
class _Timed:
    """A turn and the bandwidths probed before and after it."""

    turn: Turn
    gb_per_s: tuple[float, float]

    def is_of(self, state: float) -> bool:
        """Whether both probes lie within the state whose highest is `state`."""
        return min(self.gb_per_s) >= STEADY * state and max(self.gb_per_s) <= state


def settled_bandwidth(cpu: Cpu) -> float:
    """Return the bytes per second that memory is read at, once the threads of the last turn are asleep."""
    time.sleep(SETTLE_S)
    return read_bandwidth(cpu, seconds=PROBE_S)


def race(
    runners: Sequence[Runner],
    prompt: Sequence[int],
    cpu: Cpu,
    options: BenchOptions,
    tick: Callable[[int, str], None],
    expected: Expected | None = None,
    probe: Callable[[Cpu], float] = settled_bandwidth,
) -> BenchReport:
    """Let every runner read `prompt` and decode, round by round; return medians of the turns that count.

    One round before the others warms caches and clocks. Whole rounds follow until there is a state of
    the machine in which every engine has `repeats` turns, at most ``6 * repeats`` of them: a state is a
    bandwidth, and a turn is of it if neither probe exceeds it or falls below 0.85 of it. Its turns
    alone count, and it is the bandwidth that the report names; of two states that serve, the quicker
    one.

    With `expected` the report checks that the measured density is within 0.01 and, where the predictors are
    exact, that Winnow's sparse and dense tokens are equal. `tick` is told the rounds that count so far, the
    first included, and the engine that comes next.
    """
    timed: dict[str, list[_Timed]] = {runner.name: [] for runner in runners}
    probes = [probe(cpu) / 1e9]
    state, n_rounds, n_counted = probes[0], 0, 0
    while n_counted < options.repeats and n_rounds <= ROUNDS_PER_REPEAT * options.repeats:
        for runner in runners:
            tick(n_counted + min(n_rounds, 1), runner.name)
            turn = runner.run(prompt, options.new_tokens)
            probes.append(probe(cpu) / 1e9)
            if n_rounds > 0:
                timed[runner.name].append(_Timed(turn, (probes[-2], probes[-1])))
        n_rounds += 1
        n_counted, state = max((_least_turns(timed, each, options.repeats), each) for each in probes)
    tick(options.repeats + 1, "")
    machine = Machine(cpu_model(), cpu.threads, cpu.isa, state, min(probes), commit())
    rows = tuple(_row(each, timed[each.name], len(prompt), machine, options.shape) for each in runners)
    turns = {name: [each.turn for each in taken] for name, taken in timed.items()}
    failures = () if expected is None else tuple(_failures(turns, expected))
    return BenchReport(machine, rows, failures, tuple(_notes(rows, options, expected)))


def _least_turns(timed: Mapping[str, Sequence[_Timed]], state: float, enough: int) -> int:
    """Return how many turns of `state` every engine has, at most `enough`."""
    return min(enough, *(sum(each.is_of(state) for each in taken) for taken in timed.values()))


def _row(runner: Runner, taken: Sequence[_Timed], n_prompt: int, machine: Machine, shape: str) -> Row:
    counted = [each.turn for each in taken if each.is_of(machine.read_gb_per_s)]
    turns = counted or [each.turn for each in taken]
    speeds = [turn.tokens_per_second for turn in turns]
    speed = statistics.median(speeds)
    n_bytes = statistics.median(turn.bytes_per_token for turn in turns)
    return Row(
        engine=runner.name,
        shape=shape,
        dtype=runner.dtype,
        mlp_density=statistics.median(turn.mlp_density for turn in turns),
        head_density=statistics.median(turn.head_density for turn in turns),
        prompt_tokens=n_prompt,
        tokens_per_second=speed,
        tokens_per_second_min=min(speeds),
        tokens_per_second_max=max(speeds),
        tokens_per_second_mean=statistics.median(turn.mean_tokens_per_second for turn in turns),
        turns=len(counted),
        turns_set_aside=len(taken) - len(counted),
        ms_per_token=1000 / speed,
        ttft_s=statistics.median(turn.ttft_s for turn in turns),
        bytes_per_token=n_bytes,
        gb_per_s=n_bytes * speed / 1e9,
        bandwidth_share=n_bytes * speed / 1e9 / machine.read_gb_per_s,
        rss_bytes=_rss_bytes(),
    )


def _failures(turns: Mapping[str, Sequence[Turn]], expected: Expected) -> list[str]:
    sparse, dense = turns.get("winnow-sparse"), turns.get("winnow-dense")
    if not sparse or not dense:
        return []
    failures = []
    if expected.is_exact and sparse[0].token_ids != dense[0].token_ids:
        failures.append("sparse and dense tokens differ although the predictors are exact")
    n_tokens, n_distinct = len(dense[0].token_ids), len(set(dense[0].token_ids))
    if n_distinct < n_tokens * LEAST_DISTINCT:
        failures.append(
            f"only {n_distinct} of {n_tokens} tokens are distinct: equal tokens say little, and the active "
            "sets hardly change"
        )
    for name, taken in turns.items():
        if any(turn.token_ids != taken[0].token_ids for turn in taken):
            failures.append(f"{name} gave different tokens in different rounds")
    for kind, density, asked in (
        ("density", sparse[0].mlp_density, expected.density),
        ("head density", sparse[0].head_density, expected.head_density),
    ):
        if abs(density - asked) > DENSITY_TOLERANCE * (1 if kind == "density" else HEAD_TOLERANCE_FACTOR):
            failures.append(f"{kind} {density:.3f} was measured, {asked:.3f} was asked for")
    return failures


def _notes(rows: Sequence[Row], options: BenchOptions, expected: Expected | None) -> list[str]:
    notes = []
    if expected is not None and not expected.is_exact:
        notes.append(
            "winnow-sparse leaves out neurons or heads that are not zero: this sparsity is lossy, "
            "its tokens need not be the dense ones and were not compared"
        )
    short = [f"{row.engine} has {row.turns}" for row in rows if row.turns < options.repeats]
    if short:
        notes.append(
            f"{options.repeats} turns in one state of the machine were asked of each engine; "
            f"{', '.join(short)} in {ROUNDS_PER_REPEAT * options.repeats} rounds"
        )
    return notes


def _rss_bytes() -> int:
    """Return the memory of this process and of those that engines of this race run in."""
    children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    files = [Path("/proc", process, "statm") for process in ("self", *chain(*children))]
    return sum(4096 * int(file.read_text().split()[1]) for file in files)
