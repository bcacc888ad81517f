"""Attention inversion: what is read back from maps, and from what not."""

import pytest
import torch

from tests.audit.map_models import CAUSAL, N_TOKENS, build, maps, tokens
from winnow.audit.attention import (
    EXPOSURES,
    Exposure,
    FirstLayer,
    Shown,
    attention,
    decode_causal,
    decode_encoder,
    decode_prefix,
    precision,
)
from winnow.audit.attention.first_layer import Ask
from winnow.base.errors import ModelError, UsageError


@pytest.fixture(scope="module")
def gpt2():
    return build("gpt2")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def shown_as(exposure: Exposure, whole: torch.Tensor) -> Shown:
    seen = exposure.show(whole)
    return Shown(seen, precision(seen), exposure.is_averaged, exposure.top_k is not None)


@pytest.mark.parametrize("kind", [*CAUSAL, "bert"])
def test_queries_and_keys_are_those_that_the_model_attends_with(kind):
    model, ids = build(kind), tokens(7)
    layer = FirstLayer(model)
    made = [layer.make(token[None], place) for place, token in enumerate(ids)]
    q, k = (torch.cat([getattr(each, name) for each in made], 0) for name in ("q", "k"))
    scores = torch.einsum("the,she->hts", q, k)
    if layer.is_causal:
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), maps(model, ids), rtol=1e-5, atol=1e-6)
    assert layer.is_causal == (kind != "bert")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("of_keys", [False, True])
