"""The bytes of packed files: pinned, coded weights among them, and what is refused of these."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.convert.packing import WIDE, model, packed_file, packed_now, read, same_bits
from tests.engine.opt_files import refused
from winnow.engine.convert import Form, packed
from winnow.engine.families import known
from winnow.kernels import CodedMatrix, Int4Matrix, NeuronRecords, QuantisedMatrix, int4
from winnow.kernels.gathered_linear import by_blocks


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model wide enough for bfloat16 to be coded, and is, whatever pays on this machine."""
    monkeypatch.setattr(known, "codes_pay", lambda: True)
    return model(tmp_path / "model", WIDE)


def test_coded_weights_that_lead_out_of_their_rows_are_refused(wide: Path) -> None:
    form = Form("bf16", "bf16")
    path = packed_file(wide, form)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    first, _ = json.loads(data[8:end])["layers.0.qkv.matrix"]["data_offsets"]
    place = end + first + 44  # how many patches the first row has
    path.write_bytes(data[:place] + (12).to_bytes(4, "little") + data[place + 4 :])
    message = refused(lambda: read(path, form))
    assert "holds coded weights that lie outside their rows in layers.0.qkv.matrix" in message


def test_a_model_that_cannot_be_coded_is_packed_and_read_plain(wide: Path) -> None:
    form, coded = Form("bf16", "bf16"), packed_now(wide, Form("bf16", "bf16"))
    tensors = load_file(wide / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][3] = 2.0 ** torch.arange(-120, 136)
    save_file(tensors, wide / "model.safetensors")
    path = packed_file(wide, form)
    assert same_bits(read(path, form), packed_now(wide, form))
    assert read(path, form).layers[0].qkv.matrix.n_bytes > coded.layers[0].qkv.matrix.n_bytes


def test_the_bits_of_packing_are_those_of_the_format() -> None:
    """Whoever changes how weights are rounded or laid out raises FORMAT, or old files would be believed."""
    weight, bias = ((torch.arange(5 * 64) * 7919 % 1009 - 504) / 512).view(5, 64), torch.arange(5) / 4
    records = [NeuronRecords.pack(weight, weight, bias, dtype=t) for t in (torch.bfloat16, torch.int8)]
    records += [NeuronRecords.pack(weight, weight, bias, weight, dtype=int4)]
    int8, halves = QuantisedMatrix.of(weight), Int4Matrix.of(weight)
    held = [int8.values, int8.scales, halves.groups, halves.scales, by_blocks(weight, 4).contiguous()]
    held += [each.storage for each in records]
    wide = (torch.arange(5 * 256) * 7919 % 1009 - 504).view(5, 256) * 2.0 ** (torch.arange(256) % 11 - 30)
    coded = CodedMatrix.of(wide)
    assert coded is not None
    held += [coded.storage]
    digest = hashlib.sha256(b"".join(each.view(torch.uint8).numpy().tobytes() for each in held))
    assert (packed.FORMAT, digest.hexdigest()[:16]) == ("winnow-packed/4", "70c09e6e11097b10")
