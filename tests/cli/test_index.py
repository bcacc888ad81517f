"""winnow calibrate --predictor index, and what runs on its plan."""

import json

from tests.cli import checkpoint


def test_an_index_is_calibrated_inspected_judged_and_run(winnow, held_out, tmp_path):
    corpus, plan = tmp_path / "corpus.txt", tmp_path / "plan"
    corpus.write_text(checkpoint.text(4000, seed=1))
    options = ("--predictor", "index", "--target-kld", 0.5, "--limit", 5200, "--out", plan, "--quiet")
    assert winnow("calibrate", "--text", corpus, *options).code == 0
    judged = json.loads(winnow("fidelity", "--text", held_out, "--plan", plan, "--limit", 300, "--json").out)
    assert judged["mlp_density"] < judged["predictor_recall"]  # better than by chance
    ran = winnow("generate", "The old man", "--plan", plan, "--max-tokens", 4, "--explain")
    assert ran.code == 0
    assert "layer 0" in ran.err
    assert "weighted recall" in ran.err
