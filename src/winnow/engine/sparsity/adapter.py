"""Adapter: a transformers model whose MLPs are winnowed.   (floor 5 · engine)

    model = winnow.sparsify(AutoModelForCausalLM.from_pretrained(directory), plan)

Each layer's MLP gives way to a module on neuron records; all else stays transformers' own. Where each
sequence gets one token, its row runs by the kernels, from the neurons that the layer's predictor selects; a
prompt, several tokens at a time, is computed densely by torch. Forward hooks on the attentions tell the two
apart and keep what the predictors with a lookahead read.
"""

import os
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
from winnow.engine.sparsity.predictor import Predictor
from winnow.engine.sparsity.sparse_mlp import WinnowedMlp
from winnow.engine.weights import MlpWeights
from winnow.kernels import Activation, Cpu, NeuronRecords, open_cpu

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
AnyModel = TypeVar("AnyModel", bound=nn.Module)


def sparsify(model: AnyModel, plan: Plan | str | Path, *, threads: int | None = None) -> AnyModel:
    """Winnow the MLPs of a transformers model in place and return it: `generate` and pipelines go on working.

    `model` is an OPT, Llama, Mistral, Qwen2 or Qwen3 in float32 or bfloat16 on the CPU, `plan` a Plan or its
    file. `threads` is for the kernels and defaults to the processors this process may use. The weights move
    into neuron records layer by layer: peak memory is the model and one MLP. Afterwards the model is for
    inference: no gradients, no other device or type, no saving, one generation at a time.

    Loses what the plan loses, at single tokens only. The plan's model hash is checked where the model came
    from a directory, its shapes and precisions always. Raises UsageError or ModelError, the model untouched.
    """
    _check_is_transformers(model)
    config = parse_config(model.config.to_dict(), "the model's config")  # pyright: ignore
    sites = _sites(model, config)
    precision = _precision(sites)
    opened = _fitting_plan(model, plan, config, precision)
    n_threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if n_threads < 1:
        raise UsageError(f"threads is {n_threads}; expected at least 1.")
    cpu = open_cpu(n_threads)
    model.eval().requires_grad_(False)
    below = None
    for site, predictor in zip(sites, opened.layers, strict=True):
        below = _Views(below)
        site.layer.get_submodule("self_attn").register_forward_pre_hook(below.watch, with_kwargs=True)
        site.replace(WinnowedModule(site.packed(config), predictor, below, cpu))
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
    """Where the MLP of one transformers layer stands. Holds no weight, so that each can be freed in turn."""

    layer: nn.Module
    is_gated: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The MLP's linear maps within the layer: in, out and, if gated, up."""
        return ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj") if self.is_gated else ("fc1", "fc2")

    def maps(self) -> list[nn.Linear]:
        """Return the linear maps; raises ModelError for any other module in their place."""
        found = [self.layer.get_submodule(name) for name in self.names]
        for name, module in zip(self.names, found, strict=True):
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
        bias = None if w_out.bias is None else w_out.bias.detach().float().clone()
        return _Packed(records, bias, config.activation)

    def replace(self, module: WinnowedModule) -> None:
        """Put `module` in the place of the MLP."""
        if self.is_gated:
            self.layer.set_submodule("mlp", module)
        else:  # OPT's maps stand in the layer itself, its activation between them
            self.layer.set_submodule("fc1", module)
            self.layer.set_submodule("activation_fn", nn.Identity())
            self.layer.set_submodule("fc2", nn.Identity())


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
    weights = [each.weight for site in sites for each in site.maps()]
    found = {(weight.dtype, weight.device.type) for weight in weights}
    dtype, device = next(iter(found))
    if len(found) > 1 or device != "cpu" or dtype not in PRECISIONS:
        said = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found))
        raise UsageError(
            f"The model's MLPs are {said}; expected torch.float32 or torch.bfloat16 on the CPU throughout. "
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
