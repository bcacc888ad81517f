"""winnow bench: dense and sparse side by side.   (floor 8 · cli)"""

import argparse
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from winnow.base.chart import Words
from winnow.base.errors import UsageError
from winnow.base.files import replacing
from winnow.base.progress import Progress
from winnow.base.rng import generator
from winnow.base.roofline import Measurement, roofline
from winnow.base.room import check_memory
from winnow.cli.failures import say
from winnow.cli.opening import NO_LAZY, open_checkpoint, open_engine, read_text
from winnow.cli.rivals import Setting, native, open_native
from winnow.cli.show import quantity, share, show_json, show_markdown, show_table
from winnow.engine import parse_config, tensor_shapes
from winnow.engine.bench import BenchOptions, BenchReport, Expected, Row, Runner, WinnowRunner, race
from winnow.engine.bench.lengths import HeadShape, measure_lengths
from winnow.engine.cache import KV_POLICIES
from winnow.engine.checkpoint import WEIGHT_BYTES
from winnow.engine.context import StreamingContext
from winnow.engine.generate import DTYPES, KV_DTYPES
from winnow.engine.synthetic import shape_config, synthetic_shape
from winnow.kernels import Cpu, open_cpu

# Lewis Carroll, Alice's Adventures in Wonderland (1865): a prompt long enough for any tokenizer.
OPENING = """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to
do: once or twice she had peeped into the book her sister was reading, but it had no pictures or
conversations in it, "and what is the use of a book," thought Alice "without pictures or
conversations?" So she was considering in her own mind (as well as she could, for the hot day made
her feel very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the
trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran close
by her. There was nothing so very remarkable in that; nor did Alice think it so very much out of the
way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"
"""
COLUMNS = (
    "engine",
    "dtype",
    "tokens/s",
    "min",
    "max",
    "mean",
    "turns",
    "set aside",
    "first token",
    "density",
    "heads",
    "bytes/token",
    "GB/s",
    "of bandwidth",
    "RSS, all",
)


@dataclass(frozen=True)
class _Field:
    """Who runs, on what prompt."""

    name: str
    runners: list[Runner]
    prompt: list[int]
    cpu: Cpu
    expected: Expected | None
    notes: list[str]


def run(arguments: argparse.Namespace) -> int:
    """Let the engines take turns and print their medians; 1 when the run contradicts itself."""
    if arguments.shape is not None and arguments.model is not None:
        raise UsageError("received MODEL and --shape; expected one of them.")
    if arguments.json and arguments.markdown:
        raise UsageError("received --json and --markdown; expected one of them.")
    if arguments.svg is not None and arguments.svg.suffix != ".svg":
        raise UsageError(f"--svg {arguments.svg} does not end in .svg; name the file race.svg, say.")
    if arguments.context is not None:
        return _lengths(arguments)
    with ExitStack() as held:
        field = _shape(arguments, held) if arguments.shape is not None else _checkpoint(arguments, held)
        options = BenchOptions(field.name, arguments.prompt_tokens, arguments.max_tokens, arguments.repeats)
        progress = Progress(f"timing {field.name}", options.repeats + 1, quiet=arguments.quiet)
        report = race(field.runners, field.prompt, field.cpu, options, progress.update, field.expected)
    report = replace(report, notes=(*report.notes, *field.notes))
    if arguments.svg is not None:
        _draw(arguments.svg, report)
    if arguments.json:
        show_json(report.to_json())
    else:
        _show(report, is_markdown=arguments.markdown)
    for failure in report.failures:
        say(f"this run is void: {failure}.")
    return 1 if report.failures else 0


