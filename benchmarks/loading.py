"""Loading: seconds from page cache to packed weights, and the memory that a loaded model takes.

A checkpoint of the shape of OPT-1.3B in random bfloat16 is written to a temporary folder, and beside it its
packed files, which leaves them in the page cache. It is loaded in fresh processes, from the checkpoint and
from the packed file in turns. Each touches as much memory first and gives it back: where a virtual machine
has handed free memory to its host, getting it again takes longer than loading. What is left of that is why
the least of the times is given beside their median. Memory is that of
`/proc/self/status`: VmHWM, the most that was resident at any time, and VmRSS after loading, both less what
Python and torch held before. RssFile, the pages of mapped files, is given apart: they are the system's cache
and can be dropped, but they count in the other two. `packed_bytes` are those of all weights as held, norms
aside; `huge_bytes` lie on huge pages; `ms_per_token` is the median of dense decode steps on these weights.

    python -m benchmarks.loading
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.recorded import THREADS, machine, record
from safetensors.torch import save_file
from torch import Tensor

from winnow.base.rng import generator
from winnow.engine import Checkpoint, KvCache, Weights, parse_config, tensor_shapes
from winnow.engine.convert import Form, open_weights, pack
from winnow.engine.decode import Decoder
from winnow.engine.synthetic import shape_config
from winnow.engine.weights import Layer
from winnow.kernels import open_cpu

SHAPE = "opt-1.3b"
PRECISIONS = ("bf16", "int8", "int4")
SOURCES = {"checkpoint": None, "packed file": "auto"}
REPEATS = 4
STEPS = 8
TOUCHED_BYTES = 4 * 10**9


def write(directory: Path) -> None:
    """Write config and weights."""
    raw, draws = shape_config(SHAPE), generator(7)
    tensors = {
        name: torch.empty(shape, dtype=torch.bfloat16).normal_(generator=draws) * 0.02
        for name, shape in tensor_shapes(parse_config(raw)).items()
    }
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors")


def resident() -> dict[str, int]:
    """Return the process's memory in bytes, by the kernel's names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    table = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(table[name].split()[0]) for name in ("VmHWM", "VmRSS", "RssFile")}


def packed_bytes(weights: Weights) -> int:
    """Return the bytes of all that a model holds, once."""
    maps = [each for each in (weights.project_in, weights.project_out) if each is not None]
    head = 0 if weights.head.matrix is weights.embed else weights.head.n_bytes
    positions = 0 if weights.positions is None else weights.positions.nbytes
    layers = sum(_layer_bytes(layer) for layer in weights.layers)
    return weights.embed.n_bytes + positions + sum(each.n_bytes for each in maps) + head + layers


def _layer_bytes(layer: Layer) -> int:
    vectors: list[Tensor | None] = [layer.mlp_bias, layer.qkv.bias, layer.out.bias]
    held = layer.mlp.storage.nbytes + layer.qkv.n_bytes + layer.out.n_bytes
    return held + sum(each.nbytes for each in vectors if each is not None)


def load_once(directory: str, precision: str, source: str) -> dict:
    """Load in this process, decode a little, and return seconds and bytes."""
    torch.set_num_threads(THREADS)
    touch(TOUCHED_BYTES)
    before, started = resident(), time.perf_counter()
    weights = open_weights(Checkpoint.open(directory), Form(precision, precision), SOURCES[source])
    seconds, after, packed = time.perf_counter() - started, resident(), packed_bytes(weights)
    return {
        "dtype": precision,
        "source": source,
        "load_s": seconds,
        "packed_bytes": packed,
        "base_bytes": before["VmRSS"],
        "peak_bytes": after["VmHWM"] - before["VmRSS"],
        "resident_bytes": after["VmRSS"] - before["VmRSS"],
        "mapped_bytes": after["RssFile"] - before["RssFile"],
        "huge_bytes": huge_bytes(),
        "peak_of_packed": (after["VmHWM"] - before["VmRSS"]) / packed,
        "resident_of_packed": (after["VmRSS"] - before["VmRSS"]) / packed,
        "ms_per_token": decode_ms(weights),
    }


def touch(n_bytes: int) -> None:
    """Have `n_bytes` of memory for a moment, and forget that they were the most so far."""
    torch.ones(n_bytes, dtype=torch.uint8)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def huge_bytes() -> int:
    """Return how much of the process's memory lies on huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def decode_ms(weights: Weights) -> float:
    """Return the median milliseconds of a dense step."""
    decoder = Decoder(weights, (None,) * weights.config.n_layers, open_cpu(THREADS))
    decoding = decoder.start(KvCache(weights.config, STEPS + 4, weights.cache_dtype))
    spent = []
    for step in range(STEPS + 4):
        started = time.perf_counter()
        decoding.step(5 + step)
        spent.append(1e3 * (time.perf_counter() - started))
    return statistics.median(spent[4:])


def fresh(directory: Path, precision: str, source: str) -> dict:
    """Return what `load_once` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading", str(directory), precision, source]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Write loading.json: medians of the times, the largest of the bytes."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write(directory)
        for precision in PRECISIONS:
            pack(Checkpoint.open(directory), Form(precision, precision), directory)
            turns = [[fresh(directory, precision, source) for source in SOURCES] for _ in range(REPEATS)]
            for found in zip(*turns, strict=True):
                row = max(found, key=lambda each: each["peak_bytes"])
                times = ("load_s", "ms_per_token")
                least = {"load_least_s": min(each["load_s"] for each in found)}
                medians = {key: statistics.median(each[key] for each in found) for key in times}
                rows.append(row | least | medians)
                print(rows[-1], flush=True)
    record("loading", {"machine": machine(), "shape": SHAPE, "rows": rows})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(load_once(*sys.argv[1:])))
    else:
        main()
