"""Bench: what a race reports, which turns count, and that it catches engines that disagree."""

import dataclasses
import json

import pytest
import torch

from winnow.base.errors import UsageError
from winnow.engine.bench import BenchOptions, Expected, Turn, WinnowRunner, race
from winnow.engine.bench.hf import HfRunner, hf_from_source
from winnow.engine.bench.runners import turn_of
from winnow.engine.synthetic import llama_config, opt_config, synthetic_model
from winnow.kernels import open_cpu

RAW = opt_config(2, 128, 4, vocab_size=211)
LLAMA = llama_config(3, 128, 264, 4, 2, vocab_size=211)
PROMPT = list(range(20, 37))
OPTIONS = BenchOptions(shape="tiny", prompt_tokens=17, new_tokens=9, repeats=2)
ROW_KEYS = {
    "engine", "shape", "dtype", "mlp_density", "head_density", "prompt_tokens", "tokens_per_second",
    "ms_per_token", "ttft_s", "bytes_per_token", "gb_per_s", "bandwidth_share", "rss_bytes",
}  # fmt: skip


def silent(turn: int, engine: str) -> None:
    """Progress that nobody watches."""


def steady(cpu) -> float:
    """A machine of one state."""
    return 50e9


@pytest.fixture(scope="module")
def model():
    return synthetic_model(RAW, torch.float32, 0.2, seed=8)


@pytest.fixture(scope="module")
def cpu():
    return open_cpu(1)


@pytest.fixture(scope="module")
def runners(model, cpu):
    sparse = WinnowRunner(model.weights, model.predictors, cpu, 211)
    hf = HfRunner(hf_from_source(model.source, RAW, torch.float32), 1, 211)
    return [WinnowRunner(model.weights, None, cpu, 211), sparse, hf]


def test_all_engines_decode_the_same_tokens(runners):
    answers = {runner.run(PROMPT, 9).token_ids for runner in runners}
    assert len(answers) == 1
    assert len(next(iter(answers))) == 9


def test_the_report_has_the_published_keys(runners, cpu):
    report = race(runners, PROMPT, cpu, OPTIONS, silent, probe=steady)
    found = json.loads(json.dumps(report.to_json()))
    assert {"cpu", "threads", "read_gb_per_s", "commit"} <= found["machine"].keys()
    assert [row["engine"] for row in found["rows"]] == ["winnow-dense", "winnow-sparse", "hf"]
    for row in found["rows"]:
        assert row.keys() >= ROW_KEYS
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert row["ms_per_token"] == pytest.approx(1000 / row["tokens_per_second"])
        assert (row["turns"], row["turns_set_aside"]) == (2, 0)
    assert (found["failures"], found["notes"], found["void"]) == ([], [], False)


def test_sparse_reads_fewer_bytes_than_dense(runners):
    dense, sparse, hf = (runner.run(PROMPT, 9) for runner in runners)
    assert sparse.bytes_per_token < 0.75 * dense.bytes_per_token
    assert sparse.mlp_density < 0.35
    assert dense.mlp_density == hf.mlp_density == 1.0


class Liar:
    """An engine that answers differently each time, and not as the others do."""

    name = "winnow-sparse"
    dtype = "fp32"

    def __init__(self) -> None:
        self.turns = 0

    def run(self, prompt, n_tokens):
        self.turns += 1
        return Turn(0.1, (0.1,), (self.turns,) * n_tokens, 0.5, 1e6)


def test_a_sparse_engine_that_lies_is_caught(runners, cpu):
    report = race([runners[0], Liar()], PROMPT, cpu, OPTIONS, silent, Expected(0.2, is_exact=True), steady)
    assert report.is_void
    assert len(report.failures) == 3  # other tokens, tokens that change, another density


class Parrot(Liar):
    """An engine that gives one token again and again."""

    def __init__(self, name) -> None:
        self.name = name

    def run(self, prompt, n_tokens):
        return Turn(0.1, (0.1,), (7,) * n_tokens, 0.2, 1e6)


def test_equal_answers_of_one_repeated_token_prove_nothing(cpu):
    engines = [Parrot("winnow-dense"), Parrot("winnow-sparse")]
    report = race(engines, PROMPT, cpu, OPTIONS, silent, Expected(0.2, is_exact=True), steady)
    assert report.is_void
    assert len(report.failures) == 1
    assert "distinct" in report.failures[0]


