"""Encoders: texts whose tokens all see each other, read back from the gradient of a classification head."""

import pytest
import torch

from tests.audit.models import VOCABULARY, tiny
from winnow.audit import gradients
from winnow.audit.encoders import Classifier, encoder_attack
from winnow.audit.encoders.pairs import find_pairs
from winnow.audit.front import Front
from winnow.audit.leakage import audit_given, gradients_of
from winnow.audit.leakage.batches import stacked
from winnow.audit.leakage.spans import read_span
from winnow.base.errors import ModelError, UsageError

OPENS, CLOSES = 1, 2


def marked(rng: torch.Generator, lengths: tuple[int, ...]) -> list[list[int]]:
    """Return texts between an opening and a closing mark, tokens from the whole vocabulary but padding's."""
    drawn = [torch.randint(3, VOCABULARY, (n - 2,), generator=rng).tolist() for n in lengths]
    return [[OPENS, *each, CLOSES] for each in drawn]


def classifier(rng: torch.Generator) -> Classifier:
    return Classifier.of(tiny("bert", rng))


@pytest.mark.parametrize("n", [2, 23])
def test_one_text_is_found_whole_with_its_certificate(n, rng):
    model = classifier(rng)
    texts = marked(rng, (n,))
    found = encoder_attack(model, gradients_of(model, texts))
    assert found.texts == (tuple(texts[0]),)
    assert found.is_certified
    assert found.certificate < 1e-5


def test_one_text_is_found_without_the_embeddings_gradients(rng):
    model = classifier(rng)
    texts = marked(rng, (11,))
    given = {n: g for n, g in gradients_of(model, texts).items() if "embeddings" not in n}
    found = encoder_attack(model, given)
    assert found.texts == (tuple(texts[0]),)
    assert found.is_certified


def test_texts_of_one_batch_are_told_apart_with_their_lengths_and_repetitions(rng):
    model = classifier(rng)
    texts = marked(rng, (9, 7))
    texts.append(texts[1])
    found = encoder_attack(model, gradients_of(model, texts))
    assert sorted(found.texts) == sorted(map(tuple, texts))
    assert found.is_certified


def test_a_scaled_gradient_gives_away_as_much(rng):
    model = classifier(rng)
    texts = marked(rng, (8,))
    found = encoder_attack(model, {n: 0.037 * g for n, g in gradients_of(model, texts).items()})
    assert found.texts == (tuple(texts[0]),)
    assert found.is_certified


def test_right_angles_name_the_places_where_the_span_is_full(rng):
    model = classifier(rng)
    texts = marked(rng, (19, 17, 18))  # more inputs than dimensions
    given = gradients_of(model, texts)
    front = Front.of(model)
    span = read_span(stacked(given, front.layout.layers[0].reads))
    assert span.is_saturated
    pairs = find_pairs(front, span, given, 40)
    sure = {(int(pairs.tokens[n]), int(pairs.positions[n])) for n in pairs.is_sure.nonzero().squeeze(1)}
    true = {(token, place) for text in texts for place, token in enumerate(text)}
    assert sure <= true
    assert len(sure) > len(true) / 2
    assert "saturated" in encoder_attack(model, given).reason


def test_finds_nothing_in_noise(rng):
    model = classifier(rng)
    noise = {n: torch.randn(p.shape, generator=rng) for n, p in model.named_parameters()}
    found = encoder_attack(model, noise)
    assert (found.texts, found.is_certified) == ((), False)
    assert found.reason


def test_an_audit_of_an_encoder_holds_its_controls_and_exposes_the_text(rng):
    found = gradients(tiny("bert", rng), marked(rng, (13,)))
    assert not found.controls.failures
    assert (found.verdict, found.score.exact_match) == ("exposed", 1.0)


@pytest.mark.parametrize(("defence", "exact"), [("clip=0.01", 1.0), ("noise=1", 0.0), ("top-k=0.05", 0.0)])
def test_clipping_an_encoders_gradient_prevents_nothing_and_noise_does(defence, exact, rng):
    found = gradients(tiny("bert", rng), marked(rng, (9,)), defence=defence)
    assert found.score.exact_match == exact


def test_a_bare_encoder_is_read_and_never_certified(rng):
    model = classifier(rng)
    texts = marked(rng, (10,))
    given = {n.removeprefix("encoder."): g for n, g in gradients_of(model, texts).items()}
    found = encoder_attack(model.encoder, given)
    assert found.texts == (tuple(texts[0]),)
    assert not found.is_certified


def test_a_gradient_without_the_first_maps_is_said_so(rng):
    model = classifier(rng)
    given = {n: g for n, g in gradients_of(model, marked(rng, (6,))).items() if "query" not in n}
    assert encoder_attack(model, given).reason.startswith("the gradient of layer 0's query")


def test_causal_models_updates_of_encoders_and_unknown_methods_are_refused(rng):
    causal = tiny("gpt2", rng)
    for read in (Classifier.of, lambda model: encoder_attack(model, {})):
        with pytest.raises(ModelError, match="the model is causal"):
            read(causal)
    with pytest.raises(ModelError, match="the base is an encoder"):
        audit_given(tiny("bert", rng), {})
    with pytest.raises(UsageError, match="'guess' is no method"):
        gradients(causal, [[3, 4]], method="guess")
