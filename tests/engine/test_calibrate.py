"""Calibration: fitting, looking ahead, resuming, and what it says of odd texts and layers."""

import dataclasses
import importlib

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.tiny import VARIANTS, tiny_model
from winnow.base.errors import ModelError, UsageError
from winnow.base.progress import Progress
from winnow.base.rng import generator
from winnow.engine import DictSource, load_weights, parse_config
from winnow.engine.sparsity import (
    CalibrationOptions,
    GatePredictor,
    Lookahead,
    LowRankPredictor,
    calibrate,
    compare,
    windows,
)
from winnow.engine.sparsity.finetune import Effort, tuned, tuned_choices
from winnow.engine.sparsity.frontier import (
    Choice,
    frontier,
    held_out,
    labelled,
    levels,
    mlp_bytes,
)
from winnow.engine.sparsity.heldout import HeldOut
from winnow.engine.sparsity.observe import LayerInputs, observe
from winnow.engine.sparsity.resume import Stages, forget, packed, partial_directory, unpacked
from winnow.engine.sparsity.sanity import length_warnings, text_warnings

QUICK = CalibrationOptions(target_kld=0.05, sample_rows=512, effort=Effort(20, 32), quiet=True)
HASH = "a" * 64


CALIBRATE = importlib.import_module("winnow.engine.sparsity.calibrate")  # the package's name is the function


def silent(done: int) -> None:
    """Progress that nobody watches."""


def weights_of(name: str, dtype: torch.dtype = torch.float32):
    variant = next(v for v in VARIANTS if v.name == name)
    model = tiny_model(variant, generator(7))
    return load_weights(DictSource(parse_config(model.config.to_dict()), model.state_dict()), dtype)


def text(n_tokens: int, seed: int = 1) -> list[torch.Tensor]:
    ids = torch.randint(0, 211, (n_tokens,), generator=generator(seed)).tolist()
    return windows(ids, [2], size=60)


@pytest.fixture(scope="module")
def opt():
    return weights_of("opt")


@pytest.fixture(scope="module")
def unbroken(opt):
    return calibrate(opt, HASH, text(1100), QUICK)


def test_levels_are_those_of_counting_each(rng):
    priority, energy = torch.randn(301, 17, generator=rng), torch.rand(301, 17, generator=rng)
    found = levels(priority, energy)
    assert len(found) > 20
    for level, density, loss in found:
        above = priority >= level
        assert density == pytest.approx(above.double().mean().item(), abs=2e-3)
        assert loss == pytest.approx(energy.masked_fill(above, 0).sum(-1).mean().item(), abs=0.05)


def test_held_out_rows_are_a_fifth_in_blocks():
    held = held_out(1003)
    assert held.double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (held[1:] != held[:-1]).sum() <= 2 * 8


@pytest.mark.parametrize("lookahead", [Lookahead.SAME, Lookahead.NEXT])
def test_fitting_costs_less_than_its_start_on_rows_it_never_saw(lookahead, opt):
    layer, worth = opt.layers[1], 3.0
    inputs = observe(opt, text(1700), 1600, silent, lookahead)[1]
    start = next(
        c.predictor
        for c in frontier(layer, inputs, ["svd"], lookahead)
        if isinstance(c.predictor, LowRankPredictor) and c.predictor.rank == 4 and c.density < 0.6
    )
    held = held_out(inputs.n_sampled)
    fitted, judged = labelled(layer, inputs, ~held), labelled(layer, inputs, held)
    made = tuned(start, fitted, worth, Effort(100, 96), seed=0)
    assert (made.kind, made.n_bytes, made.lookahead) == ("low-rank", start.n_bytes, lookahead)

    def cost(predictor: LowRankPredictor, scale: float) -> float:
        selected = predictor.scores(judged.view) > 0
        return (selected + scale * worth * judged.energy * ~selected).mean().item()

    assert cost(made, 1.0) < 0.97 * min(cost(start, 1.0), 1.0)
    settings = tuned_choices(layer, made, judged)
    assert len({c.density for c in settings}) > 15
    assert all(c.n_bytes < mlp_bytes(layer.mlp) for c in settings)


def test_equal_fits_are_equal_bits(opt):
    inputs = observe(opt, text(600), 500, silent)[0]
    start = next(c.predictor for c in frontier(opt.layers[0], inputs, ["svd"]) if c.predictor is not None)
    assert isinstance(start, LowRankPredictor)
    rows = labelled(opt.layers[0], inputs)
    one, two = (tuned(start, rows, 1.0, Effort(15, 40), seed=3) for _ in range(2))
    assert torch.equal(one.up.weight, two.up.weight)
    assert torch.equal(one.bias, two.bias)
    other = tuned(start, rows, 1.0, Effort(15, 40), seed=4)
    assert not torch.equal(one.bias, other.bias)


