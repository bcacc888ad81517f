"""Bench: what a race reports, and that it catches engines that disagree."""

import dataclasses
import json

import pytest
import torch

from winnow.base.errors import UsageError
from winnow.engine.bench import BenchOptions, Turn, WinnowRunner, race
from winnow.engine.bench.hf import HfRunner, hf_from_source
from winnow.engine.bench.report import Machine
from winnow.engine.synthetic import opt_config, synthetic_model
from winnow.kernels import open_cpu

RAW = opt_config(2, 128, 4, vocab_size=211)
PROMPT = list(range(20, 37))
OPTIONS = BenchOptions(shape="tiny", dtype="fp32", prompt_tokens=17, new_tokens=9, repeats=2)
ROW_KEYS = {
    "engine", "shape", "dtype", "mlp_density", "head_density", "prompt_tokens", "tokens_per_second",
    "ms_per_token", "ttft_s", "bytes_per_token", "gb_per_s", "bandwidth_share", "rss_bytes",
}  # fmt: skip


def silent(turn: int, engine: str) -> None:
    """Progress that nobody watches."""


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
    report = race(runners, PROMPT, cpu, OPTIONS, silent, asked_density=None)
    found = json.loads(json.dumps(report.to_json()))
    assert {"cpu", "threads", "read_gb_per_s", "commit"} <= found["machine"].keys()
    assert [row["engine"] for row in found["rows"]] == ["winnow-dense", "winnow-sparse", "hf"]
    for row in found["rows"]:
        assert row.keys() >= ROW_KEYS
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert row["ms_per_token"] == pytest.approx(1000 / row["tokens_per_second"])


def test_sparse_reads_fewer_bytes_than_dense(runners):
    dense, sparse, hf = (runner.run(PROMPT, 9) for runner in runners)
    assert sparse.bytes_per_token < 0.75 * dense.bytes_per_token
    assert sparse.mlp_density < 0.35
    assert dense.mlp_density == hf.mlp_density == 1.0


class Liar:
    """An engine that answers differently each time, and not as the others do."""

    name = "winnow-sparse"

    def __init__(self) -> None:
        self.turns = 0

    def run(self, prompt, n_tokens):
        self.turns += 1
        return Turn(0.1, 0.1, (self.turns,) * n_tokens, 0.5, 1e6)


def test_a_sparse_engine_that_lies_is_caught(runners, cpu):
    report = race([runners[0], Liar()], PROMPT, cpu, OPTIONS, silent, asked_density=0.2)
    assert report.is_void
    assert len(report.failures) == 3  # other tokens, tokens that change, another density


class Parrot(Liar):
    """An engine that gives one token again and again."""

    def __init__(self, name) -> None:
        self.name = name

    def run(self, prompt, n_tokens):
        return Turn(0.1, 0.1, (7,) * n_tokens, 0.2, 1e6)


def test_equal_answers_of_one_repeated_token_prove_nothing(cpu):
    report = race(
        [Parrot("winnow-dense"), Parrot("winnow-sparse")], PROMPT, cpu, OPTIONS, silent, asked_density=0.2
    )
    assert report.is_void
    assert len(report.failures) == 1
    assert "distinct" in report.failures[0]


def test_a_disturbed_machine_voids_the_figures():
    quiet = Machine("cpu", 2, "avx2", 50.0, 45.0, "abc")
    assert not quiet.was_disturbed
    assert dataclasses.replace(quiet, read_gb_per_s_min=20.0).was_disturbed


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"new_tokens": 1}, {"prompt_tokens": 0}, {"repeats": -2}])
def test_refuses_runs_that_measure_nothing(bad):
    with pytest.raises(UsageError, match="expected"):
        dataclasses.replace(OPTIONS, **bad)
