"""Tiny random models of every family, and LoRA on them with Hugging Face's names."""

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY, WIDTH, POSITIONS = 211, 48, 40


def _gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _opt() -> nn.Module:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=100,
        dropout=0.0,
        pad_token_id=1,
    )
    return OPTForCausalLM(config)


def _rotary(config: type, model: type, n_kv_heads: int, is_tied: bool) -> nn.Module:
    return model(
        config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=100,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv_heads,
            head_dim=12,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=is_tied,
        )
    )


def _bert() -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=100,
        max_position_embeddings=POSITIONS,
    )
    return BertForMaskedLM(config)


BUILD = {
    "gpt2": _gpt2,
    "opt": _opt,
    "llama": lambda: _rotary(LlamaConfig, LlamaForCausalLM, 2, False),
    "qwen2": lambda: _rotary(Qwen2Config, Qwen2ForCausalLM, 4, True),
    "qwen3": lambda: _rotary(Qwen3Config, Qwen3ForCausalLM, 2, False),
    "bert": _bert,
}
CAUSAL = [family for family in BUILD if family != "bert"]


def tiny(family: str, rng: torch.Generator) -> nn.Module:
    """Return a model of the rng's weights, large enough that attention is not uniform."""
    model = BUILD[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=rng)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_norm else 0.15 * drawn)
    return model


class LoraLinear(nn.Module):
    """y = base(x) + scale * x A^T B^T, its tensors named as Hugging Face's adapters name theirs."""

    def __init__(self, base: nn.Module, rank: int, scale: float, rng: torch.Generator) -> None:
        super().__init__()
        n_in, n_out = base.weight.shape if type(base).__name__ == "Conv1D" else base.weight.shape[::-1]
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(n_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, n_out, bias=False)})
        self.scaling = {"default": scale}
        with torch.no_grad():
            self.lora_A["default"].weight.copy_(torch.randn(rank, n_in, generator=rng) / n_in**0.5)
            self.lora_B["default"].weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + self.scaling["default"] * low


def with_lora(model: nn.Module, paths: list[str], rank: int, rng: torch.Generator) -> nn.Module:
    """Wrap the maps at `paths` in place, freeze all else, and return the model."""
    model.requires_grad_(False)
    for path in paths:
        parent, _, name = path.rpartition(".")
        wrapped = LoraLinear(model.get_submodule(path), rank, 2.0, rng)
        setattr(model.get_submodule(parent), name, wrapped)
    return model
