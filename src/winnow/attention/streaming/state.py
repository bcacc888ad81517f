"""State: a stream's past in constant memory.   (floor 4 · attention)

The buffer holds the latest `window` to `window + block` tokens. When it is full, the next token first sends
the oldest block on: to the sinks, the heavy keys, or into the clusters. So what a query sees depends on its
position and on the tokens before it, not on how they were cut into calls.
"""

import dataclasses
from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from winnow.attention.gate import check_same_device, exactly
from winnow.attention.streaming.archive import Archive
from winnow.attention.streaming.certificate import Bounds, Certificate, bounds_of, certificate_of
from winnow.attention.streaming.clusters import Clusters
from winnow.attention.streaming.gate import (
    check_count,
    check_finite,
    check_queries,
    check_tokens,
    checked_mask,
    chosen_scale,
    rows_of,
)
from winnow.attention.streaming.held import Kept, Tokens, Window
from winnow.attention.streaming.options import StreamingOptions
from winnow.attention.streaming.reading import Queries, Reading, read
from winnow.attention.streaming.reservoir import Reservoir, drawn_priorities
from winnow.base.errors import UsageError

Sizes = tuple[int, int, int, int]  # B, K, E, E_v


@final
class StreamingState:
    """The past of B streams with K key-value heads, all at the same position; see `streaming`.

    `seen` counts the tokens of each stream, masked ones included. Tensors are float32, lie on one device and
    never grow; autocast does not reach them.
    """

    def __init__(self, options: StreamingOptions, sizes: Sizes, device: torch.device) -> None:
        if min(sizes) < 1:
            raise UsageError(
                f"batch, n_kv_heads, key_width, value_width are {sizes}; expected at least 1 each."
            )
        batch, heads, width, value_width = sizes
        rows, of = batch * heads, (width, value_width, device)
        self.options, self.sizes = options, sizes
        self.window = Window.empty(rows, options.held, *of)
        self.kept = Kept.empty(rows, options.sinks + options.heavy, *of)
        self.clusters = Clusters.empty(rows, options.clusters, *of)
        self.reservoir = Reservoir.empty(rows, options.reservoir, *of)
        self.archive = Archive.empty(rows, options.exact_tokens, *of)
        self.query_norm = torch.zeros(rows, device=device)  # mean of |scale q| over the queries so far
        self.query_count = torch.zeros(rows, dtype=torch.int64, device=device)
        self.device = self.query_norm.device  # with its index, where "cuda" was asked for
        self.seen = 0
        self.fill = 0  # tokens in the buffer
        self.n_blocks = 0  # that have left it

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors: constant from the first token to the last."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name; the first axis is batch times key-value heads."""
        found = {"query_norm": self.query_norm, "query_count": self.query_count}
        for name in ("window", "kept", "clusters", "reservoir", "archive"):
            part = getattr(self, name)
            found |= {f"{name}.{field.name}": getattr(part, field.name) for field in dataclasses.fields(part)}
        return found

    def append(
        self, k: Float[Tensor, "B K T E"], v: Float[Tensor, "B K T E_v"], mask: Tensor | None = None
    ) -> None:
        """Take in T tokens that no query of theirs reads; `mask` is bool [B, T], True for real tokens.

        Raises UsageError for wrong shapes, NaN, an empty chunk and beyond 2^31 - 1 tokens; nothing changed.
        """
        keys, values, real = self._entered(k, v, mask)
        for part in self._pieces(keys.shape[1]):
            self._put(keys[:, part], values[:, part], real[:, part])

    def step(
        self,
        q: Float[Tensor, "B H T_q E"],
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T_v E_v"],
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "B H T_q E_v"]:
        """Take in T tokens and return what their queries read, each seeing itself and what came before.

        Any cut of a stream into steps gives the same outputs to rounding. Raises as `append`; with `strict`
        also where the statistical bound exceeds the tolerance (the tokens are in the state by then).
        """
        return self._stepped(q, k, v, mask, scale, certify=False)[0]

    def certified_step(
        self,
        q: Float[Tensor, "B H T_q E"],
        k: Float[Tensor, "B K T E"],
        v: Float[Tensor, "B K T_v E_v"],
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> tuple[Float[Tensor, "B H T_q E_v"], Certificate]:
        """Return `step` and its certificate. Costs about another read of reservoir and clusters."""
        out, found = self._stepped(q, k, v, mask, scale, certify=True)
        return out, certificate_of(found, self._n_sampled())

    def read(self, q: Float[Tensor, "B H T E"], scale: float | None = None) -> Float[Tensor, "B H T E_v"]:
        """Return what queries at the latest position read of all tokens so far.

        They count as observers: their attention helps to decide which keys stay exact, so that appending one
        token and reading one query equals `step`. Raises UsageError on an empty state and wrong shapes.
        """
        return self._read_latest(q, scale, certify=False)[0]

    def certified_read(
        self, q: Float[Tensor, "B H T E"], scale: float | None = None
    ) -> tuple[Float[Tensor, "B H T E_v"], Certificate]:
        """Return `read` and its certificate."""
        out, found = self._read_latest(q, scale, certify=True)
        return out, certificate_of([found], self._n_sampled())

    def save(self) -> dict[str, Tensor]:
        """Return copies of all tensors, ready for safetensors; `kind.load` makes a state of them."""
        found = {name: tensor.clone() for name, tensor in self.tensors().items()}
        counts = [*self.sizes, self.seen, self.fill, self.n_blocks]
        return {**found, "counts": torch.tensor(counts, dtype=torch.int64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `save` returned; raises UsageError if it belongs to other options or sizes."""
        own = self.tensors()
        for name, tensor in own.items():
            given = tensors.get(name)
            if given is None or given.shape != tensor.shape or given.dtype != tensor.dtype:
                said = "missing" if given is None else f"{given.dtype} {list(given.shape)}"
                raise UsageError(
                    f"{name} is {said}, this state holds {tensor.dtype} {list(tensor.shape)}; load it "
                    "with the options it was saved under."
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.seen, self.fill, self.n_blocks = tensors["counts"][4:].tolist()

    def select(self, index: Int64[Tensor, " N"]) -> None:
        """Let the batch be the entries at `index`, in that order; they may repeat (beams) or be missing."""
        batch, heads = self.sizes[:2]
        if index.ndim != 1 or len(index) == 0 or bool(((index < 0) | (index >= batch)).any()):
            raise UsageError(f"index holds entries outside 0..{batch - 1}, or none; give rows of the batch.")
        rows = (index.to(self.device)[:, None] * heads + torch.arange(heads, device=self.device)).flatten()
        for name in ("window", "kept", "clusters", "reservoir", "archive"):
            part = getattr(self, name)
            for field in dataclasses.fields(part):
                setattr(part, field.name, getattr(part, field.name)[rows])
        self.query_norm, self.query_count = self.query_norm[rows], self.query_count[rows]
        self.sizes = (len(index), *self.sizes[1:])

    def merge(self, other: "StreamingState") -> None:
        """Take in the stream that follows this one, read by another state; `other` stays as it is.

        No token is lost: counts, means and pooled covariances add exactly; which keys are heavy is decided
        anew. Equals reading on to rounding while `other` has sent no block on; afterwards its sinks compete
        with the heavy keys. Rotary keys must carry the positions of the joint stream. Raises UsageError for
        other options or sizes, and where old tokens have moved already (position "cache" or "clamp").
        """
        self._check_joins(other)
        before = self.seen
        if other.n_blocks == 0:
            part = slice(0, other.fill)
            for piece in self._pieces(other.fill):
                self._put(*(x[:, part][:, piece] for x in _buffer(other.window)))
        else:
            while self.fill > 0:
                self._flush(min(self.fill, self.options.block))
            old = other.kept.heavy(0)
            for start in range(0, old.key.shape[1], self.options.block):
                at = torch.arange(
                    start, min(start + self.options.block, old.key.shape[1]), device=self.device
                )
                self._send_on(old.picked(at.repeat(len(old.key), 1)))
            with exactly(self.device):
                labels = self.clusters.join(other.clusters, self.reservoir.relabel)
            theirs = labels.gather(1, other.reservoir.label.clamp(min=0))
            self.reservoir.add(other.reservoir.key, other.reservoir.value, other.reservoir.priority, theirs)
            for name, tensor in self.tensors().items():
                if name.startswith("window."):
                    tensor.copy_(other.tensors()[name])
            self.fill, self.n_blocks = other.fill, self.n_blocks + other.n_blocks
            self.seen = before + other.seen
            self.archive.put(before, other.archive.key, other.archive.value, other.archive.is_real)
        n_theirs = other.query_count
        self.query_count += n_theirs
        share = n_theirs / self.query_count.clamp(min=1)
        self.query_norm += share.float() * (other.query_norm - self.query_norm)

    def _n_sampled(self) -> Tensor:
        return self.reservoir.priority.isfinite().sum(-1)

    def _check_joins(self, other: "StreamingState") -> None:
        if other is self or other.options != self.options or other.sizes != self.sizes:
            raise UsageError(
                f"merge received a state of sizes {other.sizes}; expected another one of sizes "
                f"{self.sizes} with equal options."
            )
        check_same_device("the other state", other.query_norm, "this one", self.query_norm)
        if self.options.shift(self.seen + other.seen):
            raise UsageError(
                f"merge cannot join states whose old tokens move (position={self.options.position!r} beyond "
                f"{self.options.reach} tokens); read the second part by the first state."
            )
        check_count(self.seen, other.seen)

    def _entered(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Check new tokens; return them as rows in float32, masked ones zeroed."""
        check_tokens(k, v, self.sizes)
        check_same_device("k", k, "the state", self.query_norm)
        check_same_device("v", v, "k", k)
        batch, heads = self.sizes[:2]
        real = checked_mask(mask, batch, k.shape[2], k.device).repeat_interleave(heads, 0)
        check_count(self.seen, k.shape[2])
        keys = rows_of(k, batch * heads).masked_fill(~real[..., None], 0)
        values = rows_of(v, batch * heads).masked_fill(~real[..., None], 0)
        check_finite(keys, values)
        return keys, values, real

    def _pieces(self, n: int) -> Iterator[slice]:
        """Cut `n` new tokens where blocks leave, and to blocks so that a read's memory is bounded."""
        start = 0
        while start < n:
            if self.fill == self.options.held:
                self._flush(self.options.block)
            size = min(n - start, self.options.held - self.fill, self.options.block)
            yield slice(start, start + size)
            start += size

    def _put(self, keys: Tensor, values: Tensor, real: Tensor) -> None:
        self.window.put(self.fill, keys, values, real)
        self.archive.put(self.seen, keys, values, real)
        self.fill += keys.shape[1]
        self.seen += keys.shape[1]

    def _flush(self, n: int) -> None:
        """Send the oldest `n` tokens of the buffer on."""
        keys, values, real = (x[:, :n] for x in _buffer(self.window))
        moved = self.options.shift(self.seen)
        if moved and self.options.rotation is not None:
            keys = self.options.rotation.turned(keys, torch.full((n,), -moved, device=keys.device))
        heads = self.sizes[1]
        drawn = drawn_priorities(self.options.seed, self.n_blocks, heads, n, self.device)
        self._send_on(Tokens(keys, values, real, self.window.lift(n), drawn.repeat(self.sizes[0], 1)))
        self.window.drop(n)
        self.fill -= n
        self.n_blocks += 1

    def _send_on(self, tokens: Tokens) -> None:
        """Let tokens become sinks or heavy keys, and absorb those that are neither."""
        n_sinks = self.options.sinks
        with exactly(self.device):
            self.kept.sink(tokens, n_sinks)
            rivals = self.kept.heavy(n_sinks).joined(tokens)
            lightest = self.kept.compete(tokens, n_sinks, self._scores(rivals))
            keys, values, ok = lightest.key, lightest.value, lightest.is_real
            if bool(ok.any()):
                labels = self.clusters.absorb(keys, values, ok, self.reservoir.relabel)
                self.reservoir.add(keys, values, lightest.sampling(), labels)

    def _scores(self, tokens: Tokens) -> Tensor:
        """Return how heavy each token is, in nats: see held.py."""
        there = tokens.is_real.float()[..., None]
        middle = (there * tokens.key).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        to_middle = (tokens.key - middle).square().sum(-1)
        nearest = self.clusters.distances(tokens.key).amin(-1)
        far = torch.where(nearest.isinf(), to_middle, nearest).sqrt()
        norm = torch.where(self.query_count > 0, self.query_norm, 1.0)[:, None]
        return torch.maximum(far * norm * self.sizes[2] ** -0.5, tokens.lift)

    def _stepped(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        *,
        certify: bool,
    ) -> tuple[Tensor, list[Bounds]]:
        check_tokens(k, v, self.sizes)
        check_queries(q, k.shape[2], self.sizes)
        check_same_device("q", q, "k", k)
        factor = chosen_scale(scale, self.sizes[2])
        keys, values, real = self._entered(k, v, mask)
        outs, found = [], []
        for part in self._pieces(keys.shape[1]):
            before = self.fill
            self._put(keys[:, part], values[:, part], real[:, part])
            n = part.stop - part.start
            causal = (
                torch.arange(self.fill, device=self.device)
                <= (torch.arange(before, before + n, device=self.device)[:, None])
            )
            with exactly(self.device):
                out, bounds = self._read(q[:, :, part], factor, causal, real[:, part], certify=certify)
            outs.append(out)
            found.append(bounds)
        return torch.cat(outs, 2).to(v.dtype), found

    def _read_latest(self, q: Tensor, scale: float | None, *, certify: bool) -> tuple[Tensor, Bounds]:
        check_queries(q, None, self.sizes)
        check_same_device("q", q, "the state", self.query_norm)
        if self.seen == 0:
            raise UsageError("The state holds no tokens; append some before reading.")
        factor = chosen_scale(scale, self.sizes[2])
        n = q.shape[2]
        everything = torch.ones(n, self.fill, dtype=torch.bool, device=self.device)
        last = self.window.is_real[:, max(0, self.fill - n) : self.fill]
        observers = last if last.shape[1] == n else torch.ones_like(last[:, :1]).expand(-1, n)
        with exactly(self.device):
            out, bounds = self._read(q, factor, everything, observers, certify=certify)
        return out.to(q.dtype), bounds

    def _read(
        self,
        q: Float[Tensor, "B H T E"],
        scale: float,
        visible: Bool[Tensor, "T F"],
        observers: Bool[Tensor, "N T"],
        *,
        certify: bool,
    ) -> tuple[Float[Tensor, "B H T E_v"], Bounds]:
        n = q.shape[2]
        now = rows_of(q, len(self.query_norm)) * scale
        back, reach = now, self.options.reach
        position = torch.arange(self.seen - n, self.seen, device=self.device).clamp(min=0)
        if reach is not None and self.options.rotation is not None:
            shift = (position + 1 - reach).clamp(min=0)
            back = self.options.rotation.turned(now, -shift.repeat(now.shape[1] // n))
        sees = visible & self.window.is_real[:, None, : self.fill]  # [N, T, F]
        queries = Queries(now, back, sees, n)
        reading = read(queries, self.kept, self.window, self.clusters, self.options.remainder)
        self._observe(now, reading, sees, observers)
        out, bounds = reading.out, Bounds.none(reading.lse)
        if certify or self.options.strict:
            bounds = bounds_of(queries, reading, self.clusters, self.reservoir)
        if self.options.strict:
            out, bounds = self._held_to_tolerance(queries, reading, bounds, position + 1, observers)
        return out.view(q.shape[0], q.shape[1], n, -1), bounds.shaped(q.shape[0], q.shape[1])

    def _observe(self, now: Tensor, reading: Reading, sees: Tensor, observers: Tensor) -> None:
        """Note the queries' norms, and what each token of the window got of their attention."""
        weight = observers.float()  # [N, T]
        n_rows, n_queries, _ = now.shape
        n = weight.shape[1]
        norms = now.norm(dim=-1).view(n_rows, -1, n) * weight[:, None]
        n_new = observers.sum(-1) * (n_queries // n)
        self.query_count += n_new
        part = (n_new / self.query_count.clamp(min=1)).float()
        self.query_norm += part * (norms.sum((1, 2)) / n_new.clamp(min=1) - self.query_norm)
        shares = reading.window_share.view(n_rows, -1, n, reading.window_share.shape[-1]).mean(1)
        lifts = shares * sees.sum(-1, keepdim=True) * weight[..., None]  # [N, T, F], 1 is an equal share
        self.window.observe(lifts.sum(1), (sees & observers[..., None]).sum(1))

    def _held_to_tolerance(
        self, queries: Queries, reading: Reading, bounds: Bounds, n_visible: Tensor, observers: Tensor
    ) -> tuple[Tensor, Bounds]:
        """Replace reads that may be too far off by exact ones while the archive holds all, or raise."""
        real = observers[:, None].expand(-1, bounds.likely.shape[1] // len(n_visible), -1).flatten(1)
        is_off = (bounds.likely > self.options.tolerance) & real
        if not bool(is_off.any()):
            return reading.out, bounds
        if self.seen > self.options.exact_tokens:
            worst = float(bounds.likely[real].max())
            raise UsageError(
                f"The error of this read may be {worst:.3g}, the tolerance is {self.options.tolerance:g} "
                f"(token {self.seen}); raise window, heavy or exact_tokens, or leave strict out."
            )
        exact = self.archive.attend(queries.now, n_visible)
        return torch.where(is_off[..., None], exact, reading.out), bounds.without(is_off)


def _buffer(window: Window) -> tuple[Tensor, Tensor, Tensor]:
    return window.key, window.value, window.is_real
