"""HF: one turn of Hugging Face transformers on the same tensors.   (floor 5 · engine)

The loop is written out instead of calling `generate`, which adds work of its own to every token: this is the
fastest way to run the library, not the commonest.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from winnow.engine.bench.runners import PRECISIONS, Turn, turn_of
from winnow.engine.families.tensors import TensorSource
from winnow.engine.generate import torch_threads


def hf_from_source(source: TensorSource, raw_config: dict, dtype: torch.dtype) -> PreTrainedModel:
    """Return a transformers model that holds the tensors as `source` gives them, not copies."""
    values = {key: value for key, value in raw_config.items() if key != "model_type"}
    config = AutoConfig.for_model(raw_config["model_type"], **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict({name: source.tensor(name) for name in source.names()}, strict=False, assign=True)
    model.tie_weights()
    _compute_buffers(model)
    left = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if p.is_meta]
    assert not left, f"tensors that the source lacks: {left}"
    return model.eval()


def _compute_buffers(model: PreTrainedModel) -> None:
    """Make anew the modules with buffers that no checkpoint holds: the frequencies of rotary positions."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, type(module)(config=model.config))


def hf_from_directory(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the checkpoint in `directory` as transformers loads it, offline."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True).eval()


@final
class HfRunner:
    """Transformers with its own cache, greedy, on `threads` threads of torch."""

    name = "hf"

    def __init__(self, model: PreTrainedModel, threads: int, vocab_size: int) -> None:
        self.model = model
        self.dtype = PRECISIONS[next(model.parameters()).dtype]
        self.threads = threads
        self.vocab_size = vocab_size
        # A decode step reads every weight; of an embedding that is not the head too, one row only.
        read = {p.data_ptr(): p.nbytes for p in model.parameters()}
        table = next(model.get_input_embeddings().parameters())
        if not model.config.tie_word_embeddings:
            read.pop(table.data_ptr())
        self.weight_bytes = sum(read.values())

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache."""
        started_s = time.perf_counter()
        with torch_threads(self.threads), torch.inference_mode():
            out = self.model(torch.tensor([list(prompt)]), use_cache=True, logits_to_keep=1)
            token = self._likeliest(out.logits)
            told = [(time.perf_counter(), token)]
            for _ in range(n_tokens - 1):
                ids = torch.tensor([[token]])
                out = self.model(ids, past_key_values=out.past_key_values, use_cache=True)
                token = self._likeliest(out.logits)
                told.append((time.perf_counter(), token))
        return turn_of(started_s, told, bytes_per_token=self.weight_bytes)

    def _likeliest(self, logits: torch.Tensor) -> int:
        return int(logits[0, -1, : self.vocab_size].argmax())
