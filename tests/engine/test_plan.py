"""Plans of every kind and lookahead, on disk and against the model they belong to."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.engine import KvCache, bundled, load, parse_config
from winnow.engine.model import MlpInputs, forward
from winnow.engine.sparsity import (
    GatePredictor,
    LayerCounts,
    Lookahead,
    LowRankPredictor,
    Plan,
    SparseMlp,
    find_plan,
    open_plan,
    read_plan,
)
from winnow.engine.sparsity.plan import FORMAT, KEY, Provenance, read_provenance
from winnow.engine.sparsity.predictor import CrossMoments, InputMoments, whitened_svd
from winnow.engine.synthetic import opt_config, synthetic_model
from winnow.kernels import Matrix, QuantisedMatrix

HASH = "a" * 64
SAID = Provenance(HASH, "b" * 64, "next-layer", "auto", 0.001, 0.0005, 0.2, 0.99, 100, ("fp32",))
WIDTH, N_NEURONS = 12, 20
CONFIG = parse_config(
    {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": N_NEURONS,
        "num_attention_heads": 3,
        "num_hidden_layers": 4,
        "vocab_size": 50,
        "max_position_embeddings": 64,
    }
)
UNGATED = parse_config(opt_config(4, WIDTH, 3, 50) | {"ffn_dim": N_NEURONS})
QUALITY = tuple(LayerCounts(0.1 * i, 0.2, 0.9, 0.8, 0.99) for i in range(1, 5))


@pytest.fixture
def layers(rng):
    down, up = torch.randn(5, WIDTH, generator=rng), torch.randn(N_NEURONS, 5, generator=rng)
    bias = torch.randn(N_NEURONS, generator=rng)
    exact = LowRankPredictor(Matrix(down), Matrix(up), bias, "low-rank", Lookahead.HALF)
    held = LowRankPredictor(QuantisedMatrix.of(down), QuantisedMatrix.of(up), bias, "svd", Lookahead.NEXT)
    return exact, None, GatePredictor(bias.abs()), held


@pytest.fixture
def path(layers, tmp_path):
    Plan(SAID, layers, QUALITY).save(tmp_path / "plan")
    return tmp_path / "plan"


def test_every_kind_and_lookahead_is_read_back(layers, path):
    again = open_plan(path, CONFIG, HASH, "fp32")
    assert again.provenance == SAID
    assert again.quality == QUALITY
    exact, dense, gate, held = again.layers
    assert dense is None
    assert (exact.kind, exact.lookahead) == ("low-rank", Lookahead.HALF)
    assert (gate.kind, gate.lookahead) == ("gate", Lookahead.SAME)
    assert (held.kind, held.lookahead) == ("svd", Lookahead.NEXT)
    assert torch.equal(exact.up.weight, layers[0].up.weight)
    assert torch.equal(gate.thresholds, layers[2].thresholds)
    assert torch.equal(held.down.values, layers[3].down.values)
    assert again.n_bytes == sum(each.n_bytes for each in layers if each)


def test_layers_may_share_a_tensor(layers, tmp_path):
    Plan(SAID, (layers[0], layers[0], layers[2], layers[2])).save(tmp_path / "plan")
    again = read_plan(tmp_path / "plan", CONFIG, HASH)
    assert torch.equal(again.layers[0].up.weight, again.layers[1].up.weight)


def test_a_plan_that_was_not_measured_says_nothing(layers, tmp_path):
    Plan(SAID, layers).save(tmp_path / "plan")
    assert read_plan(tmp_path / "plan", CONFIG, HASH).quality == ()


def test_counts_of_some_layers_only_are_refused(layers):
    with pytest.raises(UsageError, match="has 4 layers and counts of 3"):
        Plan(SAID, layers, QUALITY[:3])


def test_a_precision_that_is_not_listed_is_refused_by_name(path):
    with pytest.raises(UsageError, match="made for fp32 weights, these are bf16"):
        open_plan(path, CONFIG, HASH, "bf16")
    assert read_plan(path, CONFIG, HASH).provenance.precisions == ("fp32",)


def test_the_bundled_plan_runs_in_both_precisions_and_says_what_was_counted():
    pico = bundled("pico")
    plan = load(pico, dtype="bf16", threads=1).plan
    assert {"fp32", "bf16"} <= set(read_provenance(find_plan(pico)).precisions)
    assert all(0.5 < each.weighted_recall <= 1 for each in plan.quality)
    assert len(plan.quality) == len(plan.layers)


def test_a_plan_of_other_shapes_is_refused(path):
    for changes, message in (
        ({"n_layers": 5}, "has 4 layers, the model 5"),
        ({"width": 11}, "has shapes"),
        ({"n_neurons": 19}, "has shapes"),
    ):
        with pytest.raises(ModelError, match=message):
            read_plan(path, dataclasses.replace(CONFIG, **changes), HASH)


def test_a_gate_is_refused_where_there_are_no_gates(path):
    with pytest.raises(ModelError, match="has a gate in layer 2, the model's MLPs have none"):
        read_plan(path, UNGATED, HASH)


def test_the_plan_of_another_model_is_refused_before_its_shapes(path):
    with pytest.raises(ModelError, match="belongs to the model aaaaaaaaaaaa, this one is cccccccccccc"):
        read_plan(path, UNGATED, "c" * 64)


def spoil(path, change) -> None:
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(said, tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(said)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda said, t: said.update(format="winnow-plan/1"),
            rf"format .?winnow-plan/1.?, this .* reads {FORMAT}",
        ),
        (lambda said, t: said.pop("layers"), "no list of layers"),
        (lambda said, t: said.update(layers=[1, 2, 3, 4]), "no list of layers"),
        (lambda said, t: said["layers"].pop(), "has 3 layers"),
        (lambda said, t: said.update(precisions="fp32"), "broken header"),
        (lambda said, t: said.update(precisions=[4]), "broken header"),
        (lambda said, t: said.update(precisions=[]), "broken header"),
        (lambda said, t: said["layers"][1].pop("recall"), "broken header"),
        (lambda said, t: said["layers"][0].update(kind="oracle"), "'oracle' is no kind of predictor"),
        (lambda said, t: said["layers"][0].pop("kind"), "only part of layer 0"),
        (lambda said, t: said["layers"][3].update(lookahead="two-layer"), "broken layer 3"),
        (lambda said, t: t.pop("layers.2.thresholds"), "only part of layer 2"),
        (lambda said, t: t.pop("layers.3.down_scales"), "broken layer 3"),
        (lambda said, t: t.update({"layers.2.thresholds": torch.ones(N_NEURONS).int()}), "broken layer 2"),
        (lambda said, t: t.update({"layers.2.thresholds": torch.ones(())}), "broken layer 2"),
        (lambda said, t: t.update({"layers.0.down": torch.ones(())}), "broken layer 0"),
        (lambda said, t: t.update({"layers.0.up": torch.ones(N_NEURONS, 6)}), "has shapes"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(change, message, path):
    spoil(path, change)
    with pytest.raises(ModelError, match=message) as refused:
        read_plan(path, CONFIG, HASH)
    assert "\n" not in str(refused.value)


def correlated(rows: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a view of width 24 and what an MLP then reads: partly a map of it, partly news."""
    spread = torch.logspace(0, -1, 24)
    view = torch.randn(rows, 24, generator=rng) * spread + torch.randn(24, generator=rng)
    moved = view @ torch.randn(24, 24, generator=rng) / 24**0.5
    return view, moved + 0.3 * torch.randn(rows, 24, generator=rng) + torch.randn(24, generator=rng)


