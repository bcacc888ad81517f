"""Families: where a transformers model keeps its embeddings, norms, maps and head.   (floor 5 · audit)

    layout = read_layout(model)                   GPT-2, OPT, Llama, Mistral, Qwen2, Qwen3, BERT; with LoRA
    layout.layers[0].query.matrix(parameters)     (D, M), input by output, however it is stored
    layout.layers[0].query.matrix(gradients)      the same place in a mapping of gradients

Modules are found by the names of their types, below whatever wraps them (a head, an adapter, a trainer);
parameters by the modules they belong to. Nothing is addressed by its number in a list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Shaped
from torch import Tensor, nn

from winnow.base.errors import ModelError

Tensors = Mapping[str, Tensor]


@final
@dataclass(frozen=True)
class Adapter:
    """A LoRA pair on one map: y += scale * x A^T B^T, with A (R, D) and B (M, R)."""

    a: str
    b: str
    rank: int
    scale: float


@final
@dataclass(frozen=True)
class LinearMap:
    """y = x W + b, as a slice of one parameter: outputs `first` to `last`, stored input by output or not."""

    module: str
    first: int
    last: int
    is_input_first: bool
    has_bias: bool
    adapter: Adapter | None = None

    @property
    def weight(self) -> str:
        """Name of the parameter that holds W."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """Name of the parameter that holds b."""
        return f"{self.module}.bias"

    def matrix(self, tensors: Tensors) -> Shaped[Tensor, "D M"]:
        """Return W, or what `tensors` holds in its place, input by output; a view."""
        stored = tensors[self.weight]
        return (stored if self.is_input_first else stored.mT)[:, self.first : self.last]

    def offset(self, tensors: Tensors) -> Shaped[Tensor, " M"] | None:
        """Return b, or what `tensors` holds in its place; None for a map without one."""
        return tensors[self.bias][self.first : self.last] if self.has_bias else None

    def apply(self, x: Shaped[Tensor, "*N D"], tensors: Tensors) -> Shaped[Tensor, "*N M"]:
        """Return x W + b by the weights in `tensors`, its adapter's part included."""
        y = x @ self.matrix(tensors)
        offset = self.offset(tensors)
        y = y if offset is None else y + offset
        if self.adapter is not None:
            low = x @ tensors[self.adapter.a].mT
            y = y + self.adapter.scale * (low @ tensors[self.adapter.b].mT)[..., self.first : self.last]
        return y


@final
@dataclass(frozen=True)
class Layer:
    """One block. Norms are paths of modules; `norms_first` says whether they stand before what they serve.

    `mlp` are the maps that read the MLP's input: one, or gate and up. `query_norm` and `key_norm` are per
    head, where there are any.
    """

    attention: str
    attention_norm: str
    query: LinearMap
    key: LinearMap
    value: LinearMap
    out: LinearMap
    mlp_norm: str
    mlp: tuple[LinearMap, ...]
    query_norm: str | None = None
    key_norm: str | None = None

    @property
    def reads(self) -> tuple[LinearMap, ...]:
        """The three maps that read the attention's input."""
        return (self.query, self.key, self.value)


@final
@dataclass(frozen=True)
class Layout:
    """Where one model keeps what an audit reads. Names are those of ``model.named_parameters()``.

    `positions` is None for rotary models, `segments` for all but BERT; the row of position p is
    ``p + position_offset``. `embedding_norm` is BERT's, behind the sum of its embeddings. `head` maps the
    last states to logits over the vocabulary, None for models without one; tied, its weight is `tokens`.
    """

    family: str
    n_heads: int
    n_kv_heads: int
    head_width: int
    tokens: str
    positions: str | None
    position_offset: int
    segments: str | None
    embedding_norm: str | None
    rotary: str | None
    layers: tuple[Layer, ...]
    head: LinearMap | None

    @property
    def is_tied(self) -> bool:
        """Whether the map to logits is the token embedding."""
        return self.head is not None and self.head.weight == self.tokens

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only what stands before it."""
        return self.family != "bert"

    @property
    def norms_first(self) -> bool:
        """Whether a norm stands before the maps it serves (all but BERT), rather than behind the sum."""
        return self.family != "bert"


@dataclass(frozen=True)
class _Paths:
    """One family in words: paths below its backbone; {} is the layer's number."""

    family: str
    embeddings: tuple[str, str | None, str | None]  # tokens, positions, segments
    embedding_norm: str | None
    rotary: str | None
    layers: str
    attention: str
    attention_norm: str
    reads: tuple[str, ...]  # one fused map, or three
    out: str
    mlp_norm: str
    mlp: tuple[str, ...]
    position_offset: int = 0


