"""GGUF models: a checkpoint's tensors under the names and shapes that llama.cpp knows.   (floor 5 · engine)

    Llama   as it is: the same tokens. llama.cpp turns neighbours 2e and 2e + 1 of a head together where
            transformers turns e and e + E/2, so the rows of queries and keys are put in that order. Slowed
            frequencies go into a table that divides llama.cpp's own.
    OPT     as gpt2, whose tensors have the same shapes: llama.cpp has no OPT. Only the activation differs,
            GELU for ReLU; the bytes and the products are the same, the tokens are not.

Matrices, the embedding and the head among them, are held in one encoding; norms, biases and positions in
fp32. There is no tokenizer: prompts are token ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from winnow.engine.bench.gguf import (
    ALIGNMENT,
    BF16,
    FP32,
    Q4_0,
    Q8_0,
    Encoding,
    GgufTensor,
    Value,
)
from winnow.engine.config import ModelConfig, Rope
from winnow.engine.families import tensor_shapes
from winnow.engine.families.opt import ROOT, UNUSED_POSITIONS
from winnow.engine.families.rope import frequencies
from winnow.engine.families.tensors import HEAD, Tensors, TensorSource

ENCODINGS = {"fp32": FP32, "bf16": BF16, "int8": Q8_0, "int4": Q4_0}  # by Winnow's precisions
EMBEDDING, POSITIONS, SLOWED = "token_embd.weight", "position_embd.weight", "rope_freqs.weight"
OPT_PARTS = {
    "attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_output": ("self_attn.out_proj",),
    "ffn_up": ("fc1",),
    "ffn_down": ("fc2",),
}
OPT_NORMS = {"attn_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm"}
LLAMA_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@final
@dataclass(frozen=True)
class GgufModel:
    """What a file holds, and how many bytes of it a decode step reads.

    Of positions, and of an embedding that is not the head too, a step reads one row, which is not counted.
    """

    metadata: dict[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight that a decode step reads."""
        is_tied = all(tensor.name != "output.weight" for tensor in self.tensors)
        rows = (POSITIONS,) if is_tied else (POSITIONS, EMBEDDING)
        return sum(tensor.n_bytes for tensor in self.tensors if tensor.name not in rows)

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)


def gguf_model(source: TensorSource, encoding: Encoding) -> GgufModel:
    """Return the model of `source` for llama.cpp, its matrices in `encoding`; nothing is read yet.

    The model is one that `rivals.check_rival` lets pass.
    """
    config = source.config
    renamed = _Renamed(source, encoding)
    if config.family == "opt":
        _add_opt(renamed, config)
        metadata = _opt_metadata(config)
    else:
        _add_llama(renamed, config)
        metadata = _llama_metadata(config)
    if not config.is_tied:
        renamed.add("output.weight", HEAD, encoding=encoding)
    return GgufModel(metadata, tuple(renamed.made))


