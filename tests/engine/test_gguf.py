"""GGUF files: what is written is what a reader of the format finds, and how much the encodings lose."""

import weakref

import numpy as np
import pytest
import torch

from tests.engine.gguf_reader import Gguf
from winnow.base.errors import UsageError
from winnow.engine.bench.gguf import BF16, FP32, Q4_0, Q8_0, GgufTensor, write_gguf

ENCODINGS = (FP32, BF16, Q8_0, Q4_0)


def held(name, tensor, encoding=FP32) -> GgufTensor:
    return GgufTensor(name, tuple(tensor.shape), encoding, lambda: tensor)


def written(tmp_path, *tensors, metadata=None) -> Gguf:
    write_gguf(tmp_path / "m.gguf", metadata or {}, tensors)
    return Gguf(tmp_path / "m.gguf")


def test_keys_keep_their_values_and_types(tmp_path):
    metadata = {
        "word": "llämä",
        "empty": "",
        "count": 2**32 - 1,
        "share": 0.1,
        "yes": True,
        "no": False,
        "words": ["a", "", "bc"],
        "shares": (0.5, -2.0),
        "counts": [7, -1],
    }
    file = written(tmp_path, metadata=metadata)
    assert file.version == 3
    assert file.entries == {}
    found = {**metadata, "share": pytest.approx(0.1), "shares": [0.5, -2.0]}
    assert file.metadata == found
    assert list(file.types.values()) == [8, 8, 4, 6, 7, 7, (9, 8), (9, 6), (9, 5)]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_tensors_lie_at_multiples_of_32_with_the_contiguous_size_first(tmp_path, encoding, rng):
    odd = torch.randn(7, generator=rng)
    matrix = torch.randn(5, 96, generator=rng)
    file = written(tmp_path, held("odd", odd), held("matrix", matrix, encoding), held("last", odd))
    assert file.entries["matrix"].sizes == (96, 5)
    assert file.entries["odd"].sizes == (7,)
    assert all(entry.offset % 32 == 0 for entry in file.entries.values())
    assert file.header_padding == bytes(len(file.header_padding))
    assert len(file.content) % 32 == 0
    for name in ("odd", "last"):
        assert np.array_equal(file.array(name), odd.numpy())
    assert file.array("matrix") == pytest.approx(matrix.numpy(), abs=0.4)


def test_offsets_leave_no_room_and_overlap_nowhere(tmp_path, rng):
    tensors = [held(f"t{n}", torch.randn(n, 32, generator=rng), ENCODINGS[n % 4]) for n in range(1, 9)]
    file = written(tmp_path, *tensors)
    at = 0
    for tensor, entry in zip(tensors, file.entries.values(), strict=True):
        assert entry.offset == at
        at += -(-tensor.n_bytes // 32) * 32
    assert len(file.content) == file.data_at + at


def test_fp32_is_exact_and_bf16_is_torchs(tmp_path, rng):
    x = torch.randn(3, 17, generator=rng)
    file = written(tmp_path, held("a", x), held("b", x, BF16))
    assert np.array_equal(file.array("a"), x.numpy())
    assert np.array_equal(file.array("b"), x.bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_of_any_float_type_may_be_written(tmp_path, dtype, rng):
    x = torch.randn(2, 64, generator=rng).to(dtype)
    file = written(tmp_path, held("a", x), held("b", x.T.contiguous().T, Q8_0))
    assert np.array_equal(file.array("a"), x.float().numpy())
    assert file.array("b") == pytest.approx(x.float().numpy(), abs=0.02)


@pytest.mark.parametrize(("encoding", "half_step"), [(Q8_0, 1 / 254), (Q4_0, 1 / 16)], ids=["Q8_0", "Q4_0"])
def test_groups_lose_at_most_half_a_step(tmp_path, encoding, half_step, rng):
    x = torch.randn(33, 160, generator=rng) * torch.logspace(-2, 3, 33)[:, None]
    groups = x.reshape(-1, 32)
    back = torch.from_numpy(written(tmp_path, held("a", x, encoding)).array("a").copy()).reshape(-1, 32)
    farthest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    # With 4 bits the side away from the farthest weight ends a step earlier.
    is_clipped = (encoding is Q4_0) & (groups * farthest.sign() <= -farthest.abs() * 7.5 / 8)
    rounded_scale = 2**-11
    allowed = farthest.abs() * (torch.where(is_clipped, 1 / 8, half_step) + rounded_scale)
    assert bool(((back - groups).abs() <= allowed).all())


def test_q8_0_bytes_of_a_known_group():
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([254.0, -254.0, 2.0, 1.0])
    encoded = Q8_0.encode(x)[0].tolist()
    assert encoded[:2] == [0x00, 0x40]  # 2.0 in fp16
    assert encoded[2:6] == [127, 129, 1, 0]  # 1 / 2 goes to the even neighbour
    assert encoded[6:] == [0] * 28


def test_q4_0_bytes_of_a_known_group():
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16], x[0, 1], x[0, 17] = -16.0, 16.0, 4.0, -6.0
    encoded = Q4_0.encode(x)[0].tolist()
    assert encoded[:2] == [0x00, 0x40]  # -16 / -8 in fp16
    assert encoded[2] == 15 << 4 | 0  # 16 has no level of its own
    assert encoded[3] == 5 << 4 | 10
    assert encoded[4:] == [0x88] * 14


@pytest.mark.parametrize("encoding", [Q8_0, Q4_0], ids=["Q8_0", "Q4_0"])
def test_a_group_of_zeros_stays_zero(tmp_path, encoding):
    assert not written(tmp_path, held("a", torch.zeros(2, 64), encoding)).array("a").any()


def test_large_tensors_are_encoded_block_by_block(tmp_path, monkeypatch, rng):
    x = torch.randn(9, 64, generator=rng)
    whole = written(tmp_path, held("a", x, Q4_0), held("b", x)).content
    monkeypatch.setattr("winnow.engine.bench.gguf.BLOCK_WEIGHTS", 160)
    assert written(tmp_path, held("a", x, Q4_0), held("b", x)).content == whole


def test_a_tensor_is_read_when_those_before_it_are_written(tmp_path):
    read_so_far = []
    alive = []

    def read():
        tensor = torch.ones(4, 32)
        alive.append(sum(reference() is not None for reference in read_so_far))
        read_so_far.append(weakref.ref(tensor))
        return tensor

    tensors = [GgufTensor(f"t{n}", (4, 32), FP32, read) for n in range(5)]
    assert alive == []
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert alive == [0] * 5


@pytest.mark.parametrize(("encoding", "width"), [(Q8_0, 33), (Q8_0, 16), (Q4_0, 48), (Q4_0, 1)])
def test_rows_that_groups_do_not_fill_are_refused_before_writing(tmp_path, encoding, width):
    good = held("good", torch.zeros(2, 64))
    with pytest.raises(UsageError, match=f"groups of 32, received rows of {width}; use --dtype bf16"):
        write_gguf(tmp_path / "m.gguf", {}, [good, held("bad", torch.zeros(4, width), encoding)])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_gguf(tmp_path / "m.gguf", {}, [GgufTensor("a", (2,), FP32, fail)])
    assert list(tmp_path.iterdir()) == []
