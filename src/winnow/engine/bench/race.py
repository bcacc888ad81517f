"""Race: who runs, in which order, how often; medians.   (floor 5 · engine)

Engines take turns round by round in one process, with the same threads, weights, prompt and length. Before
each round the read bandwidth is probed, so that a disturbed run is seen and not quoted.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow.base.errors import UsageError
from winnow.base.timing import commit, cpu_model
from winnow.engine.bench.report import BenchReport, Machine, Row
from winnow.engine.bench.runners import Runner, Turn
from winnow.kernels import Cpu, read_bandwidth

DENSITY_TOLERANCE = 0.01
LEAST_DISTINCT = 0.5  # share of the answer's tokens; a model that repeats itself checks nothing
SETTLE_S = 0.2  # between turns, for the spinning threads of the engine before to fall asleep
PROBE_BYTES = 1 << 28


@dataclass(frozen=True)
class BenchOptions:
    """How long, how often, and on what name the figures are filed."""

    shape: str
    dtype: str
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


def race(
    runners: Sequence[Runner],
    prompt: Sequence[int],
    cpu: Cpu,
    options: BenchOptions,
    tick: Callable[[int, str], None],
    asked_density: float | None = None,
) -> BenchReport:
    """Let every runner read `prompt` and decode, round by round; return medians.

    One round before the counted ones warms caches and clocks. With `asked_density` (synthetic shapes, whose
    predictors are exact) it checks that Winnow's sparse and dense tokens are equal and that the density is
    within 0.01. `tick` is told the rounds done and the engine that comes next.
    """
    turns: dict[str, list[Turn]] = {runner.name: [] for runner in runners}
    probes = []
    for turn in range(options.repeats + 1):
        probes.append(read_bandwidth(cpu, PROBE_BYTES, 0.3))
        for runner in runners:
            tick(turn, runner.name)
            time.sleep(SETTLE_S)
            done = runner.run(prompt, options.new_tokens)
            if turn > 0:
                turns[runner.name].append(done)
    probes.append(read_bandwidth(cpu, PROBE_BYTES, 0.3))
    tick(options.repeats + 1, "")
    machine = Machine(cpu_model(), cpu.threads, cpu.isa, max(probes) / 1e9, min(probes) / 1e9, commit())
    rows = tuple(_row(name, taken, len(prompt), machine, options) for name, taken in turns.items())
    failures = [] if asked_density is None else _failures(turns, asked_density)
    return BenchReport(machine, rows, tuple(failures))


def _row(name: str, turns: Sequence[Turn], n_prompt: int, machine: Machine, options: BenchOptions) -> Row:
    speeds = [turn.tokens_per_second for turn in turns]
    speed = statistics.median(speeds)
    n_bytes = statistics.median(turn.bytes_per_token for turn in turns)
    return Row(
        engine=name,
        shape=options.shape,
        dtype=options.dtype,
        mlp_density=statistics.median(turn.mlp_density for turn in turns),
        head_density=1.0,
        prompt_tokens=n_prompt,
        tokens_per_second=speed,
        tokens_per_second_min=min(speeds),
        tokens_per_second_max=max(speeds),
        ms_per_token=1000 / speed,
        ttft_s=statistics.median(turn.ttft_s for turn in turns),
        bytes_per_token=n_bytes,
        gb_per_s=n_bytes * speed / 1e9,
        bandwidth_share=n_bytes * speed / 1e9 / machine.read_gb_per_s,
        rss_bytes=_rss_bytes(),
    )


def _failures(turns: dict[str, list[Turn]], asked_density: float) -> list[str]:
    sparse, dense = turns.get("winnow-sparse"), turns.get("winnow-dense")
    if not sparse or not dense:
        return []
    failures = []
    if sparse[0].token_ids != dense[0].token_ids:
        failures.append("sparse and dense tokens differ although the predictors are exact")
    n_tokens, n_distinct = len(dense[0].token_ids), len(set(dense[0].token_ids))
    if n_distinct < n_tokens * LEAST_DISTINCT:
        failures.append(
            f"only {n_distinct} of {n_tokens} tokens are distinct: that they are equal says little"
        )
    for name, taken in turns.items():
        if any(turn.token_ids != taken[0].token_ids for turn in taken):
            failures.append(f"{name} gave different tokens in different rounds")
    density = sparse[0].mlp_density
    if abs(density - asked_density) > DENSITY_TOLERANCE:
        failures.append(f"density {density:.3f} was measured, {asked_density:.3f} was asked for")
    return failures


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