def _lengths(arguments: argparse.Namespace) -> int:
    """Print what one layer's attention holds and takes at each length."""
    if arguments.against:
        raise UsageError("received --context and --against; expected one of them.")
    shape, config = HeadShape(), None
    if arguments.shape is not None:
        config = parse_config(shape_config(arguments.shape))
    elif arguments.model is not None:
        config = open_checkpoint(arguments).config
    if config is not None:
        dtype = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
        shape = HeadShape(config.n_heads, config.n_kv_heads, config.head_width, dtype)
    cpu = open_cpu(arguments.threads or len(os.sched_getaffinity(0)))
    progress = Progress("reading", len(arguments.context), quiet=arguments.quiet)
    kind = StreamingContext().any_length()
    report = measure_lengths(shape, kind, arguments.context, cpu, progress.update)
    if arguments.svg is not None:
        with replacing(arguments.svg) as draft:
            draft.write_text(report.to_svg(), encoding="utf-8")
    if arguments.json:
        show_json(report.to_json())
        return 0
    rows = [
        [
            f"{row.tokens:,}",
            quantity(row.exact_bytes),
            quantity(row.streaming_bytes),
            "does not fit" if row.exact_us is None else f"{row.exact_us:.0f} us",
            f"{row.streaming_us:.0f} us",
        ]
        for row in report.rows
    ]
    columns = ("tokens", "exact holds", "streaming holds", "exact step", "streaming step")
    (show_markdown if arguments.markdown else show_table)(
        f"one layer of {shape.n_heads} heads, {shape.n_kv_heads} with keys, of width {shape.head_width}",
        columns,
        rows,
    )
    return 0


def _checkpoint(arguments: argparse.Namespace, held: ExitStack) -> _Field:
    engines = native(arguments.against)
    engine = open_engine(arguments, plan="auto", kv=arguments.kv)
    vocab_size = engine.tokenizer.vocab_size
    runners: list[Runner] = [WinnowRunner(engine.weights, None, engine.cpu, vocab_size)]
    if engine.plan is not None:
        plan = engine.plan
        sparse = WinnowRunner(engine.weights, plan.layers, engine.cpu, vocab_size, plan.heads, engine.kv)
        runners.append(sparse)
    checkpoint = open_checkpoint(arguments)
    directory = checkpoint.directory
    if "hf" in arguments.against:
        from winnow.engine.bench.hf import HfRunner, hf_from_directory

        hf = hf_from_directory(directory, _float(DTYPES[arguments.dtype]))
        runners.append(HfRunner(hf, engine.cpu.threads, vocab_size))
    copies = [checkpoint.memory_bytes(dtype) for dtype in _native_dtypes(arguments, engines)]
    check_memory(sum(copies), " and ".join(engines))
    rivals = open_native(arguments.against, checkpoint, _setting(arguments, engine.cpu, vocab_size), held)
    text = OPENING if arguments.text is None else read_text(arguments.text)
    prompt = engine.tokenizer.encode(text)[: arguments.prompt_tokens]
    if len(prompt) < arguments.prompt_tokens:
        raise UsageError(
            f"the text has {len(prompt)} tokens, expected {arguments.prompt_tokens}; give a longer --text."
        )
    return _Field(directory.name, [*runners, *rivals.runners], prompt, engine.cpu, None, rivals.notes)


def _shape(arguments: argparse.Namespace, held: ExitStack) -> _Field:
    engines = native(arguments.against)
    dtype = DTYPES[arguments.dtype]
    shapes = tensor_shapes(parse_config(shape_config(arguments.shape)))
    # Held packed for the kernels, once by each native rival and once by transformers.
    n_bytes = WEIGHT_BYTES[dtype] + sum(WEIGHT_BYTES[each] for each in _native_dtypes(arguments, engines))
    n_bytes += _float(dtype).itemsize if "hf" in arguments.against else 0
    check_memory(math.ceil(n_bytes * sum(map(math.prod, shapes.values()))), arguments.shape)
    model = synthetic_shape(arguments.shape, dtype, arguments.density, seed=0)
    cpu = open_cpu(arguments.threads or len(os.sched_getaffinity(0)))
    if arguments.head_dtype:
        model = model.with_head(DTYPES[arguments.head_dtype])
    if arguments.kv_dtype:
        model = replace(model, weights=replace(model.weights, kv_dtype=KV_DTYPES[arguments.kv_dtype]))
    vocab_size = model.weights.config.vocab_size
    share = arguments.head_density
    weights, heads = (model.weights, ()) if share == 1 else model.by_head(share)
    if arguments.kv == "lazy" and share == 1 and not arguments.quiet:
        say(f"{NO_LAZY}; add --head-density below 1.")
    runners: list[Runner] = [
        WinnowRunner(model.weights, None, cpu, vocab_size),
        WinnowRunner(weights, model.predictors, cpu, vocab_size, heads, KV_POLICIES[arguments.kv]),
    ]
    if "hf" in arguments.against:
        from winnow.engine.bench.hf import HfRunner, hf_from_source

        hf = hf_from_source(model.source, model.raw_config, _float(dtype))
        runners.append(HfRunner(hf, cpu.threads, vocab_size))
    rivals = open_native(arguments.against, model.source, _setting(arguments, cpu, vocab_size), held)
    prompt = torch.randint(vocab_size, (arguments.prompt_tokens,), generator=generator(1)).tolist()
    expected = Expected(arguments.density, model.is_exact and share == 1, share)
    return _Field(arguments.shape, [*runners, *rivals.runners], prompt, cpu, expected, rivals.notes)


