"""Random operands and the comparison all kernel tests share."""

import torch
from torch import Tensor

from winnow.kernels import NeuronRecords

SPLIT = 1e-5  # above 2^-17, the relative error of a float32 handed over as the sum of two bfloat16


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


def magnitude(x: Tensor, records: NeuronRecords, indices: Tensor) -> float:
    """The largest sum of absolute terms in an MLP's output: what rounding errors are measured against.

    Where a neuron's terms cancel, no arithmetic of float32 is exact relative to what is left.
    """
    kept, size = indices.long(), x.double().abs()
    values = records.w_in[kept].double().abs() @ size + records.bias[kept].double().abs()
    if records.is_gated:
        values = values * (records.w_up[kept].double().abs() @ size + records.bias_up[kept].double().abs())
    return (values @ records.w_out[kept].double().abs()).max().item()


def assert_close(
    result: Tensor, expected: Tensor, relative: float = 3e-6, scale: float | None = None
) -> None:
    """Float32 against float64: the largest error as a share of `scale`, by default the largest value."""
    assert result.shape == expected.shape
    assert expected.dtype == torch.float64
    if expected.numel():
        scale = expected.abs().max().item() if scale is None else scale
        assert (result.double() - expected).abs().max().item() <= relative * max(scale, 1e-3)
