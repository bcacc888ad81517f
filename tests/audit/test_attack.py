"""The span attack: finds whole texts in gradients, finds none in noise, and says what it cannot see."""

from pathlib import Path

import pytest
import torch

import winnow
from tests.audit.models import CAUSAL, VOCABULARY, tiny
from winnow.audit.front import Front
from winnow.audit.leakage import gradients_of, score, span_attack
from winnow.audit.leakage.attack import position_rows, token_rows
from winnow.audit.leakage.batches import check_texts
from winnow.audit.leakage.ends import _ends, _lineage
from winnow.audit.leakage.search import Tree
from winnow.audit.leakage.spans import Span, noise_edge
from winnow.audit.leakage.update import load_model
from winnow.base.errors import ModelError, UsageError
from winnow.base.rng import generator
from winnow.engine.tokenizer import Tokenizer

# Lengths that no block divides; the fourth is the beginning of the second, the fifth is the third again.
LENGTHS = (6, 9, 4)
PICO = Path(winnow.__file__).parent / "zoo/pico"


def drawn(rng: torch.Generator, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [torch.randint(2, VOCABULARY, (n,), generator=rng).tolist() for n in lengths]


def awkward(rng: torch.Generator) -> list[list[int]]:
    texts = drawn(rng)
    return [*texts, texts[1][:5], texts[2]]


@pytest.mark.parametrize("family", CAUSAL)
def test_finds_whole_texts_with_prefixes_duplicates_and_last_tokens(family, rng):
    model = tiny(family, rng)
    texts = awkward(rng)
    found = span_attack(model, gradients_of(model, texts))
    assert sorted(found.texts) == sorted(map(tuple, texts))
    assert found.is_certified
    assert found.certificate < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_scaled_gradient_gives_away_as_much(family, rng):
    model = tiny(family, rng)
    texts = drawn(rng)
    gradients = {name: g * 0.037 for name, g in gradients_of(model, texts).items()}
    assert sorted(span_attack(model, gradients).texts) == sorted(map(tuple, texts))


@pytest.mark.parametrize("family", CAUSAL)
def test_finds_nothing_in_noise(family, rng):
    model = tiny(family, rng)
    noise = {n: torch.randn(p.shape, generator=rng) for n, p in model.named_parameters()}
    found = span_attack(model, noise)
    assert found.texts == ()
    assert not found.is_certified
    assert found.reason


def test_a_text_that_occurs_thrice_with_two_ends_is_found_thrice(rng):
    model = tiny("gpt2", rng)
    text, other = drawn(rng, (7, 5))  # the other says what one text weighs
    texts = [text, text, [*text[:-1], (text[-1] + 1) % VOCABULARY], other]
    assert sorted(span_attack(model, gradients_of(model, texts)).texts) == sorted(map(tuple, texts))


def test_a_last_token_that_is_also_an_input_is_found_with_a_tied_head(rng):
    model = tiny("gpt2", rng)
    (first, second) = drawn(rng, (6, 8))
    texts = [[*first, second[2]], [*second, first[0]], [*second[:4], second[1]]]
    assert sorted(span_attack(model, gradients_of(model, texts)).texts) == sorted(map(tuple, texts))


def nearly_certain(
    family: str, rng: torch.Generator, doubt: float
) -> tuple[torch.nn.Module, list[list[int]]]:
    """Return a model that leaves its last token's rivals about `doubt`, and a text that ends so."""
    model, (text,) = tiny(family, rng), drawn(rng, (7,))
    final = model.get_submodule({"gpt2": "transformer.ln_f", "llama": "model.norm"}[family]).weight
    before, low, high = final.detach().clone(), 1.0, 1e4
    with torch.no_grad():
        for _ in range(60):  # the sharper the logits, the surer the likeliest token
            final.copy_((low * high) ** 0.5 * before)
            left = model(input_ids=torch.tensor([text])).logits[0, -1].double().log_softmax(0)
            is_unsure = float(left.topk(2).values[1].exp()) > doubt
            low, high = ((low * high) ** 0.5, high) if is_unsure else (low, (low * high) ** 0.5)
    return model, [[*text, int(left.argmax())]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("doubt", [1e-3, 1e-4, 1e-5])
def test_a_last_token_that_is_all_but_certain_is_found(family, doubt):
    model, texts = nearly_certain(family, generator(0), doubt)
    found = span_attack(model, gradients_of(model, texts))
    assert found.texts == (tuple(texts[0]),)
    assert found.is_certified


@pytest.mark.parametrize(("family", "lost"), [("gpt2", "7 positions"), ("llama", "1 tokens")])
def test_what_lies_below_the_rounding_is_said_and_not_certified(family, lost):
    model, texts = nearly_certain(family, generator(0), 1e-9)
    found = span_attack(model, gradients_of(model, texts))
    assert found.texts != (tuple(texts[0]),)
    assert found.certificate < 1e-4
    assert not found.is_certified
    assert found.reason.startswith(lost)
    assert "below the rounding" in found.reason


def test_pico_is_read_where_it_is_sure_of_a_second_line_break():
    model, text = load_model(PICO), '."\n\n"Sir Eustace Brackenstall, the driver tells me."\n\n'
    ids = Tokenizer.open(PICO).encode(text, special=False)
    assert ids[-2:] == [202, 202]
    found = span_attack(model, gradients_of(model, [ids]), longest=48)
    assert (found.texts, found.is_certified) == ((tuple(ids),), True)


def test_texts_that_make_another_gradient_are_not_certified_and_said_so(rng):
    model = tiny("llama", rng)
    texts = drawn(rng)
    given = gradients_of(model, texts)
    given["lm_head.weight"] = (
        given["lm_head.weight"] * torch.where(torch.arange(VOCABULARY) % 9 > 0, 1.0, 0.8)[:, None]
    )
    found = span_attack(model, given)
    assert found.texts
    assert not found.is_certified
    assert "make a gradient off by" in found.reason


def test_the_loudest_direction_that_is_left_says_how_far_rows_may_leave_the_span():
    values = torch.tensor([1.0, 1e-10, 1e-14] + [1e-18] * 61, dtype=torch.float64)
    span = Span(values, torch.eye(64, dtype=torch.float64), 2, 1e-11, 200)
    loudest = 1e-7 / noise_edge(1.0, 62, 200)
    assert loudest > span.noise
    assert span.tilts.tolist() == pytest.approx([62 * loudest**2, 62 * loudest**2 * 1e10])
    assert Span(values, span.vectors, 64, 1e-11, 200).tilts.tolist() == [0.0] * 64


def test_ends_are_told_though_some_beginnings_have_no_weight_of_their_own(rng):
    tree = Tree((5, 6, 7, 8, 9), (-1, 0, 1, 0, 3), 0)  # 5 6 7 twice, 5 8 9 once
    passed = torch.tensor([3.0, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    told = torch.tensor([1.0, 1e-9, 1.0, 1e-9, 1.0], dtype=torch.float64)  # each alone
    lineage = _lineage(tree)
    noise = 1e-7 * torch.randn(5, generator=rng).double()
    gram, right = lineage.mT @ torch.diag(told**2) @ lineage, lineage.mT @ (told * (told * passed + noise))
    assert torch.allclose(lineage @ _ends(gram, right), passed, atol=1e-3)


def test_as_many_inputs_as_the_width_are_saturated_and_said_so(rng):
    model = tiny("gpt2", rng)
    texts = drawn(rng, (30,) * 9)
    found = span_attack(model, gradients_of(model, texts))
    assert found.texts == ()
    assert "saturated" in found.reason


def test_a_frozen_head_costs_the_last_tokens_alone(rng):
    model = tiny("llama", rng)
    texts = drawn(rng)
    gradients = gradients_of(model, texts)
    del gradients["lm_head.weight"]
    found = span_attack(model, gradients)
    assert sorted(found.texts) == sorted(tuple(text[:-1]) for text in texts)
    assert not found.has_last_tokens
    assert "last tokens" in found.reason


def test_a_frozen_layer_is_said_so(rng):
    model = tiny("opt", rng)
    gradients = {n: g for n, g in gradients_of(model, drawn(rng)).items() if "q_proj" not in n}
    found = span_attack(model, gradients)
    assert (found.texts, found.reason) == (
        (),
        "the gradient of layer 0's query, key and value maps is not there",
    )


def test_embedding_rows_are_the_tokens_and_position_rows_the_length(rng):
    texts = drawn(rng)
    untied, learned = tiny("llama", rng), tiny("opt", rng)
    tokens = token_rows(Front.of(untied), gradients_of(untied, texts))
    assert set(tokens.tolist()) == {token for text in texts for token in text[:-1]}
    assert position_rows(Front.of(learned), gradients_of(learned, texts)) == max(LENGTHS) - 1


def test_encoders_are_refused(rng):
    with pytest.raises(ModelError, match="reads causal models"):
        span_attack(tiny("bert", rng), {})


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "the batch is empty"),
        ([[3, 4], [5]], "a text has 1 tokens"),
        ([[3, VOCABULARY]], "token ids run from 3 to 211; the model knows 0 to 210"),
        ([[-100, 3]], "token ids run from -100"),
    ],
)
def test_batches_that_mean_nothing_are_refused(texts, says):
    with pytest.raises(UsageError, match=says):
        check_texts(texts, VOCABULARY)


def test_each_true_text_is_counted_once(rng):
    truth = [[1, 2, 3], [1, 2, 3], [4, 5, 6, 7]]
    once = score([(1, 2, 3)], truth)
    assert once.exact_match == pytest.approx(1 / 3)
    assert once.token_recall == pytest.approx(3 / 10)
    assert score([(4, 5, 6, 8), (1, 2, 3), (1, 2, 3), (9, 9)], truth).exact_match == pytest.approx(2 / 3)
    assert score([], truth).token_recall == 0.0
