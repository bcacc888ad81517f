"""Rivals: the engines of other projects that --against names, on the same weights.   (floor 8 · cli)"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.util import find_spec

from winnow.base.errors import UsageError
from winnow.engine.bench import Runner
from winnow.engine.bench.rivals import ctranslate2_notes, llama_cpp_notes
from winnow.engine.families.tensors import TensorSource

PACKAGES = {"llama.cpp": ("llama_cpp", "llama-cpp-python"), "ctranslate2": ("ctranslate2", "ctranslate2")}


@dataclass(frozen=True)
class Setting:
    """What every rival is given alike: a turn has at most `longest` tokens, of the first `vocab_size`."""

    dtype: str
    threads: int
    longest: int
    vocab_size: int


@dataclass
class Rivals:
    """Who runs beside Winnow, and what a reader of their figures has to know."""

    runners: list[Runner] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def native(engines: Collection[str]) -> list[str]:
    """Return those of `engines` that copy the weights into memory of their own.

    Raises UsageError for one whose package is not installed.
    """
    named = [engine for engine in PACKAGES if engine in engines]
    for engine in named:
        module, package = PACKAGES[engine]
        if find_spec(module) is None:
            raise UsageError(
                f"--against {engine} needs the package {package}: pip install 'winnow-llm[peers]'"
            )
    return named


def open_native(
    engines: Mapping[str, str], source: TensorSource, setting: Setting, held: ExitStack
) -> Rivals:
    """Return those of `engines` that `native` names on the weights of `source`; `held` closes them.

    `engines` says in which precision each is run; "" is the setting's. Raises UsageError for a model that
    one of them does not run.
    """
    rivals = Rivals()
    if "llama.cpp" in engines:
        from winnow.engine.bench.llama_cpp import LlamaCppRunner

        dtype = engines["llama.cpp"] or setting.dtype
        llama_cpp = LlamaCppRunner(source, dtype, setting.threads, setting.longest, setting.vocab_size)
        rivals.runners.append(held.enter_context(closing(llama_cpp)))
        rivals.notes += llama_cpp_notes(source.config, dtype)
    if "ctranslate2" in engines:
        from winnow.engine.bench.translator import TranslatorRunner, refused

        reason = refused(setting.dtype)
        if reason is not None:
            rivals.notes.append(f"ctranslate2 is left out: {reason}")
            return rivals
        translator = TranslatorRunner(source, setting.dtype, setting.threads)
        rivals.runners.append(held.enter_context(closing(translator)))
        rivals.notes += ctranslate2_notes(source.config, setting.dtype)
    return rivals
