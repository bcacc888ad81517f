"""config.json: both spellings are read, and every number outside its range is refused by name."""

import json
from pathlib import Path

import pytest

from winnow.base.errors import ModelError
from winnow.engine import parse_config, read_config
from winnow.engine.config import Fields, read_json
from winnow.kernels import relu, silu

OPT = {
    "model_type": "opt",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "ffn_dim": 192,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 99,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
MISTRAL = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def refused(raw: dict) -> str:
    with pytest.raises(ModelError) as caught:
        parse_config(raw)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_opt_config_says_what_opt_is() -> None:
    config = parse_config(OPT)
    assert (config.width, config.n_heads, config.head_width, config.n_neurons) == (48, 4, 12, 192)
    assert config.activation is relu
    assert config.is_tied and config.is_pre_norm and config.has_final_norm and not config.is_gated
    assert config.embed_width == 48 and config.rope is None and config.sliding_window is None


def test_the_350m_variant_norms_after_and_embeds_narrower() -> None:
    config = parse_config({**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20})
    assert not config.is_pre_norm and not config.has_final_norm and config.embed_width == 20


def test_a_llama_config_says_what_llama_is() -> None:
    config = parse_config({**LLAMA, "num_key_value_heads": 2, "head_dim": 10})
    assert config.qkv_rows == (40, 20, 20)
    assert config.activation is silu and config.is_gated and not config.is_tied
    assert config.rope is not None and (config.rope.kind, config.rope.theta) == ("default", 10_000.0)


def test_null_counts_as_absent() -> None:
    nulls = {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None, "quantization_config": None}
    assert parse_config({**LLAMA, **nulls}) == parse_config(LLAMA)


@pytest.mark.parametrize(
    ("v4", "v5"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 32}},
        ),
        (
            {"original_max_position_embeddings": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        ),
    ],
    ids=["default", "linear", "llama3", "yarn"],
)
def test_rotary_positions_read_alike_in_both_spellings(v4: dict, v5: dict) -> None:
    rope = parse_config({**LLAMA, **v4, "torch_dtype": "float16"}).rope
    assert rope == parse_config({**LLAMA, **v5, "dtype": "float16"}).rope
    assert rope is not None and rope.theta == v4.get("rope_theta", 1e4)


def test_yarn_scales_attention_by_its_factor_or_by_mscale() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    scales = [
        parse_config({**LLAMA, "rope_scaling": {**yarn, **more}}).rope.scale  # type: ignore[union-attr]
        for more in ({}, {"attention_factor": 1.5}, {"mscale": 0.7, "mscale_all_dim": 0.7})
    ]
    assert scales == pytest.approx([1.1386294, 1.5, 1.0])


@pytest.mark.parametrize(
    ("raw", "windows"),
    [
        ({**MISTRAL, "sliding_window": 9}, (9, 9, 9)),
        ({**MISTRAL, "sliding_window": None}, (None, None, None)),
        (MISTRAL, (4096, 4096, 4096)),
        ({**QWEN2, "sliding_window": 9, "max_window_layers": 1}, (None, None, None)),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, (None, 9, 9)),
        (
            {
                **QWEN2,
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (9, None, 9),
        ),
        ({**LLAMA, "sliding_window": 9}, (None, None, None)),
    ],
    ids=["mistral", "mistral-null", "mistral-absent", "qwen-off", "qwen-late", "qwen-listed", "llama"],
)
def test_windows_apply_where_the_family_applies_them(raw: dict, windows: tuple) -> None:
    config = parse_config(raw)
    assert config.windows == windows
    assert config.sliding_window == min((each for each in windows if each), default=None)


DIMENSIONS = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
)
BAD_NUMBERS = (0, -1, -48, 10**12, 1e12, 48.0, "48", True, [48], float("nan"), float("inf"))


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("raw", [OPT, LLAMA], ids=["opt", "llama"])
def test_every_dimension_is_refused_outside_its_range(raw: dict, value: object) -> None:
    neurons = "ffn_dim" if raw is OPT else "intermediate_size"
    for key in (*DIMENSIONS, neurons):
        assert key in refused({**raw, key: value})


