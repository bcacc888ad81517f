"""Linalg: least squares, regressions and accounts that other floors stand on.   (floor 2 · linalg)

privacy/   what a run that adds Gaussian noise may still reveal of one record
"""

__all__: list[str] = []
