"""Prefill: tokens per second at which a prompt is read, against torch's own bf16 products.

The rival is the same model read by plain torch: every map is `torch.nn.functional.linear` on a contiguous
bfloat16 weight with its bias, norms, ReLU and residual stream are bfloat16, attention is
`scaled_dot_product_attention`, causal, over the whole prompt in one piece, and the logits are those of the
last token. It stores no cache; Winnow does. Its weights are a second copy, made for it.

All take turns in one process. A fixed product is timed before and after every turn, and a turn counts only
where both ran at QUIET of the best: on a shared machine a neighbour halves the speed of everything. The ratio
is that of the medians.

    python -m benchmarks.prefill
    python -m benchmarks.prefill --beside xeon   the same on another machine: prefill-xeon.json
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from benchmarks.recorded import THREADS, machine, record
from torch import Tensor
from torch.nn import functional

from winnow.base.rng import generator
from winnow.engine import DictSource, KvCache, Prefill, Weights, load_weights, parse_config, tensor_shapes
from winnow.engine.generate import DTYPES
from winnow.engine.synthetic import shape_config
from winnow.kernels import open_cpu

SHAPE = "opt-1.3b"
TOKENS = (64, 512, 2048)
PRECISIONS = ("bf16", "int8", "int4")
REPEATS = 3  # that count, of each
MOST_ROUNDS = 12
QUIET = 0.8


def drawn(shape: str) -> DictSource:
    """Return random bfloat16 tensors of a named shape, norms of ones and zeros."""
    config, draws = parse_config(shape_config(shape)), generator(5)
    tensors: dict[str, Tensor] = {}
    for name, size in tensor_shapes(config).items():
        if len(size) == 1:
            tensors[name] = torch.full(size, float("norm.weight" in name), dtype=torch.bfloat16)
        else:
            tensors[name] = torch.empty(size, dtype=torch.bfloat16).normal_(generator=draws)
            tensors[name] *= size[-1] ** -0.5
    return DictSource(config, tensors)


class Rival:
    """An OPT in contiguous bfloat16 tensors."""

    def __init__(self, source: DictSource) -> None:
        """Take the tensors of a checkpoint, queries, keys and values joined."""
        self.config = source.config
        self.table = {name.removeprefix("model.decoder."): source.tensor(name) for name in source.names()}
        for index in range(self.config.n_layers):
            at = f"layers.{index}.self_attn."
            for part in ("weight", "bias"):
                parts = [self.table.pop(f"{at}{each}_proj.{part}") for each in "qkv"]
                self.table[f"{at}qkv.{part}"] = torch.cat(parts)

    def read(self, ids: Tensor) -> Tensor:
        """Return the logits after the last token."""
        config, table = self.config, self.table
        x = table["embed_tokens.weight"][ids] + table["embed_positions.weight"][2 : 2 + len(ids)]
        for index in range(config.n_layers):
            at = f"layers.{index}."
            heads = self._map(f"{at}self_attn.qkv", self._norm(f"{at}self_attn_layer_norm", x))
            heads = heads.view(len(ids), 3, config.n_heads, config.head_width)
            q, k, v = heads.permute(1, 2, 0, 3)[:, None]
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0]
            x = x + self._map(f"{at}self_attn.out_proj", mixed.transpose(0, 1).flatten(1))
            active = self._map(f"{at}fc1", self._norm(f"{at}final_layer_norm", x)).relu_()
            x = x + self._map(f"{at}fc2", active)
        return functional.linear(self._norm("final_layer_norm", x[-1:]), table["embed_tokens.weight"])

    def _map(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.table[f"{name}.weight"], self.table[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.table[f"{name}.weight"], self.table[f"{name}.bias"]
        )


def reading(weights: Weights) -> Callable[[Tensor], object]:
    """Return what reads a prompt into a fresh cache."""
    reader = Prefill(weights, open_cpu(THREADS))
    return lambda ids: reader.read(ids, KvCache(weights.config, len(ids), weights.cache_dtype))


def probe() -> float:
    """Return the seconds of a fixed product, some milliseconds of work."""
    x, weight = torch.ones(256, 2048, dtype=torch.bfloat16), torch.ones(4096, 2048, dtype=torch.bfloat16)
    started = time.perf_counter()
    for _ in range(3):
        functional.linear(x, weight)
    return time.perf_counter() - started


def turns(readers: dict[str, Callable[[Tensor], object]], ids: Tensor) -> dict[str, list[float]]:
    """Time the readers in turns until each has REPEATS turns of a quiet machine."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    counted: dict[str, list[float]] = {}
    for _ in range(MOST_ROUNDS):
        for name, read in readers.items():
            before, started = probe(), time.perf_counter()
            read(ids)
            took = time.perf_counter() - started
            taken[name].append((took, max(before, probe())))
        best = min(probed for samples in taken.values() for _, probed in samples)
        counted = {
            name: [took for took, probed in samples if probed * QUIET <= best]
            for name, samples in taken.items()
        }
        if min(map(len, counted.values())) >= REPEATS:
            break
    return counted


def main(arguments: Sequence[str] | None = None) -> None:
    """Write prefill.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.prefill", description=main.__doc__)
    parser.add_argument("--beside", metavar="NAME", help="write prefill-NAME.json")
    options = parser.parse_args(arguments)
    source = drawn(SHAPE)
    readers = {name: reading(load_weights(source, DTYPES[name])) for name in PRECISIONS}
    readers["torch"] = Rival(source).read
    result = {"machine": machine(), "shape": SHAPE, "rows": [], "void": False}
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        for n_tokens in TOKENS:
            ids = torch.randint(0, source.config.vocab_size, (n_tokens,), generator=generator(n_tokens))
            for read in readers.values():
                read(ids[:64])
            counted = turns(readers, ids)
            result["void"] |= min(map(len, counted.values())) < REPEATS
            for name, samples in counted.items():
                row = {"tokens": n_tokens, "engine": name, "repeats": len(samples)}
                if samples and counted["torch"]:
                    seconds = statistics.median(samples)
                    row["tokens_per_second"] = n_tokens / seconds
                    row["of_torch"] = statistics.median(counted["torch"]) / seconds
                result["rows"].append(row)
                print(row, flush=True)
    record(f"prefill-{options.beside}" if options.beside else "prefill", result)


if __name__ == "__main__":
    main()