@pytest.mark.parametrize("raw", [OPT, LLAMA], ids=["opt", "llama"])
def test_every_missing_dimension_is_named(raw: dict) -> None:
    neurons = "ffn_dim" if raw is OPT else "intermediate_size"
    for key in (*DIMENSIONS, neurons):
        assert f"{key} is missing" in refused({name: value for name, value in raw.items() if name != key})


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({**OPT, "hidden_size": 50}, "num_attention_heads is 4, expected a divisor of hidden_size, 50"),
        ({**LLAMA, "hidden_size": 50}, "divisor of hidden_size"),
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({**LLAMA, "num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({**LLAMA, "head_dim": 11}, "head_dim is 11, expected an even number"),
        ({**LLAMA, "head_dim": 0}, "head_dim is 0"),
        ({**LLAMA, "rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({**LLAMA, "rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of relu, silu"),
        ({**OPT, "activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({**OPT, "enable_bias": 1}, "enable_bias is 1, expected true or false"),
        ({**OPT, "eos_token_id": 100}, "eos_token_id is 100, expected token ids from 0 to 99"),
        ({**OPT, "eos_token_id": [2, -1]}, "eos_token_id is -1"),
        ({**OPT, "bos_token_id": "2"}, "bos_token_id"),
        (
            {**OPT, "model_type": "bert"},
            "model_type is 'bert', expected one of llama, mistral, opt, qwen2, qwen3",
        ),
        ({**OPT, "model_type": ["opt"]}, "model_type"),
        ({key: value for key, value in OPT.items() if key != "model_type"}, "model_type is missing"),
        ({**OPT, "quantization_config": {"quant_method": "gptq"}}, "Use the unquantised checkpoint"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window is 0"),
        ({**QWEN2, "use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types"),
        ({**QWEN2, "use_sliding_window": True, "layer_types": ["linear_attention"] * 3}, "layer_types"),
    ],
)
def test_a_contradiction_is_refused_by_name(raw: dict, named: str) -> None:
    assert named in refused(raw)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        (
            {"rope_type": "longrope", "factor": 2.0},
            "rope_type is 'longrope', expected one of default, linear",
        ),
        ({"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'"),
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "linear", "factor": 0.5}, "factor is 0.5"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
        ({"rope_type": "yarn", "factor": float("inf")}, "factor is inf"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor is 1.0, expected more than low_freq_factor"),
        ({**LLAMA3, "original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"full_attention": {"rope_type": "default"}}, "one set of values for all layers"),
        (["default"], "expected an object"),
    ],
)
def test_unknown_rotary_positions_are_refused_by_name(rope: object, named: str) -> None:
    assert named in refused({**LLAMA, "rope_parameters": rope})


def test_code_that_the_config_names_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "modeling_trap.py").write_text("raise SystemExit('imported')")
    auto_map = {"AutoModelForCausalLM": "modeling_trap.Trap"}
    (tmp_path / "config.json").write_text(json.dumps({**OPT, "auto_map": auto_map}))
    assert read_config(tmp_path) == parse_config(OPT)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'\xff\xfe{"a": 1}', "not valid JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    ],
    ids=["empty", "cut", "bom", "utf16", "list", "null", "nan", "twice", "huge-number", "deep", "lfs"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=named) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # sparse: takes no room on disk
    with pytest.raises(ModelError, match="expected at most"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_json(tmp_path / "config.json")


def test_a_whole_number_is_accepted_at_both_ends_of_its_range_only() -> None:
    fields = Fields({"low": 1, "high": 7, "under": 0, "over": 8})
    assert (fields.whole("low", high=7), fields.whole("high", high=7)) == (1, 7)
    for key in ("under", "over"):
        with pytest.raises(ModelError, match=key):
            fields.whole(key, high=7)
