"""Ends: how often a text occurs and its last token, from the head's gradient.   (floor 5 · audit)

The last token of a text is a label alone: no layer's input holds it. But when all that comes before is known,
so are the last states h_n and the probabilities p_n after every beginning n, and the head's gradient is

    c sum_n w_n p_n h_n^T  -  c sum over labels y of h_n into row y

with c the loss's scale and w_n how many texts begin so. The rows of tokens that are nobody's label or input,
nearly all of them, give c w_n by least squares. w_n less the weights of its continuations is how many texts
end behind n, even where others go on (a text that begins another), and w_n = 2 is a duplicate. As no text
ends less than never, a w_n that the rows hardly tell, p_n being all but certain, is told by its neighbours.
What the rows then lack are the last labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import nnls
from torch import Tensor, nn

from winnow.audit.families import Layout
from winnow.audit.leakage.batches import error_of, padded
from winnow.audit.leakage.search import Tree

ORDINARY_ROWS = 8192
LABELLED = 20.0  # times the usual size, against what a row should be: it is somebody's label
OUTLIER = 5.0  # times the median of what a fit leaves: so is this
FAINTEST = 1e-30  # a chance below which float32 holds no digits of a row's gradient
MOST_DOUBTS = 8  # leaves that are tried though the fit gives them no text
FITS = 8
SOLVED = 1e-14  # of a gram matrix's largest eigenvalue: below is rounding
WHOLE = 0.25  # how far a weight may be from a whole number
SETTLED = 4  # rounds in which the last tokens of a tied head settle


@final
@dataclass(frozen=True)
class Ended:
    """Texts with their ends: `texts` whole, `unit` the loss's scale c, and the gradient they make."""

    texts: tuple[tuple[int, ...], ...]
    unit: float
    gradients: Mapping[str, Tensor]


def plain_texts(tree: Tree) -> tuple[tuple[int, ...], ...]:
    """Return the texts as the search leaves them: each once, without its last token."""
    return tuple(tuple(tree.path(leaf)) for leaf in tree.leaves)


def end_texts(model: nn.Module, layout: Layout, tree: Tree, gradients: Mapping[str, Tensor]) -> Ended | None:
    """Return the texts of `tree` with ends, counts and last tokens; None where the head does not tell.

    That is where its gradient is missing, where every row is somebody's token, or where the weights are far
    from whole numbers: noise. Costs one forward pass, and one backward pass per round (one, or up to
    `SETTLED` where the head is tied and a last token occurs as an input).
    """
    if layout.head is None or layout.head.weight not in gradients or not tree.tokens:
        return None
    with torch.enable_grad():
        run = _Run.of(model, layout, tree)
    observed = layout.head.matrix(gradients).mT.float()
    weights = _weights(run, observed, layout.is_tied)
    if weights is None:
        return None
    counts, unit = weights
    ends = counts.clone()
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            ends[parent] -= counts[node]
    if bool((ends < 0).any()) or not bool((ends > 0).any()):
        return None
    best = _with_last_tokens(run, observed, counts, ends, unit)
    for leaf in [leaf for leaf in tree.leaves if not counts[leaf]][:MOST_DOUBTS]:
        ended = _moved(tree, counts, ends, leaf)
        if ended is not None:
            tried = _with_last_tokens(run, observed, *ended, unit)
            if error_of(tried.gradients, gradients) < error_of(best.gradients, gradients):
                best, (counts, ends) = tried, ended
    return best


def _moved(tree: Tree, counts: Tensor, ends: Tensor, leaf: int) -> tuple[Tensor, Tensor] | None:
    """Return counts and ends with one text that ended on the way to `leaf` going on to it; None without one.

    The leaf was found, yet the fit gives it nothing: its next token may be all but certain, or it is no
    text's. The gradient decides.
    """
    counts, ends = counts.clone(), ends.clone()
    node = leaf
    while node >= 0 and not ends[node]:
        counts[node] += 1
        node = tree.parents[node]
    if node < 0:
        return None
    ends[node] -= 1
    ends[leaf] += 1
    return counts, ends


