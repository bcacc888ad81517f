"""Families: what a layout names is what the model reads, and the front computes what the model does."""

import pytest
import torch
from torch import nn

from tests.audit.models import BUILD, CAUSAL, VOCABULARY, WIDTH, tiny, with_lora
from winnow.audit.families import check_vocabulary, parameters_of, read_layout
from winnow.audit.front import Front
from winnow.base.errors import ModelError


def inputs_of(model: nn.Module, paths: list[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the modules at `paths` read while `model` runs."""
    seen: dict[str, torch.Tensor] = {}

    def watch(path: str):
        def hook(_module, arguments):
            seen[path] = arguments[0].detach().reshape(*ids.shape, -1)

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return seen


def mixed_by(front: Front, z: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return layer 0's heads side by side, by the definition of attention."""
    q, k, v = front.query(0, z, positions), front.key(0, z, positions), front.value(0, z)
    group = front.layout.n_heads // front.layout.n_kv_heads
    k, v = (t.repeat_interleave(group, dim=-2) for t in (k, v))
    scores = torch.einsum("bihe,bjhe->bhij", q, k) / front.layout.head_width**0.5
    if front.layout.is_causal:
        n = scores.shape[-1]
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    return torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v).flatten(-2)


@pytest.mark.parametrize("family", BUILD)
def test_the_front_computes_what_the_first_layer_reads(family, rng):
    model = tiny(family, rng)
    front = Front.of(model)
    layer = front.layout.layers[0]
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=rng)
    positions = torch.arange(7).expand(3, 7).clone()
    seen = inputs_of(model, [layer.query.module, layer.out.module, layer.mlp[0].module], ids)
    x = front.embed(ids, positions)
    z = front.attention_input(0, x)
    torch.testing.assert_close(z, seen[layer.query.module], rtol=1e-4, atol=1e-5)
    mixed = mixed_by(front, z, positions)
    torch.testing.assert_close(mixed, seen[layer.out.module], rtol=1e-4, atol=1e-5)
    y = front.mlp_input(0, front.after_attention(0, x, mixed))
    torch.testing.assert_close(y, seen[layer.mlp[0].module], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", BUILD)
def test_every_map_is_input_by_output(family, rng):
    model = tiny(family, rng)
    layout, parameters = read_layout(model), parameters_of(model)
    for layer in layout.layers:
        for place in (*layer.reads, *layer.mlp):
            assert place.matrix(parameters).shape[0] == WIDTH
        assert layer.query.matrix(parameters).shape[1] == layout.n_heads * layout.head_width
        assert layer.value.matrix(parameters).shape[1] == layout.n_kv_heads * layout.head_width
    assert parameters[layout.tokens].shape == (VOCABULARY, WIDTH)
    assert check_vocabulary(layout, parameters) == VOCABULARY


@pytest.mark.parametrize("family", CAUSAL)
def test_a_map_reads_gradients_as_it_reads_weights(family, rng):
    model = tiny(family, rng)
    layout = read_layout(model)
    ids = torch.randint(2, VOCABULARY, (1, 5), generator=rng)
    model(ids, labels=ids).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    value = layout.layers[0].value.matrix(gradients)
    assert torch.linalg.matrix_rank(value.double(), rtol=1e-5) == 4  # the last token is a label alone


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_lora_pair_is_found_where_its_map_is_and_counted(family, rng):
    model = tiny(family, rng)
    place = read_layout(model).layers[0].query
    with_lora(model, [place.module], 5, rng)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=rng)
    front = Front.of(model)
    adapter = front.layout.layers[0].query.adapter
    assert adapter is not None
    assert (adapter.rank, adapter.scale) == (5, 2.0)
    z = torch.randn(2, WIDTH, generator=rng)
    wanted = model.get_submodule(place.module)(z)[:, place.first : place.last]
    torch.testing.assert_close(front.layout.layers[0].query.apply(z, front.parameters), wanted)


def test_a_wrapped_model_is_read_as_the_bare_one(rng):
    model = tiny("gpt2", rng)
    wrapped = nn.ModuleDict({"inner": model})
    assert read_layout(wrapped).tokens == f"inner.{read_layout(model).tokens}"


def test_an_unknown_family_and_an_unknown_variant_are_refused(rng):
    with pytest.raises(
        ModelError, match="Linear is of a family that the audit does not know; expected GPT-2"
    ):
        read_layout(nn.Linear(3, 3))
    model = tiny("opt", rng)
    model.config.do_layer_norm_before = False
    with pytest.raises(ModelError, match="do_layer_norm_before=False"):
        read_layout(model)


def test_a_head_of_another_size_is_refused(rng):
    model = tiny("llama", rng)
    model.lm_head = nn.Linear(WIDTH, VOCABULARY - 1, bias=False)
    with pytest.raises(ModelError, match="embeds 211 tokens and has logits for 210"):
        check_vocabulary(read_layout(model), parameters_of(model))
