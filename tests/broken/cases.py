"""The table of broken inputs: a number, how to build it, the exit code, and words that the one line holds.

The numbers are those of the list that the project keeps of what must not break it. 21 (chat templates) has a
test file of its own. `ELSEWHERE` names the tests of what needs a process of its own.
"""

import json
from dataclasses import dataclass
from functools import partial

import torch

from tests.broken import builders as b
from tests.broken import files
from tests.broken.builders import NORM, WEIGHTS, Build
from tests.cli import checkpoint

ELSEWHERE = {
    25: "tests/engine/convert/test_convert.py::test_a_file_system_that_refuses_to_write_leaves_nothing",
    26: "tests/broken/test_processes.py::test_no_home_and_a_cache_that_cannot_be_written_are_no_failure",
    27: "tests/kernels/test_choice.py::*",
    29: "tests/cli/test_failures.py::test_reader_that_has_gone_away_is_no_failure",
    30: "tests/broken/test_processes.py::test_an_interrupt_ends_in_one_line_whatever_it_meets",
}


@dataclass(frozen=True)
class Case:
    """One broken input; `code` 0 means that it must do no harm."""

    number: int
    name: str
    build: Build
    code: int = 3
    says: tuple[str, ...] = ()


ROWS = {"vocab_size": 2**24, "hidden_size": 1024, "word_embed_proj_dim": 1024}
NUMBERS = {
    "zero": 0,
    "negative": -64,
    "huge": 10**12,
    "text": "64",
    "list": [64],
    "fraction": 64.5,
    "yes": True,
}

