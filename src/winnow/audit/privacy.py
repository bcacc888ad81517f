"""Privacy: what noise is worth to each who looks, as configured and as measured.   (floor 5 · audit)

    found = privacy(noise=1.0, rate=0.05, steps=500, delta=1e-5)
    found.server          epsilon to who sees every update
    found.final_model     epsilon to who sees the last model alone
    found.bound           the most that an attacker raises a right guess of probability `prior` to

The accounting is that of `winnow.linalg.privacy`. With an update that was really sent, the noise in it is
measured and accounted for in the same way: an update whose noise was logged and never added shows.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from winnow.audit.front import Front
from winnow.audit.leakage import implied, noise_of
from winnow.audit.leakage.meters import Kind, Noise
from winnow.audit.report import Cell, Controls, Finding, Table
from winnow.base.errors import UsageError
from winnow.linalg.privacy import Account, Release, account, gaussian_epsilon, pld_epsilon, recovery_bound

AGREED = Release(noise=1.0, rate=0.01, steps=1000), 1e-5, 1.8282  # on which three accountants agree
HIDDEN = Release(noise=1e6, rate=1.0, steps=1000), 1e-5  # next to nothing is told, even to a server
SHORT = 0.95  # of the configured noise: less is not what was configured; a meter is off by 2 %
DOES_NOT_SHOW = (
    "That records were sampled as assumed, each on its own at the given rate: shuffled batches of a fixed "
    "size are another mechanism, without this guarantee for who sees the final model.",
    "That gradients were clipped to the norm that the noise was scaled by.",
    "Records that are many: epsilon is of one record added or removed, not of all that a person gave.",
)


@final
@dataclass(frozen=True)
class Privacy:
    """Both epsilons of a run, and of what was measured in one of its updates.

    `measured` is None where no update was given, `implied` also where its noise has no epsilon.
    """

    configured: Account
    prior: float
    measured: Noise | None
    implied: Account | None
    seconds: float

    @property
    def server(self) -> float:
        """Epsilon to who sees every update and knows whose it is."""
        return self.configured.server

    @property
    def final_model(self) -> float:
        """Epsilon to who sees the last model alone; never above `server` by more than the grid's step."""
        return self.configured.final_model

    @property
    def bound(self) -> float:
        """The most that who sees every update raises a right guess of probability `prior` to."""
        return recovery_bound(self.configured.release.mu, self.prior)

    @property
    def is_short(self) -> bool:
        """Whether an update was measured and holds less noise than configured, or none that counts."""
        if self.measured is None:
            return False
        return self.implied is None or self.implied.release.noise < SHORT * self.configured.release.noise

    @property
    def verdict(self) -> str:
        """Both epsilons in a sentence, behind an alarm where the noise is not there."""
        told = (
            f"epsilon {self.server:.4g} to who sees every update, {self.final_model:.4g} to who sees the "
            "final model"
        )
        if not self.is_short or self.measured is None:
            return told
        if self.implied is not None:
            found = f"the update holds {self.implied.release.noise:.3g} of it"
        elif self.measured.kind is Kind.UNKNOWN:
            found = "what the update holds cannot be told from its signal"
        else:
            found = "the update holds none"
        return f"noise {self.configured.release.noise:g} was configured, {found}; as configured, {told}"

    def finding(self, subject: str) -> Finding:
        """Return the result in the form that all audits share. No text is read, so that nothing is found."""
        rows: list[tuple[Cell, ...]] = [("configured", *_cells(self.configured, self.prior))]
        if self.measured is not None:
            nothing = (0.0 if self.measured.kind is Kind.NONE else None, None, None, None)
            known = self.implied
            rows.append(("measured", *(nothing if known is None else _cells(known, self.prior))))
        release, measured = self.configured.release, self.measured
        details = {
            "rate": float(release.rate),
            "steps": release.steps,
            "prior": self.prior,
            "noise_per_entry": measured.deviation if measured else None,
            "noise_kind": str(measured.kind) if measured else None,
            "noise_measured_in": measured.source if measured else None,
        }
        return Finding(
            audit="privacy",
            subject=subject,
            verdict=self.verdict,
            exact_match=0.0,
            token_recall=0.0,
            seconds=self.seconds,
            controls=_controls(),
            certificate={
                "epsilon_server": self.server,
                "epsilon_final_model": self.final_model,
                "epsilon_final_model_by_moments": self.configured.final_model_rdp,
                "recovery_bound": self.bound,
                "delta": self.configured.delta,
                "noise_missing": float(self.is_short),
            },
            does_not_show=DOES_NOT_SHOW,
            tables=(
                Table(
                    "the noise, as configured and as measured",
                    ("noise", "multiplier", "epsilon, server", "epsilon, final model", "recovery bound"),
                    tuple(rows),
                ),
            ),
            details={key: value for key, value in details.items() if value is not None},
        )


def privacy(  # noqa: PLR0913 (a public verb: the names its users expect)
    *,
    noise: float | int,
    rate: float | int = 1.0,
    steps: int = 1,
    delta: float = 1e-5,
    prior: float = 0.1,
    model: nn.Module | None = None,
    update: Mapping[str, Tensor] | None = None,
    clip: float | None = None,
    records: int | None = None,
) -> Privacy:
    """Return both epsilons of a run at `delta`, and the bound on recovery from a guess of `prior`.

    `noise` is the multiplier, sigma over the clip norm; a step samples each record on its own at `rate`. With
    `update`, by the names of `model`'s parameters, a mean over `records` gradients cut to `clip`, the noise
    in it is measured within 2 % and accounted for beside what was configured. The server's epsilon is exact,
    the final model's a bound from above within 1e-3. Costs under a second. Raises UsageError for numbers
    outside their ranges and for an update without model, clip or records, ModelError for a model of an
    unknown family.
    """
    started = time.perf_counter()
    if not 0 < prior < 1:
        raise UsageError(f"prior is {prior}; expected a probability between 0 and 1.")
    release = Release(noise, rate, steps)
    measured = known = None
    if update is None:
        lone = next((k for k, v in (("model", model), ("clip", clip), ("records", records)) if v), None)
        if lone is not None:
            raise UsageError(f"{lone} belongs to an update, and none is given; give one, or leave it out.")
    elif model is None or clip is None or records is None:
        raise UsageError("an update is given without all of model, clip and records; its noise needs them.")
    else:
        measured = noise_of(Front.of(model), update)
        if measured is None:
            raise UsageError("the update holds none of the tensors in which noise is measured; send more.")
        known = implied(measured, clip, records, rate, steps, delta)
    configured = account(release, delta)
    return Privacy(configured, prior, measured, known, time.perf_counter() - started)


def _cells(known: Account, prior: float) -> tuple[float, float, float, float]:
    return float(known.release.noise), known.server, known.final_model, known.recovery(prior)


def _controls() -> Controls:
    """Account for a run whose epsilon is known, and for one that tells next to nothing."""
    release, delta, epsilon = AGREED
    off = math.fabs(pld_epsilon(release, delta) - epsilon)
    hidden, delta = HIDDEN
    left = gaussian_epsilon(hidden.mu, delta)
    return Controls(
        planted_found=off < 1e-3,
        noise_found=left > 1e-3,
        notes=(
            f"planted: a run of noise {release.noise:g} whose epsilon is {epsilon:g}; off by {off:.0e}",
            f"noise: a run of noise {hidden.noise:g}, whose epsilon is {left:.0e}",
        ),
    )
