"""HeavyReLULinear beside torch.nn.Linear and ReLU: forward and backward, by density, width and batch.

    python -m benchmarks.heavy_relu

The best case for a search: rows belong to clusters, neurons look each for one of them, and biases are so low
that a neuron fires for its own cluster alone, at a cosine near 0.8 where others are near 0. A density is one
over the number of clusters. Both sides have the same threads and take turns; medians. `search_ms` is the
part that finds the active pairs. Above `BREAK_EVEN` the layer computes all products: dense work and a look.
"""

import statistics
import time

import torch
from benchmarks.recorded import THREADS, machine, record
from torch import Tensor, nn

from winnow.base.rng import generator
from winnow.search import HeavyReLULinear, active_neurons

SHAPES = ((512, 2048), (1024, 4096))  # width, neurons
BATCHES = (16, 256, 1024)
CLUSTERS = (20, 64, 256, 1024, 4096)
COSINE = 0.8  # of a neuron and its cluster's rows
ROUNDS = 3


def case(batch: int, width: int, neurons: int, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, biases and rows of which about 1 / clusters of all pairs are active."""
    rng = generator(clusters * batch + width)
    centres = nn.functional.normalize(torch.randn(clusters, width, generator=rng), dim=1)

    def near(n: int) -> Tensor:
        off = nn.functional.normalize(torch.randn(n, width, generator=rng), dim=1)
        own = centres[torch.randint(clusters, (n,), generator=rng)]
        return COSINE**0.5 * own + (1 - COSINE) ** 0.5 * off

    weight, x = near(neurons), near(batch)
    return weight, torch.full((neurons,), -0.75 * COSINE), x


def turn(layer: nn.Module, x: Tensor, pull: Tensor) -> float:
    """Return the seconds of one forward and one backward."""
    x = x.detach().requires_grad_()
    layer.zero_grad(set_to_none=True)
    started = time.perf_counter()
    layer(x).backward(pull)
    return time.perf_counter() - started


def row(batch: int, width: int, neurons: int, clusters: int) -> dict:
    weight, bias, x = case(batch, width, neurons, clusters)
    linear = nn.Linear(width, neurons)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    dense, heavy = nn.Sequential(linear, nn.ReLU()), HeavyReLULinear(weight.clone(), bias.clone())
    pull = torch.randn(batch, neurons, generator=generator(1))
    turns: dict[str, list[float]] = {"dense": [], "heavy": [], "search": []}
    for number in range(ROUNDS + 1):
        taken = {"dense": turn(dense, x, pull), "heavy": turn(heavy, x, pull)}
        started = time.perf_counter()
        found = active_neurons(weight, x, bias=bias)
        taken["search"] = time.perf_counter() - started
        for name, seconds in taken.items() if number else ():
            turns[name].append(seconds)
    truth = int((x @ weight.T + bias > 0).sum())
    medians = {f"{name}_ms": 1e3 * statistics.median(each) for name, each in turns.items()}
    shown = {
        "batch": batch,
        "width": width,
        "neurons": neurons,
        "active_share": truth / (batch * neurons),
        "searched": not found.is_dense,
        "recall": len(found.rows) / max(truth, 1),
        **medians,
        "speedup": medians["dense_ms"] / medians["heavy_ms"],
    }
    print(shown, flush=True)
    return shown


def main() -> None:
    """Write heavy-relu.json."""
    torch.set_num_threads(THREADS)
    rows = [row(b, d, f, c) for d, f in SHAPES for b in BATCHES for c in CLUSTERS]
    searched = [each for each in rows if each["searched"]]
    paying = [each for each in searched if each["speedup"] > 1]
    result = {
        "machine": machine(),
        "cosine": COSINE,
        "rows": rows,
        "searched": len(searched),
        "paying": len(paying),
        "best": max(each["speedup"] for each in searched),
        "dense_share": min(each["speedup"] for each in rows if not each["searched"]),
    }
    record("heavy-relu", result)


if __name__ == "__main__":
    main()
