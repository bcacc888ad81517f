"""The audit of privacy: both epsilons, and whether the noise that was configured is in what was sent."""

import pytest
import torch

import winnow.audit
from tests.audit.models import VOCABULARY, tiny
from tests.linalg.test_privacy import KNOWN
from winnow.audit.leakage import gradients_of
from winnow.audit.report import as_html, as_json
from winnow.base.errors import UsageError
from winnow.linalg.privacy import gaussian_epsilon, recovery_bound

CLIP, RECORDS = 0.7, 3


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "by_moments", "by_losses"), KNOWN)
def test_both_epsilons_stand_side_by_side(rate, noise, steps, delta, by_moments, by_losses):
    found = winnow.audit.privacy(noise=noise, rate=rate, steps=steps, delta=delta, prior=0.01)
    shown = as_json(found.finding("a run"))["certificate"]
    assert shown["epsilon_final_model"] == pytest.approx(by_losses, abs=1e-3)
    assert shown["epsilon_final_model_by_moments"] == pytest.approx(by_moments, abs=1e-3)
    assert shown["epsilon_server"] == gaussian_epsilon(steps**0.5 / noise, delta)
    assert shown["recovery_bound"] == recovery_bound(steps**0.5 / noise, 0.01)
    assert found.final_model < found.server


def test_the_finding_holds_its_controls_and_says_what_it_does_not_show():
    finding = winnow.audit.privacy(noise=2).finding("a run")
    assert not finding.is_void
    assert (finding.exact_match, finding.recovered) == (0.0, ())
    assert "Poisson" not in finding.verdict
    assert "shuffled batches" in finding.does_not_show[0]
    assert "epsilon, server" in as_html(finding)


def noisy(model: torch.nn.Module, multiplier: float, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Return an update as a client sends it: each of three gradients cut, their mean, noise."""
    texts = torch.randint(2, VOCABULARY, (RECORDS, 5), generator=rng).tolist()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for text in texts:
        given = gradients_of(model, [text])
        norm = float(torch.cat([g.flatten() for g in given.values()]).norm())
        for name, g in given.items():
            total[name] += g * min(1.0, CLIP / norm)
    spread = multiplier * CLIP
    return {name: (g + spread * torch.randn(g.shape, generator=rng)) / RECORDS for name, g in total.items()}


def test_an_update_with_its_noise_is_worth_what_was_configured(rng):
    model = tiny("gpt2", rng)
    update = noisy(model, 1.5, rng)
    found = winnow.audit.privacy(
        noise=1.5, rate=0.1, steps=20, model=model, update=update, clip=CLIP, records=RECORDS
    )
    assert found.implied.release.noise == pytest.approx(1.5, rel=0.05)
    assert found.implied.server == pytest.approx(found.server, rel=0.1)
    assert not found.is_short
    assert [row[0] for row in found.finding("a run").tables[0].rows] == ["configured", "measured"]


@pytest.mark.parametrize(("real", "says"), [(0.0, "the update holds none"), (0.5, "the update holds 0.")])
def test_noise_that_was_logged_and_not_added_is_an_alarm(real, says, rng):
    model = tiny("gpt2", rng)
    update = noisy(model, real, rng)
    found = winnow.audit.privacy(noise=1.5, model=model, update=update, clip=CLIP, records=RECORDS)
    assert found.is_short
    assert says in found.verdict
    assert as_json(found.finding("a run"))["certificate"]["noise_missing"] == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": 0}, "noise is 0; expected a number above 0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"noise": 1, "rate": 0.0}, "rate is 0.0; expected a share above 0 and at most 1"),
        ({"noise": 1, "rate": 1.01}, "rate is 1.01"),
        ({"noise": 1, "steps": 0}, "steps is 0"),
        ({"noise": 1, "delta": 1.0}, "delta is 1.0; expected a number above 0 and below 1"),
        ({"noise": 1, "prior": 0.0}, "prior is 0.0; expected a probability between 0 and 1"),
        ({"noise": 1, "clip": 1.0}, "clip belongs to an update"),
        ({"noise": 1, "update": {}, "clip": 1.0}, "without all of model, clip and records"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_in_one_line(options, says):
    with pytest.raises(UsageError, match=says) as refused:
        winnow.audit.privacy(**options)
    assert "\n" not in str(refused.value)


def test_an_update_in_which_nothing_can_be_measured_is_refused(rng):
    model = tiny("gpt2", rng)
    with pytest.raises(UsageError, match="none of the tensors in which noise is measured"):
        winnow.audit.privacy(noise=1, model=model, update={}, clip=1.0, records=1)
