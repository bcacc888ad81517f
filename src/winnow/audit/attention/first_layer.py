"""First layer: queries and keys of any token at any position.   (floor 5 · audit)

A causal row of the first layer depends on the tokens before it and on nothing else that is secret: a token's
embedding, its position and the model's own weights give its query and its keys. They are taken from the model
itself: it runs with an attention function that hands over what it is given and stops. Nothing here knows a
family; whatever calls transformers' attention interface can be read, rotary positions, shared key-value
heads and norms of queries included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from winnow.base.errors import ModelError

TAKES = "winnow-audit"  # the name that transformers knows the attention function below by
CHUNK = 2048  # tokens of the vocabulary at once: what a layer makes of them stays near the processor


class _Taken(Exception):
    """What the first attention of a model was given."""

    def __init__(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None) -> None:
        super().__init__()
        self.module = module
        self.query, self.key = query, key
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling


class _Stopped(Exception):
    """The input of the first attention, before anything was computed from it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _take(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    raise _Taken(module, query, key, scaling)


@final
@dataclass(frozen=True, eq=False)
class Made:
    """Queries, already scaled, and keys, one per query head, of some tokens at one position."""

    q: Float[Tensor, "N H E"]
    k: Float[Tensor, "N H E"]


@final
@dataclass(frozen=True, eq=False)
class Ask:
    """Products asked for: vector m with the query, or the key, of ``heads[m]``."""

    heads: Int64[Tensor, " M"]
    vectors: Float[Tensor, "M E"]
    of_keys: bool = False


@final
class FirstLayer:
    """The first attention of a transformers model, asked for tokens at positions.

    `is_causal` and `n_heads` are the model's; `is_linear` says that queries and keys are linear in the
    attention's input, so that the score of every token of the vocabulary against a given key is one product.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at `model`, whose weights must be float32; nothing of it is changed for good.

        Raises ModelError for a model without token ids, with other weights than float32, or whose attention
        does not go through transformers' attention interface.
        """
        self.model: Any = model
        self.n_tokens = _n_tokens(model)
        taken = self._take(torch.zeros(1, 1, dtype=torch.int64), 0)
        self.module = taken.module
        self.is_causal = bool(getattr(taken.module, "is_causal", False))
        self.scaling = taken.scaling
        self.n_heads, self.head_width = taken.query.shape[1], taken.query.shape[3]
        self.is_linear = self._looks_linear()

    def make(self, ids: Int64[Tensor, " N"], position: int) -> Made:
        """Return queries and keys of `ids`, each standing alone at `position`."""
        taken = self._take(ids[:, None], position)
        return Made(taken.query[:, :, 0] * self.scaling, self._by_head(taken.key)[:, :, 0])

    def chunks(self) -> Iterator[Int64[Tensor, " N"]]:
        """Yield the vocabulary, some tokens at a time."""
        for start in range(0, self.n_tokens, CHUNK):
            yield torch.arange(start, min(start + CHUNK, self.n_tokens))

    def scores(self, position: int, asks: Sequence[Ask]) -> Float[Tensor, "V M"]:
        """Return the products that `asks` ask for, side by side, of every token at `position`.

        Where the maps are linear each vector is first carried back to the attention's input: ``V * D * M``
        multiplications instead of ``V * D * D``; else queries and keys are made whole.
        """
        n_vectors = sum(len(ask.heads) for ask in asks)
        if not self.is_linear or n_vectors > self.n_heads * self.head_width:
            return torch.cat([self._whole(ids, position, asks) for ids in self.chunks()])
        parts = [self._carried_back(position, ask) for ask in asks]
        back, offset = (torch.cat(each) for each in zip(*parts, strict=True))
        found = torch.empty(self.n_tokens, n_vectors)
        for ids in self.chunks():
            hidden = self._hidden(ids, position)
            found[ids[0] : ids[-1] + 1] = torch.addmm(offset, hidden, back.T)
        return found

    def _whole(self, ids: Tensor, position: int, asks: Sequence[Ask]) -> Tensor:
        made = self.make(ids, position)
        rows = [(made.k if ask.of_keys else made.q)[:, ask.heads] for ask in asks]
        return torch.cat([(row * ask.vectors).sum(-1) for row, ask in zip(rows, asks, strict=True)], 1)

    def _carried_back(self, position: int, ask: Ask, token: int = 0) -> tuple[Tensor, Tensor]:
        """Return u and c with ``product = u . x + c`` for each vector, x the input of the attention."""
        ids = torch.full((len(ask.heads), 1), token)
        leaves: list[Tensor] = []

        def make_leaf(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            leaves.append(hidden.detach().clone().requires_grad_())
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": leaves[0]}
            return (leaves[0], *args[1:]), kwargs

        with torch.enable_grad():
            taken = self._take(ids, position, make_leaf)
            rows = self._by_head(taken.key) if ask.of_keys else taken.query * self.scaling
            products = (rows[torch.arange(len(ids)), ask.heads, 0] * ask.vectors).sum(1)
            back = torch.autograd.grad(products.sum(), leaves[0])[0][:, 0]
        x = leaves[0].detach()[:, 0]
        return back, products.detach() - (back * x).sum(1)

    def _looks_linear(self) -> bool:
        heads, vectors = torch.zeros(1, dtype=torch.int64), torch.ones(1, self.head_width)
        for of_keys in (False, True):
            ask = Ask(heads, vectors, of_keys)
            one, _ = self._carried_back(0, ask, token=0)
            other, _ = self._carried_back(0, ask, token=self.n_tokens - 1)
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())):
                return False
        return True

    def _by_head(self, key: Tensor) -> Tensor:
        return key.repeat_interleave(self.n_heads // key.shape[1], dim=1)

    def _take(self, ids: Tensor, position: int, hook: Any = None) -> _Taken:
        caught = self._run(ids, position, hook)
        if isinstance(caught, _Taken):
            return caught
        raise ModelError(
            f"the attention of {type(self.model).__name__} does not go through transformers' attention "
            "interface; expected a model of a known family: GPT-2, OPT, Llama, Qwen, Mistral, BERT."
        )

    def _hidden(self, ids: Tensor, position: int) -> Float[Tensor, "N D"]:
        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            raise _Stopped(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        caught = self._run(ids[:, None], position, stop)
        assert isinstance(caught, _Stopped)
        return caught.hidden[:, 0]

    def _run(self, ids: Tensor, position: int, hook: Any) -> Exception | None:
        """Run the model up to its first attention and return what was caught there."""
        AttentionInterface.register(TAKES, _take)
        config = self.model.config
        before, was_training = config._attn_implementation, self.model.training
        hooked = hook and self.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            config._attn_implementation = TAKES
            if was_training:
                self.model.eval()
            with torch.set_grad_enabled(torch.is_grad_enabled() and hook is not None):
                self.model(input_ids=ids, position_ids=torch.full_like(ids, position))
        except (_Taken, _Stopped) as caught:
            return caught
        except (TypeError, KeyError, NotImplementedError):
            return None
        finally:
            config._attn_implementation = before
            if was_training:
                self.model.train()
            if hooked:
                hooked.remove()
        return None


def _n_tokens(model: nn.Module) -> int:
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"received a {type(model).__name__}; expected a transformers model. Load it as such."
        )
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(
            f"{type(model).__name__} has no table of token embeddings; expected a language model."
        )
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ModelError("the weights are not float32; expected float32. Load the model with dtype float32.")
    return embedding.num_embeddings
