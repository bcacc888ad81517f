"""Rivals: which models they run, and what their reports say about the differences."""

import pytest

from tests.engine.tiny import LLAMA3, YARN
from winnow.base.errors import UsageError
from winnow.engine import parse_config
from winnow.engine.bench.rivals import check_rival, ctranslate2_notes, llama_cpp_notes
from winnow.engine.synthetic import llama_config, opt_config

OPT = opt_config(2, 64, 4, vocab_size=97)
LLAMA = llama_config(2, 64, 96, 4, 2, vocab_size=97)


def config_of(raw, **changes):
    return parse_config({**raw, **changes})


@pytest.mark.parametrize(
    ("raw", "changes"),
    [
        (OPT, {}),
        (OPT, {"tie_word_embeddings": False}),
        (LLAMA, {}),
        (LLAMA, {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
        (LLAMA, {"rope_parameters": YARN}),
        (LLAMA, {"model_type": "qwen2"}),
        (LLAMA, {"model_type": "mistral", "sliding_window": None}),
    ],
)
def test_plain_models_are_run(raw, changes):
    check_rival(config_of(raw, **changes), "llama.cpp")


@pytest.mark.parametrize(
    ("raw", "changes", "says"),
    [
        (OPT, {"do_layer_norm_before": False}, "norms after the residual"),
        (OPT, {"_remove_final_layer_norm": True}, "no final norm"),
        (OPT, {"word_embed_proj_dim": 32}, "an embedding narrower than the model"),
        (OPT, {"layer_norm_elementwise_affine": False}, "norms without weights"),
        (OPT, {"enable_bias": False}, "no biases"),
        (LLAMA, {"model_type": "qwen3"}, "norms of queries and keys"),
        (LLAMA, {"model_type": "mistral", "sliding_window": 17}, "a sliding window"),
    ],
)
def test_others_are_refused_with_the_reason(raw, changes, says):
    with pytest.raises(UsageError, match=f"--against ctranslate2: the model has {says}.*leave ctranslate2"):
        check_rival(config_of(raw, **changes), "ctranslate2")


@pytest.mark.parametrize(
    ("raw", "changes", "dtype", "says"),
    [
        (LLAMA, {}, "fp32", []),
        (LLAMA, {"rope_parameters": LLAMA3}, "fp32", []),
        (LLAMA, {}, "bf16", ["fp16"]),
        (LLAMA, {}, "int8", ["int8 as Q8_0", "fp16"]),
        (LLAMA, {}, "int4", ["int4 as Q4_0", "fp16"]),
        (LLAMA, {"hidden_act": "relu"}, "fp32", ["SiLU instead of ReLU, tokens not compared"]),
        (LLAMA, {"rope_parameters": YARN}, "fp32", ["yarn"]),
        (OPT, {}, "fp32", ["llama.cpp runs OPT shapes as gpt2: GELU instead of ReLU, tokens not compared"]),
    ],
)
def test_llama_cpps_notes_say_what_differs(raw, changes, dtype, says):
    notes = list(llama_cpp_notes(config_of(raw, **changes), dtype))
    assert len(notes) == len(says)
    assert all(word in note for word, note in zip(says, notes, strict=True))


@pytest.mark.parametrize(
    ("raw", "changes", "dtype", "says"),
    [
        (OPT, {}, "fp32", []),
        (OPT, {}, "int8", ["rounds activations to int8"]),
        (LLAMA, {}, "fp32", []),
        (LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "fp32", []),
        (LLAMA, {"rope_parameters": LLAMA3}, "fp32", ["without llama3's scaling of positions"]),
    ],
)
def test_ctranslate2s_notes_say_what_differs(raw, changes, dtype, says):
    notes = list(ctranslate2_notes(config_of(raw, **changes), dtype))
    assert len(notes) == len(says)
    assert all(word in note for word, note in zip(says, notes, strict=True))
