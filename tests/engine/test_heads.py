"""Heads left out by calibration: the share that is kept, the plan that says so, what it costs."""

import dataclasses

import pytest
import torch

from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import UsageError
from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, load_weights, parse_config
from winnow.engine.decode import Decoder
from winnow.engine.model import forward
from winnow.engine.sparsity import (
    CalibrationOptions,
    SparseHeads,
    SparseMlp,
    calibrate,
    compare,
    read_plan,
    windows,
)
from winnow.engine.sparsity.finetune import Effort
from winnow.engine.sparsity.predictor import fit_heads, head_energies
from winnow.engine.sparsity.resume import partial_directory
from winnow.kernels import open_cpu

HASH = "a" * 64
QUICK = CalibrationOptions(
    target_kld=0.2, predictor="svd", sample_rows=512, effort=Effort(20, 32), quiet=True
)
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


@pytest.mark.parametrize("name", ["opt", GROUPED])
def test_every_layer_keeps_the_share_on_text_that_was_not_fitted(name):
    weights = weights_of(name)
    fits = fit_heads(weights, text(1001), silent)
    for share in (0.1, 0.37, 0.9):
        for fit in fits:
            kept = fit.keeping(share)
            assert kept is not None
            scores = fit.foretold + (kept.bias - fit.predictor.bias)
            assert (scores > 0).double().mean().item() == pytest.approx(share, abs=0.01)
    slot = SparseHeads([fits[0].keeping(0.37), *[None] * (len(fits) - 1)])
    for ids in text(601, seed=2):
        forward(weights, ids, KvCache(weights.config, len(ids), torch.float32), heads=slot)
    assert (slot.selected[0] / slot.seen[0]).item() == pytest.approx(0.37, abs=0.1)


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
    assert [fit.keeping(1 - 1e-6) for fit in fits] == [None] * len(fits)
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


def test_auto_keeps_the_smallest_share_that_holds_and_all_heads_where_none_does(opt):
    generous = dataclasses.replace(QUICK, target_kld=9.0, heads="auto")
    plan = calibrate(opt, HASH, text(700), generous)
    assert plan.provenance.measured_head_density == pytest.approx(0.5, abs=0.1)
    assert plan.provenance.measured_kld <= 9.0
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
