"""Heads left out by calibration: the share that is kept, the plan that says so, what it costs."""

import dataclasses

import pytest
import torch

from tests.engine.predictors import head_predictors
from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, load_weights, parse_config
from winnow.engine.decode import Decoder
from winnow.engine.model import all_heads, forward
from winnow.engine.sparsity import (
    CalibrationOptions,
    SparseHeads,
    SparseMlp,
    calibrate,
    compare,
    read_plan,
    windows,
)
from winnow.engine.sparsity.fidelity import divergence
from winnow.engine.sparsity.finetune import Effort
from winnow.engine.sparsity.heldout import HeldOut
from winnow.engine.sparsity.plan import Plan, Provenance
from winnow.engine.sparsity.predictor import fit_heads, head_energies, keeping
from winnow.engine.sparsity.resume import partial_directory
from winnow.engine.sparsity.search import HEAD_STEPS, PRICED_SHARE, HeadLadder
from winnow.engine.sparsity.sparse_heads import DroppingHeads
from winnow.kernels import open_cpu

HASH = "a" * 64
QUICK = CalibrationOptions(
    target_kld=0.2, predictor="svd", sample_rows=512, effort=Effort(20, 32), quiet=True
)
EMPTY = Plan(Provenance(HASH, HASH, "same-layer", "svd", 0.2, 0.0, 1.0, 1.0, 1), (None,) * 3)
GROUPED = "llama-grouped"  # 6 query heads, 2 kv heads of width 20


def silent(done: int) -> None:
    """Progress that nobody watches."""


def weights_of(name: str, *, by_head: bool = False):
    model = tiny_model(next(v for v in VARIANTS if v.name == name), generator(7))
    source = DictSource(parse_config(model.config.to_dict()), model.state_dict())
    return load_weights(source, torch.float32, by_head=by_head)


def text(n_tokens: int, seed: int = 1) -> list[torch.Tensor]:
    ids = torch.randint(0, 211, (n_tokens,), generator=generator(seed)).tolist()
    return windows(ids, [2], size=60)


@pytest.fixture(scope="module")
def opt():
    return weights_of("opt")


@pytest.fixture(scope="module")
def without(opt, tmp_path_factory):
    """A plan with all heads, and the folder of what was finished for it."""
    partial = partial_directory(tmp_path_factory.mktemp("without") / "plan")
    return calibrate(opt, HASH, text(700), QUICK, partial), partial


@pytest.fixture(scope="module")
def half(opt):
    return calibrate(opt, HASH, text(700), dataclasses.replace(QUICK, heads=0.5))


def shares(fits, heads) -> list[float]:
    """Return the share of each layer's heads that predictors keep, on the tokens that judged the fits."""
    return [
        1.0 if kept is None else (fit.foretold + (kept.bias - fit.predictor.bias) > 0).double().mean().item()
        for fit, kept in zip(fits, heads, strict=True)
    ]


@pytest.mark.parametrize("name", ["opt", GROUPED])
def test_the_share_is_the_mean_over_layers_on_text_that_was_not_fitted(name):
    weights = weights_of(name)
    fits = fit_heads(weights, text(1001), silent)
    tried = (0.1, 0.37, 0.9)
    alike, dearer = (
        torch.tensor([shares(fits, keeping(fits, [1.0, price, 1.0], share)) for share in tried])
        for price in (1.0, 4.0)
    )
    for kept in (alike, dearer):
        assert kept.mean(1).tolist() == pytest.approx(tried, abs=0.01)
    assert (dearer[:, 1] >= alike[:, 1]).all()
    assert dearer[:, 1].mean() > alike[:, 1].mean() + 0.01
    slot = SparseHeads(keeping(fits, [1.0] * len(fits), 0.37))
    for ids in text(601, seed=2):
        forward(weights, ids, KvCache(weights.config, len(ids), torch.float32), heads=slot)
    assert slot.density == pytest.approx(0.37, abs=0.1)


def test_a_layer_that_costs_nothing_goes_first_and_one_beyond_price_keeps_all(opt):
    fits = fit_heads(opt, text(700), silent)
    assert shares(fits, keeping(fits, [1.0, 0.0, 1e30], 2 / 3)) == pytest.approx([1, 0, 1], abs=0.01)


