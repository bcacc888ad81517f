"""Random operands and the comparison all kernel tests share."""

import torch
from torch import Tensor

from winnow.kernels import NeuronRecords


def normal(
    rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> Tensor:
    return (torch.randn(*shape, generator=rng) * scale).to(dtype)


def random_records(
    rng: torch.Generator, n_neurons: int, width: int, dtype: torch.dtype, gated: bool = False
) -> NeuronRecords:
    """Weights of the scale of a trained layer, so that about half of the neurons fire."""
    shape, scale = (n_neurons, width), width**-0.5
    up = (normal(rng, *shape, dtype=dtype, scale=scale), normal(rng, n_neurons)) if gated else (None, None)
    return NeuronRecords.pack(
        normal(rng, *shape, dtype=dtype, scale=scale),
        normal(rng, *shape, dtype=dtype),
        normal(rng, n_neurons),
        *up,
    )


def some_neurons(rng: torch.Generator, n_neurons: int, share: float = 0.5) -> Tensor:
    """An ascending list of about `share` of the neurons."""
    return torch.nonzero(torch.rand(n_neurons, generator=rng) < share).squeeze(1).to(torch.int32)


def assert_close(result: Tensor, expected: Tensor, relative: float = 3e-6) -> None:
    """Float32 against a definition in float64: the largest error, as a share of the largest value."""
    assert result.shape == expected.shape
    assert expected.dtype == torch.float64
    if expected.numel():
        scale = expected.abs().max().item()
        assert (result.double() - expected).abs().max().item() <= relative * max(scale, 1e-3)
