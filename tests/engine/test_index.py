"""The index as a predictor: stored, decoded, resumed and calibrated like the others."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.engine.predictors import indexes
from tests.engine.test_batch import loaded, same
from tests.engine.test_calibrate import QUICK, text, weights_of
from tests.engine.test_decode import decoded, defined, relative
from tests.engine.test_plan import HASH, SAID
from winnow.base.errors import ModelError
from winnow.base.progress import Progress
from winnow.base.rng import generator
from winnow.engine.decode import Decoder
from winnow.engine.sparsity import IndexPredictor, Lookahead, LowRankPredictor, Plan, calibrate, read_plan
from winnow.engine.sparsity.frontier import frontier, labelled
from winnow.engine.sparsity.observe import observe
from winnow.engine.sparsity.plan import KEY
from winnow.engine.sparsity.predictor import whitened_svd
from winnow.engine.sparsity.resume import Stages, packed, unpacked
from winnow.kernels import open_cpu

CALIBRATE = importlib.import_module("winnow.engine.sparsity.calibrate")
INDEX = dataclasses.replace(QUICK, predictor="index")


@pytest.fixture(scope="module")
def opt():
    return weights_of("opt")


@pytest.fixture(scope="module")
def seen(opt):
    return observe(opt, text(1100), 800, lambda done: None)[0]


@pytest.fixture
def few(rng):
    return torch.randint(0, 211, (9,), generator=rng)


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_every_lookahead_is_decoded_as_it_is_defined(name, lookahead, few, rng):
    weights = weights_of(name)
    predictors = indexes(weights, rng, lookahead)
    expected, shares = defined(weights, predictors, few)
    found, counts = decoded(weights, predictors, few.tolist())
    assert relative(found, expected) < 2e-5
    assert 0.2 < counts.mlp_density < 0.8
    assert counts.mlp_density == pytest.approx(shares.density, abs=1e-3)


def test_all_neurons_are_the_dense_model(opt, few, rng):
    dense, _ = decoded(opt, (None,) * len(opt.layers), few.tolist())
    full, counts = decoded(opt, indexes(opt, rng, margin=1e6), few.tolist())
    assert counts.mlp_density == 1.0
    assert relative(full, torch.from_numpy(dense)) < 1e-6


def test_two_threads_give_the_bits_of_one(opt, few, rng):
    predictors = indexes(opt, rng)
    one, _ = decoded(opt, predictors, few.tolist(), threads=1)
    two, _ = decoded(opt, predictors, few.tolist(), threads=2)
    assert np.array_equal(one, two)


def test_each_sequence_has_the_bits_it_has_alone(rng):
    weights = loaded("opt", torch.float32)
    assert same(Decoder(weights, indexes(weights, rng), open_cpu(2)), 3, rng)


def test_what_is_read_is_what_is_stored_and_the_cosines(opt, rng):
    for predictor in indexes(opt, rng):
        stored = sum(each.nbytes for each in predictor.tensors.values())
        assert predictor.n_bytes == stored + 4 * (predictor.n_signs + 1)


def test_a_lower_threshold_selects_more(opt, seen, rng):
    predictor = indexes(opt, rng)[0]
    counts = [(predictor.lowered(by).scores(seen.views) > 0).sum().item() for by in (-0.3, 0.0, 0.3)]
    assert counts[0] < counts[1] < counts[2]


def test_recall_grows_with_signs(opt, seen):
    layer = opt.layers[0]
    factors = whitened_svd(layer.mlp.w_in.float(), layer.mlp.bias, seen.moments)
    rows, rank = labelled(layer, seen), min(layer.mlp.width, 16)
    recalls = []
    for n_signs in (64, 256, 1024):
        scores = factors.index(n_signs, rank, generator(5)).scores(rows.view)
        selected = scores > scores.flatten().quantile(0.5)
        recalls.append((selected & (rows.before > 0)).sum().item() / (rows.before > 0).sum().item())
    assert recalls[0] < recalls[1] < recalls[2]


def test_settings_survive_being_kept(opt, seen, tmp_path):
    choices = frontier(opt.layers[0], seen, ["index"])
    stages = Stages(tmp_path, {})
    stages.save("fit", *packed(choices))
    stage = stages.load("fit")
    assert stage is not None
    ours, read = choices[-1].predictor, unpacked(stage)[-1].predictor
    assert isinstance(ours, IndexPredictor)
    assert isinstance(read, IndexPredictor)
    assert torch.equal(ours.scores(seen.views), read.scores(seen.views))


def test_a_plan_of_indexes_is_calibrated_resumed_and_read_back(opt, tmp_path, monkeypatch):
    options = dataclasses.replace(INDEX, max_predictor_share=100.0)  # a tiny model's are as large as itself
    plan = calibrate(opt, HASH, text(1100), options)
    assert {"dense", "index"} >= {"dense" if each is None else each.kind for each in plan.layers}
    update = Progress.update

    def interrupted(self: Progress, number: int, note: str = "") -> None:
        if (self.label, number) == ("fitting predictors", 2):
            raise KeyboardInterrupt
        update(self, number, note)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(opt, HASH, text(1100), options, tmp_path / "partial")
    again = calibrate(opt, HASH, text(1100), options, tmp_path / "partial")
    plan.save(tmp_path / "plan")
    again.save(tmp_path / "again")
    assert (tmp_path / "plan").read_bytes() == (tmp_path / "again").read_bytes()
    assert read_plan(tmp_path / "plan", opt.config, HASH).provenance.predictor == "index"


def test_automatic_choice_never_tries_it():
    assert "index" not in QUICK.kinds(True)
    assert INDEX.kinds(False) == ("index",)


@pytest.fixture
def path(opt, rng, tmp_path):
    Plan(SAID, indexes(opt, rng, Lookahead.NEXT)).save(tmp_path / "plan")
    return tmp_path / "plan"


def test_it_is_read_back_from_a_plan(opt, rng, tmp_path):
    held = indexes(opt, rng, Lookahead.NEXT)
    Plan(SAID, held).save(tmp_path / "plan")
    for ours, read in zip(held, read_plan(tmp_path / "plan", opt.config, HASH).layers, strict=True):
        assert isinstance(read, IndexPredictor)
        assert read.lookahead is Lookahead.NEXT
        assert read.tensors.keys() == ours.tensors.keys()
        assert all(torch.equal(read.tensors[name], tensor) for name, tensor in ours.tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.signs"), "only part of layer 0"),
        (lambda t: t.pop("layers.1.offset"), "only part of layer 1"),
        (lambda t: t.pop("layers.1.projection_scales"), "broken layer 1"),
        (lambda t: t.update({"layers.0.signs": t["layers.0.signs"].int()}), "broken layer 0 .*int64"),
        (lambda t: t.update({"layers.0.signs": t["layers.0.signs"][:, :0].contiguous()}), "broken layer 0"),
        (lambda t: t.update({"layers.0.signs": t["layers.0.signs"][1:].contiguous()}), "has shapes"),
        (lambda t: t.update({"layers.0.signs": t["layers.0.signs"].repeat(1, 2)}), "has shapes"),
        (lambda t: t.update({"layers.0.sizes": torch.ones(3)}), "has shapes"),
        (lambda t: t.update({"layers.0.bias": torch.ones(())}), "broken layer 0"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(change, message, path, opt):
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(said)})
    with pytest.raises(ModelError, match=message) as refused:
        read_plan(path, opt.config, HASH)
    assert "\n" not in str(refused.value)


def test_at_no_fewer_bytes_it_misses_more_than_the_closed_form(opt, seen):
    layer = opt.layers[0]
    factors = whitened_svd(layer.mlp.w_in.float(), layer.mlp.bias, seen.moments)
    low_rank = factors.predictor(layer.mlp.width // 4, torch.zeros(layer.mlp.n_neurons))
    index = factors.index(64, layer.mlp.width // 4, generator(5))
    assert isinstance(low_rank, LowRankPredictor)
    assert index.n_bytes >= low_rank.n_bytes
    rows = labelled(layer, seen)
    errors = [(rows.before - each.scores(rows.view)).square().mean() for each in (low_rank, index)]
    assert errors[0] < errors[1]
