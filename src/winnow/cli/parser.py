"""Parser: the commands, and what each takes.   (floor 8 · cli)"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from winnow.cli.audit_options import add_attention, add_report, add_timing
from winnow.cli.line import Command, Parser, read_line

PRECISIONS = ("fp32", "bf16", "int8", "int4")  # engine.generate.DTYPES, which importing torch would cost
ENGINES = ("hf", "llama.cpp", "ctranslate2")
GGUF_PRECISIONS = {"bf16": "bf16", "q8_0": "int8", "q4_0": "int4"}  # llama.cpp's names for Winnow's


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small, expected at least 1")
    return number


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _bias(text: str) -> tuple[int, float]:
    """Read ID=VALUE."""
    token, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no =, expected ID=VALUE such as 50=-100")
    return _whole(token), _real(value)


def _engines(text: str) -> dict[str, str]:
    """Read a list of engines separated by commas: which, and in which precision; "" is that of --dtype."""
    found: dict[str, str] = {}
    for word in (word.strip() for word in text.split(",")):
        name, _, held = word.partition(":")
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown, expected some of {', '.join(ENGINES)}")
        if ":" in word and (name != "llama.cpp" or held not in GGUF_PRECISIONS):
            among = ", ".join(f"llama.cpp:{each}" for each in GGUF_PRECISIONS)
            raise argparse.ArgumentTypeError(f"{word!r} is unknown, expected one of {among}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is named twice, expected once; run bench again for it")
        found[name] = GGUF_PRECISIONS[held] if held else ""
    return found


def _add_model_options(parser: Parser, dtype: str = "bf16", among: Sequence[str] = PRECISIONS) -> None:
    parser.add_argument(
        "--dtype", choices=among, default=dtype, help=f"in which the weights are held ({dtype})"
    )
    parser.set_defaults(head_dtype=None)
    if among is PRECISIONS:
        parser.add_argument(
            "--head-dtype",
            choices=among,
            help="in which the map to logits is held, and the embedding if it is that map (as --dtype)",
        )
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: the processors at hand")
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    _add_check_tensors(parser)


def _add_check_tensors(parser: Parser) -> None:
    parser.add_argument(
        "--check-tensors", action="store_true", help="first read every weight and refuse NaN and infinity"
    )


def _add_kv(parser: Parser) -> None:
    parser.add_argument(
        "--kv",
        choices=("dense", "lazy"),  # engine.cache.KV_POLICIES
        default="dense",
        help="where heads are left out: keys and values of every head at once (dense, default), or of a head "
        "when it is needed; both exact",
    )


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_sampling(parser: Parser, max_tokens: int, temperature: float, top_p: float) -> None:
    add = parser.add_argument
    add(
        "--max-tokens",
        type=_positive,
        default=max_tokens,
        metavar="N",
        help=f"length of the answer ({max_tokens})",
    )
    add(
        "--temperature",
        type=_real,
        default=temperature,
        metavar="T",
        help=f"0 takes the likeliest token ({temperature:g})",
    )
    add(
        "--top-p",
        type=_real,
        default=top_p,
        metavar="P",
        help=f"sample from the likeliest tokens of this mass ({top_p:g})",
    )
    add("--top-k", type=_whole, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    add(
        "--min-p",
        type=_real,
        default=0.0,
        metavar="P",
        help="leave out what is less likely than P x the best (0)",
    )
    add("--repetition-penalty", type=_real, default=1.0, metavar="R", help="above 1: fewer repetitions (1)")
    add("--seed", type=_whole, default=0, metavar="S", help="same seed, same tokens (0)")
    add(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="add -100 to 100 to the score of a token; may be repeated",
    )
    add("--stop", action="append", default=[], metavar="STR", help="end before this text; may be repeated")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dense", action="store_true", help="compute every neuron")
    which.add_argument(
        "--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights"
    )


def _add_generate(parser: Parser) -> None:
    _add_sampling(parser, max_tokens=64, temperature=0.0, top_p=1.0)
    add = parser.add_argument
    add("--prompt-file", type=Path, metavar="FILE", help="the prompt is this UTF-8 text, instead of PROMPT")
    add("--ignore-eos", action="store_true", help="go on past the end token")
    add("--logprobs", action="store_true", help="with --json: the log-probability of every token")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default); cuda is not in this version")
    add("--explain", action="store_true", help="per layer: density, recall, bytes, time; on standard error")
    _add_kv(parser)
    _add_model_options(parser)
    _add_json(parser)


def _add_chat(parser: Parser) -> None:
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told beforehand")
    _add_sampling(parser, max_tokens=256, temperature=0.7, top_p=0.95)
    _add_model_options(parser)
    parser.set_defaults(ignore_eos=False, logprobs=False)


def _add_calibrate(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--text",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="UTF-8 texts to learn from",
    )
    add("--out", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights")
    add("--target-kld", type=_real, default=0.001, metavar="NATS", help="loss allowed per token (0.001)")
    add(
        "--predictor",
        choices=("auto", "svd", "low-rank", "gate"),
        default="auto",
        help="what chooses the neurons: auto (default) takes for each layer what reads the least; svd is a "
        "closed form, low-rank is fitted from it, gate computes all gates of a gated MLP",
    )
    add(
        "--lookahead",
        choices=("same-layer", "half-layer", "next-layer"),
        default="same-layer",
        help="from the MLP's own input (default), its attention's, or the MLP's of the layer below",
    )
    _add_limit(parser)
    _add_model_options(parser, "fp32", among=("fp32", "bf16"))


def _add_limit(parser: Parser) -> None:
    parser.add_argument(
        "--limit", type=_positive, metavar="TOKENS", help="read at most this much of the text"
    )


def _add_fidelity(parser: Parser) -> None:
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE.svg", help="also at other densities: a table, and a chart in FILE"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights"
    )
    _add_limit(parser)
    _add_model_options(parser, "fp32")
    _add_json(parser)


def _add_perplexity(parser: Parser) -> None:
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    _add_limit(parser)
    _add_model_options(parser, "fp32")
    _add_json(parser)


def _add_bench(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--shape",
        metavar="NAME",
        help="instead of MODEL, a random one of a known shape: opt-1.3b, llama-1b, ...",
    )
    add("--density", type=_real, default=0.1, metavar="SHARE", help="with --shape: neurons computed (0.1)")
    add("--head-density", type=_real, default=1.0, metavar="SHARE", help="with --shape: heads computed (1)")
    _add_kv(parser)
    add("--text", type=Path, metavar="FILE", help="with MODEL: the prompt is the beginning of this text")
    add(
        "--against",
        type=_engines,
        default={},
        metavar="ENGINES",
        help="the same weights in others: hf (transformers), llama.cpp, ctranslate2; separated by commas. "
        "llama.cpp:q4_0, :q8_0 or :bf16 holds them so whatever --dtype is",
    )
    add("--prompt-tokens", type=_positive, default=128, metavar="N", help="length of the prompt (128)")
    add("--max-tokens", type=_positive, default=64, metavar="N", help="length of the answer (64)")
    add("--repeats", type=_positive, default=5, metavar="N", help="counted rounds; medians are shown (5)")
    add(
        "--svg",
        type=Path,
        metavar="FILE.svg",
        help="draw bytes against time, the memory limit a line, every engine a point",
    )
    add("--markdown", action="store_true", help="print the table as Markdown")
    _add_model_options(parser)
    _add_json(parser)


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    _add_check_tensors(parser)
    _add_json(parser)


def _add_convert(parser: Parser) -> None:
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), help="cast the weights; default: as they are stored"
    )
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    _add_json(parser)


def _add_doctor(parser: Parser) -> None:
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: the processors at hand")
    _add_json(parser)


def _add_train(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="folders of .txt books",
    )
    add(
        "--out", type=Path, required=True, metavar="DIR", help="the model directory; a run in it is continued"
    )
    add("--tokens", type=_positive, metavar="N", help="train on about N tokens instead of the recipe's")
    add("--compile", action="store_true", help="compile the training step first; quicker in long runs")


def _add_audit(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--text",
        action="append",
        metavar="FILE",
        help="gradients: a UTF-8 text, whose beginning makes the batch; timing: TOPIC=FILE, once per topic",
    )
    add("--batch", type=_positive, default=4, metavar="B", help="texts in the batch (4)")
    add("--length", type=_positive, default=24, metavar="N", help="tokens of each text (24)")
    add(
        "--defence",
        action="append",
        metavar="NAME",
        help="none, clip=C, noise=S, bf16, int8, top-k=F, dropout, freeze=NAME, sum=K; several make a matrix",
    )
    add("--base", metavar="MODEL", help="update: the model that the update changes (pico)")
    add_report(parser)
    add_attention(parser)
    add_timing(parser)
    add("--show-text", action="store_true", help="print what was recovered; left out, only how much")
    add("--seed", type=_whole, default=0, metavar="S", help="of planted texts and noise (0)")
    add("--offline", action="store_true", help="never reach for the network")
    _add_json(parser)


COMMANDS = {
    "generate": Command(
        "continue a prompt",
        ("[MODEL]", "PROMPT"),
        _add_generate,
        "The prompt - is read from standard input; there and in --prompt-file a line break at the end is not "
        "part of it. A prompt that begins with a dash comes last, after --.",
    ),
    "chat": Command(
        "talk with a model, line by line",
        ("[MODEL]",),
        _add_chat,
        "Lines are read from the terminal, or from standard input, one message each. A line that ends in a "
        'backslash goes on in the next; """ begins and ends a message of several lines. /help lists the '
        "commands. A model without a chat template continues the text.",
    ),
    "calibrate": Command(
        "make a model's plan: which neurons its tokens need",
        ("[MODEL]",),
        _add_calibrate,
        "What is finished is kept beside the plan, in PLAN.partial, until the plan is written: the same "
        "command goes on where it was interrupted.",
    ),
    "fidelity": Command("sparse against dense on a text: what the plan loses", ("[MODEL]",), _add_fidelity),
    "perplexity": Command("score a text with every neuron", ("[MODEL]",), _add_perplexity),
    "bench": Command("time dense and sparse side by side", ("[MODEL]",), _add_bench),
    "inspect": Command("say what a checkpoint and its plan hold", ("[MODEL]",), _add_inspect),
    "convert": Command(
        "make safetensors of .bin weights, without unpickling",
        ("SRC", "DST"),
        _add_convert,
        "SRC is a directory, or a hub id, with pytorch_model.bin; DST a new or empty directory. Code beside "
        "the weights is never copied.",
    ),
    "doctor": Command("say what this machine offers Winnow", (), _add_doctor),
    "train": Command(
        "train a bundled model from plain-text books",
        ("RECIPE",),
        _add_train,
        "RECIPE is pico or pico-llama.",
    ),
    "audit": Command(
        "say what gradients, updates, attention maps and times give away",
        ("WHAT", "[TARGET]"),
        _add_audit,
        "WHAT is gradients, attention or timing, whose TARGET is a MODEL, or update, whose TARGET is a "
        "safetensors FILE. Needs "
        "transformers. A control that fails makes the audit void, and the exit code 1.",
    ),
}


def read_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of one command line, with `command` and one attribute per word of the command.

    Raises UsageError for what does not parse, SystemExit after ``--help`` and ``--version``.
    """
    return read_line(argv, COMMANDS)
