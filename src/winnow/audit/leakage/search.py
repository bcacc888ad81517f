"""Search: from candidates to texts, one position after the other.   (floor 5 · audit)

In a causal layer the MLP's input at position p depends on the tokens 0..p alone. So a beginning that is
known is tried with each candidate for its next token, and goes on with those whose MLP input lies in the span
of the MLP's gradient: tokens in a wrong order make another input, which leaves the span. Keys and values of
the beginnings are kept; a trial costs one row of the first layer.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.audit.front import Front
from winnow.audit.leakage.spans import Span
from winnow.base.errors import ResourceError

MOST_BEGINNINGS = 4096
ROWS = 4096  # tried at a time
# Rotary positions turn keys, not values: a token that repeats from the start on makes the same states again,
# and "a", "a a", "a a a" are told apart only by what follows.
LONGEST_REPEAT = 4


@final
@dataclass(frozen=True)
class Tree:
    """Beginnings of texts: node n is `tokens[n]` after the beginning `parents[n]` (-1: at the start).

    Parents come before their children.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    tried: int

    def path(self, node: int) -> list[int]:
        """Return the tokens from the start to `node`."""
        found: list[int] = []
        while node >= 0:
            found.append(self.tokens[node])
            node = self.parents[node]
        return found[::-1]

    @property
    def leaves(self) -> list[int]:
        """The beginnings that nothing continues."""
        inner = set(self.parents)
        return [node for node in range(len(self.tokens)) if node not in inner]


def grow(front: Front, span: Span, candidates: list[Int64[Tensor, " _"]]) -> Tree:
    """Return every text whose MLP inputs lie in `span`, its tokens from `candidates` of their positions.

    Raises ResourceError when more than `MOST_BEGINNINGS` are alive at one position: the span then tells
    hardly anything.
    """
    tokens: list[int] = []
    parents: list[int] = []
    tried = 0
    state = _State.start(front)
    for position, ids in enumerate(candidates):
        if not len(ids) or not len(state.nodes):
            break
        n_rows = max(len(state.nodes) * len(ids) * len(candidates), 1)
        whose, which = _survivors(front, span, state, _Rows.of(front, ids, position), n_rows)
        tried += len(state.nodes) * len(ids)
        if front.rotary is not None and position >= LONGEST_REPEAT:
            repeats = torch.tensor([_is_constant(tokens, parents, int(node)) for node in state.nodes])
            first_tokens = torch.tensor([tokens[int(node)] for node in state.nodes])
            stays = ~(repeats[whose] & (first_tokens[whose] == ids[which]))
            whose, which = whose[stays], which[stays]
        if len(whose) > MOST_BEGINNINGS:
            raise ResourceError(
                f"{len(whose)} beginnings fit at position {position}: the gradient does not tell them apart."
            )
        first = len(tokens)
        tokens += ids[which].tolist()
        parents += state.nodes[whose].tolist()
        state = state.continued(_Rows.of(front, ids, position), whose, which, first)
    tree = Tree(tuple(tokens), tuple(parents), tried)
    return tree if front.rotary is None else _without_repeats(tree)


def _is_constant(tokens: list[int], parents: list[int], node: int) -> bool:
    """Return whether all tokens from the start to `node` are one."""
    token = tokens[node]
    while node >= 0:
        if tokens[node] != token:
            return False
        node = parents[node]
    return True


def _without_repeats(tree: Tree) -> Tree:
    """Take away beginnings of one repeated token that nothing else continues."""
    tokens, parents = list(tree.tokens), list(tree.parents)
    stays = [parents[n] < 0 or not _is_constant(tokens, parents, n) for n in range(len(tokens))]
    for node in reversed(range(len(tokens))):  # children come after their parents
        if stays[node] and parents[node] >= 0:
            stays[parents[node]] = True
    kept = [node for node in range(len(tokens)) if stays[node]]
    place = {-1: -1} | {node: number for number, node in enumerate(kept)}
    return Tree(tuple(tokens[n] for n in kept), tuple(place[parents[n]] for n in kept), tree.tried)


@final
@dataclass(frozen=True)
class _Rows:
    """Candidates at one position: their streams, queries, keys and values, whatever stands before."""

    x: Tensor  # (N, D)
    q: Tensor  # (N, H, E)
    k: Tensor  # (N, K, E)
    v: Tensor

    @classmethod
    def of(cls, front: Front, ids: Tensor, position: int) -> "_Rows":
        positions = torch.full_like(ids, position)
        x = front.embed(ids, positions)
        z = front.attention_input(0, x)
        return cls(x, front.query(0, z, positions), front.key(0, z, positions), front.value(0, z))


@final
@dataclass(frozen=True)
class _State:
    """The beginnings that are alive, with their keys and values (N, T, K, E)."""

    nodes: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def start(cls, front: Front) -> "_State":
        empty = torch.zeros(1, 0, front.layout.n_kv_heads, front.layout.head_width)
        return cls(torch.tensor([-1]), empty, empty)

    def continued(self, rows: _Rows, whose: Tensor, which: Tensor, first: int) -> "_State":
        keys = torch.cat([self.keys[whose], rows.k[which][:, None]], 1)
        values = torch.cat([self.values[whose], rows.v[which][:, None]], 1)
        return _State(torch.arange(first, first + len(whose)), keys, values)


def _survivors(front: Front, span: Span, state: _State, rows: _Rows, n_rows: int) -> tuple[Tensor, Tensor]:
    """Return which beginning goes on with which candidate."""
    whose, which = [], []
    step = max(ROWS // len(rows.x), 1)
    for first in range(0, len(state.nodes), step):
        keys, values = state.keys[first : first + step], state.values[first : first + step]
        z = _mlp_inputs(front, keys, values, rows)
        held = span.holds(z.flatten(0, 1), n_rows).view(z.shape[:2])
        begun, continued = held.nonzero(as_tuple=True)
        whose.append(begun + first)
        which.append(continued)
    return torch.cat(whose), torch.cat(which)


def _mlp_inputs(
    front: Front, keys: Float[Tensor, "B T K E"], values: Float[Tensor, "B T K E"], rows: _Rows
) -> Float[Tensor, "B N D"]:
    """Return the MLP input of every candidate behind every beginning."""
    n_kv, width = front.layout.n_kv_heads, front.layout.head_width
    q = rows.q.unflatten(1, (n_kv, -1)) / width**0.5  # (N, K, G, E)
    before = torch.einsum("nkge,btke->bnkgt", q, keys)
    own = torch.einsum("nkge,nke->nkg", q, rows.k).expand(len(keys), -1, -1, -1)
    weights = torch.cat([before, own[..., None]], -1).softmax(-1)
    mixed = torch.einsum("bnkgt,btke->bnkge", weights[..., :-1], values)
    mixed = mixed + weights[..., -1:] * rows.v[None, :, :, None, :]
    x = rows.x.expand(len(keys), -1, -1)
    return front.mlp_input(0, front.after_attention(0, x, mixed.flatten(2)))
