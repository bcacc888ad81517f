"""The three sketches as matrices, and the best k entries.   (floor 4 · attention)"""

import torch


def sketch_matrix(buckets, signs, width):
    """Return Phi [rows, width, n] from the bucket and the sign of each position in each row."""
    rows, n = buckets.shape
    phi = torch.zeros(rows, width, n, dtype=torch.float64)
    return phi.scatter_(1, buckets[:, None], signs[:, None].double())


def three_sketches_reference(phi, u1, u2, v):
    """Return Phi D^-1 U1 U2^T V [rows, width, E_v], D the normaliser of U1 U2^T.

    First S = U2^T V and z = U2^T 1, then Phi D^-1 U1: two passes, since D needs the whole of z.
    """
    s, z = u2.T @ v, u2.sum(0)
    return phi @ (u1 / (u1 @ z)[:, None]) @ s


def best_reference(y, k):
    """Return `y` with all but the k largest entries of each column set to zero."""
    at = y.abs().topk(k, dim=0).indices
    return torch.zeros_like(y).scatter_(0, at, y.gather(0, at))


def median_reference(phi, table):
    """Return the estimate of every entry: the median over the rows of its signed bucket."""
    return (phi.mT @ table).median(dim=0).values