_GPT2 = _Paths(
    family="gpt2",
    embeddings=("wte", "wpe", None),
    embedding_norm=None,
    rotary=None,
    layers="h",
    attention="attn",
    attention_norm="ln_1",
    reads=("attn.c_attn",),
    out="attn.c_proj",
    mlp_norm="ln_2",
    mlp=("mlp.c_fc",),
)
_OPT = _Paths(
    family="opt",
    embeddings=("embed_tokens", "embed_positions", None),
    embedding_norm=None,
    rotary=None,
    layers="layers",
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    mlp=("fc1",),
    position_offset=2,
)
_LLAMA = _Paths(
    family="llama",
    embeddings=("embed_tokens", None, None),
    embedding_norm=None,
    rotary="rotary_emb",
    layers="layers",
    attention="self_attn",
    attention_norm="input_layernorm",
    reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp=("mlp.gate_proj", "mlp.up_proj"),
)
_BERT = _Paths(
    family="bert",
    embeddings=(
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ),
    embedding_norm="embeddings.LayerNorm",
    rotary=None,
    layers="encoder.layer",
    attention="attention.self",
    attention_norm="attention.output.LayerNorm",
    reads=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    mlp_norm="output.LayerNorm",
    mlp=("intermediate.dense",),
)
# The type of the backbone says the family; Mistral's and Qwen's differ from Llama's in their numbers alone.
_BACKBONES = {
    "GPT2Model": _GPT2,
    "OPTDecoder": _OPT,
    "LlamaModel": _LLAMA,
    "MistralModel": _LLAMA,
    "Qwen2Model": _LLAMA,
    "Qwen3Model": _LLAMA,
    "BertModel": _BERT,
}
KNOWN = "GPT-2, OPT, Llama, Mistral, Qwen2, Qwen3 or BERT"


