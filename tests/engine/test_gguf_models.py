"""Models as GGUF: every tensor of a checkpoint arrives under its new name, where llama.cpp reads it."""

import numpy as np
import pytest
import torch

from tests.engine.gguf_reader import Gguf
from tests.engine.tiny import LLAMA3, YARN
from winnow.base.rng import generator
from winnow.engine import DictSource, parse_config, tensor_shapes
from winnow.engine.bench.gguf import FP32, Q4_0, Q8_0, write_gguf
from winnow.engine.bench.gguf_models import ENCODINGS, gguf_model, neighbours
from winnow.engine.families import rotary_table
from winnow.engine.families.rope import frequencies, rotate
from winnow.engine.synthetic import llama_config, opt_config

OPT = opt_config(2, 64, 4, vocab_size=97)
LLAMA = llama_config(2, 64, 96, 4, 2, vocab_size=97)
LAYER = "model.decoder.layers.1"
PARTS = ("weight", "bias")
OPT_LAYER = [f"{at}.{part}" for at in ("attn_norm", "ffn_norm", "attn_qkv", "attn_output") for part in PARTS]
OPT_LAYER += [f"{at}.{part}" for at in ("ffn_up", "ffn_down") for part in PARTS]
LLAMA_LAYER = ["attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
LLAMA_LAYER += ["ffn_gate", "ffn_up", "ffn_down"]


def source_of(raw) -> DictSource:
    config = parse_config(raw)
    draws = generator(5)
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in tensor_shapes(config).items()}
    return DictSource(config, tensors)


def written(source, tmp_path, encoding=FP32) -> Gguf:
    model = gguf_model(source, encoding)
    write_gguf(tmp_path / "m.gguf", model.metadata, model.tensors)
    return Gguf(tmp_path / "m.gguf")


def test_opt_has_the_names_of_gpt2(tmp_path):
    file = written(source_of(OPT), tmp_path)
    layers = {f"blk.{index}.{name}" for index in range(2) for name in OPT_LAYER}
    stem = {"token_embd.weight", "position_embd.weight", "output_norm.weight", "output_norm.bias"}
    assert set(file.entries) == stem | layers
    assert file.metadata == {
        "general.architecture": "gpt2",
        "general.quantization_version": 2,
        "general.alignment": 32,
        "gpt2.vocab_size": 97,
        "gpt2.context_length": 2048,
        "gpt2.embedding_length": 64,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "no_vocab",
    }


def test_opt_tensors_arrive_fused_and_without_the_rows_of_padding(tmp_path):
    source = source_of(OPT)
    file = written(source, tmp_path)
    found = {
        "token_embd.weight": source.tensor("model.decoder.embed_tokens.weight"),
        "position_embd.weight": source.tensor("model.decoder.embed_positions.weight")[2:],
        "blk.1.ffn_norm.bias": source.tensor(f"{LAYER}.final_layer_norm.bias"),
        "blk.1.attn_norm.weight": source.tensor(f"{LAYER}.self_attn_layer_norm.weight"),
        "blk.1.ffn_down.weight": source.tensor(f"{LAYER}.fc2.weight"),
        "blk.1.ffn_up.bias": source.tensor(f"{LAYER}.fc1.bias"),
    }
    for part in PARTS:
        fused = torch.cat([source.tensor(f"{LAYER}.self_attn.{each}_proj.{part}") for each in "qkv"])
        found[f"blk.1.attn_qkv.{part}"] = fused
    for name, tensor in found.items():
        assert np.array_equal(file.array(name), tensor.numpy()), name


def test_llama_has_the_names_of_llama(tmp_path):
    file = written(source_of({**LLAMA, "tie_word_embeddings": False}), tmp_path)
    layers = {f"blk.{index}.{name}.weight" for index in range(2) for name in LLAMA_LAYER}
    assert set(file.entries) == {"token_embd.weight", "output_norm.weight", "output.weight"} | layers
    assert file.metadata == {
        "general.architecture": "llama",
        "general.quantization_version": 2,
        "general.alignment": 32,
        "llama.vocab_size": 97,
        "llama.context_length": 131072,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "no_vocab",
    }


