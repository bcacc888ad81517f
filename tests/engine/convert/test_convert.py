"""winnow's conversion: the same numbers as safetensors, whole or not at all, and nothing is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.convert import bins
from tests.engine.opt_files import HEAD, NORM, OPT, load, random_tensors, refused
from winnow.base import files, room
from winnow.base.errors import ModelError, ResourceError, UsageError
from winnow.engine import Checkpoint
from winnow.engine.convert import TorchFile, convert

EMBED = "model.decoder.embed_tokens.weight"
SAVED = Path(__file__).with_name("saved-by-torch.bin")


def source(tmp_path: Path, tensors: dict[str, Tensor], raw: dict = OPT) -> Path:
    return bins.write_bin(tmp_path / "source", tensors, raw)


def test_a_file_that_torch_saved_is_read_as_torch_reads_it() -> None:
    file = TorchFile(SAVED)
    weight = torch.arange(12).reshape(4, 3).half() / 8
    expected = {
        "weight": weight,
        "bias": -torch.arange(4).half(),
        "tied": weight,
        "turned": weight.t(),
        "row": weight[2],
        "wide": torch.arange(5).double(),
        "brain": torch.arange(6).bfloat16().reshape(2, 3),
        "counts": torch.arange(300),
        "none": torch.empty(0, 3),
    }
    assert list(file.views) == list(expected)
    assert all(torch.equal(file.tensor(name), tensor) for name, tensor in expected.items())
    assert all(file.tensor(name).dtype == tensor.dtype for name, tensor in expected.items())


def test_a_converted_model_holds_the_same_numbers(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in random_tensors().items()}
    done = convert(source(tmp_path, tensors), tmp_path / "target")
    written = load_file(tmp_path / "target/model.safetensors")
    assert written.keys() == tensors.keys() and (done.n_tensors, done.n_shards) == (len(tensors), 1)
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.dtype == torch.float16 for tensor in written.values())
    assert load(tmp_path / "target") is not None


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    tensors, names = random_tensors(), sorted(random_tensors())
    shards = {
        "pytorch_model-00001-of-00002.bin": {name: tensors[name] for name in names[::2]},
        "pytorch_model-00002-of-00002.bin": {name: tensors[name] for name in names[1::2]},
    }
    bins.write_bin_shards(tmp_path / "source", shards, OPT)
    done = convert(tmp_path / "source", tmp_path / "target", largest_shard_bytes=2000)
    checkpoint = Checkpoint.open(tmp_path / "target")
    assert done.n_shards > 2
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
    sizes = [path.stat().st_size for path in (tmp_path / "target").glob("*.safetensors")]
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert len(sizes) == done.n_shards and max(sizes) <= 2000 + largest + 2000  # the header is not counted


def test_a_view_becomes_contiguous(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors[EMBED] = tensors[EMBED].t().contiguous().t()
    tensors[NORM] = torch.arange(24).float()[::2]
    assert not tensors[EMBED].is_contiguous() and not tensors[NORM].is_contiguous()
    convert(source(tmp_path, tensors), tmp_path / "target")
    written = load_file(tmp_path / "target/model.safetensors")
    assert torch.equal(written[EMBED], tensors[EMBED]) and torch.equal(written[NORM], tensors[NORM])


@pytest.mark.parametrize(("is_tied", "left_out"), [(True, (HEAD,)), (False, ())])
def test_a_head_that_is_the_embedding_is_left_out_only_where_the_config_ties_them(
    tmp_path: Path, is_tied: bool, left_out: tuple[str, ...]
) -> None:
    tensors = random_tensors()
    tensors[HEAD] = tensors[EMBED]
    done = convert(source(tmp_path, tensors, {**OPT, "tie_word_embeddings": is_tied}), tmp_path / "target")
    assert done.left_out == left_out
    assert (HEAD in load_file(tmp_path / "target/model.safetensors")) == (not left_out)
    assert load(tmp_path / "target") is not None


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_a_type_that_is_asked_for_is_cast_to_and_written_into_the_config(
    tmp_path: Path, dtype: str, torch_dtype: str
) -> None:
    tensors = random_tensors()
    raw = {**OPT, "torch_dtype": "float32"}
    convert(source(tmp_path, tensors, raw), tmp_path / "target", dtype=dtype)
    wanted = getattr(torch, torch_dtype)
    written = load_file(tmp_path / "target/model.safetensors")
    assert all(torch.equal(written[name], tensor.to(wanted)) for name, tensor in tensors.items())
    assert json.loads((tmp_path / "target/config.json").read_text()) == {**raw, "torch_dtype": torch_dtype}


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    tensors = {**random_tensors(), "model.decoder.version": torch.arange(3)}
    convert(source(tmp_path, tensors), tmp_path / "target", dtype="bf16")
    assert load_file(tmp_path / "target/model.safetensors")["model.decoder.version"].dtype == torch.int64


def test_only_data_is_copied(tmp_path: Path) -> None:
    directory = source(tmp_path, random_tensors(), {**OPT, "auto_map": {"AutoConfig": "trap.Trap"}})
    wanted = {"tokenizer.json": "{}", "merges.txt": "#", "generation_config.json": "{}", "LICENSE": "MIT"}
    unwanted = {"trap.py": "raise SystemExit", "run.sh": "exit", "optimizer.pt": "x", "tokenizer.pkl": "x"}
    for name, content in {**wanted, **unwanted}.items():
        (directory / name).write_text(content)
    done = convert(directory, tmp_path / "target")
    found = {path.name for path in (tmp_path / "target").iterdir()}
    assert found == {"config.json", "model.safetensors", *wanted}
    assert set(done.copied) == set(wanted) and "never runs" in done.notes[0]


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    directory = source(tmp_path, random_tensors())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "full/mine", "file", "link", "source"):
        assert "is not an empty directory" in refused(
            lambda at=name: convert(directory, tmp_path / at), UsageError
        )
    assert (tmp_path / "full/mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert convert(directory, tmp_path / "empty").n_shards == 1


def test_a_type_of_another_name_is_refused(tmp_path: Path) -> None:
    message = refused(lambda: convert(tmp_path, tmp_path / "target", dtype="int8"), UsageError)
    assert "expected one of fp32, fp16, bf16" in message


def test_weights_that_do_not_fit_the_config_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    directory = source(tmp_path, random_tensors(), {**OPT, "num_hidden_layers": 3})
    assert "The checkpoint lacks" in refused(lambda: convert(directory, tmp_path / "target"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_without_room_is_found_out_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = source(tmp_path, random_tensors())
    usage = room.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    message = refused(lambda: convert(directory, tmp_path / "target"), ResourceError)
    assert "of disk, 1 kB are free there" in message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    directory = source(tmp_path, random_tensors())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(directory, tmp_path / "target", report=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = convert(
        source(tmp_path, random_tensors()), tmp_path / "target", report=lambda *each: told.append(each)
    )
    assert told[-1] == (done.n_bytes, done.n_bytes)
    assert [each for each, _ in told] == sorted(each for each, _ in told)


def test_a_directory_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError, match="not empty"), files.replacing_directory(target) as draft:
        (draft / "new").write_text("new")
        target.mkdir()
        (target / "mine").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "mine"]


MEASURED = """
import resource, sys
from pathlib import Path
from winnow.engine.convert import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = convert(Path(sys.argv[1]), Path(sys.argv[2]), dtype=sys.argv[3] or None)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), done.n_bytes)
"""


@pytest.mark.parametrize("dtype", ["", "fp32"])
def test_memory_is_that_of_one_tensor(tmp_path: Path, dtype: str) -> None:
    raw = {**OPT, "vocab_size": 8192, "num_hidden_layers": 24, "hidden_size": 64, "ffn_dim": 4096}
    tensors = {name: tensor.half() for name, tensor in random_tensors(raw).items()}
    directory = source(tmp_path, tensors, raw)
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    largest = max(tensor.nbytes for tensor in tensors.values())
    command = [sys.executable, "-c", MEASURED, str(directory), str(tmp_path / "target"), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown, written = map(int, done.stdout.split())
    assert written == n_bytes * (2 if dtype else 1)
    assert n_bytes > 20 * largest
    # Pages of the mapped source stay resident while nobody needs their room; they are not ours.
    assert grown <= n_bytes + 2 * largest * (2 if dtype else 1) + 16 * 2**20


def test_a_file_system_that_refuses_to_write_leaves_nothing(tmp_path: Path) -> None:
    directory = source(tmp_path, random_tensors())
    code = (
        "import sys; from winnow.cli import main; import resource;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "convert", str(directory), str(tmp_path / "target"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (4, "")
    assert (
        done.stderr.startswith("winnow: File too large: model.safetensors. Make room")
        and done.stderr.count("\n") == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_directory_without_bin_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPT))
    assert "holds neither pytorch_model.bin nor" in refused(
        lambda: convert(tmp_path, tmp_path / "t"), ModelError
    )
