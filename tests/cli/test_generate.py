import json

import pytest
import torch

from tests.cli.conftest import assert_one_line
from tests.engine.predictors import head_predictors
from winnow.base.rng import generator
from winnow.engine import Checkpoint, load_weights
from winnow.engine.generate import Engine
from winnow.engine.sparsity import Plan
from winnow.engine.sparsity.plan import Provenance

PROMPT = "the wind takes"


def test_text_goes_to_stdout_and_one_line_of_figures_to_stderr(winnow, model):
    ran = winnow("generate", model, PROMPT, "--max-tokens", 7, "--ignore-eos")
    answer = json.loads(winnow("generate", model, PROMPT, "--max-tokens", 7, "--ignore-eos", "--json").out)
    assert ran.out == answer["text"] + "\n"
    assert ran.err.startswith("winnow: ")
    assert ran.err.count("\n") == 1
    assert "tokens/s" in ran.err
    assert "read per token" in ran.err


def test_quiet_leaves_only_the_text(winnow, model):
    ran = winnow("generate", model, PROMPT, "--max-tokens", 3, "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


def test_json_is_one_object_with_the_published_keys(winnow, planned):
    ran = winnow("generate", planned, PROMPT, "--max-tokens", 9, "--ignore-eos", "--json")
    answer = json.loads(ran.out)
    assert ran.err == ""
    assert set(answer) == {"text", "token_ids", "finish_reason", "prompt_tokens", "stats"}
    assert (len(answer["token_ids"]), answer["finish_reason"]) == (9, "length")
    assert answer["prompt_tokens"] > 3
    wanted = {"tokens_per_second", "ttft_s", "mlp_density", "head_density", "bytes_per_token"}
    assert set(answer["stats"]) == wanted
    assert all(value > 0 for value in answer["stats"].values())


def test_constant_work_gives_the_same_tokens_from_more_neurons(winnow, planned):
    words = ("generate", planned, PROMPT, "--max-tokens", 9, "--ignore-eos", "--json")
    plain, constant = (json.loads(winnow(*words, *more).out) for more in ((), ("--constant-work",)))
    assert constant["token_ids"] == plain["token_ids"]
    assert constant["stats"]["mlp_density"] >= plain["stats"]["mlp_density"]


def test_dense_has_density_one_and_a_plan_less(winnow, planned):
    def density(*options: str) -> float:
        line = ("generate", planned, PROMPT, "--max-tokens", 12, "--ignore-eos", "--json")
        return json.loads(winnow(*line, *options).out)["stats"]["mlp_density"]

    assert density("--dense") == 1.0
    assert density() < 0.9
    assert density("--plan", planned / "winnow-plan.safetensors") == density()


def test_lazy_answers_as_dense_and_reads_less(winnow, model, tmp_path):
    checkpoint = Checkpoint.open(model)
    weights = load_weights(checkpoint, torch.float32)
    said = Provenance(checkpoint.content_hash(), "b" * 64, "same-layer", "svd", 0.1, 0.1, 0.5, 0.5, 99)
    heads = head_predictors(weights, generator(3), margin=-1)
    Plan(said, (None,) * len(heads), (), heads).save(tmp_path / "plan")
    line = (
        "generate",
        model,
        PROMPT,
        "--plan",
        tmp_path / "plan",
        "--max-tokens",
        20,
        "--ignore-eos",
        "--json",
    )
    dense, lazy = (winnow(*line, "--kv", kv) for kv in ("dense", "lazy"))
    assert (dense.err, lazy.err) == ("", "")
    dense, lazy = json.loads(dense.out), json.loads(lazy.out)
    assert lazy["token_ids"] == dense["token_ids"]
    assert lazy["stats"]["head_density"] == dense["stats"]["head_density"] < 1
    assert lazy["stats"]["bytes_per_token"] < dense["stats"]["bytes_per_token"]


def test_lazy_says_in_one_line_where_it_changes_nothing(winnow, planned):
    line = ("generate", planned, PROMPT, "--max-tokens", 3, "--kv", "lazy", "--json")
    ran = winnow(*line)
    assert ran.err.count("\n") == 1
    assert "--kv lazy changes nothing here: every head is computed; take a plan that" in ran.err
    assert winnow(*line, "--quiet").err == ""
    assert_one_line(winnow("generate", planned, PROMPT, "--kv", "drop"), 2, "--kv: invalid choice: 'drop'")


def test_a_head_in_int8_is_read_as_bytes(winnow, model):
    def answer(*options: object) -> dict:
        line = ("generate", model, PROMPT, "--max-tokens", 5, "--ignore-eos", "--json", "--dtype", "fp32")
        return json.loads(winnow(*line, *options).out)

    floats, mixed = (
        answer()["stats"]["bytes_per_token"],
        answer("--head-dtype", "int8")["stats"]["bytes_per_token"],
    )
    head = load_weights(Checkpoint.open(model), torch.float32).head
    assert floats - mixed == head.n_bytes - head.matrix.shape[0] * (head.matrix.shape[1] + 4)


def test_keys_and_values_in_int8_are_read_as_bytes(winnow, model):
    def read(*options: object) -> float:
        line = ("generate", model, PROMPT, "--max-tokens", 5, "--ignore-eos", "--json", "--dtype", "fp32")
        return json.loads(winnow(*line, *options).out)["stats"]["bytes_per_token"]

    assert read("--kv-dtype", "fp32") == read() > read("--kv-dtype", "bf16") > read("--kv-dtype", "int8")
    assert_one_line(winnow("generate", model, PROMPT, "--kv-dtype", "int4"), 2, "--kv-dtype: invalid choice")


def test_keys_and_values_in_int8_refuse_a_stream(winnow, model):
    ran = winnow("generate", model, PROMPT, "--kv-dtype", "int8", "--context", "streaming")
    assert_one_line(ran, 2, "one of --kv-dtype and --context streaming")


def test_dense_equals_a_model_without_a_plan(winnow, planned, model):
    options = ("--max-tokens", 12, "--json")
    with_plan = json.loads(winnow("generate", planned, PROMPT, "--dense", *options).out)
    without = json.loads(winnow("generate", model, PROMPT, *options).out)
    assert with_plan["token_ids"] == without["token_ids"]


def test_same_seed_same_tokens_for_any_number_of_threads(winnow, planned):
    def tokens(seed: int, threads: int) -> list[int]:
        line = (
            "generate",
            planned,
            PROMPT,
            "--temperature",
            1.5,
            "--max-tokens",
            24,
            "--ignore-eos",
            "--json",
        )
        return json.loads(winnow(*line, "--seed", seed, "--threads", threads).out)["token_ids"]

    assert tokens(5, 1) == tokens(5, 2) == tokens(5, 1)
    assert tokens(5, 1) != tokens(6, 1)


def test_every_sampling_option_reaches_the_engine(winnow, model):
    def tokens(*options: object) -> list[int]:
        line = ("generate", model, PROMPT, "--max-tokens", 12, "--ignore-eos", "--json", *options)
        return json.loads(winnow(*line).out)["token_ids"]

    greedy, hot = tokens(), tokens("--temperature", 50)
    assert hot != greedy
    assert tokens("--temperature", 50, "--top-k", 1) == greedy
    assert tokens("--temperature", 50, "--top-p", 1e-6) == greedy
    assert tokens("--temperature", 50, "--min-p", 1) == greedy
    assert tokens("--repetition-penalty", 1000) != greedy


def test_logprobs_come_with_json_one_per_token(winnow, model):
    ran = winnow("generate", model, PROMPT, "--max-tokens", 6, "--ignore-eos", "--json", "--logprobs")
    logprobs = json.loads(ran.out)["logprobs"]
    assert len(logprobs) == 6
    assert all(-20 < value <= 0 for value in logprobs)


def test_logprobs_without_json_say_where_they_are_shown(winnow, model):
    assert_one_line(winnow("generate", model, PROMPT, "--logprobs"), 2, "add --json")


def test_stop_string_ends_the_text_before_itself(winnow, model):
    line = ("generate", model, PROMPT, "--max-tokens", 24, "--ignore-eos", "--json")
    full = json.loads(winnow(*line).out)["text"]
    stop = full[len(full) // 2 :][:2]
    answer = json.loads(winnow(*line, "--stop", "no such text", "--stop", stop).out)
    assert (answer["text"], answer["finish_reason"]) == (full[: full.index(stop)], "stop")


def test_explain_lists_every_layer_on_stderr(winnow, planned):
    ran = winnow("generate", planned, PROMPT, "--max-tokens", 9, "--ignore-eos", "--explain")
    assert "5 decoded" not in ran.out
    assert "8 decoded tokens" in ran.err
    rows = [line for line in ran.err.splitlines() if "layer " in line]
    assert [row.split()[2] for row in rows] == ["0", "1"]
    assert all(row.count("%") == 2 and " us " in row for row in rows)
    assert all(word in ran.err for word in ("density", "recall", "bytes read", "dense", "time"))


def test_explain_without_a_plan_shows_no_recall(winnow, model):
    ran = winnow("generate", model, PROMPT, "--max-tokens", 4, "--ignore-eos", "--explain", "--json")
    rows = [line for line in ran.err.splitlines() if "layer " in line]
    assert all("100.0 %" in row and " - │" in row for row in rows)
    assert json.loads(ran.out)["stats"]["mlp_density"] == 1


def test_explain_of_one_token_says_that_nothing_was_decoded(winnow, model):
    ran = winnow("generate", model, PROMPT, "--max-tokens", 1, "--explain", "--quiet")
    assert ran.code == 0
    assert "nothing to explain" in ran.err


def test_first_text_is_out_before_the_last_token_is_decoded(winnow, model, capsys, monkeypatch):
    seen = []
    run = Engine.run

    def watched(self, prompt, options):
        for piece in run(self, prompt, options):
            seen.append(capsys.readouterr().out)
            yield piece

    monkeypatch.setattr(Engine, "run", watched)
    ran = winnow("generate", model, PROMPT, "--max-tokens", 20, "--ignore-eos", "--quiet")
    assert len(seen) == 20
    assert sum(bool(text) for text in seen) > 5
    assert ran.code == 0


def test_a_prompt_may_come_from_a_file(winnow, model, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(f"{PROMPT}\n")
    line = ("--max-tokens", 8, "--json", "--quiet")
    by_file = json.loads(winnow("generate", model, "--prompt-file", path, *line).out)
    assert by_file["token_ids"] == json.loads(winnow("generate", model, PROMPT, *line).out)["token_ids"]


def test_a_prompt_file_takes_the_place_of_the_prompt(winnow, model, tmp_path):
    ran = winnow("generate", model, PROMPT, "--prompt-file", tmp_path / "x")
    assert_one_line(ran, 2, "received 2 words, expected [MODEL]")
    missing = winnow("generate", model, "--prompt-file", tmp_path / "none")
    assert_one_line(missing, 3, "none cannot be read", "Check --prompt-file")


def test_logit_bias_moves_the_tokens_it_names(winnow, model):
    line = ("generate", model, PROMPT, "--max-tokens", 5, "--ignore-eos", "--json")
    greedy = json.loads(winnow(*line).out)["token_ids"]
    never = json.loads(winnow(*line, "--logit-bias", f"{greedy[0]}=-100", "--logit-bias", "7=-1.5").out)
    assert greedy[0] not in never["token_ids"]
    assert json.loads(winnow(*line, "--logit-bias", "9=100").out)["token_ids"] == [9] * 5


@pytest.mark.parametrize(
    ("bias", "says"),
    [
        ("7", "'7' has no =, expected ID=VALUE"),
        ("a=1", "'a' is no whole number"),
        ("7=x", "'x' is no number"),
        ("7=101", "logit_bias[7] is 101"),
        ("7=nan", "logit_bias[7] is nan"),
        ("307=1", "logit_bias names token 307; expected 0 to 306"),
        ("-1=1", "logit_bias names token -1"),
    ],
)
def test_a_logit_bias_that_means_nothing_is_refused(winnow, model, bias, says):
    assert_one_line(winnow("generate", model, PROMPT, f"--logit-bias={bias}"), 2, says)


def test_a_stream_goes_on_past_the_models_positions_with_its_plan(winnow, planned):
    line = ("generate", planned, PROMPT, "--ignore-eos", "--json", "--max-tokens", 300)
    assert_one_line(winnow(*line), 2, "160 positions", "--context streaming")
    answer = json.loads(winnow(*line, "--context", "streaming", "--window", 40, "--heavy", 8).out)
    assert len(answer["token_ids"]) == 300
    assert answer["stats"]["mlp_density"] < 0.9


def test_a_budget_without_a_stream_and_late_keys_within_one_are_refused(winnow, model):
    assert_one_line(winnow("generate", model, PROMPT, "--heavy", 3), 2, "--heavy", "--context streaming")
    lazy = ("--context", "streaming", "--window", 40, "--kv", "lazy")
    assert_one_line(winnow("generate", model, PROMPT, *lazy), 2, "--kv lazy", "--kv dense")
    assert_one_line(winnow("generate", model, PROMPT, "--context", "streaming"), 2, "--window at most 96")
