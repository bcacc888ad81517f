"""Predictors, plans and their calibration."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, load_weights, parse_config
from winnow.engine.model import activations
from winnow.engine.sparsity import (
    CalibrationOptions,
    Plan,
    calibrate,
    compare,
    find_plan,
    open_plan,
    read_plan,
    windows,
)
from winnow.engine.sparsity.finetune import Effort
from winnow.engine.sparsity.frontier import frontier, inverse_loss_root, loss_root
from winnow.engine.sparsity.observe import LayerInputs, observe
from winnow.engine.sparsity.plan import FILE_NAME, KEY, Provenance
from winnow.engine.sparsity.predictor import InputMoments, LowRankPredictor, whitened_svd
from winnow.engine.synthetic import opt_config, synthetic_model
from winnow.kernels import Matrix, open_cpu

VOCABULARY = 307
OPTIONS = CalibrationOptions(target_kld=0.002, sample_rows=1024, effort=Effort(60, 64), quiet=True)


def silent(done: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def model():
    return synthetic_model(opt_config(2, 64, 4, VOCABULARY), torch.float32, 0.12, seed=3)


@pytest.fixture(scope="module")
def texts():
    ids = torch.randint(0, VOCABULARY, (3000,), generator=generator(1)).tolist()
    return windows(ids, [2], size=100)


@pytest.fixture(scope="module")
def plan(model, texts):
    return calibrate(model.weights, "a" * 64, texts, OPTIONS)


def correlated(rows: int, rng: torch.Generator) -> torch.Tensor:
    """Inputs of width 40 whose variance lies mostly in a few directions, off centre."""
    mixing = torch.randn(40, 40, generator=rng) * torch.logspace(0, -2, 40)
    return torch.randn(rows, 40, generator=rng) @ mixing.T + torch.randn(40, generator=rng)


def moments(x: torch.Tensor) -> InputMoments:
    return InputMoments(x.double().mean(0), torch.cov(x.double().T, correction=0))


def squared_error(x, w_in, bias, rank, fit_on) -> float:
    factors = whitened_svd(w_in, bias, fit_on)
    predictor = factors.predictor(rank, torch.zeros(len(w_in)))
    return (predictor.scores(x) - (x @ w_in.T + bias)).square().mean().item()


def test_full_rank_reproduces_the_pre_activations(rng):
    x, w_in, bias = correlated(300, rng), torch.randn(90, 40, generator=rng), torch.randn(90, generator=rng)
    size = (x @ w_in.T + bias).square().mean().item()
    assert squared_error(x, w_in, bias, 40, moments(x)) < 3e-4 * size  # what int8 rounds away


def test_the_mean_input_passes_at_any_rank(rng):
    x, w_in, bias = correlated(300, rng), torch.randn(90, 40, generator=rng), torch.randn(90, generator=rng)
    predictor = whitened_svd(w_in, bias, moments(x)).predictor(3, torch.zeros(90))
    centre = x.mean(0, keepdim=True)
    torch.testing.assert_close(predictor.scores(centre), centre @ w_in.T + bias, rtol=1e-4, atol=1e-4)


def test_whitening_beats_the_plain_svd_on_correlated_inputs(rng):
    x, w_in, bias = correlated(500, rng), torch.randn(90, 40, generator=rng), torch.randn(90, generator=rng)
    plain = InputMoments(x.double().mean(0), torch.eye(40, dtype=torch.float64))
    assert squared_error(x, w_in, bias, 8, moments(x)) < 0.5 * squared_error(x, w_in, bias, 8, plain)


def test_no_map_of_the_same_rank_does_better(rng):
    x, w_in, bias = correlated(400, rng), torch.randn(50, 40, generator=rng), torch.zeros(50)
    ours = squared_error(x, w_in, bias, 5, moments(x))
    target = (x - x.mean(0)).double() @ w_in.double().T
    lost = torch.linalg.svdvals(target)[5:].square().sum().item() / target.numel()  # Eckart-Young
    assert ours == pytest.approx(lost, rel=1e-3)


def test_scores_are_those_of_the_kernel(rng):
    x = torch.randn(1, 40, generator=rng)
    down = Matrix(torch.randn(6, 40, generator=rng).bfloat16())
    predictor = LowRankPredictor(down, Matrix(torch.randn(70, 6, generator=rng).bfloat16()), torch.zeros(70))
    indices = torch.empty(70, dtype=torch.int32).numpy()
    count = np.zeros(1, np.int64)
    predictor.apply(open_cpu(1), x[:1].numpy(), indices[None], count)
    assert indices[: count[0]].tolist() == (predictor.scores(x)[0] > 0).nonzero().flatten().tolist()


def test_moments_of_a_stream_are_those_of_the_whole(rng):
    x = correlated(333, rng)
    inputs = LayerInputs(40, sample_rows=50)
    for part in x.split([1, 100, 7, 225]):
        inputs.add(part, part, sample_share=0.15)
    assert torch.allclose(inputs.moments.mean, x.double().mean(0))
    assert torch.allclose(inputs.moments.covariance, torch.cov(x.double().T, correction=0), atol=1e-5)
    assert len(inputs.rows) == int(333 * 0.15)


def test_the_sample_never_outgrows_its_room(rng):
    inputs = LayerInputs(40, sample_rows=20)
    rows = correlated(90, rng)
    inputs.add(rows, rows, sample_share=1.0)
    assert len(inputs.rows) == 20


def test_the_loss_root_is_inverted():
    u = torch.linspace(-5, 11, 200)
    assert torch.allclose(inverse_loss_root(loss_root(u)), u, atol=0.02)


def test_the_loss_root_is_the_moment_it_stands_for(rng):
    z = torch.randn(400_000, generator=rng, dtype=torch.float64)
    for u in (-1.5, 0.0, 0.7, 2.0):
        measured = (u + z).clamp_min(0).square().mean().sqrt().item()
        assert loss_root(torch.tensor([u])).item() == pytest.approx(measured, rel=0.02)


def test_more_bytes_lose_less(model, texts):
    inputs = observe(model.weights, texts, 512, silent)[1]
    found = [c for c in frontier(model.weights.layers[1], inputs, ["svd"]) if c.predictor is not None]
    ranks = {c.predictor_bytes for c in found}
    assert len(ranks) > 5
    for n_bytes in ranks:
        by_density = sorted((c for c in found if c.predictor_bytes == n_bytes), key=lambda c: c.density)
        losses = [c.loss for c in by_density]
        assert len(losses) > 10
        assert losses == sorted(losses, reverse=True)


def test_a_plan_keeps_its_fidelity_on_text_it_never_saw(model, plan):
    ids = torch.randint(0, VOCABULARY, (1500,), generator=generator(2)).tolist()
    measured = compare(model.weights, plan, windows(ids, [2], size=100), silent)
    assert measured.kld_mean <= OPTIONS.target_kld
    assert measured.mlp_density < 0.4
    assert measured.predictor_recall > 0.5
    mlp_bytes = sum(layer.mlp.n_neurons * layer.mlp.record_bytes for layer in model.weights.layers)
    assert plan.n_bytes <= OPTIONS.max_predictor_share * mlp_bytes


def test_the_plan_says_what_was_measured(plan):
    said = plan.provenance
    assert said.measured_kld <= said.target_kld == OPTIONS.target_kld
    assert 0 < said.measured_density < 1
    assert said.validation_tokens > 0


def test_a_hopeless_target_runs_dense(model, texts):
    strict = calibrate(model.weights, "a" * 64, texts, dataclasses.replace(OPTIONS, target_kld=1e-12))
    measured = compare(model.weights, strict, texts[:2], silent)
    assert measured.kld_mean <= 1e-12


def test_a_plan_that_selects_everything_diverges_nowhere(model, texts):
    layers = tuple(dataclasses.replace(p, bias=torch.full_like(p.bias, 1e6)) for p in model.predictors)
    measured = compare(model.weights, Plan(provenance(), layers), texts[:2], silent)
    assert measured.kld_mean < 1e-9
    assert measured.same_top == 1.0
    assert measured.mlp_density == 1.0


def test_a_plan_that_selects_nothing_is_seen(model, texts):
    layers = tuple(dataclasses.replace(p, bias=torch.full_like(p.bias, -1e6)) for p in model.predictors)
    measured = compare(model.weights, Plan(provenance(), layers), texts[:2], silent)
    assert measured.kld_mean > 0.05
    assert measured.mlp_density == measured.predictor_recall == 0.0


def test_counts_are_those_of_the_neurons(model, texts):
    measured = compare(model.weights, Plan(provenance(), model.predictors), texts[:3], silent)
    inputs = observe(model.weights, texts[:3], 400, silent)[0]
    fired = (activations(model.weights.layers[0], inputs.rows) > 0).double().mean().item()
    assert measured.layers[0].fired == pytest.approx(fired, abs=1e-9)


def provenance() -> Provenance:
    return Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.001, 0.0005, 0.2, 0.99, 100)


def test_a_saved_plan_is_read_back_whole(model, plan, tmp_path):
    path = tmp_path / FILE_NAME
    plan.save(path)
    plan.save(tmp_path / "twice")
    assert path.read_bytes() == (tmp_path / "twice").read_bytes()
    again = open_plan(path, model.weights.config, "a" * 64, "fp32")
    assert again.provenance == plan.provenance
    assert again.quality == plan.quality
    assert again.n_bytes == plan.n_bytes
    for ours, read in zip(plan.layers, again.layers, strict=True):
        assert (ours is None) == (read is None)
        assert ours is None or torch.equal(ours.up.weight, read.up.weight)
    assert find_plan(tmp_path) == path


def test_a_layer_without_predictor_runs_dense_after_reading(model, tmp_path):
    Plan(provenance(), (None, model.predictors[1])).save(tmp_path / "p.safetensors")
    again = read_plan(tmp_path / "p.safetensors", model.weights.config, "a" * 64)
    assert again.layers[0] is None
    assert again.layers[1] is not None


def test_refuses_the_plan_of_another_model(model, plan, tmp_path):
    plan.save(tmp_path / "p.safetensors")
    with pytest.raises(ModelError, match="belongs to the model aaaaaaaaaaaa"):
        read_plan(tmp_path / "p.safetensors", model.weights.config, "c" * 64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, m: t.pop("layers.0.up"), "only part of layer 0"),
        (lambda t, m: t.update({"layers.1.bias": torch.zeros(7)}), "shapes"),
        (lambda t, m: m.update({KEY: '{"format": "winnow-plan/99"}'}), "format .?winnow-plan/99"),
        (lambda t, m: m.pop(KEY), "broken header"),
        (lambda t, m: m.update({KEY: '{"format": "winnow-plan/2"}'}), "broken header"),
        (lambda t, m: m.update({KEY: '{"format": "winnow-plan/1"}'}), "format .?winnow-plan/1"),
        (lambda t, m: m.update({KEY: "[1]"}), "broken header"),
        (lambda t, m: m.update({KEY: "not json"}), "broken header"),
    ],
)
def test_refuses_a_damaged_plan(damage, message, model, tmp_path):
    path = tmp_path / "p.safetensors"
    Plan(provenance(), model.predictors).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelError, match=message):
        read_plan(path, model.weights.config, "a" * 64)


def test_refuses_what_is_no_plan_at_all(model, tmp_path):
    with pytest.raises(ModelError, match="No plan at"):
        read_plan(tmp_path / "absent", model.weights.config, "a")
    (tmp_path / "text").write_text("not a plan")
    with pytest.raises(ModelError, match="not a plan"):
        read_plan(tmp_path / "text", model.weights.config, "a")


def test_find_plan_finds_nothing_where_there_is_none(tmp_path):
    assert find_plan(tmp_path) is None


@pytest.mark.parametrize("target", [0.0, -1.0, 11.0, float("nan")])
def test_refuses_targets_that_mean_nothing(target):
    with pytest.raises(UsageError, match="target-kld"):
        CalibrationOptions(target_kld=target)


def test_refuses_text_too_short_to_hold_any_out(model, texts):
    with pytest.raises(UsageError, match="expected at least 10"):
        calibrate(model.weights, "a", texts[:3], OPTIONS)


def test_windows_begin_alike_and_lose_no_token():
    cut = windows(list(range(10, 33)), [2], size=8)
    assert all(w[0] == 2 for w in cut)
    assert torch.cat([w[1:] for w in cut]).tolist() == list(range(10, 33))


def test_refuses_a_text_without_two_tokens():
    with pytest.raises(UsageError, match="expected at least 2"):
        windows([5], [2])


def test_a_gated_relu_model_is_winnowed_too(rng):
    variant = next(v for v in VARIANTS if v.name == "llama-biases")
    weights = tiny_weights(variant)
    ids = torch.randint(0, 211, (2500,), generator=rng).tolist()
    made = calibrate(
        weights, "a" * 64, windows(ids, [1], size=100), dataclasses.replace(OPTIONS, target_kld=0.05)
    )
    measured = compare(weights, made, windows(ids[:600], [1], size=100), silent)
    assert measured.kld_mean <= 0.06
    assert measured.mlp_density < 1.0


def test_a_silu_model_is_winnowed_by_its_gates(rng):
    variant = next(v for v in VARIANTS if v.name == "llama")
    weights = tiny_weights(variant)
    ids = torch.randint(0, 211, (2500,), generator=rng).tolist()
    options = dataclasses.replace(OPTIONS, target_kld=0.05)
    made = calibrate(weights, "a" * 64, windows(ids, [1], size=100), options)
    assert "gate" in {p.kind for p in made.layers if p is not None}
    measured = compare(weights, made, windows(ids[:600], [1], size=100), silent)
    assert measured.kld_mean <= 0.06
    assert measured.mlp_density < 1.0


def tiny_weights(variant):
    model = tiny_model(variant, generator(7))
    return load_weights(DictSource(parse_config(model.config.to_dict()), model.state_dict()), torch.float32)
