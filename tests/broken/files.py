"""Broken parts that several tests share: safetensors headers, tokenizers, programs of .bin files."""

import json
import struct

import torch

from tests.engine.convert import bins


def header(entries: dict) -> bytes:
    """The beginning of a safetensors file with these entries."""
    content = json.dumps(entries).encode()
    return struct.pack("<Q", len(content)) + content


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWICE = b"{" + ONE + b"," + ONE.replace(b"[0,4]", b"[4,8]") + b"}"
SAFETENSORS = {
    "empty": b"",
    "seven-bytes": b"\x01" * 7,
    "huge-header": struct.pack("<Q", 2**63) + b"{}",
    "header-beyond-file": struct.pack("<Q", 1000) + b"{}",
    "no-json": struct.pack("<Q", 4) + b"abcd",
    "list-header": struct.pack("<Q", 2) + b"[]",
    "not-utf8": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "unknown-type": header({"a": {**ENTRY, "dtype": "F99"}}) + bytes(8),
    "truncated": header({"a": ENTRY}) + bytes(5),
    "trailing": header({"a": ENTRY}) + bytes(12),
    "overlap": header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}) + bytes(12),
    "hole": header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}) + bytes(20),
    "shape-lies": header({"a": {**ENTRY, "shape": [3]}}) + bytes(8),
    "shape-overflows": header({"a": {**ENTRY, "shape": [2**40, 2**40]}}) + bytes(8),
    "negative-shape": header({"a": {**ENTRY, "shape": [-2]}}) + bytes(8),
    "backwards": header({"a": {**ENTRY, "data_offsets": [8, 0]}}) + bytes(8),
    "same-name-twice": struct.pack("<Q", len(TWICE)) + TWICE + bytes(8),
}

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def crafted(**parts: object) -> dict:
    """A tokenizer.json that loads, but for `parts`."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    return {"version": "1.0", "added_tokens": [], "model": model, **parts}


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
TOKENIZERS = {
    "empty-object": {},
    "null-model": {"model": None},
    "text-model": {"model": "BPE"},
    "unknown-model": crafted(model={"type": "Magic"}),
    "merge-unknown": crafted(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    "negative-id": crafted(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    "no-tokens": crafted(model={"type": "BPE", "vocab": {}, "merges": []}),
    "precompiled-null": crafted(normalizer={"type": "Precompiled", "precompiled_charsmap": None}),
    "precompiled-zero": crafted(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "precompiled-long": crafted(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
    "template-without-its-token": crafted(post_processor=TEMPLATE),
    "chunks-of-nothing": crafted(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "strips-past-the-end": crafted(decoder={"type": "Strip", "content": "a", "start": 5, "stop": 9}),
    "open-bracket": crafted(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "unigram-unknown": crafted(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}),
}
# Settings for training batches: turned off for prompts, so they harm nobody.
HARMLESS_TOKENIZERS = {
    "stride-beyond-length": {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    },
    "pads-to-multiples-of-nothing": {
        "padding": {
            "strategy": {"Fixed": 2**40},
            "direction": "Right",
            "pad_to_multiple_of": 0,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    },
}


def _claim(**changes: object) -> bytes:
    """A .bin file of one tensor [2, 3] of six floats, but for `changes` to what is said of it."""
    said = {
        "key": "0",
        "storage": "FloatStorage",
        "n_elements": 6,
        "offset": 0,
        "shape": (2, 3),
        "stride": (3, 1),
    }
    claim = bins.Claim(**{**said, **changes})  # type: ignore[arg-type]
    return bins.archive(bins.table({"a": claim.program()}), {"0": bytes(24)}).content()


def _program(program: bytes) -> bytes:
    return bins.archive(program, {"0": bytes(24)}).content()


def _runs(module: str, attribute: str) -> bytes:
    """A program that calls ``module.attribute("true")``, as an attack would."""
    call = bins.name(module, attribute) + bins.MARK + bins.text("true") + bins.TUPLE + bins.REDUCE
    return bins.PROTOCOL + call + bins.STOP


def _zip(**changes: object) -> bytes:
    archive = bins.of({"a": torch.zeros(2, 3)})
    for field, value in changes.items():
        setattr(archive, field, value)
    return archive.content()


def _deflated() -> bytes:
    """A zip bomb: data.pkl claims a gigabyte."""
    return _zip(method=8, claimed_bytes={"archive/data.pkl": 2**30})


def _tar() -> bytes:
    return b"storages".ljust(257, b"\0") + b"ustar\x0000" + bytes(512)


_GOOD = _zip()
_BIG_ENDIAN = bins.of({"a": torch.zeros(2)})
_BIG_ENDIAN.entries["archive/byteorder"] = b"big"
# What is wrong with a pytorch_model.bin -> its content, and words that the one line must hold.
BINS: dict[str, tuple[bytes, str]] = {
    "posix.system": (_program(_runs("posix", "system")), "asks for 'posix.system'"),
    "builtins.eval": (_program(_runs("builtins", "eval")), "asks for 'builtins.eval'"),
    "torch.load": (_program(_runs("torch.serialization", "load")), "asks for 'torch.serialization.load'"),
    "module-with-dots": (_program(_runs("torch.hub.os", "system")), "asks for 'torch.hub.os.system'"),
    "calls-a-storage": (
        _program(_runs("torch", "FloatStorage")),
        "calls torch.FloatStorage in a way of its own",
    ),
    "numpy": (_program(_runs("numpy.core.multiarray", "_reconstruct")), "asks for 'numpy.core"),
    "instance": (_program(bins.PROTOCOL + b"(iposix\nsystem\n."), "uses the instruction 0x69"),
    "new-object": (_program(bins.PROTOCOL + bins.ORDERED_DICT + b")\x81."), "uses the instruction 0x81"),
    "compressed": (_deflated(), "is compressed"),
    "encrypted": (_zip(flags=0x809), "is encrypted"),
    "two-sizes": (_zip(claimed_bytes={"archive/data/0": 2**30}), "has 24 bytes and claims 1073741824"),
    "overlapping-entries": (_zip(moved={"archive/version": -128}), "is broken"),
    "cut-short": (_GOOD[:-30], "cut short"),
    "cut-in-half": (_GOOD[: len(_GOOD) // 2], "cut short"),
    "no-program": (bins.Zip({"archive/version": b"3\n"}).content(), "0 files called data.pkl"),
    "two-programs": (bins.Zip({"a/data.pkl": b".", "b/data.pkl": b"."}).content(), "2 files called data.pkl"),
    "no-storage": (_claim(key="1"), "holds no 'archive/data/1'"),
    "storage-elsewhere": (_claim(key="../../data/0"), "holds no"),
    "storage-beyond-bytes": (_claim(n_elements=7), "has 7 F32 in storage, its entry 24 bytes"),
    "storage-overflows": (_claim(n_elements=2**62), "in storage"),
    "negative-storage": (_claim(n_elements=-6), "is broken"),
    "shape-beyond-storage": (_claim(shape=(3, 3)), "leaves its storage of 6"),
    "stride-beyond-storage": (_claim(stride=(4, 1)), "leaves its storage of 6"),
    "offset-beyond-storage": (_claim(offset=1), "leaves its storage of 6"),
    "negative-stride": (_claim(stride=(-3, 1)), "is broken"),
    "negative-offset": (_claim(offset=-1), "is broken"),
    "negative-shape": (_claim(shape=(-2, 3)), "is broken"),
    "shape-without-stride": (_claim(stride=(1,)), "is broken"),
    "expanded-without-end": (_claim(shape=(2**40, 3), stride=(0, 1)), "leaves its storage of 6"),
    "nine-axes": (_claim(shape=(1,) * 9, stride=(1,) * 9), "in a way of its own"),
    "quantised-storage": (_claim(storage="QInt8Storage"), "asks for 'torch.QInt8Storage'"),
    "big-endian": (_BIG_ENDIAN.content(), "big-endian"),
    "empty-program": (_program(b""), "cut short"),
    "program-without-end": (_program(bins.PROTOCOL + bins.EMPTY_DICT), "cut short"),
    "list-of-tensors": (_program(bins.PROTOCOL + b"]."), "holds a list, expected a table"),
    "number-by-name": (_program(bins.table({"epoch": bins.whole(3)})), "holds 'epoch' with a int"),
    "same-name-twice": (
        _program(bins.PROTOCOL + bins.EMPTY_DICT + b"(" + 2 * (bins.text("a") + b"N") + b"u."),
        "names 'a' twice",
    ),
    "marks-without-end": (_program(bins.PROTOCOL + b"(" * 5000 + b"."), "nests more than 100 deep"),
    "stack-without-end": (_program(bins.PROTOCOL + b")" * 100_000 + b"."), "stacks more than 20000"),
    "long-number": (_program(bins.PROTOCOL + b"\x8a\xff" + bytes(255) + b"."), "a number of 255 bytes"),
    "memo-of-nothing": (_program(bins.PROTOCOL + b"h\x07."), "cut short"),
    "raw-pickle": (
        bins.PROTOCOL + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "one raw pickle, the format before torch 1.6",
    ),
    "tar": (_tar(), "is a tar file of torch 0.1"),
    "gguf": (b"GGUF\x03\0\0\0", "is GGUF"),
    "lfs-pointer": (LFS_POINTER, "git lfs pull"),
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><title>404</title>", "begins with b'<!DOCTYP'"),
}
