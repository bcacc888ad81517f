"""Translator: one turn of CTranslate2 on the same weights.   (floor 5 · engine)

CTranslate2 reads models of its own format only, so the tensors are written under its names into a temporary
directory, with a vocabulary of numbers, and loaded from there.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, final

import ctranslate2  # pyright: ignore[reportMissingImports]
import torch
from ctranslate2.specs import TransformerDecoderModelSpec  # pyright: ignore[reportMissingImports]
from ctranslate2.specs.attention_spec import RotaryScalingType  # pyright: ignore[reportMissingImports]
from ctranslate2.specs.common_spec import Activation  # pyright: ignore[reportMissingImports]

from winnow.base.room import check_disk
from winnow.engine.bench.rivals import COMPUTE_TYPES, check_rival
from winnow.engine.bench.runners import Turn, turn_of
from winnow.engine.config import ModelConfig
from winnow.engine.families import opt, tensor_shapes
from winnow.engine.families.tensors import HEAD, Tensors, TensorSource
from winnow.kernels import relu

POSITIONS = "decoder/position_encodings/encodings"
EMBEDDING = ("decoder/embeddings/weight", "decoder/embeddings/weight_scale")

# CTranslate2 declares its weights as None or a word, to be replaced: no checker of types can follow.
Spec = Any


def refused(dtype: str) -> str | None:
    """Return why CTranslate2 has no row in Winnow's `dtype` on this processor, None when it has one."""
    if dtype not in COMPUTE_TYPES:
        return f"it holds no {dtype}"
    if COMPUTE_TYPES[dtype] not in ctranslate2.get_supported_compute_types("cpu"):
        return f"it does not compute in {dtype} on this processor"
    return None


