"""Two-layer: regression through a softmax and a ReLU, by second-order methods.   (floor 2 · linalg)

    L(x) = 1/2 ||ReLU(A2 softmax(A1 x)) - b||^2 + 1/2 ||w * (A1 x)||^2

After arXiv:2311.15390 (abstract), construction ours. The Hessian is ``A1^T B A1`` with B a diagonal plus a
matrix of rank outputs + 2, so it is applied in two passes over A1 and A2 and never formed as N x N.

reference.py     the definition
products.py      everything that reads A1 or A2, in one order of summation
problem.py       the loss and its derivatives in closed form; what is refused
kinks.py         where an output of the ReLU switches
assumptions.py   whether the local theorem applies
descent.py       steps, why they end, the line search, the best step within a radius
corners.py       descent where outputs with negative targets switch
sampling.py      a few rows of A1 in place of all, by their leverage
damped.py full.py sketch.py newton_cg.py   the methods lm, full and w2, sketch, newton_cg
solve.py         two_layer
"""

from winnow.linalg.two_layer.assumptions import Assumptions
from winnow.linalg.two_layer.descent import Step
from winnow.linalg.two_layer.solve import METHODS, Solution, two_layer

__all__ = ["METHODS", "Assumptions", "Solution", "Step", "two_layer"]
