"""calibrate, fidelity, perplexity, inspect."""

import json
import math

import pytest
import torch

from tests.cli import checkpoint
from tests.cli.conftest import assert_one_line
from winnow.cli.opening import cut
from winnow.engine.generate import load
from winnow.engine.sparsity import compare, find_plan

FIDELITY = {
    "tokens",
    "ppl_dense",
    "ppl_sparse",
    "kld_mean",
    "kld_median",
    "kld_p999",
    "same_top",
    "mlp_density",
    "head_density",
    "predictor_recall",
}


def test_calibrate_says_where_the_plan_is_and_what_was_measured(calibrated):
    directory, ran = calibrated
    path = directory / "winnow-plan.safetensors"
    assert find_plan(directory) == path
    assert ran.out.startswith(f"{path}: KLD ")
    assert all(
        word in ran.out for word in ("(target 0.1)", "density", "recall", "predictors", "of the MLPs'")
    )
    assert "reading the text: " in ran.err


def test_calibrate_wants_ten_windows(winnow, model, corpus, held_out):
    ran = winnow("calibrate", model, "--text", held_out, corpus, "--quiet", "--limit", 400)
    assert_one_line(ran, 2, "expected at least 10")


def test_texts_are_cut_one_by_one_and_the_limit_is_on_their_sum(model):
    engine = load(model, threads=1)
    texts = ["the wind", "", "takes the light chaff"]
    ids = [engine.tokenizer.encode(text) for text in texts if text]
    windows, n_bytes = cut(engine, texts, None)
    assert [window.tolist() for window in windows] == ids
    assert n_bytes == len("".join(texts))
    limit = len(ids[0]) - 1 + 3
    windows, n_bytes = cut(engine, texts, limit)
    assert [window.tolist() for window in windows] == [ids[0], ids[1][:4]]
    assert n_bytes == len(texts[0]) + len(engine.tokenizer.decode(ids[1][1:4]))


@pytest.mark.parametrize("target", ["0", "-1", "nan", "11"])
def test_target_outside_its_range_is_refused_before_anything_is_read(winnow, model, tmp_path, target):
    ran = winnow("calibrate", model, "--text", tmp_path / "none.txt", "--target-kld", target)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--target-kld" in ran.err


def test_fidelity_prints_the_published_keys_within_their_ranges(winnow, planned, held_out):
    found = json.loads(winnow("fidelity", planned, "--text", held_out, "--json", "--quiet").out)
    assert set(found) > FIDELITY
    assert 0 < found["kld_median"] <= found["kld_p999"]
    assert all(0 < found[key] <= 1 for key in ("same_top", "mlp_density", "predictor_recall"))
    assert found["mlp_density"] < 0.9
    assert found["ppl_dense"] != found["ppl_sparse"]


def test_fidelity_for_people_shows_the_same_figures(winnow, planned, held_out):
    found = json.loads(winnow("fidelity", planned, "--text", held_out, "--json", "--quiet").out)
    ran = winnow("fidelity", planned, "--text", held_out, "--plan", planned / "winnow-plan.safetensors")
    assert f"perplexity, dense      {found['ppl_dense']:.4f} ± {found['ppl_dense_se']:.4f}\n" in ran.out
    assert f"tokens                 {found['tokens']}\n" in ran.out
    assert "comparing: " in ran.err


def test_fidelity_is_that_of_the_library(winnow, planned, held_out):
    found = json.loads(winnow("fidelity", planned, "--text", held_out, "--json", "--limit", 100).out)
    engine = load(planned, threads=1, dtype="fp32")
    ids = engine.tokenizer.encode(held_out.read_text())[:101]
    assert engine.plan is not None
    measured = compare(engine.weights, engine.plan, [torch.tensor(ids)], lambda done: None)
    assert (found["tokens"], found["kld_mean"]) == (
        measured.tokens,
        pytest.approx(measured.kld_mean, rel=1e-4),
    )


def test_perplexity_prints_the_published_keys_and_one_line_for_people(winnow, model, held_out):
    found = json.loads(winnow("perplexity", model, "--text", held_out, "--json", "--quiet").out)
    assert set(found) == {"tokens", "ppl", "bits_per_byte"}
    bits = found["tokens"] * math.log2(found["ppl"]) / held_out.stat().st_size
    assert found["bits_per_byte"] == pytest.approx(bits)
    ran = winnow("perplexity", model, "--text", held_out)
    assert ran.out == (
        f"perplexity {found['ppl']:.4f} over {found['tokens']} tokens, "
        f"{found['bits_per_byte']:.4f} bits per byte\n"
    )


def test_perplexity_counts_the_bytes_it_read(winnow, model, held_out):
    found = json.loads(
        winnow("perplexity", model, "--text", held_out, "--json", "--limit", 57, "--quiet").out
    )
    engine = load(model, threads=1)
    read = engine.tokenizer.decode(engine.tokenizer.encode(held_out.read_text(), special=False)[:57])
    assert found["tokens"] == 57
    assert found["bits_per_byte"] == pytest.approx(57 * math.log2(found["ppl"]) / len(read.encode()))


def test_windows_never_exceed_the_models_positions(winnow, model, corpus):
    found = json.loads(winnow("perplexity", model, "--text", corpus, "--json", "--quiet").out)
    assert found["tokens"] > 5 * checkpoint.N_POSITIONS


def test_inspect_tells_shapes_sizes_and_plan(winnow, planned):
    found = json.loads(winnow("inspect", planned, "--json").out)
    weights = load(planned, plan=None, threads=1).weights
    assert (found["family"], found["width"], found["n_neurons"]) == (
        "opt",
        checkpoint.WIDTH,
        checkpoint.N_NEURONS,
    )
    assert found["bytes"] == 4 * found["parameters"]
    assert found["parameters"] > weights.embed.weight.numel()
    assert found["plan"]["target_kld"] == 0.1
    assert [layer["rank"] for layer in found["plan"]["layers"] if layer] != []
    assert found["plan"]["bytes"] == sum(layer["bytes"] for layer in found["plan"]["layers"] if layer)


def test_inspect_for_people_shows_each_layer(winnow, planned, model):
    ran = winnow("inspect", planned)
    assert f"n_neurons     {checkpoint.N_NEURONS}\n" in ran.out
    assert "plan: auto, same-layer, for fp32, bf16, int8, int4; KLD" in ran.out
    assert sum(line.startswith("│ ") for line in ran.out.splitlines()) == checkpoint.N_LAYERS
    assert "No plan: it runs dense until winnow calibrate has made one." in winnow("inspect", model).out


def test_code_beside_the_weights_is_named_and_not_run(winnow, tmp_path):
    directory = checkpoint.write(tmp_path / "coded")
    (directory / "modeling.py").write_text("raise SystemExit('this ran')")
    raw = {**checkpoint.config(), "auto_map": {"AutoModel": "modeling.Model"}}
    (directory / "config.json").write_text(json.dumps(raw))
    ran = winnow("generate", directory, "x", "--max-tokens", 2, "--quiet")
    assert ran.code == 0
    assert "never runs it" in ran.err
    assert "never runs it" in winnow("inspect", directory, "--json").err
