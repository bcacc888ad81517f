"""A tiny random OPT checkpoint with a byte-level BPE tokenizer, written by hand, and texts for it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, N_HEADS, N_NEURONS, N_LAYERS, N_POSITIONS = 64, 4, 256, 2, 160
N_TOKENS = 300  # of the tokenizer; the embedding has some rows more, as OPT's has
N_ROWS = 307
WORDS = [
    "the",
    "wind",
    "takes",
    "light",
    "chaff",
    "and",
    "keeps",
    "heavy",
    "grain",
    "that",
    "decides",
    "a",
    "field",
]


def text(n_words: int, seed: int) -> str:
    """Words drawn at random, so that any length can be had and no window is like another."""
    draws = torch.randint(len(WORDS), (n_words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS[i] for i in draws.tolist())


def write(directory: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and tokenizer.json; equal seeds give equal files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config()))
    save_file(_tensors(torch.Generator().manual_seed(seed)), directory / "model.safetensors")
    _tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def config() -> dict:
    return {
        "model_type": "opt",
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "ffn_dim": N_NEURONS,
        "vocab_size": N_ROWS,
        "max_position_embeddings": N_POSITIONS,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
    }


def _tensors(generator: torch.Generator) -> dict[str, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + 0.3 * normal(1, WIDTH)[0], f"{name}.bias": 0.3 * normal(1, WIDTH)[0]}

    stem = "model.decoder."
    tensors = {
        f"{stem}embed_tokens.weight": normal(N_ROWS, WIDTH),
        f"{stem}embed_positions.weight": normal(N_POSITIONS + 2, WIDTH),
        **norm(f"{stem}final_layer_norm"),
    }
    for layer in range(N_LAYERS):
        at = f"{stem}layers.{layer}."
        maps = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
        maps |= {"fc1": (N_NEURONS, WIDTH), "fc2": (WIDTH, N_NEURONS)}
        for name, shape in maps.items():
            tensors[f"{at}{name}.weight"] = normal(*shape)
            tensors[f"{at}{name}.bias"] = 0.3 * normal(1, shape[0])[0]
        tensors |= norm(f"{at}self_attn_layer_norm") | norm(f"{at}final_layer_norm")
    return tensors


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text(400, seed=9)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return tokenizer
