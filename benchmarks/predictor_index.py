"""Sign-bit index beside low-rank maps: at equal bytes and equal density, what does each predictor miss?

    python -m benchmarks.predictor_index BOOKS

An index holds, for each neuron, the signs of its in-weights under B random projections; a token's input is
projected too, and neuron f is computed when

    |w_f| |x| cos(pi * differing bits / B) + bias_f > threshold        one threshold per layer

Everything else is given to the index: inputs are centred and whitened by the calibration text's covariance,
the mean's share of each pre-activation is exact, and of its projection (D x B numbers) only int8 is counted,
or nothing at all (`free`, as if a structured projection cost none). Ranks and bits fit the same bytes;
thresholds are those that select the same share of neurons on the calibration text. Judged on a book that no
predictor saw. The map is the closed form, `svd`, with one threshold per layer as well.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.predictors import texts_of, unseen
from benchmarks.recorded import THREADS, machine, record
from torch import Tensor

from winnow.base.rng import generator
from winnow.engine import load
from winnow.engine.checkpoint import bundled
from winnow.engine.generate import torch_threads
from winnow.engine.model import MlpInputs
from winnow.engine.sparsity import Lookahead
from winnow.engine.sparsity.observe import LayerInputs, observe
from winnow.engine.sparsity.predictor import Factors, whitened_svd
from winnow.engine.weights import Layer, MlpWeights

RANKS = (16, 64)  # of the maps whose bytes are the measure
DENSITIES = (0.15, 0.25, 0.4)
SAMPLED = 2048


@dataclass(frozen=True)
class Scored:
    """Neurons whose score is above a threshold; `scores` is a map or an index."""

    scores: "Map | Index"
    threshold: float

    def selected(self, layer: MlpWeights, inputs: MlpInputs) -> Tensor:
        return self.scores.of(inputs.own) > self.threshold


class Map:
    """The closed form of some rank, in int8."""

    def __init__(self, factors: Factors, rank: int) -> None:
        self.predictor = factors.predictor(rank, torch.zeros(len(factors.bias), dtype=torch.float64))
        self.n_bytes = self.predictor.n_bytes

    def of(self, x: Tensor) -> Tensor:
        return self.predictor.scores(x)


class Index:
    """Signs of whitened in-weights, compared with those of whitened inputs."""

    def __init__(self, factors: Factors, n_bits: int) -> None:
        """Draw the projections; `factors` at full rank is the whitened layer."""
        self.factors, self.n_bits = factors, n_bits
        down, up = factors.down, factors.up  # pre-activation - mean's share = up @ (down @ (x - mean))
        self.planes = torch.randn(len(down), n_bits, generator=generator(7), dtype=torch.float64)
        self.signs = (up @ self.planes > 0).double() * 2 - 1
        self.norms = up.norm(dim=1)
        self.shift = factors.bias + factors.weight_mean

    def of(self, x: Tensor) -> Tensor:
        y = (x.double() - self.factors.mean) @ self.factors.down.T
        agreement = ((y @ self.planes > 0).double() * 2 - 1) @ self.signs.T / self.n_bits
        cosine = torch.sin(agreement * (math.pi / 2))  # cos(pi * share of bits that differ)
        return (y.norm(dim=1, keepdim=True) * self.norms * cosine + self.shift).float()


def bits_for(n_bytes: float, width: int, n_neurons: int, *, is_free: bool) -> int:
    """Return how many bits fit, beside a norm and a bias per neuron and the projection in int8."""
    per_bit = n_neurons / 8 + (0 if is_free else width)
    return max(int((n_bytes - 8 * n_neurons) / per_bit), 1)


def predictors(layer: Layer, seen: LayerInputs, rank: int, densities: Sequence[float]) -> dict:
    """Return, by kind, the bits or the rank and one predictor per density."""
    records = layer.mlp
    factors = whitened_svd(records.w_in.float(), records.bias, seen.moments, Lookahead.SAME)
    of_map, found = Map(factors, rank), {}
    for kind in ("svd", "index", "index, free"):
        if kind == "svd":
            scores, size = of_map, rank
        else:
            size = bits_for(of_map.n_bytes, records.width, records.n_neurons, is_free=kind != "index")
            scores = Index(factors, size)
        on_text = scores.of(seen.rows[:SAMPLED]).flatten()
        ordered = on_text.sort(descending=True).values
        found[kind] = (size, [Scored(scores, ordered[int(d * len(ordered))].item()) for d in densities])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Write predictor-index.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("books", type=Path, metavar="BOOKS")
    books = parser.parse_args(argv).books
    engine = load(bundled("pico"), plan=None, dtype="fp32", threads=THREADS)
    weights, rows = engine.weights, []
    with torch_threads(THREADS):
        judge = unseen(engine)
        seen = observe(weights, texts_of(engine, books), SAMPLED, lambda done: None)
        for rank in RANKS:
            made = [predictors(*pair, rank, DENSITIES) for pair in zip(weights.layers, seen, strict=True)]
            for kind in made[0]:
                for number, density in enumerate(DENSITIES):
                    found = judge.measure([each[kind][1][number] for each in made])
                    rows.append(
                        {
                            "kind": kind,
                            "rank_of_bytes": rank,
                            "size": made[0][kind][0],
                            "asked_density": density,
                            "mlp_density": found.overall.density,
                            "recall": found.overall.recall,
                            "weighted_recall": found.overall.weighted_recall,
                            "kld": found.kld,
                        }
                    )
                    print(rows[-1], flush=True)
    record("predictor-index", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