@final
@dataclass(frozen=True)
class _Run:
    """One forward pass over the leaves of a tree, its graph kept."""

    layout: Layout
    tree: Tree
    wanted: Mapping[str, Tensor]  # the parameters whose gradients are compared
    logits: Float[Tensor, "N V"]  # of every node
    states: Float64[Tensor, "N D"]

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, tree: Tree) -> "_Run":
        paths = [tree.path(leaf) for leaf in tree.leaves]
        seen: list[Tensor] = []
        head = model.get_output_embeddings()  # pyright: ignore
        handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        try:
            logits = model(input_ids=padded(paths, 0)).logits
        finally:
            handle.remove()
        rows, columns = _places(tree)
        first = layout.layers[0]
        names = {place.weight for place in first.reads}
        assert layout.head is not None
        names.add(layout.head.weight)
        named = dict(model.named_parameters())
        wanted = {name: named[name] for name in sorted(names) if named[name].requires_grad}
        return cls(layout, tree, wanted, logits[rows, columns], seen[0].detach()[rows, columns].double())

    def gradients(
        self, labels: Sequence[tuple[int, int, int]], counts: Int64[Tensor, " N"], unit: float
    ) -> dict[str, Tensor]:
        """Return the gradients when node n predicts token y k times, for (n, y, k) in `labels`."""
        nodes, tokens, times = (torch.tensor(each) for each in zip(*labels, strict=True))
        log_sums = self.logits.logsumexp(1)
        loss = (counts * log_sums).sum() - (times * self.logits[nodes, tokens]).sum()
        named = list(self.wanted.values())
        found = torch.autograd.grad(unit * loss, named, retain_graph=True)
        return dict(zip(self.wanted, found, strict=True))


def _places(tree: Tree) -> tuple[Tensor, Tensor]:
    """Return a row and a column of the padded leaves for every node."""
    rows, columns = torch.zeros(2, len(tree.tokens), dtype=torch.int64)
    for row, leaf in enumerate(tree.leaves):
        node, column = leaf, len(tree.path(leaf)) - 1
        while node >= 0:
            rows[node], columns[node] = row, column
            node, column = tree.parents[node], column - 1
    return rows, columns