def read_layout(model: nn.Module) -> Layout:
    """Return where `model`, one of transformers' or a wrapper of one, keeps what an audit reads.

    Raises ModelError for other families and for variants of these that are built differently: OPT with norms
    behind or with projected embeddings, GPT-2 with scaled layers.
    """
    modules = dict(model.named_modules())
    root, paths = _backbone(modules)
    config: Any = modules[root].config
    _check_variant(config, paths)
    n_heads = int(config.num_attention_heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    tokens, positions, segments = (f"{_under(root, e)}.weight" if e else None for e in paths.embeddings)
    blocks = modules[_under(root, paths.layers)]
    assert isinstance(blocks, nn.ModuleList) and tokens is not None
    return Layout(
        family=paths.family,
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        head_width=head_width,
        tokens=tokens,
        positions=positions,
        position_offset=paths.position_offset,
        segments=segments,
        embedding_norm=_under(root, paths.embedding_norm) if paths.embedding_norm else None,
        rotary=_under(root, paths.rotary) if paths.rotary else None,
        layers=tuple(
            _layer(modules, _under(root, f"{paths.layers}.{number}"), paths) for number in range(len(blocks))
        ),
        head=_head(modules, _under(root, paths.embeddings[0] or "")),
    )


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of `model` by the names that a layout uses, detached; shares their memory."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _backbone(modules: Mapping[str, nn.Module]) -> tuple[str, _Paths]:
    for path, module in modules.items():
        for kind in type(module).__mro__:
            if kind.__name__ in _BACKBONES:
                return path, _BACKBONES[kind.__name__]
    kind = type(next(iter(modules.values()))).__name__
    raise ModelError(f"{kind} is of a family that the audit does not know; expected {KNOWN} of transformers.")


def _check_variant(config: object, paths: _Paths) -> None:
    """Refuse what shares a family's types but not its arithmetic."""
    wrong = {
        "do_layer_norm_before": False,  # OPT-350m
        "scale_attn_by_inverse_layer_idx": True,
        "add_cross_attention": True,
        "is_decoder": True if paths.family == "bert" else None,
    }
    for key, value in wrong.items():
        if value is not None and getattr(config, key, None) is value:
            raise ModelError(f"the model has {key}={value}, which the audit does not know. Use another one.")
    narrow = getattr(config, "word_embed_proj_dim", None)
    width = getattr(config, "hidden_size", None)
    if narrow is not None and narrow != width:
        raise ModelError(f"the model's embeddings are {narrow} wide, its layers {width}; expected one width.")


def _under(root: str, path: str) -> str:
    return f"{root}.{path}" if root else path


def _layer(modules: Mapping[str, nn.Module], root: str, paths: _Paths) -> Layer:
    reads = [_maps(modules, f"{root}.{path}") for path in paths.reads]
    if len(reads) == 1:
        query, key, value = (_part(reads[0], number) for number in range(3))
    else:
        query, key, value = reads
    attention = f"{root}.{paths.attention}"
    return Layer(
        attention=attention,
        attention_norm=f"{root}.{paths.attention_norm}",
        query=query,
        key=key,
        value=value,
        out=_maps(modules, f"{root}.{paths.out}"),
        mlp_norm=f"{root}.{paths.mlp_norm}",
        mlp=tuple(_maps(modules, f"{root}.{path}") for path in paths.mlp),
        query_norm=f"{attention}.q_norm" if f"{attention}.q_norm" in modules else None,
        key_norm=f"{attention}.k_norm" if f"{attention}.k_norm" in modules else None,
    )


def _part(fused: LinearMap, number: int) -> LinearMap:
    """Return one third of a fused map: query, key or value."""
    third = (fused.last - fused.first) // 3
    first = fused.first + number * third
    return LinearMap(fused.module, first, first + third, fused.is_input_first, fused.has_bias, fused.adapter)


def _maps(modules: Mapping[str, nn.Module], path: str) -> LinearMap:
    """Return the map that the module at `path` is, or wraps under ``base_layer`` as LoRA's modules do."""
    inner = f"{path}.base_layer" if f"{path}.base_layer" in modules else path
    module = modules[inner]
    weight = module.weight
    assert isinstance(weight, Tensor)
    is_input_first = type(module).__name__ == "Conv1D"
    return LinearMap(
        module=inner,
        first=0,
        last=weight.shape[1 if is_input_first else 0],
        is_input_first=is_input_first,
        has_bias=getattr(module, "bias", None) is not None,
        adapter=_adapter(modules, path),
    )


def _adapter(modules: Mapping[str, nn.Module], path: str) -> Adapter | None:
    """Return the LoRA pair of the module at `path`: ``lora_A.NAME`` and ``lora_B.NAME``, of one name."""
    prefix = f"{path}.lora_A."
    names = [name.removeprefix(prefix) for name in modules if name.startswith(prefix)]
    if not names:
        return None
    if len(names) > 1:
        raise ModelError(f"{path} has {len(names)} LoRA adapters, expected one. Load one at a time.")
    weight = modules[prefix + names[0]].weight
    assert isinstance(weight, Tensor)
    scaling = getattr(modules[path], "scaling", 1.0)
    scale = scaling[names[0]] if isinstance(scaling, Mapping) else scaling
    return Adapter(
        f"{prefix}{names[0]}.weight", f"{path}.lora_B.{names[0]}.weight", weight.shape[0], float(scale)
    )


def _head(modules: Mapping[str, nn.Module], embedding: str) -> LinearMap | None:
    """Return the map to logits: the linear module with one output per token, its weight shared or its own."""
    tokens = modules[embedding].weight
    assert isinstance(tokens, Tensor)
    for path, module in modules.items():
        if path.rpartition(".")[2] in ("lm_head", "decoder") and isinstance(module, nn.Linear):
            if module.weight is tokens:  # a bias beside it is not the embedding's, and is left out
                return LinearMap(embedding, 0, module.weight.shape[0], False, False)
            return LinearMap(path, 0, module.weight.shape[0], False, module.bias is not None)
    return None


def check_vocabulary(layout: Layout, parameters: Tensors) -> int:
    """Return how many tokens the model knows; raises ModelError where its head knows another number."""
    n_tokens = parameters[layout.tokens].shape[0]
    if layout.head is not None and layout.head.last != n_tokens:
        raise ModelError(
            f"the model embeds {n_tokens} tokens and has logits for {layout.head.last}; expected one number."
        )
    return n_tokens
