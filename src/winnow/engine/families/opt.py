"""OPT: learned positions, layer norms, ungated ReLU.   (floor 5 · engine)

Every size of the family, the one with norms after the residual (350m) included: there the embedding is
narrower than the model, and a pair of maps without bias goes in and out.
"""

from winnow.engine.config import LARGEST_COUNT, Fields, ModelConfig
from winnow.engine.families.tensors import HEAD, AbstractTensors, Shapes
from winnow.engine.weights import Layer, Weights
from winnow.kernels import relu

MODEL_TYPES = ("opt",)
UNUSED_POSITIONS = 2  # the table's first two rows stood for padding
ROOT = "model.decoder"
EMBED = f"{ROOT}.embed_tokens.weight"


def parse(fields: Fields) -> ModelConfig:
    """Return the shape of an OPT model; raises ModelError for an activation other than ReLU."""
    width = fields.whole("hidden_size")
    n_heads = fields.whole("num_attention_heads", high=width)
    if width % n_heads:
        raise fields.unfit("num_attention_heads", n_heads, f"a divisor of hidden_size, {width}")
    fields.choice("activation_function", "relu", ("relu",))
    n_layers = fields.whole("num_hidden_layers", high=1024)
    vocab_size = fields.whole("vocab_size", high=LARGEST_COUNT)
    is_pre_norm = fields.flag("do_layer_norm_before", True)
    has_bias = fields.flag("enable_bias", True)
    return ModelConfig(
        family="opt",
        n_layers=n_layers,
        width=width,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_width=width // n_heads,
        n_neurons=fields.whole("ffn_dim"),
        vocab_size=vocab_size,
        n_positions=fields.whole("max_position_embeddings", high=LARGEST_COUNT),
        activation=relu,
        norm_eps=1e-5,
        windows=(None,) * n_layers,
        embed_width=fields.whole("word_embed_proj_dim", width),
        is_pre_norm=is_pre_norm,
        has_final_norm=is_pre_norm and not fields.flag("_remove_final_layer_norm", False),
        has_norm_weights=fields.flag("layer_norm_elementwise_affine", True),
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        has_mlp_bias=has_bias,
        is_tied=fields.flag("tie_word_embeddings", True),
        bos_id=next(iter(fields.token_ids("bos_token_id", vocab_size)), None),
        eos_ids=fields.token_ids("eos_token_id", vocab_size),
    )


def shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of each tensor of the checkpoint."""
    d, w = config.width, config.embed_width
    table: Shapes = {
        EMBED: (config.vocab_size, w),
        f"{ROOT}.embed_positions.weight": (config.n_positions + UNUSED_POSITIONS, d),
    }
    if w != d:
        table |= {f"{ROOT}.project_in.weight": (d, w), f"{ROOT}.project_out.weight": (w, d)}
    norms = [f"{ROOT}.final_layer_norm"] if config.has_final_norm else []
    for index in range(config.n_layers):
        at = f"{ROOT}.layers.{index}"
        norms += [f"{at}.self_attn_layer_norm", f"{at}.final_layer_norm"]
        maps = {f"{at}.self_attn.{each}_proj": (d, d) for each in ("q", "k", "v", "out")}
        maps |= {f"{at}.fc1": (config.n_neurons, d), f"{at}.fc2": (d, config.n_neurons)}
        table |= {f"{name}.weight": shape for name, shape in maps.items()}
        table |= {f"{name}.bias": shape[:1] for name, shape in maps.items() if config.has_mlp_bias}
    if config.has_norm_weights:
        table |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    return table if config.is_tied else {**table, HEAD: (config.vocab_size, w)}


def load(tensors: AbstractTensors, by_head: bool) -> Weights:
    """Return the weights that `tensors` give; norms and biases in float32."""
    config = tensors.config
    embed = tensors.embedding(EMBED)
    positions = tensors.table(f"{ROOT}.embed_positions.weight")[UNUSED_POSITIONS:]
    is_projected = config.embed_width != config.width
    return Weights(
        config=config,
        embed=embed,
        positions=positions,
        project_in=tensors.linear(f"{ROOT}.project_in") if is_projected else None,
        layers=tuple(_layer(tensors, config, index, by_head) for index in range(config.n_layers)),
        final_norm=_norm(tensors, config, f"{ROOT}.final_layer_norm") if config.has_final_norm else None,
        project_out=tensors.linear(f"{ROOT}.project_out") if is_projected else None,
        head=tensors.head(embed, EMBED),
    )


def _layer(tensors: AbstractTensors, config: ModelConfig, index: int, by_head: bool) -> Layer:
    at = f"{ROOT}.layers.{index}"
    has_bias = config.has_mlp_bias
    return Layer(
        attention_norm=_norm(tensors, config, f"{at}.self_attn_layer_norm"),
        qkv=tensors.linear(*(f"{at}.self_attn.{each}_proj" for each in "qkv"), has_bias=has_bias),
        q_norm=None,
        k_norm=None,
        out=tensors.out_map(f"{at}.self_attn.out_proj", has_bias=has_bias, by_head=by_head),
        mlp_norm=_norm(tensors, config, f"{at}.final_layer_norm"),
        mlp=tensors.records(f"{at}.fc1", f"{at}.fc2", has_bias=has_bias),
        mlp_bias=tensors.vector(f"{at}.fc2.bias") if has_bias else None,
        activation=config.activation,
    )


def _norm(tensors: AbstractTensors, config: ModelConfig, name: str):
    return tensors.layer_norm(name, config.width, config.norm_eps)
