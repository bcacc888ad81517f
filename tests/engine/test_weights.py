"""Maps: the reading for the kernels gives what the reading in plain torch gives."""

import pytest
import torch
from torch import Tensor

from winnow.base.rng import generator
from winnow.engine.checkpoint import DictSource
from winnow.engine.families import known, load_weights, parse_config, tensor_shapes
from winnow.engine.synthetic import llama_config, opt_config
from winnow.engine.weights import LayerNorm, Linear, RmsNorm
from winnow.kernels import CodedMatrix, Cpu, Matrix, int4, matrix, open_cpu


@pytest.fixture
def cpu() -> Cpu:
    return open_cpu(1, isa="torch")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(sum(shape)))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_linear_map_reads_alike_for_rows_and_for_kernels(
    cpu: Cpu, dtype: torch.dtype, has_bias: bool
) -> None:
    linear = Linear(Matrix(randn(13, 37).to(dtype)), randn(13) if has_bias else None)
    x, out = randn(2, 37), torch.empty(2, 13)
    linear.apply(cpu, x.numpy(), out.numpy())
    # torch rounds a bfloat16 product to bfloat16, the kernels keep it in float32.
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, linear(x), rtol=bound, atol=bound)
    assert linear.n_bytes == 13 * 37 * dtype.itemsize


@pytest.mark.parametrize(
    "norm", [LayerNorm(randn(37), randn(37), 1e-5), RmsNorm(randn(37), 1e-5)], ids=["layer", "rms"]
)
def test_a_norm_reads_alike_for_rows_and_for_kernels(cpu: Cpu, norm: LayerNorm | RmsNorm) -> None:
    x, out = randn(3, 37) * 4 + 1, torch.empty(3, 37)
    norm.apply(cpu, x.numpy(), out.numpy())
    torch.testing.assert_close(out, norm(x), rtol=1e-5, atol=1e-5)


def test_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    y = RmsNorm(torch.full((4,), 2.0), eps=0.0)(torch.tensor([[1.0, -1.0, 7.0, -7.0]]))
    torch.testing.assert_close(y, torch.tensor([[0.4, -0.4, 2.8, -2.8]]))


@pytest.mark.parametrize("head_dtype", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_held_otherwise_is_rounded_once_and_nothing_else_changes(
    is_tied: bool, head_dtype: torch.dtype
) -> None:
    raw = {**llama_config(1, 64, 96, 4, 2, vocab_size=101), "tie_word_embeddings": is_tied}
    config = parse_config(raw)
    source = DictSource(config, {name: randn(*shape) for name, shape in tensor_shapes(config).items()})
    stored = source.tensor("model.embed_tokens.weight" if is_tied else "lm_head.weight")
    weights = load_weights(source, int4)
    other = load_weights(source, int4, head_dtype=head_dtype)
    assert torch.equal(other.head.matrix.weight, matrix(stored, head_dtype).weight)
    assert other.head.n_bytes > weights.head.n_bytes
    assert (other.head.matrix is other.embed) == is_tied
    assert is_tied or torch.equal(other.embed.weight, weights.embed.weight)
    assert torch.equal(other.layers[0].qkv.matrix.weight, weights.layers[0].qkv.matrix.weight)
    assert (other.dtype, other.cache_dtype) == (weights.dtype, weights.cache_dtype)


def opt_of(width: int) -> DictSource:
    config = parse_config(opt_config(2, width, 4, vocab_size=101))
    return DictSource(config, {name: randn(*shape) for name, shape in tensor_shapes(config).items()})


@pytest.fixture
def coding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pays on this machine."""
    monkeypatch.setattr(known, "codes_pay", lambda: True)


@pytest.mark.usefixtures("coding")
def test_bfloat16_is_coded_where_rows_are_wide_enough_and_nothing_is_lost() -> None:
    source = opt_of(256)
    weights, layer = load_weights(source, torch.bfloat16), "model.decoder.layers.1."
    matrices = [weights.embed, weights.head.matrix, weights.layers[1].qkv.matrix]
    assert all(isinstance(each, CodedMatrix) for each in matrices)
    assert weights.layers[1].mlp.is_coded
    assert weights.dtype == torch.bfloat16
    assert torch.equal(weights.layers[1].mlp.w_in, source.tensor(f"{layer}fc1.weight").bfloat16())
    assert torch.equal(weights.layers[1].mlp.w_out.T, source.tensor(f"{layer}fc2.weight").bfloat16())
    assert torch.equal(weights.embed.weight, source.tensor("model.decoder.embed_tokens.weight").bfloat16())
    q = source.tensor(f"{layer}self_attn.q_proj.weight").bfloat16()
    assert torch.equal(weights.layers[1].qkv.matrix.weight[:256], q)
    narrow = load_weights(opt_of(64), torch.bfloat16)
    assert isinstance(narrow.embed, Matrix)
    assert not narrow.layers[0].mlp.is_coded


@pytest.mark.usefixtures("coding")
@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.1.fc2.weight", "layers.0.self_attn.k_proj.weight"]
)
def test_one_row_that_cannot_be_coded_leaves_all_of_the_model_plain(name: str) -> None:
    source = opt_of(256)
    odd = source.tensor(f"model.decoder.{name}")
    (odd.T if "fc2" in name else odd)[5] = 2.0 ** torch.arange(-120, 136)
    weights = load_weights(source, torch.bfloat16)
    assert isinstance(weights.layers[0].qkv.matrix, Matrix)
    assert not any(layer.mlp.is_coded for layer in weights.layers)
    assert torch.equal(weights.embed.weight, source.tensor("model.decoder.embed_tokens.weight").bfloat16())