@final
class _Renamed:
    """Tensors of one source, collected under other names."""

    def __init__(self, source: TensorSource, encoding: Encoding) -> None:
        self.expected = tensor_shapes(source.config)
        self.tensors = Tensors(source, self.expected, torch.float32)
        self.encoding = encoding
        self.made: list[GgufTensor] = []

    def add(
        self,
        name: str,
        *sources: str,
        encoding: Encoding = FP32,
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Add the tensors called `sources` as one, their rows one after the other, then arranged."""
        shapes = [self.expected[each] for each in sources]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])

        def read() -> Tensor:
            joined = self.tensors.table(*sources)
            return joined if arrange is None else arrange(joined)

        self.made.append(GgufTensor(name, shape, encoding, read))

    def add_made(self, name: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> None:
        """Add a tensor that the source holds in another form, in fp32."""
        self.made.append(GgufTensor(name, shape, FP32, read))

    def add_map(self, name: str, *sources: str, arrange: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add a linear map, with its bias where it has one."""
        self.add(
            f"{name}.weight",
            *(f"{each}.weight" for each in sources),
            encoding=self.encoding,
            arrange=arrange,
        )
        if f"{sources[0]}.bias" in self.expected:
            self.add(f"{name}.bias", *(f"{each}.bias" for each in sources), arrange=arrange)

    def add_norm(self, name: str, source: str) -> None:
        """Add a norm, with its bias where it has one."""
        for part in ("weight", "bias"):
            if f"{source}.{part}" in self.expected:
                self.add(f"{name}.{part}", f"{source}.{part}")


def _add_opt(renamed: _Renamed, config: ModelConfig) -> None:
    positions = f"{ROOT}.embed_positions.weight"
    renamed.add(EMBEDDING, f"{ROOT}.embed_tokens.weight", encoding=renamed.encoding)
    renamed.add_made(
        POSITIONS,
        (config.n_positions, config.width),
        lambda: renamed.tensors.table(positions)[UNUSED_POSITIONS:],
    )
    renamed.add_norm("output_norm", f"{ROOT}.final_layer_norm")
    for index in range(config.n_layers):
        here, there = f"blk.{index}", f"{ROOT}.layers.{index}"
        for name, source in OPT_NORMS.items():
            renamed.add_norm(f"{here}.{name}", f"{there}.{source}")
        for name, sources in OPT_PARTS.items():
            renamed.add_map(f"{here}.{name}", *(f"{there}.{source}" for source in sources))


def _add_llama(renamed: _Renamed, config: ModelConfig) -> None:
    renamed.add(EMBEDDING, "model.embed_tokens.weight", encoding=renamed.encoding)
    renamed.add_norm("output_norm", "model.norm")
    rope = config.rope
    assert rope is not None  # the families beside OPT have rotary positions
    if rope.kind != "default":
        slowed = _slowed(rope, config.head_width)
        renamed.add_made(SLOWED, tuple(slowed.shape), lambda: slowed)
    for index in range(config.n_layers):
        here, there = f"blk.{index}", f"model.layers.{index}"
        for name, source in LLAMA_NORMS.items():
            renamed.add_norm(f"{here}.{name}", f"{there}.{source}")
        for name, source in LLAMA_PARTS.items():
            is_turned = name in ("attn_q", "attn_k")
            arrange = partial(neighbours, head_width=config.head_width) if is_turned else None
            renamed.add_map(f"{here}.{name}", f"{there}.{source}", arrange=arrange)


def neighbours(rows: Float[Tensor, "N ..."], head_width: int) -> Float[Tensor, "N ..."]:
    """Return the rows of each head with e and e + E/2 brought together: 0, E/2, 1, E/2 + 1, ..."""
    return rows.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2).flatten(0, 2)


def _slowed(rope: Rope, head_width: int) -> Float32[Tensor, " E_half"]:
    """Return by how much each frequency is slower than it would be without scaling."""
    return frequencies(Rope("default", rope.theta), head_width) / frequencies(rope, head_width)


def _opt_metadata(config: ModelConfig) -> dict[str, Value]:
    return {
        **_metadata("gpt2", config),
        "gpt2.attention.layer_norm_epsilon": config.norm_eps,
    }


def _llama_metadata(config: ModelConfig) -> dict[str, Value]:
    assert config.rope is not None
    return {
        **_metadata("llama", config),
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_width,
        "llama.attention.value_length": config.head_width,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_width,
        "llama.rope.freq_base": config.rope.theta,
    }


def _metadata(architecture: str, config: ModelConfig) -> dict[str, Value]:
    return {
        "general.architecture": architecture,
        "general.quantization_version": 2,
        "general.alignment": ALIGNMENT,
        f"{architecture}.vocab_size": config.vocab_size,
        f"{architecture}.context_length": config.n_positions,
        f"{architecture}.embedding_length": config.width,
        f"{architecture}.block_count": config.n_layers,
        f"{architecture}.feed_forward_length": config.n_neurons,
        f"{architecture}.attention.head_count": config.n_heads,
        "tokenizer.ggml.model": "no_vocab",
    }
