"""Fidelity: every figure against its definition, and what moving the thresholds does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.predictors import head_predictors
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine.model import dense_mlp
from winnow.engine.sparsity import GatePredictor, LowRankPredictor, Plan, SparseMlp, compare, windows
from winnow.engine.sparsity.fidelity import divergence, shifted, sweep, window_logits
from winnow.engine.sparsity.plan import Provenance
from winnow.engine.synthetic import opt_config, synthetic_model

VOCABULARY = 211
PROVENANCE = Provenance("a" * 64, "b" * 64, "same-layer", "svd", 0.1, 0.1, 0.5, 0.5, 99)


@pytest.fixture(scope="module")
def model():
    return synthetic_model(opt_config(2, 64, 4, VOCABULARY), torch.float32, 0.3, seed=3)


@pytest.fixture(scope="module")
def texts():
    ids = torch.randint(0, VOCABULARY, (291,), generator=generator(1)).tolist()
    return windows(ids, [2], size=73)


@pytest.fixture(scope="module")
def plan(model):
    """The synthetic model's exact predictors, made so strict that they miss what fires."""
    return shifted(Plan(PROVENANCE, tuple(model.predictors)), -0.4)


@pytest.fixture(scope="module")
def measured(model, plan, texts):
    return compare(model.weights, plan, texts, lambda done: None)


@pytest.fixture(scope="module")
def logits(model, plan, texts):
    """Dense and sparse logits of every window in float64, and the ids that come next."""
    with torch.inference_mode():
        both = [
            tuple(
                window_logits(model.weights, ids, mlp).double().numpy()
                for mlp in (dense_mlp, SparseMlp(plan.layers))
            )
            for ids in texts
        ]
    return [(*pair, ids[1:].numpy()) for pair, ids in zip(both, texts, strict=True)]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted_scores = scores - scores.max(-1, keepdims=True)
    return shifted_scores - np.log(np.exp(shifted_scores).sum(-1, keepdims=True))


def nats(logits, which: int) -> np.ndarray:
    found = [-log_softmax(row[which][:-1])[np.arange(len(row[2])), row[2]] for row in logits]
    return np.concatenate(found)


def divergences(logits) -> np.ndarray:
    rows = [(log_softmax(dense), log_softmax(sparse)) for dense, sparse, _ in logits]
    return np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in rows])


def standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def test_divergences_are_those_of_the_definition(measured, logits):
    kld = divergences(logits)
    assert measured.tokens == len(kld)
    assert 1e-4 < kld.mean() < 1  # the case says something
    assert measured.kld_mean == pytest.approx(kld.mean(), rel=1e-4)
    assert measured.kld_mean_se == pytest.approx(standard_error(kld), rel=1e-4)
    assert measured.kld_median == pytest.approx(np.quantile(kld, 0.5), rel=0.05, abs=1e-6)
    assert measured.kld_p99 == pytest.approx(np.quantile(kld, 0.99), rel=1e-3)
    assert measured.kld_p999 == pytest.approx(np.quantile(kld, 0.999), rel=1e-3)
    assert measured.kld_max == pytest.approx(kld.max(), rel=1e-3)


def test_perplexities_and_their_errors_are_those_of_the_definition(measured, logits):
    dense, sparse = nats(logits, 0), nats(logits, 1)
    assert measured.ppl_dense == pytest.approx(math.exp(dense.mean()), rel=1e-4)
    assert measured.ppl_sparse == pytest.approx(math.exp(sparse.mean()), rel=1e-4)
    assert measured.ppl_dense_se == pytest.approx(math.exp(dense.mean()) * standard_error(dense), rel=1e-3)
    assert measured.ppl_sparse_se == pytest.approx(math.exp(sparse.mean()) * standard_error(sparse), rel=1e-3)
    assert measured.ppl_ratio == pytest.approx(measured.ppl_sparse / measured.ppl_dense)
    wanted = measured.ppl_ratio * standard_error(sparse - dense)
    assert measured.ppl_ratio_se == pytest.approx(wanted, rel=1e-3)
    assert measured.ppl_ratio_se < measured.ppl_sparse_se / measured.ppl_dense  # the pairs cancel
    assert measured.ppl_correlation == pytest.approx(np.corrcoef(dense, sparse)[0, 1], rel=1e-4)
    assert measured.ppl_correlation < 1


def test_the_change_of_the_true_tokens_probability_is_that_of_the_definition(measured, logits):
    change = np.exp(-nats(logits, 1)) - np.exp(-nats(logits, 0))
    assert measured.delta_p_mean == pytest.approx(change.mean(), rel=1e-3, abs=1e-6)
    assert measured.delta_p_mean_se == pytest.approx(standard_error(change), rel=1e-3)
    assert measured.delta_p_rms == pytest.approx(math.sqrt((change**2).mean()), rel=1e-3)


