"""The layer: whole sequences and single tokens agree, it learns, and it refuses what does not fit."""

import pytest
import torch

import winnow
from winnow.attention import Attention, AttentionSizes, linear, polynomial, softmax
from winnow.base.errors import UsageError
from winnow.base.rng import generator


def layer(kind, **options) -> Attention:
    attention = Attention(kind, AttentionSizes(12, 4, n_kv_heads=2), **options)
    rng = generator(3)
    with torch.no_grad():
        for p in attention.parameters():
            p.normal_(0, 0.2, generator=rng)
    return attention


@pytest.mark.parametrize("kind", [softmax(), linear(), polynomial(2)], ids=lambda kind: kind.label)
def test_single_tokens_agree_with_the_whole_sequence(kind, rng):
    attention, x = layer(kind), torch.randn(2, 9, 12, generator=rng)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False
    whole, state = attention(x, mask), attention.start(2)
    steps = [attention.step(x[:, t : t + 1], state, mask[:, t : t + 1]) for t in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert state.seen == 9


def test_every_weight_gets_a_gradient(rng):
    attention = layer(polynomial(4), bias=True)
    attention(torch.randn(2, 70, 12, generator=rng)).square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in attention.parameters())


def test_a_layer_in_bfloat16_stays_in_bfloat16(rng):
    attention = layer(linear()).bfloat16()
    assert attention(torch.randn(2, 9, 12, generator=rng).bfloat16()).dtype == torch.bfloat16


def test_wrong_sizes_and_steps_are_refused(rng):
    for sizes, says in [
        ((0, 4), "positive sizes"),
        ((12, 4, 3), "expected a multiple"),
        ((13, 4), "give head_width"),
        ((12, -1), "positive sizes"),
    ]:
        with pytest.raises(UsageError, match=says):
            AttentionSizes(*sizes)
    x = torch.randn(1, 2, 12, generator=rng)
    attention = layer(softmax())
    with pytest.raises(UsageError, match="step received 2 tokens"):
        attention.step(x, attention.start(1))
    whole = layer(softmax(), causal=False)
    with pytest.raises(UsageError, match="causal=False"):
        whole.step(x[:, :1], whole.start(1))
    assert AttentionSizes(13, 4, head_width=8).per_head == 8


def test_the_package_is_offered_by_name():
    assert winnow.attention.softmax is softmax