def _native_dtypes(arguments: argparse.Namespace, engines: Sequence[str]) -> list[torch.dtype]:
    return [DTYPES[arguments.against[engine] or arguments.dtype] for engine in engines]


def _setting(arguments: argparse.Namespace, cpu: Cpu, vocab_size: int) -> Setting:
    longest = arguments.prompt_tokens + arguments.max_tokens
    return Setting(arguments.dtype, cpu.threads, longest, vocab_size)


def _float(dtype: torch.dtype) -> torch.dtype:
    """Return what an engine without Winnow's int8 and int4 is given."""
    return dtype if dtype.is_floating_point else torch.bfloat16


def _draw(path: Path, report: BenchReport) -> None:
    words = Words(
        title=f"{report.rows[0].shape}: bytes and time of a token",
        note=_machine(report),
        across="bytes read per token",
        upward="time per token",
    )
    points = [
        Measurement(
            row.bytes_per_token, 1 / row.tokens_per_second, f"{row.engine} {row.dtype}", _is_ours(row)
        )
        for row in report.rows
    ]
    with replacing(path) as draft:
        draft.write_text(roofline(words, points, 1e9 * report.machine.read_gb_per_s), encoding="utf-8")


def _is_ours(row: Row) -> bool:
    return row.engine.startswith("winnow")


def _machine(report: BenchReport) -> str:
    machine, n_read = report.machine, report.rows[0].prompt_tokens
    return (
        f"{n_read} tokens read; {machine.cpu}, {machine.threads} threads, {machine.isa}, "
        f"{machine.read_gb_per_s:.1f} GB/s, commit {machine.commit}"
    )


def _show(report: BenchReport, *, is_markdown: bool) -> None:
    title, rows = f"{report.rows[0].shape}, {_machine(report)}", _rows(report)
    if is_markdown:
        show_markdown(title, COLUMNS, rows)
    else:  # an engine is a column: a terminal has room for few of them, and not for all figures of one
        heading, *lines = zip(COLUMNS, *rows, strict=True)
        show_table(title, heading, lines)
    for note in report.notes:
        print(f"Note: {note}.")
    if report.was_disturbed:
        print("Some engine has no turn between two probes that agree: the figures are void. Run again.")


def _rows(report: BenchReport) -> Sequence[Sequence[str]]:
    return [
        [
            row.engine,
            row.dtype,
            f"{row.tokens_per_second:.2f}",
            f"{row.tokens_per_second_min:.2f}",
            f"{row.tokens_per_second_max:.2f}",
            f"{row.tokens_per_second_mean:.2f}",
            str(row.turns),
            str(row.turns_set_aside),
            f"{row.ttft_s:.2f} s",
            share(row.mlp_density),
            share(row.head_density),
            quantity(row.bytes_per_token),
            f"{row.gb_per_s:.1f}",
            share(row.bandwidth_share),
            quantity(row.rss_bytes),
        ]
        for row in report.rows
    ]
