"""Search: which pairs of two sets of vectors are heavy, and which neurons fire.   (floor 3 · search)

    pairs = heavy_pairs(A, B, rho=0.5)      (i, j) with <A_i, B_j> >= rho * width, each one verified

n^2 products are computed to keep a few. With bits for +-1 a product is a count of differing bits, most pairs
are dropped after a few sampled bits, and at large rho most are never looked at. What may be missed is
measured on pairs planted among the caller's own.

    outcome.py     the pairs, and the report: recall with its interval, work done
    signs.py       +-1 vectors as bits
    reals.py       real vectors: signs of random projections, true cosines
    problem.py     sets, the heavy distance, the background; thresholds that chance passes
    cascade.py     every pair: whole, or on sampled bits first
    lsh.py         pairs that agree in sampled coordinates
    gemm.py        every product as floats, the plain way
    aggregate.py   one product for a group of pairs: the paper's way
    cost.py        which of them is cheapest here
    canaries.py    planted pairs: recall on the caller's own data
    pairs.py       heavy_pairs
    active.py      active neurons; a layer that touches no others
"""

from winnow.search.active import Active, HeavyReLULinear, active_neurons
from winnow.search.outcome import Pairs, Report
from winnow.search.pairs import heavy_pairs

__all__ = ["Active", "HeavyReLULinear", "Pairs", "Report", "active_neurons", "heavy_pairs"]