@pytest.mark.parametrize(("kind", "lookahead"), [("svd", "next-layer"), ("low-rank", "half-layer")])
def test_a_plan_is_of_the_kind_and_mode_asked_for(kind, lookahead, opt):
    options = dataclasses.replace(QUICK, predictor=kind, lookahead=Lookahead(lookahead), target_kld=0.2)
    made = calibrate(opt, HASH, text(1300), options)
    found = {(p.kind, str(p.lookahead)) for p in made.layers if p is not None}
    assert found <= {(kind, lookahead)}
    assert (made.provenance.predictor, made.provenance.lookahead) == (kind, lookahead)
    measured = compare(opt, made, text(500, seed=2), silent)
    assert measured.kld_mean <= 1.2 * options.target_kld


def test_a_gate_saves_only_what_it_leaves_out():
    weights = weights_of("llama")
    inputs = observe(weights, text(600), 500, silent)[0]
    found = frontier(weights.layers[0], inputs, ["gate"])
    assert {c.kind for c in found} == {"dense", "gate"}
    full = mlp_bytes(weights.layers[0].mlp)
    for each in found[1:]:
        assert isinstance(each.predictor, GatePredictor)
        assert full / 3 < each.n_bytes < full
        rows = labelled(weights.layers[0], inputs, held_out(inputs.n_sampled))
        size = torch.nn.functional.silu(rows.before).abs()
        assert each.density == pytest.approx(
            (size > each.predictor.thresholds).double().mean().item(), abs=0.01
        )


def test_held_out_windows_give_what_a_full_comparison_gives(opt, unbroken):
    texts = text(300, seed=4)
    measured = HeldOut(opt, texts, silent).measure(unbroken.layers)
    expected = compare(opt, unbroken, texts, silent)
    assert measured.kld == pytest.approx(expected.kld_mean, rel=1e-4)
    assert measured.overall.density == pytest.approx(expected.mlp_density)
    assert (measured.tokens, measured.same_top) == (expected.tokens, pytest.approx(expected.same_top))


STAGES = (
    ("reading the text", 7),
    ("fitting predictors", 2),
    ("weighing layers", 1),
    ("tuning predictors", 2),
    ("verifying plans", 1),
)


def test_a_calibration_resumed_in_every_stage_equals_an_unbroken_one(opt, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(CALIBRATE, "SAVE_EVERY_S", 0.0)
    partial = partial_directory(tmp_path / "plan")
    update = Progress.update
    for stage in STAGES:

        def interrupted(self: Progress, number: int, note: str = "", stage=stage) -> None:
            if (self.label, number) == stage:
                raise KeyboardInterrupt
            update(self, number, note)

        with monkeypatch.context() as patched:
            patched.setattr(Progress, "update", interrupted)
            with pytest.raises(KeyboardInterrupt):
                calibrate(opt, HASH, text(1100), QUICK, partial)
    assert "observed.safetensors" in {path.name for path in partial.iterdir()}

    def refused(*_: object) -> None:
        raise AssertionError("what was finished is computed again")

    monkeypatch.setattr(CALIBRATE.Observer, "read", refused)
    for name in ("frontier", "tuned_choices"):
        done = {"frontier": "fit-", "tuned_choices": "tuned-"}[name]
        if len(list(partial.glob(f"{done}*"))) == len(opt.layers):
            monkeypatch.setattr(CALIBRATE, name, refused)
    made = calibrate(opt, HASH, text(1100), QUICK, partial)
    made.save(tmp_path / "plan")
    unbroken.save(tmp_path / "unbroken")
    assert (tmp_path / "plan").read_bytes() == (tmp_path / "unbroken").read_bytes()
    forget(tmp_path / "plan")
    assert not partial.exists()


def test_the_folder_of_another_calibration_is_refused_by_what_differs(opt, tmp_path):
    Stages(tmp_path, {"model": "m", "target_kld": 0.1}).save("prices", {"count": torch.tensor(1)}, [0.5])
    with pytest.raises(UsageError, match=r"differs in target_kld \(0.1, now 0.2\)"):
        Stages(tmp_path, {"model": "m", "target_kld": 0.2})
    again = Stages(tmp_path, {"model": "m", "target_kld": 0.1}).load("prices")
    assert again is not None
    assert again.said == [0.5]


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_broken_state_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "observed.safetensors"
    if content is None:
        save_file({"x": torch.zeros(1)}, path, metadata={"other": "{}"})
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="no state of a calibration"):
        Stages(tmp_path, {"model": "m"})


