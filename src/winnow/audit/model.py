"""Model: a transformers model in a directory, opened without running what lies there.   (floor 5 · audit)"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from winnow.base.errors import ModelError


def open_model(directory: Path) -> Any:
    """Return the model of `directory` in float32, for evaluation; a causal one where its config names one.

    Weights are read from safetensors alone, code beside them is never imported, nothing is fetched. Raises
    ModelError for what transformers cannot open.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: PLC0415 (an optional extra)
    from transformers.utils import logging  # noqa: PLC0415

    has_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # errors stay one line
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        is_causal = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
        kind = AutoModelForCausalLM if is_causal or not config.architectures else AutoModel
        model = kind.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{directory} cannot be opened by transformers ({reason}). Check MODEL.") from None
    finally:
        if has_bar:
            logging.enable_progress_bar()
    return model.eval()