def _weights(run: _Run, observed: Float[Tensor, "V D"], is_tied: bool) -> tuple[Tensor, float] | None:
    """Return how many texts pass through each node, and the loss's scale."""
    chances = run.logits.detach().softmax(1)
    ordinary = torch.ones(len(observed), dtype=torch.bool)
    ordinary[list(set(run.tree.tokens))] = False  # inputs, where tied; labels of their predecessors
    rows = ordinary.nonzero().squeeze(1)
    rows = rows[:: max(len(rows) // ORDINARY_ROWS, 1)]
    chances, observed = chances[:, rows].double(), observed[rows].double()  # from here on, of these rows
    rows = (chances.sum(0) > FAINTEST).nonzero().squeeze(1)
    expected = (chances.mT @ run.states).norm(dim=1)
    sizes = observed.norm(dim=1) / expected.clamp(min=1e-300)
    rows = rows[sizes[rows] <= LABELLED * sizes[rows].median()] if len(rows) else rows
    lineage = _lineage(run.tree)
    weights = torch.zeros(0)
    for _ in range(FITS):
        if len(rows) < 2:
            return None
        scales = chances[:, rows].sum(0)
        shares, seen = chances[:, rows] / scales, observed[rows] / scales[:, None]
        gram = (shares @ shares.mT) * (run.states @ run.states.mT)
        right = ((shares @ seen.to(shares)) * run.states).sum(1)
        try:
            weights = lineage @ _ends(lineage.mT @ gram @ lineage, lineage.mT @ right)
        except RuntimeError:  # no end in 3 N steps: these are no weights of texts
            return None
        off = (seen - (shares.mT * weights) @ run.states).norm(dim=1)
        stays = off <= OUTLIER * off.median() + 1e-6 * seen.norm(dim=1).median()
        if bool(stays.all()):
            break
        rows = rows[stays]
    return _whole(weights)


def _lineage(tree: Tree) -> Float64[Tensor, "N N"]:
    """Return which nodes (rows) a text that ends behind a node (columns) passes through."""
    through = torch.eye(len(tree.tokens), dtype=torch.float64)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            through[:, node] += through[:, parent]
    return through


def _ends(gram: Float64[Tensor, "N N"], right: Float64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """Return how many texts end behind each node: the least squares that are not negative.

    A node whose next token is all but certain has next to no weight of its own. What ends behind it is told
    by those before it, through which the same texts pass.
    """
    values, vectors = torch.linalg.eigh(gram)
    stays = values > SOLVED * values[-1]
    roots = values[stays].sqrt()
    rows = (roots[:, None] * vectors[:, stays].mT).numpy()
    return torch.from_numpy(nnls(rows, ((vectors[:, stays].mT @ right) / roots).numpy())[0])


def _whole(weights: Float64[Tensor, " N"]) -> tuple[Tensor, float] | None:
    """Return `weights` as multiples of one unit, whole numbers; None where they are none."""
    heavy = weights[weights > 0.2 * weights.max()]
    if not len(heavy) or not bool(weights.isfinite().all()):
        return None
    for share in (1, 2, 3):
        unit = float(heavy.min()) / share
        counts = (weights / unit).round()
        if bool(((weights / unit - counts).abs() < WHOLE).all()) and bool((counts >= 0).all()):
            exact = float((weights * counts).sum() / counts.square().sum())
            return counts.long(), exact
    return None


def _with_last_tokens(
    run: _Run, observed: Tensor, counts: Int64[Tensor, " N"], ends: Int64[Tensor, " N"], unit: float
) -> Ended:
    """Return the texts with the tokens that the head's rows lack, and the gradient that all make."""
    tree = run.tree
    known = [(p, tree.tokens[n], int(counts[n])) for n, p in enumerate(tree.parents) if p >= 0 and counts[n]]
    last = ends.nonzero().squeeze(1)
    inverse = torch.linalg.pinv(run.states[last])  # (D, S)
    along = (run.states @ inverse).float()
    solve = inverse.float()  # the coefficients are whole numbers: float32 tells them apart
    # (V, S): how often the token ends the text
    coefficients = (
        run.logits.detach().float().softmax(1).mT @ (counts[:, None] * along) - observed @ solve / unit
    )
    for node, token, times in known:
        coefficients[token] -= times * along[node]
    labels = _likeliest(coefficients, ends[last])
    gradients: dict[str, Tensor] = {}
    for _ in range(SETTLED):
        ended = [(int(last[place]), token, times) for place, token, times in labels]
        gradients = run.gradients([*known, *ended], counts, unit)
        given = torch.zeros_like(coefficients)
        for place, token, times in labels:
            given[token, place] += times
        assert run.layout.head is not None
        made = run.layout.head.matrix(gradients).mT.float()
        better = _likeliest(given - (observed - made) @ solve / unit, ends[last])
        if better == labels:
            break
        labels = better
    texts = [(*tree.path(int(last[place])), token) for place, token, times in labels for _ in range(times)]
    return Ended(tuple(sorted(texts)), unit, gradients)


def _likeliest(
    coefficients: Float[Tensor, "V places"], ends: Int64[Tensor, " places"]
) -> list[tuple[int, int, int]]:
    """Return (place, token, times): for each place as many last tokens as texts end there."""
    found = []
    for place, n_ends in enumerate(ends.tolist()):
        left = coefficients[:, place].clone()
        taken: dict[int, int] = {}
        for _ in range(n_ends):
            token = int(left.argmax())
            taken[token] = taken.get(token, 0) + 1
            left[token] -= 1
        found += [(place, token, times) for token, times in sorted(taken.items())]
    return found