def test_llama_runs_in_all_engines_and_hf_decodes_the_dense_tokens(cpu):
    model = synthetic_model(LLAMA, torch.float32, 0.2, seed=8)
    hf = HfRunner(hf_from_source(model.source, LLAMA, torch.float32), 1, 211)
    dense = WinnowRunner(model.weights, None, cpu, 211)
    sparse = WinnowRunner(model.weights, model.predictors, cpu, 211)
    options = dataclasses.replace(OPTIONS, new_tokens=40)
    report = race([dense, sparse, hf], PROMPT, cpu, options, silent, Expected(0.2, is_exact=False), steady)
    assert [row.engine for row in report.rows] == ["winnow-dense", "winnow-sparse", "hf"]
    assert report.failures == ()
    assert hf.run(PROMPT, 40).token_ids == dense.run(PROMPT, 40).token_ids
    assert report.rows[1].bytes_per_token < 0.75 * report.rows[0].bytes_per_token


def test_lossy_tokens_are_not_compared_and_the_report_says_so(cpu):
    engines = [Clockwork("winnow-dense", density=1.0), Clockwork("winnow-sparse", first_token=3)]
    lossy = race(engines, PROMPT, cpu, OPTIONS, silent, Expected(0.2, is_exact=False), steady)
    exact = race(engines, PROMPT, cpu, OPTIONS, silent, Expected(0.2, is_exact=True), steady)
    assert lossy.failures == ()
    assert not lossy.is_void
    assert "lossy" in lossy.to_json()["notes"][0]
    assert exact.failures == ("sparse and dense tokens differ although the predictors are exact",)
    assert exact.notes == ()


class Clockwork:
    """An engine whose turns take the given seconds, of which one step may be held up beside."""

    dtype = "fp32"

    def __init__(self, name, *, seconds=(1.0,), density=0.2, first_token=0, held_up_s=0.0) -> None:
        self.name = name
        self.seconds = list(seconds)
        self.density = density
        self.first_token = first_token
        self.held_up_s = held_up_s
        self.turns = 0

    def run(self, prompt, n_tokens):
        step_s = self.seconds[min(self.turns, len(self.seconds) - 1)] / (n_tokens - 1)
        self.turns += 1
        steps_s = (step_s + self.held_up_s, *(step_s,) * (n_tokens - 2))
        tokens = tuple(range(self.first_token, self.first_token + n_tokens))
        return Turn(0.1, steps_s, tokens, self.density, 1e6)


class Probe:
    """A machine whose read bandwidth is known beforehand, in GB/s; the last one stays."""

    def __init__(self, *rates) -> None:
        self.rates = list(rates)
        self.calls = 0

    def __call__(self, cpu) -> float:
        self.calls += 1
        return 1e9 * self.rates[min(self.calls, len(self.rates)) - 1]


def test_only_turns_between_two_quiet_probes_count(cpu):
    # before the warm-up, after its two turns, then after a and b in three rounds
    probe = Probe(100, 100, 100, 100, 60, 100, 100, 100, 100)
    a = Clockwork("a", seconds=(0.1, 1.0, 9.0, 2.0))
    b = Clockwork("b", seconds=(0.1, 9.0, 3.0, 5.0))
    report = race([a, b], PROMPT, cpu, OPTIONS, silent, probe=probe)
    assert probe.calls == 9
    assert [(row.turns, row.turns_set_aside) for row in report.rows] == [(2, 1), (2, 1)]
    fast, slow = (8 / 1.0, 8 / 2.0), (8 / 3.0, 8 / 5.0)
    for row, speeds in zip(report.rows, (fast, slow), strict=True):
        assert (row.tokens_per_second_max, row.tokens_per_second_min) == pytest.approx(speeds)
        assert row.tokens_per_second == pytest.approx(sum(speeds) / 2)
    assert (report.machine.read_gb_per_s, report.machine.read_gb_per_s_min) == (100.0, 60.0)
    assert not report.is_void
    assert report.notes == ()


def test_a_step_that_is_held_up_slows_the_mean_and_not_the_speed(cpu):
    (row,) = race([Clockwork("a", held_up_s=7.0)], PROMPT, cpu, OPTIONS, silent, probe=Probe(100)).rows
    assert row.tokens_per_second == pytest.approx(8.0)
    assert row.tokens_per_second_mean == pytest.approx(8 / (1.0 + 7.0))


def test_a_turn_knows_the_seconds_of_every_step():
    turn = turn_of(2.0, [(3.5, 7), (4.5, 8), (4.75, 9)], bytes_per_token=6.0)
    assert (turn.ttft_s, turn.steps_s, turn.token_ids) == (1.5, (1.0, 0.25), (7, 8, 9))


