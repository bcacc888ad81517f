"""Llama: rotary positions, RMS norms, gated MLP; Mistral, Qwen2 and Qwen3 too.   (floor 5 · engine)

The four differ by biases, query and key norms, windows and defaults only; `parse` settles all of it.
"""

from winnow.engine.config import LARGEST_COUNT, Fields, ModelConfig
from winnow.engine.families.rope import parse_rope
from winnow.engine.families.tensors import HEAD, AbstractTensors, Shapes
from winnow.engine.weights import Layer, Weights
from winnow.kernels import relu, silu

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
EMBED = "model.embed_tokens.weight"
ACTIVATIONS = {"relu": relu, "silu": silu, "swish": silu}
# What transformers assumes when config.json leaves a key out.
MISTRAL_KV_HEADS = 8
MISTRAL_WINDOW = 4096
QWEN_WINDOW = 4096
QWEN_FULL_LAYERS = 28
QWEN3_HEAD_WIDTH = 128


def parse(fields: Fields) -> ModelConfig:
    """Return the shape of a model; raises ModelError for activations other than ReLU and SiLU."""
    family = fields.choice("model_type", None, MODEL_TYPES)
    width = fields.whole("hidden_size")
    n_heads, n_kv_heads, head_width = _heads(fields, family, width)
    n_layers = fields.whole("num_hidden_layers", high=1024)
    vocab_size = fields.whole("vocab_size", high=LARGEST_COUNT)
    has_bias = fields.flag("attention_bias", False) if family in ("llama", "qwen3") else False
    return ModelConfig(
        family=family,
        n_layers=n_layers,
        width=width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_width=head_width,
        n_neurons=fields.whole("intermediate_size"),
        vocab_size=vocab_size,
        n_positions=fields.whole("max_position_embeddings", high=LARGEST_COUNT),
        activation=ACTIVATIONS[fields.choice("hidden_act", "silu", tuple(ACTIVATIONS))],
        norm_eps=fields.real("rms_norm_eps", 1e-6, high=1.0),
        windows=_windows(fields, family, n_layers),
        rope=parse_rope(fields, head_width),
        embed_width=width,
        is_gated=True,
        has_qk_norm=family == "qwen3",
        has_qkv_bias=has_bias or family == "qwen2",
        has_out_bias=has_bias,
        has_mlp_bias=fields.flag("mlp_bias", False) if family == "llama" else False,
        is_tied=fields.flag("tie_word_embeddings", False),
        bos_id=next(iter(fields.token_ids("bos_token_id", vocab_size)), None),
        eos_ids=fields.token_ids("eos_token_id", vocab_size),
    )


def _heads(fields: Fields, family: str, width: int) -> tuple[int, int, int]:
    n_heads = fields.whole("num_attention_heads", high=width)
    default_kv_heads = MISTRAL_KV_HEADS if family == "mistral" else n_heads
    n_kv_heads = fields.whole("num_key_value_heads", default_kv_heads, high=n_heads)
    if n_heads % n_kv_heads:
        raise fields.unfit("num_key_value_heads", n_kv_heads, f"a divisor of num_attention_heads, {n_heads}")
    if not fields.has("head_dim") and family != "qwen3" and width % n_heads:
        raise fields.unfit("num_attention_heads", n_heads, f"a divisor of hidden_size, {width}")
    default_width = QWEN3_HEAD_WIDTH if family == "qwen3" else width // n_heads
    return n_heads, n_kv_heads, fields.whole("head_dim", default_width, high=2**16)


