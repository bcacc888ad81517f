"""Run: from a recipe to a Hugging Face model directory, restartable.   (floor 5 · train)

The run's whole state is one safetensors file: weights, both Adam moments and the step. Batches are
drawn by (seed, step), so a run that was interrupted and resumed sees the same data.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from winnow.base.errors import ModelError
from winnow.base.files import replacing
from winnow.base.progress import Progress
from winnow.train.corpus import END_ID, batch, books, encode, train_tokenizer
from winnow.train.recipe import Recipe

SAVE_EVERY = 200

CausalLM = OPTForCausalLM | LlamaForCausalLM


def run_recipe(
    recipe: Recipe, corpus: list[Path], out: Path, *, compiled: bool = False, quiet: bool = False
) -> Path:
    """Train `recipe` on the books below `corpus`; leave the model directory in `out` and return it.

    Working files (token ids, run state) stay in ``out/run`` until deleted by hand. Run again after an
    interruption, it goes on from the last saved step (every 200) with the ids of the first run, whatever
    `corpus` holds by then. `compiled` uses torch.compile. Flushes denormals for the whole process.
    Raises ModelError when ``out/run`` belongs to another recipe or the books are too short for one row.
    """
    run = out / "run"
    run.mkdir(parents=True, exist_ok=True)
    _claim(run / "recipe.json", recipe)
    tokenizer = _tokenizer(out / "tokenizer.json", books(corpus), recipe)
    ids = encode(tokenizer, books(corpus), run / "ids.npy", quiet=quiet)
    if len(ids) <= recipe.n_positions:
        raise ModelError(
            f"The books hold {len(ids)} tokens, expected more than a row of {recipe.n_positions}. Add books."
        )
    torch.set_flush_denormal(True)
    model = _untrained(recipe)
    _descend(model, ids, recipe, run / "state.safetensors", compiled=compiled, quiet=quiet)
    _publish(model, out)
    return out


def _claim(path: Path, recipe: Recipe) -> None:
    """Fix the folder to one recipe, so that a resumed run cannot mix two."""
    wanted = json.dumps(asdict(recipe), indent=2)
    if path.exists() and path.read_text() != wanted:
        raise ModelError(
            f"{path} holds another recipe than the one given; delete {path.parent} or change --out."
        )
    with replacing(path) as draft:
        draft.write_text(wanted)


def _tokenizer(path: Path, paths: list[Path], recipe: Recipe) -> Tokenizer:
    if not path.exists():
        tokenizer = train_tokenizer(paths, recipe.vocab_size)
        with replacing(path) as draft:
            tokenizer.save(str(draft))
    return Tokenizer.from_file(str(path))


def _untrained(recipe: Recipe) -> CausalLM:
    build = {"opt": _opt, "llama": _llama}[recipe.architecture]
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.default_generator.manual_seed(recipe.seed)
        return build(recipe).train()


def _opt(recipe: Recipe) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.width,
        word_embed_proj_dim=recipe.width,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        ffn_dim=recipe.n_neurons,
        max_position_embeddings=recipe.n_positions,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=1,
    )
    return OPTForCausalLM(config)


def _llama(recipe: Recipe) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        intermediate_size=recipe.n_neurons,
        max_position_embeddings=recipe.n_positions,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def _optimiser(model: CausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def _loss(model: CausalLM) -> Callable[[Tensor], Tensor]:
    def loss(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(rows, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1])  # (B, T-1, V)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    return loss


def _descend(
    model: CausalLM, ids: np.ndarray, recipe: Recipe, state: Path, *, compiled: bool, quiet: bool
) -> None:
    optimiser = _optimiser(model, recipe)
    first = _resume(model, optimiser, state)
    loss_of = torch.compile(_loss(model)) if compiled else _loss(model)
    progress = Progress(f"training {recipe.name}", recipe.n_steps, quiet=quiet)
    progress.start_at(first)
    smooth = 0.0
    for step in range(first, recipe.n_steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        row_tokens = recipe.row_tokens(step)
        rows = batch(ids, row_tokens, recipe.batch_tokens // row_tokens, recipe.seed, step)
        loss = loss_of(torch.from_numpy(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        smooth = loss.item() if step == first else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.n_steps:
            _save(model, optimiser, state, step + 1)
        progress.update(step + 1, f"loss {smooth:.3f}")


def _save(model: CausalLM, optimiser: torch.optim.AdamW, state: Path, step: int) -> None:
    tensors = {}
    for name, p in model.named_parameters():
        tensors[f"weight.{name}"] = p.detach()
        tensors[f"first.{name}"] = optimiser.state[p]["exp_avg"]
        tensors[f"second.{name}"] = optimiser.state[p]["exp_avg_sq"]
    with replacing(state) as draft:
        save_file(tensors, draft, metadata={"step": str(step)})


def _resume(model: CausalLM, optimiser: torch.optim.AdamW, state: Path) -> int:
    if not state.exists():
        return 0
    with safe_open(state, framework="pt") as file:
        step = int(file.metadata()["step"])
        for name, p in model.named_parameters():
            p.data.copy_(file.get_tensor(f"weight.{name}"))
            optimiser.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"first.{name}"),
                "exp_avg_sq": file.get_tensor(f"second.{name}"),
            }
    return step


def _publish(model: CausalLM, out: Path) -> None:
    """Write config.json, model.safetensors (bf16, the tied head left out) and generation_config.json."""
    model.bfloat16().save_pretrained(out)
    model.generation_config.save_pretrained(out)
