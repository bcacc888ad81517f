"""Adapter: a transformers model whose MLPs and heads are winnowed.   (floor 5 · engine)

    model = winnow.sparsify(AutoModelForCausalLM.from_pretrained(directory), plan)

Each layer's MLP gives way to a module on neuron records, and where the plan leaves heads out so do the maps
before and behind its queries; all else stays transformers' own. Where each sequence gets one token, its row
runs by the kernels, from the neurons and heads that the layer's predictors select; a prompt, several tokens
at a time, is computed densely by torch. Forward hooks on the attentions tell the two apart and keep what the
predictors with a lookahead read. Keys and values are of every head, as transformers' cache holds them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from winnow.base.errors import ModelError, UsageError
from winnow.engine.checkpoint import CONFIG, Checkpoint
from winnow.engine.config import ModelConfig
from winnow.engine.families import parse_config
from winnow.engine.model import MlpInputs, activations, weighted_sum
from winnow.engine.sparsity.plan import Plan, read_plan, read_provenance
from winnow.engine.sparsity.predictor import HeadPredictor, Predictor
from winnow.engine.sparsity.sparse_mlp import WinnowedMlp
from winnow.engine.weights import HeadLinear, Linear, MlpWeights
from winnow.kernels import Activation, Cpu, Lists, Matrix, NeuronRecords, open_cpu

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
ATTENTIONS = ("eager", "sdpa")  # others may keep what queries say, and those of heads left out say nothing
AnyModel = TypeVar("AnyModel", bound=nn.Module)


def sparsify(model: AnyModel, plan: Plan | str | Path, *, threads: int | None = None) -> AnyModel:
    """Winnow a transformers model in place and return it: `generate` and pipelines go on working.

    `model` is an OPT, Llama, Mistral, Qwen2 or Qwen3 in float32 or bfloat16 on the CPU, `plan` a Plan or its
    file. `threads` is for the kernels and defaults to the processors this process may use. The weights move
    into neuron records layer by layer: peak memory is the model and one MLP. Afterwards the model is for
    inference: no gradients, no other device or type, no saving, one generation at a time.

    Loses what the plan loses, at single tokens only. Of a head left out the weights of query and output are
    not read; its keys and values are, by transformers' attention, which must then be "eager" or "sdpa". The
    plan's model hash is checked where the model came from a directory, its shapes and precisions always.
    Raises UsageError or ModelError, the model untouched.
    """
    _check_is_transformers(model)
    config = parse_config(model.config.to_dict(), "the model's config")  # pyright: ignore
    sites = _sites(model, config)
    precision = _precision(sites)
    opened = _fitting_plan(model, plan, config, precision)
    if opened.has_heads:
        _check_attention(model, sites, config, precision)
    n_threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if n_threads < 1:
        raise UsageError(f"threads is {n_threads}; expected at least 1.")
    cpu = open_cpu(n_threads)
    model.eval().requires_grad_(False)
    below = None
    heads = opened.heads or (None,) * len(sites)
    for site, predictor, of_heads in zip(sites, opened.layers, heads, strict=True):
        below = _Views(below)
        site.layer.get_submodule("self_attn").register_forward_pre_hook(below.watch, with_kwargs=True)
        site.replace(WinnowedModule(site.packed(config), predictor, below, cpu))
        if of_heads is not None:
            site.replace_heads(_Choice(of_heads, below, cpu), config)
    return model


@final
class WinnowedModule(nn.Module):
    """An MLP on neuron records, in the place of transformers' own."""

    def __init__(self, mlp: MlpWeights, predictor: Predictor | None, views: "_Views", cpu: Cpu) -> None:
        super().__init__()
        self.weights = mlp
        self.predictor = predictor
        self.views = views
        self.rows = WinnowedMlp(mlp, predictor, cpu, np.ones(1, np.int64))
        self.register_state_dict_pre_hook(_refuse_to_save)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return the MLP's output, its bias included: by row where each sequence has one token."""
        if x.device.type != "cpu":
            raise UsageError(
                f"A winnowed model runs on the CPU; its input lies on {x.device}. Leave it there."
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise UsageError("A winnowed model has no gradients; call it under torch.no_grad().")
        own = x.detach().reshape(-1, x.shape[-1]).float()
        if self.views.n_tokens == 1:
            y = self._row_by_row(own)
        else:
            y = weighted_sum(self.weights, activations(self.weights, own))
        return y.to(x.dtype).view(x.shape)

    def _row_by_row(self, own: Float32[Tensor, "B D"]) -> Float32[Tensor, "B D"]:
        inputs = self.views.complete(own)
        read = own if self.predictor is None else self.predictor.lookahead.view(inputs)
        out = np.empty(own.shape, np.float32)
        for x, view, y in zip(own.numpy(), read.numpy(), out, strict=True):
            self.rows.select(view[None])
            self.rows.apply(x[None], y[None])
        return torch.from_numpy(out)


@final
class WinnowedQueries(nn.Module):
    """The map to an attention's queries, in the place of transformers' own: zeros for heads left out."""

    def __init__(self, whole: nn.Linear, choice: "_Choice") -> None:
        super().__init__()
        self.whole = whole  # for prompts; the same memory
        self.map = Linear(Matrix(whole.weight.detach()), _copied(whole.bias))
        self.choice = choice

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T M"]:
        """Choose the heads of the step under way and return their queries."""
        if self.choice.views.n_tokens != 1:
            return self.whole(x)
        out = np.zeros((len(x), self.map.matrix.shape[0]), np.float32)
        self.choice.select()
        for row, heads, y in zip(self.choice.views.attention.numpy(), self.choice.heads, out, strict=True):
            self.map.apply_by_head(self.choice.cpu, row[None], heads, y[None])
        return torch.from_numpy(out).to(x.dtype).view(*x.shape[:-1], -1)


@final
class WinnowedOut(nn.Module):
    """The map behind an attention, in the place of transformers' own, from the heads that were chosen."""

    def __init__(self, out: HeadLinear, choice: "_Choice") -> None:
        super().__init__()
        self.map = out
        self.width = out.matrix.shape[0] // out.n_heads
        self.choice = choice

    def forward(self, mixed: Float[Tensor, "B T M"]) -> Float[Tensor, "B T D"]:
        """Return what the chosen heads say; what stands in the others' places is not read."""
        said = mixed.detach().reshape(-1, mixed.shape[-1]).float()
        if self.choice.views.n_tokens != 1:
            y = self.map(said)
        else:
            out = np.empty((len(said), self.width), np.float32)
            for row, heads, each in zip(said.numpy(), self.choice.heads, out, strict=True):
                self.map.apply(self.choice.cpu, row[None], heads, each[None])
            y = torch.from_numpy(out)
        return y.to(mixed.dtype).view(*mixed.shape[:-1], -1)


@final
class _Choice:
    """Which kv heads one layer computes in the step under way, row by row."""

    def __init__(self, predictor: HeadPredictor, views: "_Views", cpu: Cpu) -> None:
        self.predictor = predictor
        self.views = views
        self.cpu = cpu
        self.heads: list[Lists] = []

    def select(self) -> None:
        """List the heads of every sequence, from what the layer's attention is about to read."""
        self.heads = []
        for row in self.views.attention.numpy():
            listed = np.zeros((1, len(self.predictor.bias)), np.int32), np.zeros(1, np.int64)
            self.predictor.apply(self.cpu, row[None], *listed)
            self.heads.append(listed)


@final
class _Views:
    """What one layer's sublayers read in the step under way, for its own predictor and the one above."""

    def __init__(self, below: "_Views | None") -> None:
        self.below = below
        self.n_tokens = 0  # of each sequence
        self.attention = torch.empty(0)
        self.own = torch.empty(0)

    def watch(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Note what the layer's attention is about to read; a hook, called before it."""
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # [B, T, D]
        self.n_tokens = hidden.shape[1]
        if self.n_tokens == 1:  # a prompt's are not kept: it is computed densely
            self.attention = hidden[:, 0].detach().float().contiguous()

    def complete(self, own: Float32[Tensor, "B D"]) -> MlpInputs:
        """Return all views of the layer, its MLP's own input being the last to come."""
        self.own = own.contiguous()
        return MlpInputs(self.own, self.attention, self.attention if self.below is None else self.below.own)


@final
@dataclass(frozen=True)
class _Packed:
    """The weights of one MLP as the kernels read them."""

    mlp: NeuronRecords
    mlp_bias: Float32[Tensor, " D"] | None
    activation: Activation


@final
@dataclass(frozen=True)
class _Site:
    """Where the maps of one transformers layer stand. Holds no weight, so that each can be freed in turn."""

    layer: nn.Module
    is_gated: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The MLP's linear maps within the layer: in, out and, if gated, up."""
        return ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj") if self.is_gated else ("fc1", "fc2")

    @property
    def head_names(self) -> tuple[str, str]:
        """The attention's linear maps within the layer, to its queries and from its heads."""
        return "self_attn.q_proj", "self_attn.o_proj" if self.is_gated else "self_attn.out_proj"

    def maps(self) -> list[nn.Linear]:
        """Return the MLP's linear maps; raises ModelError for any other module in their place."""
        return self.linear_maps(self.names)

    def linear_maps(self, names: Sequence[str]) -> list[nn.Linear]:
        """Return the linear maps called `names`; raises ModelError for any other module in their place."""
        found = [self.layer.get_submodule(name) for name in names]
        for name, module in zip(names, found, strict=True):
            if type(module) is not nn.Linear:
                raise ModelError(
                    f"{name} is a {type(module).__name__}, expected torch.nn.Linear: is the model winnowed "
                    "already, quantised or adapted? Load plain weights, with adapters merged."
                )
        return [module for module in found if isinstance(module, nn.Linear)]

    def packed(self, config: ModelConfig) -> _Packed:
        """Return a copy of the MLP's weights in records."""
        w_in, w_out, *up = self.maps()
        w_up, b_up = (up[0].weight, up[0].bias) if up else (None, None)
        with torch.no_grad():
            records = NeuronRecords.pack(w_in.weight, w_out.weight.T, w_in.bias, w_up, b_up)
        return _Packed(records, _copied(w_out.bias), config.activation)

    def replace(self, module: WinnowedModule) -> None:
        """Put `module` in the place of the MLP."""
        if self.is_gated:
            self.layer.set_submodule("mlp", module)
        else:  # OPT's maps stand in the layer itself, its activation between them
            self.layer.set_submodule("fc1", module)
            self.layer.set_submodule("activation_fn", nn.Identity())
            self.layer.set_submodule("fc2", nn.Identity())

    def replace_heads(self, choice: _Choice, config: ModelConfig) -> None:
        """Put modules that compute the chosen heads in the place of the maps around them."""
        to_queries, from_heads = self.linear_maps(self.head_names)
        weight = from_heads.weight.detach()
        out = HeadLinear.of(weight, config.n_kv_heads, weight.dtype, _copied(from_heads.bias))
        for name, module in zip(
            self.head_names, (WinnowedQueries(to_queries, choice), WinnowedOut(out, choice)), strict=True
        ):
            self.layer.set_submodule(name, module)


def _copied(bias: Tensor | None) -> Float32[Tensor, " _"] | None:
    return None if bias is None else bias.detach().float().clone()


def _refuse_to_save(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise UsageError(
        "A winnowed model cannot be saved: its MLPs lie in the order of the kernels. Save the model that it "
        "was made from, and the plan."
    )


def _check_is_transformers(model: nn.Module) -> None:
    try:
        from transformers import PreTrainedModel  # noqa: PLC0415 (an optional extra)
    except ImportError:
        raise UsageError(
            "sparsify takes a transformers model, and transformers is not installed; "
            "install it with: pip install 'winnow-llm[hf]'."
        ) from None
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"sparsify received a {type(model).__name__}; expected a transformers model, such as "
            "AutoModelForCausalLM.from_pretrained returns."
        )


def _sites(model: nn.Module, config: ModelConfig) -> list[_Site]:
    """Return the layers of `model`; raises ModelError where they are not what transformers makes."""
    try:
        layers = model.base_model.get_submodule("layers" if config.is_gated else "decoder.layers")  # pyright: ignore
        sites = [_Site(layer, config.is_gated) for layer in layers.children()]
        shapes = [[tuple(each.weight.shape) for each in site.maps()] for site in sites]
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} is not laid out as transformers lays out {config.family} ({error}); "
            "is it winnowed already? Load it afresh."
        ) from None
    wide, tall = (config.n_neurons, config.width), (config.width, config.n_neurons)
    wanted = [wide, tall, wide] if config.is_gated else [wide, tall]
    if shapes != [wanted] * config.n_layers:
        raise ModelError(f"The model's MLPs have shapes {shapes[0]}, its config says {wanted}.")
    return sites


