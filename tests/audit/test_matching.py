"""Gradient matching: fits small inputs, says when it does not, and finds nothing in noise."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from tests.audit.models import VOCABULARY, tiny
from winnow.audit import gradients
from winnow.audit.encoders import Classifier
from winnow.audit.leakage import gradients_of
from winnow.audit.matching import (
    Matching,
    cosine,
    image_attack,
    label_of,
    match,
    matching_attack,
    squared,
    total_variation,
)
from winnow.base.errors import UsageError


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for a second thread longer than they run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIDE, PATCH, WIDTH, CLASSES = 8, 4, 24, 5


class VisionTransformer(nn.Module):
    """Patches, positions, one block as stock ones are built, and a head on the mean."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = 0.3 * torch.randn(parameter.shape, generator=rng)
                parameter.copy_(1 + drawn if parameter.ndim == 1 and len(parameter) == WIDTH else drawn)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.block(tokens).mean(1))


def of_image(model: nn.Module, image: Tensor, label: int) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(image[None]), torch.tensor([label]))
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def text_of(n: int, rng: torch.Generator) -> list[int]:
    return torch.randint(3, VOCABULARY, (n,), generator=rng).tolist()


def inversions(ids: list[int]) -> float:
    """Return a language's surprise, in which tokens rise."""
    return float(sum(a > b for a, b in combinations(ids, 2)))


@pytest.mark.parametrize(("family", "n"), [("gpt2", 7), ("bert", 7)])
def test_one_short_text_is_fitted_whole(family, n, rng):
    model = tiny(family, rng)
    model = Classifier.of(model) if family == "bert" else model
    text = text_of(n, rng)
    found = matching_attack(model, {k: 0.3 * g for k, g in gradients_of(model, [text]).items()})
    assert found.texts == (tuple(text),)
    assert found.certificate < 1e-5


def test_an_audit_by_matching_holds_its_controls(rng):
    found = gradients(tiny("bert", rng), [text_of(6, rng)], method="matching")
    assert not found.controls.failures
    assert found.score.exact_match == 1.0


def test_long_texts_several_texts_and_noise_are_not_claimed(rng):
    model = tiny("gpt2", rng)
    assert (
        "takes texts of at most 16" in matching_attack(model, gradients_of(model, [text_of(30, rng)])).reason
    )
    noise = {n: torch.randn(p.shape, generator=rng) for n, p in model.named_parameters()}
    assert matching_attack(model, noise).texts == ()
    several = gradients_of(model, [text_of(4, rng), text_of(4, rng)])
    found = matching_attack(model, several, options=Matching(steps=20, restarts=1))
    assert (found.texts, found.is_certified) == ((), False)
    assert "the nearest of 1 starts is off by" in found.reason


def test_a_language_model_settles_what_the_gradient_leaves_open(rng):
    model = Classifier.of(tiny("bert", rng))
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.weight.zero_()  # the order leaves no trace
    text = sorted(text_of(5, rng))
    given = gradients_of(model, [text])
    found = matching_attack(
        model, given, language=lambda ids: float(sum(a > b for a, b in combinations(ids, 2)))
    )
    assert found.texts == (tuple(text),)


def test_a_vision_transformers_image_is_fitted_and_its_label_read(rng):
    model = VisionTransformer(rng).eval()
    image = torch.randn(2, SIDE, SIDE, generator=rng)
    found = image_attack(
        model, of_image(model, image, 3), (2, SIDE, SIDE), options=Matching(steps=600, restarts=3)
    )
    assert found.label == 3
    assert found.distance < 1e-4
    assert float((found.pixels - image).square().mean()) < 0.01


@pytest.mark.parametrize("label", range(CLASSES))
def test_the_heads_gradient_names_the_label(label, rng):
    model = VisionTransformer(rng)
    with torch.no_grad():
        model.head.weight.mul_(0.1)  # a class that is all but certain makes two rows of one length
    given = of_image(model, torch.randn(2, SIDE, SIDE, generator=rng), label)
    assert label_of(given["head.weight"]) == label
    assert label_of(given["head.weight"], given["head.bias"]) == label


def test_a_gradient_without_a_head_is_refused(rng):
    with pytest.raises(UsageError, match="fc is not among the gradients"):
        image_attack(VisionTransformer(rng), {}, (2, SIDE, SIDE), head="fc")


def test_the_cosine_is_blind_to_scale_and_to_rounding_alone_and_the_squares_are_not(rng):
    observed = [torch.randn(3, 4, generator=rng), 1e-9 * torch.randn(4, generator=rng)]
    made = [2 * observed[0], torch.randn(4, generator=rng)]
    assert float(cosine(made, observed)) == pytest.approx(0, abs=1e-6)
    assert float(squared(made[:1], observed[:1])) == pytest.approx(1)


def test_a_prior_picks_among_inputs_that_make_the_same_gradient(rng):
    observed = [torch.tensor([3.0])]
    flat = match(
        lambda x: [x.sum()[None]],
        observed,
        [torch.randn(1, 2, 3, generator=rng)],
        Matching(distance=squared, prior=total_variation, weight=1.0),
    )
    assert flat.x.flatten().tolist() == pytest.approx([0.5] * 6, abs=1e-3)
