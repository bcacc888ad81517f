"""Noise meters: noise that was added is measured, rounding is not taken for it, and else it is said."""

import pytest
import torch

from tests.audit.models import tiny, with_lora
from tests.audit.test_attack import drawn
from winnow.audit.families import read_layout
from winnow.audit.front import Front
from winnow.audit.leakage import gradients_of, implied, noise_of, read_defence
from winnow.audit.leakage.meters import Kind, kind_of, rounding


def rows_kept_back(gradients: dict) -> dict:
    """Return what leaves no rows that must be zero: the bulk must do."""
    return {name: g for name, g in gradients.items() if "wpe" not in name and "embed" not in name}


def rounded(gradients: dict, how: str) -> dict:
    if how == "int8":
        steps = {name: float(g.abs().max()) / 127 or 1.0 for name, g in gradients.items()}
        return {name: (g / steps[name]).round() * steps[name] for name, g in gradients.items()}
    dtype = torch.bfloat16 if how == "bf16" else torch.float16
    return {name: (g * 64).to(dtype).float() for name, g in gradients.items()}


@pytest.mark.parametrize("sigma", [0.3, 2.0])
@pytest.mark.parametrize("source", ["rows", "bulk"])
def test_the_noise_that_was_added_is_measured_within_two_percent(source, sigma, rng):
    model = tiny("llama", rng)
    sent = read_defence(f"noise={sigma}").gradients(model, drawn(rng), rng)
    found = noise_of(Front.of(model), sent if source == "rows" else rows_kept_back(sent))
    assert source in found.source
    assert found.kind is Kind.GAUSSIAN
    assert found.deviation == pytest.approx(sigma / 3, rel=0.02)


def test_noise_in_the_first_round_of_adapters_is_measured_within_two_percent(rng):
    model = tiny("llama", rng)
    with_lora(model, [place.module for place in read_layout(model).layers[0].reads], 8, rng)
    sent = {
        n: g + 0.2 * torch.randn(g.shape, generator=rng) for n, g in gradients_of(model, drawn(rng)).items()
    }
    found = noise_of(Front.of(model), sent)
    assert (found.kind, "lora_A" in found.source) == (Kind.GAUSSIAN, True)
    assert found.deviation == pytest.approx(0.2, rel=0.06)  # of 384 entries


@pytest.mark.parametrize("how", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("source", ["rows", "bulk"])
def test_rounding_is_not_taken_for_noise(source, how, rng):
    model = tiny("gpt2", rng)
    sent = rounded(gradients_of(model, drawn(rng)), how)
    found = noise_of(Front.of(model), sent if source == "rows" else rows_kept_back(sent))
    assert found.kind is (Kind.NONE if source == "rows" else Kind.ROUNDING)
    assert implied(found, clip=1.0, batch=3, rate=1.0, steps=1, delta=1e-5) is None


@pytest.mark.parametrize("how", ["bf16", "fp16", "int8"])
def test_noise_is_still_noise_when_it_was_rounded_afterwards(how, rng):
    model = tiny("llama", rng)
    sent = rounded(read_defence("noise=0.5").gradients(model, drawn(rng), rng), how)
    found = noise_of(Front.of(model), sent)
    assert found.kind is Kind.GAUSSIAN
    scale = 1.0 if how == "int8" else 64.0
    assert found.deviation / scale == pytest.approx(0.5 / 3, rel=0.02)


def test_noise_of_another_law_is_not_called_gaussian(rng):
    flat = torch.rand(64, 64, generator=rng) - 0.5
    laplace = -flat.sign() * torch.log1p(-2 * flat.abs())
    for entries in (flat, laplace):
        assert kind_of(float(entries.square().mean().sqrt()), entries, rounding(entries)) is Kind.UNKNOWN


def test_between_rounding_and_noise_it_cannot_be_told(rng):
    entries = torch.randn(4000, generator=rng)
    told = [kind_of(1.0, entries, rounded) for rounded in (0.6, 0.4, 0.2)]
    assert told == [Kind.ROUNDING, Kind.UNKNOWN, Kind.GAUSSIAN]


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_the_rounding_of_a_type_is_what_it_is_off_by(dtype, unit, rng):
    exact = 1 + torch.rand(5000, generator=rng, dtype=torch.float64)
    kept = exact.to(dtype)
    off = float((kept.double() - exact).square().mean().sqrt())
    assert rounding(kept.float()) == pytest.approx(off, rel=0.05)
    assert off < unit