def test_prices_are_what_leaving_out_costs_per_energy_lost(opt):
    fits, texts = fit_heads(opt, text(1501), silent), text(300, seed=3)
    ladder = HeadLadder(fits, HeldOut(opt, texts, silent), silent)
    kept = fits[1].above(fits[1].bound(PRICED_SHARE))
    alone = dataclasses.replace(EMPTY, heads=(None, kept, None))
    lost = (fits[1].said.exp() * (fits[1].foretold <= fits[1].bound(PRICED_SHARE))).sum(1).mean().item()
    assert lost > 0
    assert ladder.prices[1] * lost == pytest.approx(compare(opt, alone, texts, silent).kld_mean, rel=1e-4)
    assert shares(fits, ladder.keeping(0.8)) == shares(fits, keeping(fits, ladder.prices, 0.8))


def test_spread_by_price_the_same_share_loses_less_than_kept_by_every_layer(opt):
    fits, texts = fit_heads(opt, text(1501), silent), text(900, seed=3)
    held = HeldOut(opt, texts, silent)
    ladder = HeadLadder(fits, HeldOut(opt, text(600, seed=4), silent), silent)
    everything = (None,) * len(fits)
    spread = held.measure(everything, ladder.keeping(0.8))
    equal = held.measure(everything, [fit.above(fit.bound(0.8)) for fit in fits])
    assert spread.head_density == pytest.approx(equal.head_density, abs=0.02)
    assert spread.kld < 0.9 * equal.kld


@pytest.mark.parametrize("name", ["opt", GROUPED])
def test_energies_are_what_the_output_lacks_without_the_head(name, rng):
    weights = weights_of(name, by_head=name == GROUPED)
    layer, config = weights.layers[1], weights.config
    sharers = config.n_heads // config.n_kv_heads
    mixed = torch.randn(7, config.n_kv_heads, sharers, config.head_width, generator=rng)
    found = head_energies(layer, mixed)
    for k in range(config.n_kv_heads):
        without = mixed.clone()
        without[:, k] = 0
        lost = layer.out(mixed.flatten(1)) - layer.out(without.flatten(1))
        assert torch.allclose(found[:, k], lost.square().sum(-1), rtol=1e-3)