def _windows(fields: Fields, family: str, n_layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: Mistral's in all layers, Qwen's in those the config names, else none."""
    if family == "mistral":
        is_windowed = fields.has("sliding_window") or "sliding_window" not in fields.raw
        window = fields.whole("sliding_window", MISTRAL_WINDOW, high=LARGEST_COUNT) if is_windowed else None
        return (window,) * n_layers
    if family == "llama" or not fields.flag("use_sliding_window", False):
        return (None,) * n_layers
    window = fields.whole("sliding_window", QWEN_WINDOW, high=LARGEST_COUNT)
    if fields.has("layer_types"):
        kinds = fields.raw["layer_types"]
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in known for kind in kinds):
            raise fields.unfit("layer_types", kinds, f"a list of {n_layers} of {' or '.join(known)}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    n_full = fields.whole("max_window_layers", QWEN_FULL_LAYERS, low=0)
    return tuple(None if index < n_full else window for index in range(n_layers))


def shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of each tensor of the checkpoint."""
    d, f = config.width, config.n_neurons
    q_rows, k_rows, v_rows = config.qkv_rows
    table: Shapes = {EMBED: (config.vocab_size, d), "model.norm.weight": (d,)}
    for index in range(config.n_layers):
        at = f"model.layers.{index}"
        table |= {f"{at}.input_layernorm.weight": (d,), f"{at}.post_attention_layernorm.weight": (d,)}
        qkv = {f"{at}.self_attn.q_proj": (q_rows, d)}
        qkv |= {f"{at}.self_attn.k_proj": (k_rows, d), f"{at}.self_attn.v_proj": (v_rows, d)}
        out = {f"{at}.self_attn.o_proj": (d, q_rows)}
        mlp = {f"{at}.mlp.gate_proj": (f, d), f"{at}.mlp.up_proj": (f, d), f"{at}.mlp.down_proj": (d, f)}
        for maps, has_bias in (
            (qkv, config.has_qkv_bias),
            (out, config.has_out_bias),
            (mlp, config.has_mlp_bias),
        ):
            table |= {f"{name}.weight": shape for name, shape in maps.items()}
            table |= {f"{name}.bias": shape[:1] for name, shape in maps.items() if has_bias}
        if config.has_qk_norm:
            table |= {f"{at}.self_attn.{each}_norm.weight": (config.head_width,) for each in "qk"}
    return table if config.is_tied else {**table, HEAD: (config.vocab_size, d)}


def load(tensors: AbstractTensors, by_head: bool) -> Weights:
    """Return the weights that `tensors` give; norms and biases in float32."""
    config = tensors.config
    embed = tensors.embedding(EMBED)
    return Weights(
        config=config,
        embed=embed,
        positions=None,
        project_in=None,
        layers=tuple(_layer(tensors, config, index, by_head) for index in range(config.n_layers)),
        final_norm=tensors.rms_norm("model.norm", config.norm_eps),
        project_out=None,
        head=tensors.head(embed, EMBED),
    )


def _layer(tensors: AbstractTensors, config: ModelConfig, index: int, by_head: bool) -> Layer:
    at = f"model.layers.{index}"
    qkv = tuple(f"{at}.self_attn.{each}_proj" for each in "qkv")
    eps = config.norm_eps
    return Layer(
        attention_norm=tensors.rms_norm(f"{at}.input_layernorm", eps),
        qkv=tensors.linear(*qkv, has_bias=config.has_qkv_bias),
        q_norm=tensors.rms_norm(f"{at}.self_attn.q_norm", eps) if config.has_qk_norm else None,
        k_norm=tensors.rms_norm(f"{at}.self_attn.k_norm", eps) if config.has_qk_norm else None,
        out=tensors.out_map(f"{at}.self_attn.o_proj", has_bias=config.has_out_bias, by_head=by_head),
        mlp_norm=tensors.rms_norm(f"{at}.post_attention_layernorm", eps),
        mlp=tensors.records(
            f"{at}.mlp.gate_proj", f"{at}.mlp.down_proj", f"{at}.mlp.up_proj", has_bias=config.has_mlp_bias
        ),
        mlp_bias=tensors.vector(f"{at}.mlp.down_proj.bias") if config.has_mlp_bias else None,
        activation=config.activation,
        window=config.windows[index],
    )