@final
class TranslatorRunner:
    """CTranslate2 with its own cache, greedy, no token being an end token."""

    name = "ctranslate2"

    def __init__(self, source: TensorSource, dtype: str, threads: int) -> None:
        """Load the model of `source` in `dtype`, for which `refused` finds nothing.

        Takes the disk space of the weights and twice their memory while it loads, and their memory until
        `close`. Raises UsageError for a model that CTranslate2 would not run as the same tensors.
        """
        check_rival(source.config, self.name)
        kind = COMPUTE_TYPES[dtype]
        self.dtype = dtype
        with TemporaryDirectory(prefix="winnow-") as directory:
            self.weight_bytes = _write(source, kind, Path(directory))
            self._generator = ctranslate2.Generator(
                directory, device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
            )

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache."""
        told: list[tuple[float, int]] = []

        def hear(step: ctranslate2.GenerationStepResult) -> bool:
            told.append((time.perf_counter(), step.token_id))
            return False

        words = [str(token) for token in prompt]
        started_s = time.perf_counter()
        self._generator.generate_batch(
            [words], max_length=n_tokens, end_token=[], include_prompt_in_result=False, callback=hear
        )
        return turn_of(started_s, told, bytes_per_token=self.weight_bytes)

    def close(self) -> None:
        """Give the memory back and end the threads; the runner is of no use afterwards."""
        del self._generator


def _write(source: TensorSource, kind: str, directory: Path) -> int:
    """Write the model and return how many bytes of weight a decode step reads."""
    config = source.config
    # CTranslate2 makes its int8 in place from float32: from bfloat16 it has to make a copy first.
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    tensors = Tensors(source, tensor_shapes(config), dtype)
    spec = _opt(tensors, config) if config.family == "opt" else _llama(tensors, config)
    if not config.is_tied:
        spec.decoder.projection.weight = tensors.table(HEAD)
    spec.decoder.scale_embeddings = False
    spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
    # They must be in the vocabulary; which they are is all the same, as no token ends a turn.
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = "0"
    spec.config.layer_norm_epsilon = config.norm_eps
    spec.validate()
    spec.optimize(quantization=kind)
    variables = spec.variables().items()
    sizes = {name: held.num_bytes() for name, held in variables if not isinstance(held, str)}  # else an alias
    check_disk(sum(sizes.values()), Path(gettempdir()))
    spec.save(str(directory))
    # Of positions, and of an embedding that is not the head too, a step reads one row.
    rows = (POSITIONS,) if config.is_tied else (POSITIONS, *EMBEDDING)
    return sum(n_bytes for name, n_bytes in sizes.items() if name not in rows)


def _opt(tensors: Tensors, config: ModelConfig) -> Spec:
    spec: Spec = TransformerDecoderModelSpec.from_config(
        config.n_layers, config.n_heads, activation=Activation.RELU
    )
    decoder = spec.decoder
    embedding = tensors.table(opt.EMBED)
    decoder.embeddings.weight = decoder.projection.weight = embedding
    positions = tensors.table(f"{opt.ROOT}.embed_positions.weight")
    decoder.position_encodings.encodings = positions[opt.UNUSED_POSITIONS :]
    _set_norm(tensors, decoder.layer_norm, f"{opt.ROOT}.final_layer_norm")
    for index, layer in enumerate(decoder.layer):
        at = f"{opt.ROOT}.layers.{index}"
        _set_norm(tensors, layer.self_attention.layer_norm, f"{at}.self_attn_layer_norm")
        _set_attention(tensors, layer.self_attention, f"{at}.self_attn", "out_proj")
        _set_norm(tensors, layer.ffn.layer_norm, f"{at}.final_layer_norm")
        _set_map(tensors, layer.ffn.linear_0, f"{at}.fc1")
        _set_map(tensors, layer.ffn.linear_1, f"{at}.fc2")
    return spec


def _llama(tensors: Tensors, config: ModelConfig) -> Spec:
    rope = config.rope
    assert rope is not None  # the families beside OPT have rotary positions
    is_grouped = config.n_kv_heads != config.n_heads
    spec: Spec = TransformerDecoderModelSpec.from_config(
        config.n_layers,
        config.n_heads,
        activation=Activation.RELU if config.activation is relu else Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,  # all coordinates of a head
        rotary_interleave=False,
        rotary_scaling_type=RotaryScalingType.Linear if rope.kind == "linear" else None,
        rotary_scaling_factor=rope.factor,
        rotary_base=rope.theta,
        num_heads_kv=config.n_kv_heads if is_grouped else None,
        head_dim=config.head_width,
    )
    decoder = spec.decoder
    decoder.embeddings.weight = decoder.projection.weight = tensors.table("model.embed_tokens.weight")
    _set_norm(tensors, decoder.layer_norm, "model.norm")
    for index, layer in enumerate(decoder.layer):
        at = f"model.layers.{index}"
        _set_norm(tensors, layer.self_attention.layer_norm, f"{at}.input_layernorm")
        _set_attention(tensors, layer.self_attention, f"{at}.self_attn", "o_proj")
        _set_norm(tensors, layer.ffn.layer_norm, f"{at}.post_attention_layernorm")
        _set_map(tensors, layer.ffn.linear_0, f"{at}.mlp.gate_proj")
        _set_map(tensors, layer.ffn.linear_0_noact, f"{at}.mlp.up_proj")
        _set_map(tensors, layer.ffn.linear_1, f"{at}.mlp.down_proj")
    return spec


def _set_attention(tensors: Tensors, spec: Spec, source: str, out: str) -> None:
    _set_map(tensors, spec.linear[0], *(f"{source}.{each}_proj" for each in "qkv"))
    _set_map(tensors, spec.linear[1], f"{source}.{out}")


def _set_map(tensors: Tensors, spec: Spec, *sources: str) -> None:
    spec.weight = tensors.table(*(f"{each}.weight" for each in sources))
    if f"{sources[0]}.bias" in tensors.expected:
        spec.bias = tensors.table(*(f"{each}.bias" for each in sources))


def _set_norm(tensors: Tensors, spec: Spec, source: str) -> None:
    spec.gamma = tensors.table(f"{source}.weight")
    if f"{source}.bias" in tensors.expected:
        spec.beta = tensors.table(f"{source}.bias")