def _precision(sites: list[_Site]) -> str:
    return _common_precision("MLPs", [each.weight for site in sites for each in site.maps()])


def _check_attention(model: nn.Module, sites: list[_Site], config: ModelConfig, precision: str) -> None:
    """Raise UsageError or ModelError where heads cannot be left out of `model`."""
    attention: str = model.config._attn_implementation  # pyright: ignore
    if attention not in ATTENTIONS:
        raise UsageError(
            f"The plan leaves heads out, and the model's attention is {attention!r}; expected "
            f"{' or '.join(ATTENTIONS)}. Load it with attn_implementation='sdpa', or take another plan."
        )
    maps = [each for site in sites for each in site.linear_maps(site.head_names)]
    found = _common_precision("attentions", [each.weight for each in maps])
    if found != precision:
        raise UsageError(f"The model's attentions are {found}, its MLPs {precision}; load it in one type.")
    n_queries = config.qkv_rows[0]
    wanted = [(n_queries, config.width), (config.width, n_queries)] * len(sites)
    shapes = [tuple(each.weight.shape) for each in maps]
    if shapes != wanted:
        raise ModelError(f"The model's attentions have shapes {shapes[:2]}, its config says {wanted[:2]}.")


def _common_precision(name: str, weights: list[Tensor]) -> str:
    found = {(weight.dtype, weight.device.type) for weight in weights}
    dtype, device = next(iter(found))
    if len(found) > 1 or device != "cpu" or dtype not in PRECISIONS:
        said = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found))
        raise UsageError(
            f"The model's {name} are {said}; expected torch.float32 or torch.bfloat16 on the CPU throughout. "
            "Load it with dtype=torch.bfloat16 and without device_map."
        )
    return PRECISIONS[dtype]


def _fitting_plan(model: nn.Module, plan: Plan | str | Path, config: ModelConfig, precision: str) -> Plan:
    """Return the plan, opened and held against the model."""
    name = "The plan" if isinstance(plan, Plan) else str(plan)
    provenance = plan.provenance if isinstance(plan, Plan) else read_provenance(Path(plan))
    provenance.check_precision(precision, name)
    origin: str = model.config._name_or_path  # pyright: ignore
    if origin and (Path(origin) / CONFIG).is_file():
        provenance.check_model(Checkpoint(Path(origin)).content_hash(), name)
    opened = plan if isinstance(plan, Plan) else read_plan(Path(plan), config, provenance.model_hash)
    opened.check_fits(config, name)
    return opened
