"""Sign-bit index beside low-rank maps: at equal bytes and equal density, what does each predictor miss?

    python -m benchmarks.predictor_index BOOKS

An index (`IndexPredictor`) holds, for each neuron, the signs of its whitened in-weights under random
projections, against those of the input. Its signs are as many as fill the bytes of a low-rank map, rounded up
to whole words of 64: the index never has fewer bytes. It stands for a quarter of as many coordinates as it
has signs, those that matter most, or, as `index, all coordinates`, for the whole input. Thresholds, one per
layer, are those that select the same share of neurons on the calibration text. Judged on a book that no
predictor saw. The map is the closed form, `svd`, with one threshold per layer as well.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.predictors import texts_of, unseen
from benchmarks.recorded import THREADS, machine, record

from winnow.base.rng import generator
from winnow.engine import load
from winnow.engine.checkpoint import bundled
from winnow.engine.generate import torch_threads
from winnow.engine.sparsity import Lookahead
from winnow.engine.sparsity.observe import LayerInputs, observe
from winnow.engine.sparsity.predictor import WORD, whitened_svd
from winnow.engine.weights import Layer

RANKS = (16, 64)  # of the maps whose bytes are the measure
DENSITIES = (0.15, 0.25, 0.4)
SAMPLED = 2048


def n_signs_for(n_bytes: float, width: int, n_neurons: int) -> int:
    """Return how many signs fill these bytes, beside two floats per neuron, in whole words."""
    return max(math.ceil((n_bytes - 8 * n_neurons) / (n_neurons / 8 + width) / WORD), 1) * WORD


def predictors(layer: Layer, seen: LayerInputs, rank: int, densities: Sequence[float]) -> dict:
    """Return, by kind, the ranks or the signs, and one predictor per density."""
    records = layer.mlp
    factors = whitened_svd(records.w_in.float(), records.bias, seen.moments, Lookahead.SAME)
    low_rank = factors.predictor(rank, torch.zeros(records.n_neurons, dtype=torch.float64))
    n_signs = n_signs_for(low_rank.n_bytes, records.width, records.n_neurons)
    bases = {
        "svd": (rank, low_rank),
        "index": (n_signs, factors.index(n_signs, min(n_signs // 4, records.width), generator(7))),
        "index, all coordinates": (n_signs, factors.index(n_signs, records.width, generator(7))),
    }
    found = {}
    for kind, (size, base) in bases.items():
        on_text = base.scores(seen.rows[:SAMPLED]).flatten()
        ordered = on_text.sort(descending=True).values
        levels = [ordered[int(d * len(ordered))].item() for d in densities]
        found[kind] = (size, [replace(base, bias=base.bias - level) for level in levels])
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
                            "n_bytes": sum(each[kind][1][number].n_bytes for each in made),
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
