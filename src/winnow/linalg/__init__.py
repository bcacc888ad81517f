"""Linalg: which rows of a regression matter, with certificates.   (floor 2 · linalg)

two_layer/   softmax under ReLU regression: closed derivatives, five methods
quantum/     rows sampled by a simulated quantum search, its queries counted
"""

from winnow.linalg.two_layer import two_layer

__all__ = ["two_layer"]
