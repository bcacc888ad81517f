"""llama.cpp's turns: the child process in which they run.   (floor 5 · engine)

Started by file name, so that it imports nothing of Winnow. The first line of standard input is an object of
`load`'s arguments, each further one has ``prompt`` and ``n_tokens``; every line is answered by one:
``{}`` once the model is read, ``{"started_s": ..., "told": [[s, token], ...]}``, or
``{"broken": reason}``.

Its C functions are called directly, without the Python class around them, which adds work of its own to
every token.
"""

import ctypes
import json
import sys
import time
from collections import deque
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

LOG_ERROR = 3

_errors: deque[str] = deque(maxlen=1)  # llama.cpp has one log for the process


class Broken(Exception):
    """llama.cpp does not do what it was asked for."""


@llama_cpp.llama_log_callback
def _keep_errors(level: int, text: bytes, user_data: int | None) -> None:
    """Print nothing; remember the last error, for the message that reports it."""
    if level == LOG_ERROR:
        _errors.append(text.decode(errors="replace").strip())


def load(path: str, threads: int, longest: int, *, is_exact: bool) -> llama_cpp.llama_context_p:
    """Return a context of the model at `path`, which is read into memory, for `longest` tokens."""
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    options.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    if model is None:
        raise Broken(f"it cannot load the model{_said()}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = longest
    options.n_threads = options.n_threads_batch = threads
    if is_exact:
        # Its fused attention rounds to fp16 even so: logits are then off by 1e-2, not 1e-5.
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, options)
    if context is None:
        raise Broken(f"it has no room for {longest} tokens{_said()}")
    return context


def turn(
    context: llama_cpp.llama_context_p, prompt: list[int], n_tokens: int, n_vocab: int
) -> dict[str, Any]:
    """Read `prompt`, decode `n_tokens` greedily from an empty cache; return when each token was told."""
    memory = llama_cpp.llama_get_memory(context)
    assert memory is not None  # every model with attention has one
    llama_cpp.llama_memory_clear(memory, False)
    one = (llama_cpp.llama_token * 1)()
    step = llama_cpp.llama_batch_get_one(one, 1)
    ids = (llama_cpp.llama_token * len(prompt))(*prompt)
    started_s = time.perf_counter()
    token = _next(context, llama_cpp.llama_batch_get_one(ids, len(prompt)), n_vocab)
    told = [(time.perf_counter(), token)]
    for _ in range(n_tokens - 1):
        one[0] = token
        token = _next(context, step, n_vocab)
        told.append((time.perf_counter(), token))
    return {"started_s": started_s, "told": told}


def _next(context: llama_cpp.llama_context_p, batch: llama_cpp.llama_batch, n_vocab: int) -> int:
    """Append `batch` to the cache and return the likeliest token after it."""
    status = llama_cpp.llama_decode(context, batch)
    if status != 0:
        raise Broken(f"it stopped with status {status}{_said()}")
    pointer = llama_cpp.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(pointer, (n_vocab,)).argmax())


def _said() -> str:
    return f" ({_errors[-1]})" if _errors else ""


def main() -> None:
    """Answer line by line until there are no more."""
    context, n_vocab = None, 0
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if context is None:
                n_vocab = asked.pop("n_vocab")
                context = load(**asked)
                answer: dict[str, Any] = {}
            else:
                answer = turn(context, asked["prompt"], asked["n_tokens"], n_vocab)
        except Broken as error:
            answer = {"broken": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
