"""llama.cpp: turns of it on the same weights, through llama-cpp-python.   (floor 5 · engine)

It runs in a process of its own. What it does to the processor's matrix unit, and torch to it, is then not in
each other's way, its threads spin without regard to torch's, and where its code ends the process, an error
says so. The weights are written to a temporary GGUF file and read into memory at once, not mapped: only then
does llama.cpp lay them out anew for the processor's instructions.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, final

from winnow.base.errors import ResourceError, UsageError
from winnow.base.room import check_disk
from winnow.engine.bench.gguf import FP32, write_gguf
from winnow.engine.bench.gguf_models import ENCODINGS, gguf_model
from winnow.engine.bench.rivals import check_rival
from winnow.engine.bench.runners import Turn, turn_of
from winnow.engine.families.tensors import TensorSource

CHILD = Path(__file__).with_name("llama_cpp_turns.py")
# Compilers drop all stores but one to the tile configuration in its AMX code (its issue 20824), and the first
# product then ends the process. Built without AMX it would be half as quick.
KEEPING_STORES = """CMAKE_ARGS='-DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse"'"""


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
        check_disk(model.file_bytes, Path(gettempdir()))
        with TemporaryDirectory(prefix="winnow-") as directory:
            path = Path(directory) / "model.gguf"
            write_gguf(path, model.metadata, model.tensors)
            command, pipe = [sys.executable, "-I", str(CHILD)], subprocess.PIPE
            self._child = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            kept = {"longest": longest, "is_exact": encoding is FP32, "n_vocab": vocab_size}
            try:
                self._ask({"path": str(path), "threads": threads, **kept})
            except ResourceError:
                self.close()
                raise

    def run(self, prompt: Sequence[int], n_tokens: int) -> Turn:
        """Read `prompt`, decode `n_tokens` greedily from an empty cache.

        Raises UsageError for too many of both, ResourceError where llama.cpp stops.
        """
        if len(prompt) + n_tokens > self.longest:
            raise UsageError(f"{len(prompt)} + {n_tokens} tokens; this runner was made for {self.longest}.")
        answer = self._ask({"prompt": list(prompt), "n_tokens": n_tokens})
        told = [(when_s, token) for when_s, token in answer["told"]]
        return turn_of(answer["started_s"], told, bytes_per_token=self.weight_bytes)

    def close(self) -> None:
        """Give the memory back; the runner is of no use afterwards."""
        self._child.kill()
        self._child.communicate()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._child.wait()
            how = f"by signal {-status}" if status < 0 else f"with code {status}"
            raise ResourceError(
                f"llama.cpp's process ended {how}; if it has AMX, build its package anew with "
                f"{KEEPING_STORES}, or leave llama.cpp out."
            )
        answer = json.loads(line)
        if "broken" in answer:
            raise ResourceError(f"llama.cpp: {answer['broken']}; ask for fewer tokens, or leave it out.")
        return answer
