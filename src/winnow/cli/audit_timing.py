"""winnow audit timing: whether token times or active counts reveal a prompt's topic.   (floor 8 · cli)"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from winnow.audit.timing import beside, timing
from winnow.base.errors import UsageError
from winnow.base.progress import Progress
from winnow.cli.audit_models import check_report_options, show_finding
from winnow.cli.audit_options import topic_of
from winnow.cli.opening import open_engine, read_text
from winnow.engine.generate import Engine


def run(arguments: argparse.Namespace) -> int:
    """Time the engine on pieces of every text and show whether the topic shows, as it is and levelled."""
    check_report_options(arguments)
    if min(arguments.prompts, arguments.prompt_tokens) < 1 or arguments.max_tokens < 5:
        raise UsageError(
            f"--prompts {arguments.prompts}, --prompt-tokens {arguments.prompt_tokens}, --max-tokens "
            f"{arguments.max_tokens}; expected at least 1, 1 and 5."
        )
    texts = [topic_of(text) for text in arguments.text or ()]
    names = [topic for topic, _ in texts]
    if len(set(names)) != len(names):
        raise UsageError(f"--text names a topic twice ({', '.join(names)}); expected one file per topic.")
    engine = open_engine(arguments, arguments.plan or "auto")
    prompts = {topic: _pieces(engine, path, arguments) for topic, path in texts}
    progress = Progress("measuring", sum(map(len, prompts.values())), quiet=arguments.quiet)
    signal = _latency if arguments.signal == "latency" else _active
    n_done = 0

    def measure(prompt: Sequence[int]) -> Sequence[float] | np.ndarray:
        nonlocal n_done
        n_done += 1
        progress.update(n_done)
        return signal(engine, prompt, arguments.max_tokens)

    signal(engine, next(iter(prompts.values()))[0], arguments.max_tokens)  # the first pays for cold caches
    subject = f"{arguments.signal} of the engine"
    finding = timing(measure, prompts, subject=subject, rng=arguments.seed)
    if engine.plan is not None and not engine.plan.has_heads:
        engine.decoder.level(engine.plan)
        n_done = 0
        levelled = timing(measure, prompts, subject=subject, rng=arguments.seed)
        finding = beside(finding, levelled, "constant work")
    return show_finding(finding, arguments)


def _latency(engine: Engine, prompt: Sequence[int], max_tokens: int) -> list[float]:
    """Return the seconds between one token and the next, the first token's aside."""
    taken, before = [], None
    for _ in engine.stream(prompt, max_tokens=max_tokens, ignore_eos=True):
        now = time.perf_counter()
        if before is not None:
            taken.append(now - before)
        before = now
    return taken


def _active(engine: Engine, prompt: Sequence[int], max_tokens: int) -> np.ndarray:
    """Return the share of neurons, then of heads, that decoding selected in each layer."""
    counts = engine.generate(prompt, max_tokens=max_tokens, ignore_eos=True).stats.counts
    shares = (counts.active / counts.n_neurons, counts.heads / counts.n_heads)
    return np.concatenate(shares) / max(counts.steps, 1)


def _pieces(engine: Engine, path: Path, arguments: argparse.Namespace) -> list[list[int]]:
    """Return `--prompts` pieces of equal length from all over the text."""
    ids = engine.tokenizer.encode(read_text(path), special=False)
    begin = engine.tokenizer.encode("")
    size = arguments.prompt_tokens
    starts = range(0, len(ids) - size + 1, size)
    every = max(len(starts) // arguments.prompts, 1)
    return [[*begin, *ids[start : start + size]] for start in starts[::every]][: arguments.prompts]
