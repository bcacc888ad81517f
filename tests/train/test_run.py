"""Training: resumable to the bit, bound to its recipe, readable by transformers."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from winnow.base.errors import ModelError
from winnow.train import run
from winnow.train.run import run_recipe

PUBLISHED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


class Interrupted(Exception):
    """Stands for Ctrl-C in the middle of a run."""


@pytest.fixture(scope="module")
def trained(recipe, corpus, tmp_path_factory):
    return run_recipe(recipe, [corpus], tmp_path_factory.mktemp("trained"), quiet=True)


@pytest.fixture
def unbroken(trained, tmp_path):
    """A copy of one finished run, to be spoilt at will."""
    return Path(shutil.copytree(trained, tmp_path / "unbroken"))


def interrupt_at(monkeypatch, stop: int):
    """Make the run fail at step `stop`, and save after every second step."""
    draw = run.batch

    def failing(ids, row_tokens, n_rows, seed, step):
        if step == stop:
            raise Interrupted
        return draw(ids, row_tokens, n_rows, seed, step)

    monkeypatch.setattr(run, "SAVE_EVERY", 2)
    monkeypatch.setattr(run, "batch", failing)


@pytest.mark.parametrize("stop", [1, 2, 3], ids=["before a save", "after a save", "between saves"])
def test_a_resumed_run_equals_an_unbroken_one(unbroken, recipe, corpus, tmp_path, monkeypatch, stop):
    out = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        with pytest.raises(Interrupted):
            run_recipe(recipe, [corpus], out, quiet=True)
    assert not (out / "model.safetensors").exists()
    run_recipe(recipe, [corpus], out, quiet=True)
    for name in PUBLISHED:
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name
    first, second = (load_file(d / "run/state.safetensors") for d in (unbroken, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_published_again_without_training(unbroken, recipe, corpus, monkeypatch):
    before = {name: (unbroken / name).read_bytes() for name in PUBLISHED}
    (unbroken / "model.safetensors").unlink()
    interrupt_at(monkeypatch, stop=0)
    run_recipe(recipe, [corpus], unbroken, quiet=True)
    assert {name: (unbroken / name).read_bytes() for name in PUBLISHED} == before


def test_another_recipe_is_refused_and_nothing_is_lost(unbroken, recipe, corpus):
    other = dataclasses.replace(recipe, seed=recipe.seed + 1)
    before = {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file()}
    with pytest.raises(
        ModelError, match=r"holds another recipe than the one given; delete .*run or change --out"
    ):
        run_recipe(other, [corpus], unbroken, quiet=True)
    assert {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file()} == before


def test_books_shorter_than_a_row_are_refused(recipe, tmp_path):
    (tmp_path / "short.txt").write_text("grain " * 9)
    with pytest.raises(ModelError, match=r"The books hold \d+ tokens, expected more than a row of 64"):
        run_recipe(recipe, [tmp_path], tmp_path / "out", quiet=True)


def test_training_lowers_the_loss_and_leaves_the_global_generator(recipe, corpus, tmp_path, capsys):
    longer = dataclasses.replace(recipe, n_steps=30)
    state = torch.get_rng_state()
    run_recipe(longer, [corpus], tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training tiny")]
    losses = [float(line.rpartition(" ")[2]) for line in (lines[0], lines[-1])]
    assert losses[1] < losses[0] - 0.3


def test_transformers_reads_what_was_published(unbroken, recipe):
    model = AutoModelForCausalLM.from_pretrained(unbroken)
    tokenizer = AutoTokenizer.from_pretrained(unbroken)
    assert model.config.model_type == "opt"
    assert model.dtype == torch.bfloat16
    assert model.config.ffn_dim == recipe.n_neurons
    ids = tokenizer("heavy grain", return_tensors="pt").input_ids
    assert ids[0, 0] == model.config.bos_token_id == 2
    assert torch.isfinite(model(ids).logits).all()
    assert json.loads((unbroken / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_llama_recipe_trains_rotary_grouped_heads(recipe, corpus, tmp_path):
    llama = dataclasses.replace(recipe, architecture="llama", n_kv_heads=1, n_neurons=96)
    run_recipe(llama, [corpus], tmp_path, quiet=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert model.model.layers[1].mlp.gate_proj.weight.shape == (96, 32)
    assert torch.isfinite(model(torch.tensor([[2, 5, 7]])).logits).all()


def test_all_positions_are_trained(unbroken, recipe):
    with safe_open(unbroken / "run/state.safetensors", framework="pt") as file:
        moments = file.get_tensor("second.model.decoder.embed_positions.weight")
    trained = (moments != 0).any(dim=1)
    assert trained[
        2 : 2 + recipe.n_positions - 1
    ].all()  # OPT's table starts at row 2; the last row predicts nothing


def test_the_tied_head_is_stored_once(unbroken):
    with safe_open(unbroken / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert file.get_slice("model.decoder.embed_tokens.weight").get_dtype() == "BF16"