CASES = [
    Case(1, "nowhere", b.line("generate", "PARENT/nowhere", "x"), says=("no directory here",)),
    Case(1, "long", b.line("generate", "word/" * 2000, "x"), 2, ("path that ends in '/word/word", "word/'")),
    Case(1, "no-spelling", b.line("generate", "x" * 5000, "x"), 2, ("A name of 5000 characters",)),
    Case(2, "file", b.line("generate", "MODEL/config.json", "x"), says=("is a file, expected a model",)),
    Case(3, "no-config", b.without("config.json"), says=("config.json cannot be read",)),
    Case(4, "half", b.holding("config.json", "{"), says=("config.json is not valid JSON",)),
    Case(4, "empty", b.holding("config.json", ""), says=("config.json is not valid JSON",)),
    Case(4, "byte-order-mark", b.holding("config.json", "\ufeff{}"), says=("is not valid JSON",)),
    Case(4, "not-utf8", b.holding("config.json", b'{"a": "\xff"}'), says=("is not valid JSON",)),
    Case(4, "200-megabytes", b.sparse("config.json", 200 * 2**20), says=("has 209715200 bytes, expected",)),
    Case(4, "deep", b.holding("config.json", '{"a":' + "[" * 200_000), says=("is not valid JSON",)),
    Case(
        4,
        "deep-and-closed",
        b.holding("config.json", '{"a":' * 9000 + "1" + "}" * 9000),
        says=("valid JSON",),
    ),
    Case(4, "nan", b.holding("config.json", '{"hidden_size": NaN}'), says=("NaN is not a JSON number",)),
    Case(
        4, "long-number", b.holding("config.json", '{"a": ' + "9" * 5000 + "}"), says=("is not valid JSON",)
    ),
    Case(4, "twice", b.holding("config.json", '{"a": 1, "a": 2}'), says=("the same key twice",)),
    Case(5, "list", b.holding("config.json", "[]"), says=("holds [], expected a JSON object",)),
    Case(5, "null", b.holding("config.json", "null"), says=("holds None, expected a JSON object",)),
    Case(5, "long-list", b.holding("config.json", f"[{'0,' * 10**6}0]"), says=("expected a JSON object",)),
    Case(6, "mamba", partial(b.config, model_type="mamba"), says=("'mamba'", "llama", "opt")),
    Case(6, "none", partial(b.config, model_type=None), says=("model_type is missing",)),
    Case(6, "list", partial(b.config, model_type=["opt"]), says=("model_type is ['opt']",)),
    *(
        Case(7, name, partial(b.config, hidden_size=value), says=("hidden_size",))
        for name, value in NUMBERS.items()
    ),
    Case(7, "heads", partial(b.config, num_attention_heads=5), says=("num_attention_heads",)),
    Case(7, "layers", partial(b.config, num_hidden_layers=10**6), says=("num_hidden_layers",)),
    Case(8, "auto-map", b.trap, 0, ("auto_map", "never runs it")),
    Case(9, "config", partial(b.config, quantization_config={"quant_method": "gptq"}), says=("unquantised",)),
    Case(
        9,
        "gptq-tensors",
        b.weights(model__decoder__layers__0__fc1__qweight=torch.zeros(2, 2)),
        says=("qweight", "unquantised"),
    ),
    Case(
        9,
        "bnb-tensors",
        b.weights(model__decoder__layers__0__fc1__SCB=torch.zeros(2)),
        says=("SCB", "unquantised"),
    ),
    Case(
        9,
        "gguf-file",
        b.without(WEIGHTS, **{"model-Q4__gguf": "GGUF"}),
        says=("GGUF", "original safetensors"),
    ),
    Case(
        9, "gguf-as-safetensors", b.holding(WEIGHTS, b"GGUF\x03\0\0\0"), says=("is GGUF under another name",)
    ),
    Case(
        10, "rope", partial(b.llama, rope_parameters={"rope_type": "longrope"}), says=("'longrope'", "yarn")
    ),
    *(
        Case(11, name, b.holding(WEIGHTS, content), says=("model.safetensors is broken",))
        for name, content in files.SAFETENSORS.items()
    ),
    Case(12, "parent", partial(b.sharded, **{NORM: "../a.safetensors"}), says=("expected a plain name",)),
    Case(12, "absolute", partial(b.sharded, **{NORM: "/etc/a.safetensors"}), says=("expected a plain name",)),
    Case(12, "python", partial(b.sharded, **{NORM: "a.py"}), says=("expected a plain name",)),
    Case(12, "link-out", b.leads_out, says=("leads out of the model directory",)),
    Case(12, "missing", b.missing_shard, says=("b.safetensors cannot be read",)),
    Case(12, "twice", b.twice, says=("is in both",)),
    Case(12, "many", b.many_shards, says=("names 100002 files, expected at most",)),
    Case(13, "missing", b.weights(model__decoder__final_layer_norm__weight=None), says=(f"lacks {NORM}",)),
    Case(13, "extra", b.weights(model__decoder__extra=torch.zeros(2)), says=("holds model.decoder.extra",)),
    Case(
        13,
        "shape",
        b.weights(model__decoder__final_layer_norm__weight=torch.zeros(63)),
        says=("has shape [63], expected [64]",),
    ),
    Case(
        13,
        "type",
        b.weights(model__decoder__final_layer_norm__weight=torch.zeros(64).long()),
        says=("has type I64",),
    ),
    Case(13, "huge-in-the-config-only", partial(b.config, **ROWS), says=("has shape",)),
    Case(
        14,
        "tied",
        b.weights(lm_head__weight=torch.zeros(checkpoint.N_ROWS, 64)),
        says=("config.json ties the two",),
    ),
    Case(14, "untied", partial(b.config, tie_word_embeddings=False), says=("lacks lm_head.weight",)),
    Case(15, "weights", b.holding(WEIGHTS, files.LFS_POINTER), says=("Git-LFS pointer", "git lfs pull")),
    Case(15, "config", b.holding("config.json", files.LFS_POINTER), says=("Git-LFS pointer", "git lfs pull")),
    Case(15, "tokenizer", b.holding("tokenizer.json", files.LFS_POINTER), says=("Git-LFS pointer",)),
    Case(16, "weights", b.cut(WEIGHTS, 100), says=("model.safetensors is broken", "Download it again")),
    Case(16, "tokenizer", b.cut("tokenizer.json", 100), says=("tokenizer.json is not valid JSON",)),
    Case(17, "not-converted", b.unconverted, says=("can run code when read", "winnow convert ")),
    *(Case(17, name, b.bin(content), says=(says,)) for name, (content, says) in files.BINS.items()),
    *(
        Case(18, name, b.holding("tokenizer.json", json.dumps(raw)), says=("tokenizer.json",))
        for name, raw in files.TOKENIZERS.items()
    ),
    *(Case(18, name, partial(b.tokenizer, **raw), 0) for name, raw in files.HARMLESS_TOKENIZERS.items()),
    Case(18, "not-json", b.holding("tokenizer.json", "model"), says=("is not valid JSON",)),
    Case(18, "none", b.without("tokenizer.json"), says=("holds no tokenizer",)),
    Case(18, "sentencepiece", b.without("tokenizer.json", tokenizer__model="x"), says=("save_pretrained",)),
    Case(19, "gap", b.vocabulary({"a": 0, "b": 2}), says=("vocab.json gives token ids other than",)),
    Case(
        19,
        "merges",
        b.vocabulary({"a": 0, "b": 1}, "#version: 0.2\nq zz\n"),
        says=("does not go with vocab.json",),
    ),
    Case(19, "large", b.vocabulary({f"t{i}": i for i in range(400)}), says=("token ids up to 399",)),
    Case(20, "larger", b.large_tokenizer, says=("token ids up to 399, the model knows 0 to 306",)),
    Case(20, "smaller", b.line("generate", "MODEL", "x", "--max-tokens", 2), 0),
    Case(22, "checked", b.checked("generate"), says=(NORM, "1 NaN or infinite weights, of 64")),
    Case(22, "checked-by-inspect", b.checked("inspect"), says=(NORM, "1 NaN or infinite weights, of 64")),
    Case(22, "met", b.nan, says=("NaN", "--check-tensors")),
    Case(23, "good", b.plan(), 0),
    Case(23, "cut", b.cut_plan, says=("is not a plan",)),
    Case(23, "no-plan-at-all", b.plan_file(b"plan"), says=("is not a plan",)),
    Case(23, "another-model", b.plan({"model_hash": "f" * 64}), says=("belongs to the model ffffffffffff",)),
    Case(23, "old-format", b.plan({"format": "winnow-plan/1"}), says=("format 'winnow-plan/1'",)),
    Case(23, "foreign-format", b.plan({"format": ["a"] * 10_000}), says=("format",)),
    Case(23, "no-json", b.plan("{"), says=("broken header",)),
    Case(23, "deep-json", b.plan('{"a":' * 9000 + "1" + "}" * 9000), says=("broken header",)),
    Case(23, "list", b.plan("[]"), says=("broken header",)),
    Case(23, "no-layers", b.plan({"layers": None}), says=("no list of layers",)),
    Case(23, "one-layer", b.plan({"layers": [{"kind": "dense"}]}), says=("1 layers",)),
    Case(23, "no-kind", b.plan({"layers": [{}, {}]}), says=("layer 0",)),
    Case(23, "unknown-kind", b.plan({"layers": [{"kind": "magic"}] * 2}), says=("'magic'",)),
    Case(23, "list-kind", b.plan({"layers": [{"kind": []}] * 2}), says=("layer 0",)),
    Case(23, "gate", b.plan({"layers": [{"kind": "gate"}] * 2}), says=("layer 0",)),
    Case(23, "text-for-numbers", b.plan({"target_kld": "low"}), says=("broken header",)),
    Case(23, "precisions", b.plan({"precisions": [["bf16"]]}), says=("precisions",)),
    Case(23, "no-precisions", b.plan({"precisions": 3}), says=("broken header",)),
    Case(23, "index-of-nothing", b.plan({"layers": [{"kind": "index"}] * 2}), says=("layer 0",)),
    Case(23, "half-a-layer", b.plan(up=None), says=("layer 0",)),
    Case(23, "scalar", b.plan(down=torch.zeros(())), says=("layer 0",)),
    Case(23, "vector", b.plan(up=torch.zeros(5)), says=("layer 0",)),
    Case(23, "no-rank", b.plan(down=torch.zeros(0, 64), up=torch.zeros(256, 0)), says=("layer 0",)),
    Case(23, "whole-numbers", b.plan(down=torch.zeros(3, 64, dtype=torch.int64)), says=("layer 0",)),
    Case(23, "wide", b.plan(down=torch.zeros(3, 65)), says=("layer 0",)),
    Case(23, "short-bias", b.plan(bias=torch.zeros(255)), says=("layer 0",)),
    Case(
        24, "machine", b.machine(proc__meminfo="MemAvailable: 300 kB\n"), 4, ("of memory, 307 kB are free",)
    ),
    Case(
        24,
        "group",
        b.machine(
            proc__meminfo="MemAvailable: 9000000 kB\n",
            proc__self__cgroup="0::/a/b\n",
            sys__fs__cgroup__a__memory_0_max="400000\n",
            sys__fs__cgroup__a__memory_0_current="390000\n",
            sys__fs__cgroup__a__memory_0_stat="inactive_file 140000\n",
            sys__fs__cgroup__a__b__memory_0_max="max\n",
        ),
        4,
        ("of memory, 150 kB are free",),
    ),
    Case(25, "no-room", b.full_disk, 4, ("of disk, 1 kB are free there",)),
    Case(26, "path", b.odd_path, 0),
    Case(26, "broken-path", b.broken_odd_path, says=("config.json is not valid JSON", "\\x1b[31m")),
    Case(27, "cuda", b.line("generate", "MODEL", "x", "--device", "cuda"), 4, ("'cuda'",)),
    Case(28, "empty", b.stdin(b""), 0),
    Case(28, "nul", b.stdin(b"\0\0"), 0),
    Case(28, "only-the-first-token", b.line("generate", "MODEL", "</s>", "--max-tokens", 2), 0),
    Case(28, "not-utf8", b.stdin(b"wind \xff"), 2, ("not UTF-8 at byte 5",)),
    Case(28, "surrogate", b.line("generate", "MODEL", "wind \udcff"), 2, ("which has no UTF-8",)),
    Case(28, "ten-megabytes", b.stdin(b"grain " * 1_700_000), 2, ("positions",)),
]
