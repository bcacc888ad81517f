"""Continuous inversion: which inputs maps allow, and when they allow one only."""

import numpy as np
import pytest

from winnow.audit.attention import Heads, align, ambiguity, closed_form, invert, spectral_start
from winnow.base.errors import UsageError
from winnow.base.rng import keyed


def maps_of(w: np.ndarray, x: np.ndarray, *, is_causal: bool = False) -> np.ndarray:
    scores = x.T @ w @ x
    if is_causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def system(kind: str, d: int, n: int, seed: int = 0, *, is_causal: bool = False) -> tuple[Heads, np.ndarray]:
    rng = keyed(seed, d * 100 + n)
    x = rng.standard_normal((d, n))
    match kind:
        case "positive":
            root = rng.standard_normal((d, d))
            w = (root @ root.T + 0.3 * np.eye(d))[None] / d
        case "any":
            w = rng.standard_normal((1, d, d)) / d**0.5
        case "low":
            w = (rng.standard_normal((1, d, 2)) @ rng.standard_normal((1, 2, d))) / d**0.5
        case _:
            rank = 4
            w = rng.standard_normal((int(kind), d, rank)) @ rng.standard_normal((int(kind), rank, d)) / d
    return Heads(w, maps_of(w, x, is_causal=is_causal)), x


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("d", [4, 5, 6, 7])
def test_one_head_leaves_the_group_of_its_matrix_open(d, is_causal):
    n = 3 * d
    positive = ambiguity(*system("positive", d, n, is_causal=is_causal))
    generic = ambiguity(*system("any", d, n, is_causal=is_causal))
    assert positive.free == d * (d - 1) // 2
    assert generic.free == d // 2
    assert "orthogonal" in positive.kind


def test_a_head_of_low_rank_leaves_what_it_does_not_see():
    d, n = 7, 20
    assert ambiguity(*system("low", d, n)).free >= (d - 2 * 2) * n


@pytest.mark.parametrize("is_causal", [False, True])
def test_several_heads_leave_nothing_open(is_causal):
    found = ambiguity(*system("3", 8, 20, is_causal=is_causal))
    assert (found.free, found.rank) == (0, 160)
    assert found.condition > 1


@pytest.mark.parametrize(("n", "is_enough"), [(6, False), (7, True)])
def test_causal_maps_count_their_equations(n, is_enough):
    rng = keyed(3, n)
    x, w = rng.standard_normal((6, n)), rng.standard_normal((2, 6, 6)) / 6**0.5
    found = ambiguity(Heads(w, maps_of(w, x, is_causal=True)), x)
    assert (found.equations >= found.unknowns) == is_enough  # H n (n - 1) / 2 against d n
    assert (found.free == 0) == is_enough


@pytest.mark.parametrize("is_causal", [False, True])
def test_inputs_are_found_from_a_start_nearby(is_causal):
    for seed in range(3):
        heads, x = system("3", 8, 16 if not is_causal else 20, seed, is_causal=is_causal)
        found = invert(heads, x + 0.1 * keyed(seed, 1).standard_normal(x.shape))
        assert np.abs(found.x - x).max() < 1e-6
        assert found.residual < 1e-9


def test_a_start_far_away_ends_elsewhere_and_says_so():
    heads, x = system("3", 8, 16)
    found = [invert(heads, keyed(s, 2).standard_normal(x.shape), steps=30) for s in range(4)]
    wrong = [f for f in found if min(np.abs(f.x - x).max(), np.abs(f.x + x).max()) > 1e-3]
    assert wrong
    assert all(f.residual > 1e-6 for f in wrong)


def test_the_sign_of_inputs_is_not_in_the_maps():
    heads, x = system("3", 5, 11)
    assert np.abs(heads.residual(-x)).max() < 1e-12


def test_the_products_are_those_of_the_jacobian():
    heads, x = system("3", 5, 7, is_causal=True)
    rng = keyed(9, 9)
    v, r = rng.standard_normal(x.shape), rng.standard_normal(heads.maps.shape)
    jacobian = heads.jacobian(x)
    np.testing.assert_allclose(heads.push(x, v).ravel(), jacobian @ v.ravel(), atol=1e-12)
    np.testing.assert_allclose(heads.pull(x, r).ravel(), jacobian.T @ r.ravel(), atol=1e-12)
    slope = (heads.residual(x + 1e-6 * v) - heads.residual(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(slope, heads.push(x, v), atol=1e-7)


def test_a_symmetric_head_is_solved_in_closed_form_up_to_a_turn():
    heads, x = system("positive", 5, 13)
    found = spectral_start(heads.w[0], heads.maps[0])
    assert np.abs(heads.residual(found)).max() < 1e-7
    assert np.abs(found - x).max() > 0.1  # turned
    places = (0, 2, 5, 7, 11)
    turned = align(found, heads.w[0], x[:, list(places)], places)
    np.testing.assert_allclose(turned, x, atol=1e-6)


def test_probabilities_and_output_give_the_inputs_in_closed_form():
    heads, x = system("any", 6, 9, is_causal=True)
    values = keyed(4, 4).standard_normal((6, 6))
    output = heads.maps[0] @ x.T @ values
    allowed = 1e-13 * np.linalg.cond(heads.maps[0]) * np.linalg.cond(values)
    assert allowed < 1e-2
    np.testing.assert_allclose(closed_form(heads.maps[0], values, output), x, atol=allowed)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda h, x: Heads(h.w, h.maps[:, :, :-1]), r"expected \(H, D, D\)"),
        (lambda h, x: Heads(h.w, -h.maps), "negative"),
        (lambda h, x: invert(h, x[:, 1:]), "start has shape"),
        (lambda h, x: spectral_start(h.w[0], h.maps[0]), "not symmetric"),
        (lambda h, x: spectral_start(np.eye(5), h.maps[0, :6, :6]), "more than 6"),
        (lambda h, x: closed_form(h.maps[0], np.zeros((5, 5)), x.T), "no inverse"),
        (lambda h, x: ambiguity(h, np.zeros((5, 400))), "at most 1500"),
    ],
)
def test_systems_that_do_not_fit_are_refused(call, says):
    heads, x = system("3", 5, 11)
    with pytest.raises(UsageError, match=says):
        call(heads, x)