def test_same_top_is_the_share_of_equal_choices(measured, logits):
    same = np.concatenate([dense.argmax(-1) == sparse.argmax(-1) for dense, sparse, _ in logits])
    assert 0.3 < same.mean() < 1
    assert measured.same_top == pytest.approx(same.mean())
    share = same.mean()
    assert measured.same_top_se == pytest.approx(math.sqrt(share * (1 - share) / (len(same) - 1)))


def test_bytes_are_those_of_bfloat16_but_for_padding_whatever_holds_the_weights(measured, model, plan):
    config = model.weights.config
    dense = sum(layer.mlp.n_neurons * layer.mlp.record_bytes for layer in model.weights.layers) / 2
    assert measured.mlp_bytes_dense == dense
    wanted = plan.n_bytes + measured.mlp_density * dense
    assert measured.mlp_bytes == pytest.approx(wanted, rel=0.02)
    half = synthetic_model(opt_config(2, 64, 4, VOCABULARY), torch.bfloat16, 0.3, seed=3)
    ids = torch.arange(9)
    in_half = compare(half.weights, Plan(PROVENANCE, (None,) * config.n_layers), [ids], lambda done: None)
    assert in_half.mlp_bytes == in_half.mlp_bytes_dense == pytest.approx(dense, rel=0.15)  # padding


def test_a_sweep_at_zero_is_the_comparison_itself(measured, model, plan, texts):
    ticks = []
    found = sweep(model.weights, plan, (-0.3, 0.0, 0.4), texts, ticks.append)
    assert found[1] == measured
    assert ticks == list(range(1, len(texts) + 1))
    assert [f.mlp_density for f in found] == sorted({f.mlp_density for f in found})
    assert found[0].kld_mean > found[1].kld_mean > found[2].kld_mean
    assert found[0].mlp_bytes < found[1].mlp_bytes < found[2].mlp_bytes


def test_thresholds_far_below_select_everything(model, plan, texts):
    (found,) = sweep(model.weights, plan, [1e4], texts[:1], lambda done: None)
    assert found.mlp_density == 1
    assert found.kld_mean < 1e-9
    assert found.same_top == 1
    assert found.same_top_se == 0
    assert found.mlp_bytes > found.mlp_bytes_dense


def test_a_shift_is_in_standard_deviations_of_each_neurons_score(plan):
    one = plan.layers[1]
    moved = shifted(plan, 0.25).layers[1]
    spread = one.up.weight.float().square().sum(1).sqrt()
    torch.testing.assert_close(moved.bias, one.bias + 0.25 * spread)
    assert (moved.kind, moved.lookahead) == (one.kind, one.lookahead)
    assert isinstance(moved, LowRankPredictor)


def test_a_shift_scales_the_thresholds_of_gates_and_leaves_dense_layers():
    gate = GatePredictor(torch.tensor([0.5, 2.0]))
    moved = shifted(Plan(PROVENANCE, (gate, None)), math.log(2)).layers
    torch.testing.assert_close(moved[0].thresholds, torch.tensor([0.25, 1.0]))
    assert moved[1] is None


def test_one_token_of_text_has_no_standard_error(model, plan):
    (found,) = sweep(model.weights, plan, [0.0], [torch.tensor([2, 5])], lambda done: None)
    assert math.isnan(found.ppl_dense_se)
    assert math.isnan(found.ppl_correlation)
    assert not math.isnan(found.kld_mean_se)  # two rows of logits, one next token
    with pytest.raises(UsageError):
        windows([5], [2])


def test_heads_of_the_plan_are_left_out_and_counted(model, plan, texts, rng):
    heads = head_predictors(model.weights, rng)
    with_heads = compare(model.weights, replace(plan, heads=heads), texts, lambda done: None)
    without = compare(model.weights, plan, texts, lambda done: None)
    assert without.head_density == 1.0
    assert 0.2 < with_heads.head_density < 0.8
    assert with_heads.kld_mean > without.kld_mean


def test_the_precision_is_measured_against_the_exact_weights(model, plan, texts):
    rough = synthetic_model(opt_config(2, 64, 4, VOCABULARY), torch.float32, 0.3, seed=3)
    rough.weights.layers[0].mlp.w_out.mul_(1.01)
    (found,) = sweep(rough.weights, plan, (0.0,), texts, lambda done: None, model.weights)
    with torch.inference_mode():
        nats = [
            divergence(*(window_logits(each.weights, ids, dense_mlp) for each in (model, rough)))
            for ids in texts
        ]
    assert found.kld_quantised == pytest.approx(torch.cat(nats).double().mean().item(), rel=1e-5)