def test_what_is_foretold_tells_loud_heads_from_quiet_ones(opt):
    fits = fit_heads(opt, text(1501), silent)
    for fit in fits:
        pairs = torch.stack([fit.foretold.flatten(), fit.said.flatten()])
        shuffled = torch.stack([fit.foretold.roll(1, 0).flatten(), fit.said.flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.3
        assert torch.corrcoef(pairs)[0, 1] > torch.corrcoef(shuffled)[0, 1]


def test_a_share_of_nearly_one_is_the_plan_with_all_heads(opt, without):
    fits = fit_heads(opt, text(700), silent)
    assert keeping(fits, [1.0] * len(fits), 1 - 1e-6) == (None,) * len(fits)
    dense, partial = without
    plan = calibrate(opt, HASH, text(700), dataclasses.replace(QUICK, heads=1 - 1e-6), partial)
    assert not plan.has_heads
    assert plan.provenance == dense.provenance
    assert plan.provenance.measured_head_density == 1


def test_what_is_measured_includes_the_heads(opt, half):
    held = text(700)[9::10]
    found = compare(opt, half, held, silent)
    assert half.provenance.measured_kld == pytest.approx(found.kld_mean, rel=1e-4)
    assert half.provenance.measured_head_density == pytest.approx(found.head_density)
    assert found.head_density == pytest.approx(0.5, abs=0.1)
    alone = compare(opt, dataclasses.replace(half, heads=()), held, silent)
    assert alone.kld_mean < QUICK.target_kld < found.kld_mean


def test_the_plan_of_the_file_has_the_heads(opt, half, tmp_path):
    half.save(tmp_path / "plan")
    again = read_plan(tmp_path / "plan", opt.config, HASH)
    assert again.has_heads
    assert again.provenance == half.provenance
    for ours, read in zip(half.heads, again.heads, strict=True):
        assert ours is not None
        assert read is not None
        assert torch.equal(ours.bias, read.bias)
        assert torch.equal(ours.down.weight, read.down.weight)


@pytest.mark.parametrize("name", ["opt", GROUPED, "qwen2-window"])
def test_to_drop_nothing_is_the_dense_model_to_the_bit(name, rng):
    weights, ids = weights_of(name), text(57)[0][:57]
    every = SparseHeads(head_predictors(weights, rng, margin=1e6))
    rows = [
        forward(weights, ids, KvCache(weights.config, len(ids), torch.float32), heads=heads)
        for heads in (DroppingHeads(every), all_heads)
    ]
    assert every.density == 1
    assert torch.equal(*rows)


@pytest.mark.parametrize("name", ["opt", GROUPED, "qwen2-window"])
def test_a_head_never_hears_again_what_it_dropped(name, rng):
    weights, ids = weights_of(name), text(57)[0][:57]
    predictors = head_predictors(weights, rng)
    for is_dropped in (True, False):
        heads, cache = DroppingHeads(SparseHeads(predictors)), KvCache(weights.config, 57, torch.float32)
        before = forward(weights, ids[:40], cache, heads=heads)
        assert before.isfinite().all()
        blocks = cache.blocks
        for index, block in enumerate(blocks):
            dropped = heads.dropped[index].T
            assert 0.1 < dropped.double().mean() < 0.9
            changed = torch.zeros(block.keys.shape[:2], dtype=torch.bool)
            changed[:, :40] = dropped if is_dropped else ~dropped
            block.values[changed] += 7.0
        after = forward(weights, ids[40:], cache, heads=heads)
        whole = DroppingHeads(SparseHeads(predictors))
        expected = forward(weights, ids, KvCache(weights.config, 57, torch.float32), heads=whole)[40:]
        assert torch.allclose(after, expected, rtol=1e-3, atol=1e-3) == is_dropped


def test_dropping_costs_more_than_keeping_what_left_out_heads_had(opt):
    fits, ids = fit_heads(opt, text(1501), silent), text(60, seed=3)[0]
    slot = SparseHeads(keeping(fits, [1.0] * len(fits), 0.7))
    dense, kept, dropped = (
        forward(opt, ids, KvCache(opt.config, len(ids), torch.float32), heads=heads)
        for heads in (all_heads, slot, DroppingHeads(slot))
    )
    assert divergence(dense, dropped).mean() > 1.1 * divergence(dense, kept).mean() > 0


def test_decoding_leaves_out_the_heads_of_the_definition():
    weights = weights_of(GROUPED, by_head=True)
    plan = calibrate(weights, HASH, text(700), dataclasses.replace(QUICK, predictor="gate", heads=0.6))
    ids, n_layers = text(23, seed=5)[0], weights.config.n_layers
    slot, cache = SparseHeads(plan.heads), KvCache(weights.config, len(ids), torch.float32)
    with torch.inference_mode():
        expected = forward(weights, ids, cache, mlp=SparseMlp(plan.layers), heads=slot)
    cache = KvCache(weights.config, len(ids), torch.float32)
    decoding = Decoder(weights, plan.layers, open_cpu(1), plan.heads).start(cache)
    found = torch.stack([torch.from_numpy(decoding.step(token).copy()).flatten() for token in ids.tolist()])
    assert decoding.counts.head_density == pytest.approx(slot.density, abs=1 / (len(ids) * n_layers))
    assert 0.3 < slot.density < 0.9
    assert (found - expected).norm() / expected.norm() < 1e-3


def test_auto_keeps_the_smallest_share_that_holds_and_all_heads_where_none_does(opt, without):
    dense, partial = without
    generous = dataclasses.replace(QUICK, target_kld=9.0, heads="auto")
    plan = calibrate(opt, HASH, text(700), generous)
    assert plan.provenance.measured_head_density == pytest.approx(1 / HEAD_STEPS, abs=0.03)
    assert plan.provenance.measured_kld <= 9.0
    plan = calibrate(opt, HASH, text(700), dataclasses.replace(QUICK, heads="auto"), partial)
    said = plan.provenance
    assert dense.provenance.measured_kld < said.measured_kld <= QUICK.target_kld
    assert 0.5 < said.measured_head_density < 1
    fewer = dataclasses.replace(QUICK, heads=said.measured_head_density - 2 / HEAD_STEPS)
    assert calibrate(opt, HASH, text(700), fewer, partial).provenance.measured_kld > QUICK.target_kld
    strict = dataclasses.replace(QUICK, target_kld=1e-6, heads="auto")
    plan = calibrate(opt, HASH, text(700), strict)
    assert (plan.heads, plan.provenance.measured_head_density) == ((), 1)


def test_what_was_finished_without_heads_is_gone_on_from_with_them(opt, half, without, tmp_path):
    _, partial = without
    before = {path.name: path.stat().st_mtime_ns for path in partial.iterdir()}
    resumed = calibrate(opt, HASH, text(700), dataclasses.replace(QUICK, heads=0.5), partial)
    assert {path.name: path.stat().st_mtime_ns for path in partial.iterdir()} == before
    resumed.save(tmp_path / "plan")
    half.save(tmp_path / "unbroken")
    assert (tmp_path / "plan").read_bytes() == (tmp_path / "unbroken").read_bytes()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(UsageError, match="expected a share of the heads"):
        CalibrationOptions(heads=share)
