"""Privacy: what a run that adds Gaussian noise may still reveal of one record.   (floor 2 · linalg)

A mechanism is (epsilon, delta)-private when no outcome is e^epsilon times likelier with one record than
without it, but for a mass of delta. Here one record is added or removed, its gradient is clipped to norm C,
and noise of standard deviation ``noise * C`` is added to the sum.

    gaussian.py   every release seen, nothing sampled: exact, in closed form
    sampled.py    one step on a random sample of the records: its privacy loss
    rdp.py        many such steps by moments of the loss: simple, loose
    pld.py        many such steps by the distribution of the loss: tight
    account.py    the two adversaries side by side, and what the noise costs the training

A server that sees every update has the first of these, however few records each update was made from; who
sees the final model alone has the others. Tools that print one epsilon print the smaller.
"""

from winnow.linalg.privacy.account import Account, account, sgd_bound
from winnow.linalg.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_noise, recovery_bound
from winnow.linalg.privacy.pld import pld_epsilon
from winnow.linalg.privacy.rdp import rdp_epsilon
from winnow.linalg.privacy.sampled import Release

__all__ = [
    "Account",
    "Release",
    "account",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise",
    "pld_epsilon",
    "rdp_epsilon",
    "recovery_bound",
    "sgd_bound",
]