def test_scores_carried_back_are_those_of_whole_queries(kind, of_keys, rng):
    layer = FirstLayer(build(kind))
    assert layer.is_linear == (kind != "qwen3")  # its queries are normed
    heads = torch.tensor([3, 0, 0, 2, 1])
    vectors = torch.randn(5, layer.head_width, generator=rng)
    made = layer.make(torch.arange(N_TOKENS), 6)
    expected = ((made.k if of_keys else made.q)[:, heads] * vectors).sum(-1)
    found = layer.scores(6, [Ask(heads, vectors, of_keys)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_token_is_read_from_the_first_layer_the_first_included(kind):
    model, ids = build(kind), tokens(19)
    decoded = decode_causal(FirstLayer(model), shown_as(Exposure(), maps(model, ids)))
    assert decoded.tokens.tolist() == ids.tolist()
    assert decoded.is_whole
    assert float(decoded.margins.min()) > 100


@pytest.mark.parametrize("rounding", ["fp16", "bf16", "4 decimals", "3 decimals", "2 decimals", "8 bits"])
def test_rounding_per_head_maps_hides_nothing(gpt2, rounding):
    ids = tokens(15, seed=3)
    shown = shown_as(Exposure(rounding), maps(gpt2, ids))
    assert shown.precision.name == rounding
    assert decode_causal(FirstLayer(gpt2), shown).tokens.tolist() == ids.tolist()


def test_averages_and_largest_entries_are_read_once_the_first_token_is_known(gpt2):
    ids = tokens(13, seed=4)
    layer, whole = FirstLayer(gpt2), maps(gpt2, ids)
    for exposure in (Exposure(is_averaged=True), Exposure(top_k=3)):
        decoded = decode_causal(layer, shown_as(exposure, whole), first=int(ids[0]))
        assert decoded.tokens.tolist() == ids.tolist(), exposure.name


def test_averages_do_not_name_the_first_token(gpt2):
    shown = shown_as(Exposure(is_averaged=True), maps(gpt2, tokens(5)))
    with pytest.raises(UsageError, match="first"):
        decode_causal(FirstLayer(gpt2), shown)


@pytest.mark.parametrize("rounding", ["fp32", "fp16", "2 decimals"])
def test_an_encoder_is_read_from_its_first_and_last_token(rounding):
    model, ids = build("bert"), tokens(17)
    shown = shown_as(Exposure(rounding), maps(model, ids))
    decoded = decode_encoder(FirstLayer(model), shown, (int(ids[0]), int(ids[-1])))
    assert decoded.tokens.tolist() == ids.tolist()


@pytest.mark.parametrize(("layer", "likeliest"), [(0, None), (1, None), (1, 64)])
def test_any_layer_is_read_by_running_the_model(gpt2, layer, likeliest):
    ids = tokens(6, seed=5)
    shown = shown_as(Exposure("fp16"), maps(gpt2, ids, layer))
    gpt2.set_attn_implementation("eager")
    decoded = decode_prefix(gpt2, shown, layer, first=int(ids[0]), likeliest=likeliest)
    assert decoded.tokens.tolist() == ids.tolist()


def test_the_first_two_tokens_of_any_layer_are_found_together():
    model = build("gpt2")
    model.resize_token_embeddings(31)
    ids = tokens(4) % 31
    shown = shown_as(Exposure(), maps(model, ids, 1))
    model.set_attn_implementation("eager")
    assert decode_prefix(model, shown, 1).tokens.tolist() == ids.tolist()


def test_equal_tokens_are_reported_as_ties(gpt2):
    model, ids = build("gpt2", seed=8), tokens(9, seed=6)
    twin = (int(ids[4]) + 1) % N_TOKENS
    model.transformer.wte.weight.data[twin] = model.transformer.wte.weight.data[int(ids[4])]
    decoded = decode_causal(FirstLayer(model), shown_as(Exposure(), maps(model, ids)), first=int(ids[0]))
    assert float(decoded.margins[4]) == pytest.approx(1.0, abs=1e-3)
    assert not decoded.is_whole


@pytest.mark.parametrize("exposure", EXPOSURES, ids=lambda e: e.name)
def test_precision_is_read_off_the_numbers_and_holds(exposure, gpt2):
    whole = maps(gpt2, tokens(16))
    seen = exposure.show(whole)
    read = precision(seen)
    assert read.name == exposure.rounding
    if exposure.top_k is None:
        meant = whole.mean(0, keepdim=True) if exposure.is_averaged else whole
        assert bool(((seen - meant).abs() <= read.slack(meant) * 1.01 + 1e-7).all())


def test_the_audit_finds_the_planted_text_and_certifies_the_subject(gpt2):
    ids = tokens(11)
    before = gpt2.config._attn_implementation
    finding = attention(gpt2, maps(gpt2, ids))
    assert (finding.exact_match, finding.token_recall, finding.is_void) == (1.0, 1.0, False)
    assert finding.controls.planted_found
    assert not finding.controls.noise_found
    assert finding.recovered[0].token_ids == tuple(ids.tolist())
    assert finding.certificate["largest_deviation_of_remade_maps_in_slacks"] <= 1.5
    assert gpt2.config._attn_implementation == before


def test_maps_of_another_model_are_not_claimed(gpt2):
    finding = attention(gpt2, maps(build("gpt2", seed=99), tokens(11)), first=5)
    assert finding.exact_match == 0.0
    assert "equivalent" not in finding.verdict


def test_random_maps_yield_no_text(gpt2, rng):
    noise = torch.rand(4, 11, 11, generator=rng).tril() + torch.eye(11)
    finding = attention(gpt2, noise / noise.sum(-1, keepdim=True), first=5)
    assert (finding.exact_match, finding.is_void) == (0.0, False)


def test_the_audit_shows_what_each_exposure_reveals(gpt2):
    ids = tokens(5)
    finding = attention(gpt2, maps(gpt2, ids), truth=ids.tolist(), exposures=True)
    recalls = {row[0]: row[1] for row in finding.tables[0].rows}
    assert recalls["per head, fp32"] == recalls["per head, fp16"] == 1.0
    assert len(recalls) == len(EXPOSURES)


def broken(whole: torch.Tensor, how: str) -> torch.Tensor:
    made = whole.clone()
    match how:
        case "nan":
            made[1, 3, 2] = torch.nan
        case "scores":
            made = whole.clamp_min(1e-9).log()
        case "sums":
            made = whole * 0.9
        case "future":
            made = whole.flip(-1).flip(-2)
        case "heads":
            made = whole[:3]
        case "shape":
            made = whole[:, :, :-1]
        case "long":
            made = torch.eye(65).expand(4, 65, 65)
    return made


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nan", "NaN"),
        ("scores", "expected 0..1"),
        ("sums", "sums to 0.9"),
        ("future", "look ahead"),
        ("heads", "3 heads; expected 4"),
        ("shape", "have shape"),
        ("long", "at most the model's 64"),
    ],
)
def test_what_no_softmax_of_this_model_makes_is_refused_in_one_line(gpt2, how, says):
    with pytest.raises(ModelError, match=says) as caught:
        attention(gpt2, broken(maps(gpt2, tokens(9)), how))
    assert "\n" not in str(caught.value)


def test_models_of_unknown_kind_are_refused(gpt2):
    with pytest.raises(ModelError, match="expected a transformers model"):
        attention(torch.nn.Linear(3, 3), torch.eye(3)[None])
    with pytest.raises(ModelError, match="float32"):
        attention(build("gpt2").bfloat16(), maps(gpt2, tokens(5)))