def crossed(view: torch.Tensor, own: torch.Tensor) -> InputMoments:
    view, own = view.double(), own.double()
    centred_view, centred_own = view - view.mean(0), own - own.mean(0)
    cross = CrossMoments(own.mean(0), centred_own.T @ centred_view / len(view))
    return InputMoments(view.mean(0), centred_view.T @ centred_view / len(view), cross)


def test_no_map_from_the_view_does_better_at_its_rank(rng):
    view, own = correlated(500, rng)
    w_in, bias = torch.randn(40, 24, generator=rng), torch.randn(40, generator=rng)
    factors = whitened_svd(w_in, bias, crossed(view, own), Lookahead.HALF)
    predictor = factors.predictor(5, torch.zeros(40))
    assert predictor.lookahead is Lookahead.HALF
    found = (predictor.scores(view) - (own @ w_in.T + bias)).square().mean().item()
    # The least of reduced-rank regression: what least squares leaves, and what its fit loses beyond rank 5.
    target, inputs = ((each - each.mean(0)).double() for each in (own @ w_in.T, view))
    fit = inputs @ torch.linalg.lstsq(inputs, target).solution
    lost = torch.linalg.svdvals(fit)[5:].square().sum() + (target - fit).square().sum()
    assert found == pytest.approx(lost.item() / target.numel(), rel=1e-3)