def test_llama_rows_of_queries_and_keys_alone_change_places(tmp_path):
    source = source_of({**LLAMA, "attention_bias": True, "mlp_bias": True})
    file = written(source, tmp_path)
    at = "model.layers.0."
    for name, there in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj")):
        for part in PARTS:
            moved = neighbours(source.tensor(f"{at}{there}.{part}"), 16)
            assert np.array_equal(file.array(f"blk.0.{name}.{part}"), moved.numpy())
    for name, there in (
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        for part in PARTS:
            kept = source.tensor(f"{at}{there}.{part}")
            assert np.array_equal(file.array(f"blk.0.{name}.{part}"), kept.numpy())


def test_turning_neighbours_gives_the_scores_of_turning_halves(rng):
    n_heads, head_width, n_tokens = 3, 10, 7
    rope = parse_config(LLAMA).rope
    cos, sin = rotary_table(rope, head_width, 0, n_tokens)
    q, k = (torch.randn(n_tokens, n_heads, head_width, generator=rng) for _ in range(2))

    def turned_as_neighbours(x):
        moved = torch.stack([neighbours(row.flatten(), head_width).unflatten(0, (n_heads, -1)) for row in x])
        even, odd = moved[..., ::2], moved[..., 1::2]
        c, s = cos[:, None], sin[:, None]
        return torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(2)

    expected = torch.einsum("the,she->hts", rotate(q, cos, sin), rotate(k, cos, sin))
    found = torch.einsum("the,she->hts", turned_as_neighbours(q), turned_as_neighbours(k))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "table",
    [LLAMA3, YARN, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}],
    ids=lambda table: table["rope_type"],
)
def test_slowed_frequencies_divide_llama_cpps_own(tmp_path, table):
    source = source_of({**LLAMA, "rope_parameters": table})
    file = written(source, tmp_path)
    own = file.metadata["llama.rope.freq_base"] ** (-np.arange(0, 16, 2) / 16)
    slowed = own / file.array("rope_freqs.weight")
    assert slowed == pytest.approx(frequencies(source.config.rope, 16).numpy(), rel=1e-5)


def test_frequencies_that_are_not_slowed_have_no_table():
    assert "rope_freqs.weight" not in {tensor.name for tensor in gguf_model(source_of(LLAMA), FP32).tensors}


@pytest.mark.parametrize("raw", [OPT, LLAMA], ids=["opt", "llama"])
@pytest.mark.parametrize("dtype", ENCODINGS)
def test_matrices_alone_are_encoded(raw, dtype):
    for tensor in gguf_model(source_of(raw), ENCODINGS[dtype]).tensors:
        is_matrix = len(tensor.shape) == 2 and tensor.name != "position_embd.weight"
        assert tensor.encoding is (ENCODINGS[dtype] if is_matrix else FP32), tensor.name


def test_a_step_reads_every_matrix_once_but_one_row_of_an_embedding_that_is_no_head():
    config = parse_config(LLAMA)
    matrices = sum(shape[0] * shape[1] for shape in tensor_shapes(config).values() if len(shape) == 2)
    norms = 4 * 64 * (2 * 2 + 1)
    tied = gguf_model(source_of(LLAMA), Q8_0)
    untied = gguf_model(source_of({**LLAMA, "tie_word_embeddings": False}), Q8_0)
    assert tied.weight_bytes == tied.file_bytes == matrices * 34 // 32 + norms
    assert untied.weight_bytes == tied.weight_bytes
    assert untied.file_bytes == tied.file_bytes + 97 * 64 * 34 // 32
    opt = gguf_model(source_of(OPT), Q4_0)
    assert opt.file_bytes - opt.weight_bytes == 2048 * 64 * 4
