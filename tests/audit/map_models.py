"""Tiny transformers models whose attention is not uniform, and the maps they make."""

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

N_TOKENS = 307
CAUSAL = ("gpt2", "opt", "llama", "qwen3")
SIZES = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": N_TOKENS}
SIZES |= {"max_position_embeddings": 64}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def build(kind: str, seed: int = 0) -> PreTrainedModel:
    """Return the model with weights drawn so that scores spread over several units."""
    match kind:
        case "gpt2":
            sizes = {"n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": N_TOKENS, "n_positions": 64}
            model = GPT2LMHeadModel(GPT2Config(**sizes, **ENDS))
        case "opt":
            model = OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=48, **ENDS))
        case "llama":
            model = LlamaForCausalLM(
                LlamaConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, **ENDS)
            )
        case "qwen3":
            config = Qwen3Config(**SIZES, intermediate_size=96, num_key_value_heads=2, head_dim=12, **ENDS)
            model = Qwen3ForCausalLM(config)
        case _:
            model = BertModel(BertConfig(**SIZES, intermediate_size=96))
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = 0.5 if "emb" in name or "wte" in name or "wpe" in name else 1.3 / 48**0.5
            weight.data = scale * torch.randn(weight.shape, generator=rng)
    return model.eval()


def tokens(n: int, seed: int = 1) -> Tensor:
    return torch.randint(N_TOKENS, (n,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def maps(model: PreTrainedModel, ids: Tensor, layer: int = 0) -> Tensor:
    """Return the model's maps of `ids`, as transformers computes them."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    made = model(input_ids=ids[None], output_attentions=True).attentions[layer][0]
    model.set_attn_implementation(before)
    return made
