"""The bundled model and its plan keep what the README says of them."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from winnow.engine import Engine, KvCache, forward, load
from winnow.engine.sparsity import compare, windows
from winnow.engine.sparsity.frontier import mlp_bytes as mlp_bytes_of

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def engine(pico) -> Engine:
    return load(pico, threads=2, dtype="fp32")


@pytest.fixture(scope="module")
def passage(pico) -> str:
    """A hundred kilobytes from the middle of a book that neither pico nor its plan has seen."""
    return (pico.parent / "emerald-city-of-oz.txt").read_text(encoding="utf-8")[90_000:190_000]


def test_the_shipped_plan_keeps_its_fidelity_on_unseen_text(engine, passage):
    ids = engine.tokenizer.encode(passage, special=False)
    measured = compare(
        engine.weights, engine.plan, windows(ids, engine.tokenizer.encode("")), lambda done: None
    )
    assert measured.tokens > 20_000
    assert measured.kld_mean <= 0.001
    assert measured.same_top >= 0.985
    assert measured.ppl_sparse == pytest.approx(measured.ppl_dense, rel=0.003)
    assert measured.mlp_density <= 0.20


def test_the_predictors_are_a_twelfth_of_the_mlp_at_most(engine):
    layers = engine.weights.layers
    mlp_bytes = sum(mlp_bytes_of(layer.mlp) for layer in layers)
    assert 0 < engine.plan.n_bytes <= mlp_bytes / 12


def test_transformers_loads_pico_and_agrees(engine, pico, passage):
    model = AutoModelForCausalLM.from_pretrained(pico, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(pico)(passage[:2000], return_tensors="pt").input_ids
    assert ids[0].tolist() == engine.tokenizer.encode(passage[:2000])
    weights = engine.weights
    with torch.inference_mode():
        expected = model(ids).logits[0]
        found = forward(weights, ids[0], KvCache(weights.config, ids.shape[1], torch.float32))
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_every_position_was_trained(engine):
    """An untrained row of the position table would keep the size it was drawn with, far from the others."""
    norms = engine.weights.positions.float().norm(dim=-1)
    assert len(norms) == engine.weights.config.n_positions == 2048
    assert norms[1024:].median() > 0.2 * norms[:512].median()
    assert (norms > 0.05 * norms.median()).all()


def test_a_continuation_is_the_same_on_one_and_two_threads(pico, passage):
    answers = [
        load(pico, threads=threads).generate(passage[:1500], max_tokens=96, temperature=0.8, seed=4).token_ids
        for threads in (1, 2)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 20


def test_the_zoo_is_small_and_says_where_it_comes_from(pico):
    assert sum(path.stat().st_size for path in pico.iterdir()) <= 64 * MEGABYTE
    assert (pico.parent / "emerald-city-of-oz.txt").stat().st_size <= 300_000
    card = (pico / "README.md").read_text(encoding="utf-8")
    for said in ("bits per byte", "public-domain", "stereotype", "winnow train pico"):
        assert said in card
    assert json.loads((pico / "config.json").read_text())["model_type"] == "opt"
