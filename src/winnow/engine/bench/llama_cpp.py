"""llama.cpp: one turn of it on the same weights, through llama-cpp-python.   (floor 5 · engine)

Its C functions are called directly, without the Python class around them, which adds work of its own to
every token. The weights are written to a temporary GGUF file and read into memory at once, not mapped: only
then does llama.cpp lay them out anew for the processor's instructions.
"""

import ctypes
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import final

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

from winnow.base.errors import ResourceError, UsageError
from winnow.base.room import check_disk
from winnow.engine.bench.gguf import FP32, write_gguf
from winnow.engine.bench.gguf_models import ENCODINGS, gguf_model
from winnow.engine.bench.rivals import check_rival
from winnow.engine.bench.runners import Turn, turn_of
from winnow.engine.families.tensors import TensorSource

LOG_ERROR = 3
KEEPING_STORES = (
    """CMAKE_ARGS='-DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse"'"""  # what its package is built with
)

_errors: deque[str] = deque(maxlen=1)  # llama.cpp has one log for the process


@llama_cpp.llama_log_callback
def _keep_errors(level: int, text: bytes, user_data: int | None) -> None:
    """Print nothing; remember the last error, for the message that reports it."""
    if level == LOG_ERROR:
        _errors.append(text.decode(errors="replace").strip())


@final
class LlamaCppRunner:
    """llama.cpp with its own cache, greedy; keys and values in fp32 beside fp32 weights, else in fp16."""

    name = "llama.cpp"

    def __init__(self, source: TensorSource, dtype: str, threads: int, longest: int, vocab_size: int) -> None:
        """Load the model of `source` in llama.cpp's kind of `dtype`; a turn has at most `longest` tokens.

        Takes the disk space of the weights while it loads, and their memory until `close`. Raises UsageError
        for a model that llama.cpp would not run as the same tensors, ResourceError when it cannot load it.
        """
        check_rival(source.config, self.name)
        encoding = ENCODINGS[dtype]
        model = gguf_model(source, encoding)
        self.dtype = encoding.name
        self.weight_bytes = model.weight_bytes
        self.longest = longest
        self.vocab_size = vocab_size
        self._n_logits = source.config.vocab_size
        check_disk(model.file_bytes, Path(gettempdir()))
        with TemporaryDirectory(prefix="winnow-") as directory:
            path = Path(directory) / "model.gguf"
            write_gguf(path, model.metadata, model.tensors)
            if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
                check_survival([sys.executable, "-m", __name__, str(path)])
            self._model = _load(path)
        try:
            self._context = _context(self._model, threads, longest, is_exact=encoding is FP32)
        except ResourceError:
            llama_cpp.llama_model_free(self._model)
            raise
        self._memory = _memory(self._context)
        self._token = (llama_cpp.llama_token * 1)()
        self._step = llama_cpp.llama_batch_get_one(self._token, 1)

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache; UsageError for too many of both."""
        if len(prompt) + n_tokens > self.longest:
            raise UsageError(f"{len(prompt)} + {n_tokens} tokens; this runner was made for {self.longest}.")
        llama_cpp.llama_memory_clear(self._memory, False)
        ids = (llama_cpp.llama_token * len(prompt))(*prompt)
        started_s = time.perf_counter()
        token = self._next(llama_cpp.llama_batch_get_one(ids, len(prompt)))
        told = [(time.perf_counter(), token)]
        for _ in range(n_tokens - 1):
            self._token[0] = token
            token = self._next(self._step)
            told.append((time.perf_counter(), token))
        return turn_of(started_s, told, bytes_per_token=self.weight_bytes)

    def close(self) -> None:
        """Give the memory back; the runner is of no use afterwards."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _next(self, batch: llama_cpp.llama_batch) -> int:
        """Append `batch` to the cache and return the likeliest token after it."""
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise ResourceError(f"llama.cpp stopped with status {status}{_said()}; try a shorter prompt.")
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(pointer, (self._n_logits,))[: self.vocab_size].argmax())


def check_survival(command: Sequence[str]) -> None:
    """Raise ResourceError where a signal ends `command`, which reads a prompt in a process of its own.

    Compilers drop all stores but one to the tile configuration in llama.cpp's AMX code (its issue 20824): the
    first product then ends the process, and every other engine's turns with it. Kept, they make it twice as
    quick as a build without AMX.
    """
    status = subprocess.run(command, check=False, capture_output=True).returncode
    if status < 0:
        raise ResourceError(
            f"llama.cpp with AMX is ended by signal {-status} on this machine; build its package anew with "
            f"{KEEPING_STORES}, or leave llama.cpp out."
        )


def _read_a_prompt(path: Path) -> None:
    model = _load(path)
    context = _context(model, 1, 8, is_exact=False)
    ids = (llama_cpp.llama_token * 4)(*range(4))
    llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, 4))


def _load(path: Path) -> llama_cpp.llama_model_p:
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    options.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(bytes(path), options)
    if model is None:
        raise ResourceError(f"llama.cpp cannot load the model{_said()}; leave llama.cpp out.")
    return model


def _context(
    model: llama_cpp.llama_model_p, threads: int, longest: int, *, is_exact: bool
) -> llama_cpp.llama_context_p:
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = longest
    options.n_threads = options.n_threads_batch = threads
    if is_exact:
        # Its fused attention rounds to fp16 even so: logits are then off by 1e-2, not 1e-5.
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, options)
    if context is None:
        raise ResourceError(f"llama.cpp has no room for {longest} tokens{_said()}; ask for fewer tokens.")
    return context


def _memory(context: llama_cpp.llama_context_p) -> llama_cpp.llama_memory_t:
    memory = llama_cpp.llama_get_memory(context)
    assert memory is not None  # every model with attention has one
    return memory


def _said() -> str:
    return f" ({_errors[-1]})" if _errors else ""


if __name__ == "__main__":
    _read_a_prompt(Path(sys.argv[1]))