def test_the_mean_view_maps_to_the_mean_pre_activation_at_any_rank(rng):
    view, own = correlated(400, rng)
    w_in, bias = torch.randn(40, 24, generator=rng), torch.randn(40, generator=rng)
    predictor = whitened_svd(w_in, bias, crossed(view, own), Lookahead.NEXT).predictor(2, torch.zeros(40))
    expected = own.mean(0, keepdim=True) @ w_in.T + bias
    torch.testing.assert_close(predictor.scores(view.mean(0, keepdim=True)), expected, rtol=1e-4, atol=1e-4)


def test_a_view_of_the_input_itself_needs_no_cross(rng):
    _, own = correlated(400, rng)
    w_in, bias = torch.randn(40, 24, generator=rng), torch.randn(40, generator=rng)
    moments = crossed(own, own)
    plain = whitened_svd(w_in, bias, dataclasses.replace(moments, cross=None))
    looked = whitened_svd(w_in, bias, moments, Lookahead.HALF)
    thresholds = torch.zeros(40)
    torch.testing.assert_close(
        looked.predictor(6, thresholds).scores(own),
        plain.predictor(6, thresholds).scores(own),
        rtol=1e-3,
        atol=0.05,  # a step of int8
    )


@pytest.mark.parametrize("lookahead", Lookahead, ids=str)
def test_moments_that_do_not_belong_to_the_lookahead_are_refused(lookahead, rng):
    view, own = correlated(50, rng)
    moments = crossed(view, own)
    if lookahead is not Lookahead.SAME:
        moments = dataclasses.replace(moments, cross=None)
    with pytest.raises(UsageError, match="cross covariance"):
        whitened_svd(torch.ones(3, 24), torch.zeros(3), moments, lookahead)


def test_a_lookahead_names_what_is_read():
    own, attention, below = (torch.full((2, 3), float(i)) for i in range(3))
    inputs = MlpInputs(own, attention, below)
    assert [each.view(inputs)[0, 0].item() for each in Lookahead] == [0.0, 1.0, 2.0]


def test_what_is_counted_is_what_was_selected_and_what_it_weighed():
    model = synthetic_model(opt_config(1, 32, 2, 97), torch.float32, 0.3, seed=4)
    layer, predictor = model.weights.layers[0], model.predictors[0]
    every_other = torch.where(torch.arange(len(predictor.bias)) % 2 == 0, 1e6, -1e6)
    slot = SparseMlp((dataclasses.replace(predictor, bias=every_other),))
    ids = torch.randint(0, 97, (30,), generator=generator(3))
    seen = []

    def watched(index, layer, inputs):
        seen.append(inputs.own)
        return slot(index, layer, inputs)

    with torch.inference_mode():
        forward(model.weights, ids, KvCache(model.weights.config, 30, torch.float32), mlp=watched)
        fires = torch.relu(seen[0] @ layer.mlp.w_in.T + layer.mlp.bias).double()
        weighs = fires * layer.mlp.w_out.double().norm(dim=-1)
    (counts,) = slot.shares()
    assert counts == slot.overall()
    assert counts.density == 0.5
    assert counts.fired == (fires > 0).double().mean().item()
    assert counts.recall == pytest.approx(((fires[:, ::2] > 0).sum() / (fires > 0).sum()).item())
    assert counts.precision == pytest.approx((fires[:, ::2] > 0).double().mean().item())
    assert counts.weighted_recall == pytest.approx((weighs[:, ::2].sum() / weighs.sum()).item())


def test_a_share_of_nothing_is_whole():
    assert SparseMlp((None,)).overall() == LayerCounts(1.0, 1.0, 1.0, 1.0, 1.0)
