"""Rivals: which models other engines run, in which precision, and what differs.   (floor 5 · engine)"""

from collections.abc import Iterator

from winnow.base.errors import UsageError
from winnow.engine.config import ModelConfig
from winnow.kernels import relu

# CTranslate2's names by Winnow's precisions; it holds nothing in 4 bits.
COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


def check_rival(config: ModelConfig, engine: str) -> None:
    """Raise UsageError for a model that `engine` would not run as the same tensors.

    Refused are windows, norms of queries and keys, and the OPTs that differ from the others: 350m, with its
    narrow embedding and norms after the residual, and those without biases or norm weights.
    """
    odd = {
        "a sliding window": config.sliding_window is not None,
        "norms of queries and keys": config.has_qk_norm,
        "norms after the residual": not config.is_pre_norm,
        "no final norm": not config.has_final_norm,
        "an embedding narrower than the model": config.embed_width != config.width,
        "norms without weights": not config.has_norm_weights,
        "no biases": config.family == "opt" and not config.has_mlp_bias,
    }
    for what, is_so in odd.items():
        if is_so:
            raise UsageError(
                f"--against {engine}: the model has {what}, expected a plain OPT or Llama; "
                f"leave {engine} out."
            )


def llama_cpp_notes(config: ModelConfig, dtype: str) -> Iterator[str]:
    """Yield what a reader of llama.cpp's row has to know."""
    if config.family == "opt":
        yield "llama.cpp runs OPT shapes as gpt2: GELU instead of ReLU, tokens not compared"
    elif config.activation is relu:
        yield "llama.cpp runs gated MLPs with SiLU instead of ReLU, tokens not compared"
    if config.rope is not None and config.rope.scale != 1.0:
        yield "llama.cpp runs without yarn's scale of cosine and sine, tokens not compared"
    if dtype in ("int8", "int4"):
        held = {"int8": "Q8_0", "int4": "Q4_0"}[dtype]
        yield f"llama.cpp holds {dtype} as {held}, a scale per 32 weights, and rounds activations to int8"
    if dtype != "fp32":
        yield "llama.cpp keeps keys and values in fp16"


def ctranslate2_notes(config: ModelConfig, dtype: str) -> Iterator[str]:
    """Yield what a reader of CTranslate2's row has to know."""
    if config.rope is not None and config.rope.kind not in ("default", "linear"):
        yield f"ctranslate2 runs without {config.rope.kind}'s scaling of positions, tokens not compared"
    if dtype == "int8":
        yield "ctranslate2 has a scale per row of weights and rounds activations to int8"
