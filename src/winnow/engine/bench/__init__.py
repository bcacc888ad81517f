"""Bench: engines side by side, interleaved in one run.   (floor 5 · engine)

report.py           rows, machine, checks: what a run found
runners.py          one turn of Winnow's own engine, dense or sparse
hf.py               one turn of Hugging Face transformers (extra `hf`; imported only when asked for)
rivals.py           which models the engines below run, and what differs
gguf.py             the file format of llama.cpp, written tensor by tensor
gguf_models.py      a checkpoint's tensors under llama.cpp's names
llama_cpp_turns.py  llama.cpp in a process of its own, which imports nothing of Winnow
llama_cpp.py        one turn of llama.cpp (extra `peers`; imported only when asked for)
translator.py       one turn of CTranslate2 (extra `peers`; imported only when asked for)
lengths.py          one layer's attention against the tokens before it, exact and streaming
race.py             who runs, in which order, which turns count; medians
"""

from winnow.engine.bench.race import BenchOptions, Expected, race
from winnow.engine.bench.report import BenchReport, Row
from winnow.engine.bench.runners import Runner, Turn, WinnowRunner

__all__ = ["BenchOptions", "BenchReport", "Expected", "Row", "Runner", "Turn", "WinnowRunner", "race"]