def test_a_slow_state_counts_where_it_is_the_one_that_lasts(cpu):
    probe = Probe(100, 100, 100, *[50] * 100)
    report = race(
        [Clockwork("a", seconds=(0.1, 1.0, 9.0, 2.0, 4.0))], PROMPT, cpu, OPTIONS, silent, probe=probe
    )
    (row,) = report.rows
    assert (row.turns, row.turns_set_aside) == (2, 2)
    assert (row.tokens_per_second_max, row.tokens_per_second_min) == pytest.approx((8 / 2.0, 8 / 4.0))
    assert (report.machine.read_gb_per_s, report.machine.read_gb_per_s_min) == (50.0, 50.0)
    assert row.bandwidth_share == pytest.approx(row.gb_per_s / 50)


def test_a_better_probe_sets_earlier_turns_aside(cpu):
    slow_at_first = Probe(60, 60, 60, 60, 100)
    a = Clockwork("a", seconds=(0.1, 9.0, 9.0, 9.0, 2.0))
    three = dataclasses.replace(OPTIONS, repeats=3)
    (row,) = race([a], PROMPT, cpu, three, silent, probe=slow_at_first).rows
    assert (row.turns, row.turns_set_aside) == (3, 3)
    assert row.tokens_per_second_min == pytest.approx(8 / 2.0)


@pytest.mark.parametrize(("rate", "counts"), [(100.0, True), (85.1, True), (84.9, False), (40.0, False)])
def test_a_probe_is_quiet_within_fifteen_percent_of_the_best(cpu, rate, counts):
    probe = Probe(100, 100, rate, 100, 100, 100)
    once = dataclasses.replace(OPTIONS, repeats=1)
    (row,) = race([Clockwork("a")], PROMPT, cpu, once, silent, probe=probe).rows
    assert (row.turns, row.turns_set_aside) == ((1, 0) if counts else (1, 2))


def test_a_race_gives_up_after_six_rounds_for_each_asked_turn(cpu):
    flipping = Probe(*[100, 50] * 100)
    a, b = Clockwork("a"), Clockwork("b")
    report = race([a, b], PROMPT, cpu, OPTIONS, silent, probe=flipping)
    assert a.turns == b.turns == 1 + 6 * OPTIONS.repeats
    assert [(row.turns, row.turns_set_aside) for row in report.rows] == [(0, 12), (0, 12)]
    assert report.was_disturbed
    assert report.to_json()["void"]
    assert report.rows[0].tokens_per_second == pytest.approx(8.0)  # of the turns set aside: void, not absent


def test_fewer_turns_than_asked_are_told_and_do_not_void(cpu):
    probe = Probe(100, 100, 100, *[50, 100] * 100)
    report = race([Clockwork("a")], PROMPT, cpu, OPTIONS, silent, probe=probe)
    assert (report.rows[0].turns, report.rows[0].turns_set_aside) == (1, 11)
    assert not report.is_void
    assert "a has 1 in 12 rounds" in report.notes[0]


def test_one_engine_without_a_turn_voids_the_figures(cpu):
    # after the first turn of a, each turn has a slow probe on one side
    probe = Probe(100, 100, 100, *[100, 50] * 100)
    report = race([Clockwork("a"), Clockwork("b")], PROMPT, cpu, OPTIONS, silent, probe=probe)
    assert [row.turns for row in report.rows] == [1, 0]
    assert report.is_void


def test_progress_counts_the_rounds_that_count(cpu):
    probe = Probe(100, 100, 100, 60, 100, 100)
    seen = []
    race(
        [Clockwork("a")], PROMPT, cpu, OPTIONS, lambda done, engine: seen.append((done, engine)), probe=probe
    )
    assert seen == [(0, "a"), (1, "a"), (2, "a"), (2, "a"), (2, "a"), (3, "")]


def test_the_machine_is_probed_for_real(cpu):
    report = race([Clockwork("a")], PROMPT, cpu, dataclasses.replace(OPTIONS, repeats=1), silent)
    assert report.machine.read_gb_per_s >= report.machine.read_gb_per_s_min > 0.1


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"new_tokens": 1}, {"prompt_tokens": 0}, {"repeats": -2}])
def test_refuses_runs_that_measure_nothing(bad):
    with pytest.raises(UsageError, match="expected"):
        dataclasses.replace(OPTIONS, **bad)
