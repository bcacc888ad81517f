"""LoRA: what the gradients of low-rank adapters tell, by rounds.   (floor 5 · audit)

    y = z W + s z A^T B^T        dA = s B^T G^T Z  (R, D)        dB = s G^T Z A^T  (M, R)

In the first round B is zero and so is dA; the rows of dB lie in the span of the A z, in R dimensions: fewer
than R distinct inputs show, R or more show nothing. Later each dA holds R directions of the inputs' span, and
every adapter on the same input and every round on the same texts adds R: the span is whole once
``maps * R * rounds`` reach the distinct inputs. Holds for layer 0 while the embeddings are frozen.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.families import Adapter
from winnow.audit.front import Front
from winnow.audit.leakage.candidates import Filter
from winnow.audit.leakage.spans import Span, read_span
from winnow.base.errors import ModelError
from winnow.base.rng import generator

A_SEED = 0


def adapters(front: Front) -> tuple[Adapter, ...]:
    """Return the adapters that read layer 0's attention input, each once."""
    found = {place.adapter.a: place.adapter for place in front.layout.layers[0].reads if place.adapter}
    return tuple(found.values())


def capacity(front: Front, rounds: int) -> int:
    """Return how many distinct inputs `rounds` of gradients can show: maps * R * rounds."""
    return rounds * sum(adapter.rank for adapter in adapters(front))


def certified_tokens(
    front: Front, rounds: Sequence[Mapping[str, Tensor]], longest: int = 64
) -> list[Int64[Tensor, " _"]]:
    """Return for each position the tokens whose inputs the adapters' gradients of all `rounds` show.

    One entry for rotary models. Empty where the span is not whole: a partial span holds no input. Raises
    ModelError for a model without adapters on layer 0's attention.
    """
    pairs = adapters(front)
    if not pairs:
        raise ModelError("layer 0's attention has no LoRA adapters; expected lora_A and lora_B on it.")
    positions = torch.arange(min(longest, front.n_positions or 1))
    stack = [one[pair.a].mT for one in rounds for pair in pairs if bool(one[pair.a].any())]
    if stack:
        span = read_span(torch.cat(stack, 1))
        if span.rank == 0 or span.is_saturated:
            return [torch.zeros(0, dtype=torch.int64)] * len(positions)
        return Filter(front, span).candidates(positions, torch.arange(front.n_tokens))
    first = rounds[0]
    spans = [(front.parameters[pair.a], read_span(first[pair.b].mT)) for pair in pairs]
    return _in_first_round(front, spans, positions)


def first_a(n_rank: int, width: int) -> Float[Tensor, "R D"]:
    """Return the A of an adapter before its first round: always the same, public as a recipe's seed is."""
    return torch.randn(n_rank, width, generator=generator(A_SEED)) / width**0.5


def first_update(gradient: Float[Tensor, "D M"], n_rank: int) -> Float[Tensor, "D M"]:
    """Return what an adapter of rank `n_rank` changes in a map whose gradient is `gradient`, in round one.

    With B zero, dA is zero and ``dB = (A dW)^T``; a step along it moves the map by ``A^T A dW``.
    """
    a = first_a(n_rank, gradient.shape[0])
    return a.mT @ (a @ gradient)


def tokens_in_first_update(
    front: Front, given: Mapping[str, Tensor], n_rank: int, longest: int
) -> tuple[list[Int64[Tensor, " _"]], tuple[int, ...]]:
    """Return for each position the tokens that the `first_update` of layer 0's maps shows, and the ranks.

    One entry for rotary models. A is known and has full rank: ``A dW`` is read back from the update.
    """
    maps = {place.weight: place for place in front.layout.layers[0].reads}
    a = first_a(n_rank, front.width).double()
    spans = []
    for name, place in maps.items():
        whole = given[name].double() if place.is_input_first else given[name].double().mT
        spans.append((a.float(), read_span(torch.linalg.solve(a @ a.mT, a @ whole))))
    positions = torch.arange(min(longest, front.n_positions or 1))
    return _in_first_round(front, spans, positions), tuple(span.rank for _, span in spans)


def _in_first_round(front: Front, spans: Sequence[tuple[Tensor, Span]], positions: Tensor) -> list[Tensor]:
    """Test A z for every token in the span of each adapter's dB."""
    ids = torch.arange(front.n_tokens)
    found = []
    for position in positions:
        z = front.attention_input(0, front.embed(ids, position.expand(len(ids))))
        held = torch.zeros(
            len(ids), dtype=torch.bool
        )  # a query's gradient lacks the first token, a key's all
        for a, span in spans:
            held |= span.holds(z @ a.mT, len(ids) * len(positions))
        found.append(ids[held])
    return found