def test_settings_survive_being_kept(opt, tmp_path):
    inputs = observe(opt, text(600), 500, silent)[0]
    choices = frontier(opt.layers[0], inputs, ["svd"])
    stages = Stages(tmp_path, {})
    stages.save("fit", *packed(choices))
    stage = stages.load("fit")
    assert stage is not None
    assert [dataclasses.replace(c, predictor=None) for c in unpacked(stage)] == [
        dataclasses.replace(c, predictor=None) for c in choices
    ]
    ours, read = choices[-1].predictor, unpacked(stage)[-1].predictor
    assert isinstance(ours, LowRankPredictor)
    assert isinstance(read, LowRankPredictor)
    assert torch.equal(ours.scores(inputs.views), read.scores(inputs.views))


def test_cross_moments_of_a_stream_are_those_of_the_whole(rng):
    y = torch.randn(200, 12, generator=rng)
    x = y @ torch.randn(12, 12, generator=rng) + 1
    inputs = LayerInputs(12, 50, Lookahead.HALF)
    for part in torch.arange(200).split([3, 150, 47]):
        inputs.add(y[part], x[part], 0.2)
    crossed = (x - x.mean(0)).double().T @ (y - y.mean(0)).double() / 200
    assert inputs.moments.cross is not None
    assert torch.allclose(inputs.moments.cross.covariance, crossed, atol=1e-4)
    assert torch.equal(inputs.views @ torch.eye(12), inputs.views)
    assert inputs.rows.shape == inputs.views.shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_layer_that_computes_no_numbers_is_named(bad):
    broken = weights_of("opt")
    broken.layers[1].mlp.w_out[0, 0] = bad
    broken.layers[1].mlp.bias[0] = 100.0
    with pytest.raises(
        ModelError, match=r"Layer [12] computes with values that are infinite or not a number"
    ):
        calibrate(broken, HASH, text(1100), QUICK)


@pytest.mark.parametrize(
    ("bias", "says"), [(-1e4, "no neuron of layer 2 contributes"), (1e4, "all neurons of layer 2 fire")]
)
def test_a_layer_that_never_or_always_fires_is_named_and_runs_dense(bias, says):
    odd = weights_of("opt")
    odd.layers[2].mlp.bias.fill_(bias)
    with pytest.warns(UserWarning, match=says):
        made = calibrate(odd, HASH, text(1100), dataclasses.replace(QUICK, predictor="svd"))
    assert made.layers[2] is None


def test_too_little_text_is_said(opt):
    assert length_warnings(320, 40) == []
    assert "fitted on 319 tokens" in length_warnings(319, 40)[0]
    with pytest.warns(UserWarning, match="Give more --text"):
        calibrate(opt, HASH, windows(list(range(200)), [2], size=18), QUICK)


def test_text_in_another_language_than_the_tokenizers_is_doubted():
    def words(text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def characters(text: str) -> list[int]:
        return list(text.encode())

    english = "plain words of an ordinary kind stand here " * 9
    assert text_warnings(english, words(english), None, words) == []
    assert text_warnings("", [], 0, words) == []
    foreign = "ветер уносит лёгкую мякину " * 9
    found = text_warnings(foreign, characters(foreign), None, words)
    assert "1.0 bytes per token, plain English" in found[0]
    assert "10% of the text's tokens" in text_warnings(english, [0] + [1] * 9, 0, words)[0]


def test_what_was_measured_in_bf16_does_not_hold_for_fp32():
    made = calibrate(weights_of("opt", torch.bfloat16), HASH, text(1100), QUICK)
    assert made.provenance.precisions == ("bf16", "int8", "int4")
    assert made.provenance.measured_kld <= QUICK.target_kld


def test_what_was_measured_in_fp32_holds_for_all(unbroken):
    assert unbroken.provenance.precisions == ("fp32", "bf16", "int8", "int4")


def test_gates_are_refused_where_there_are_none_or_they_cannot_look_ahead(opt):
    with pytest.raises(UsageError, match="no gate"):
        calibrate(opt, HASH, text(1100), dataclasses.replace(QUICK, predictor="gate"))
    with pytest.raises(UsageError, match="expected same-layer"):
        CalibrationOptions(predictor="gate", lookahead=Lookahead.HALF)


def test_no_setting_reads_more_than_dense(opt):
    inputs = observe(opt, text(600), 500, silent)[0]
    found = frontier(opt.layers[0], inputs, ["svd"])
    assert found[0] == Choice(None, 1.0, mlp_bytes(opt.layers[0].mlp), 0.0)
    assert max(c.n_bytes for c in found[1:]) < found[0].n_bytes
