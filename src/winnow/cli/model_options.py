"""Model options: what the commands about models take.   (floor 8 · cli)"""

from collections.abc import Sequence
from pathlib import Path

from winnow.cli.line import Parser
from winnow.cli.values import bias, engines, heads, lengths, positive, real, whole

PRECISIONS = ("fp32", "bf16", "int8", "int4")  # engine.generate.DTYPES, which importing torch would cost


def add_model_options(parser: Parser, dtype: str = "bf16", among: Sequence[str] = PRECISIONS) -> None:
    """Add how a model is held: in which type, by how many threads, with which checks."""
    parser.add_argument(
        "--dtype", choices=among, default=dtype, help=f"in which the weights are held ({dtype})"
    )
    parser.set_defaults(head_dtype=None, kv_dtype=None)
    if among is PRECISIONS:
        parser.add_argument(
            "--head-dtype",
            choices=among,
            help="in which the map to logits is held, and the embedding if it is that map (as --dtype)",
        )
        parser.add_argument(
            "--kv-dtype",
            choices=("bf16", "fp32", "int8"),  # engine.generate.KV_DTYPES
            help="in which keys and values are held (as --dtype, and bf16 beside int8 and int4)",
        )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: the processors at hand")
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    parser.add_argument(
        "--packed",
        type=Path,
        metavar="FILE",
        help="weights from winnow convert --pack; default: those beside the model, if they are there",
    )
    add_check_tensors(parser)


def add_check_tensors(parser: Parser) -> None:
    """Add the check of every weight."""
    parser.add_argument(
        "--check-tensors", action="store_true", help="first read every weight and refuse NaN and infinity"
    )


def add_kv(parser: Parser) -> None:
    """Add when keys and values of left-out heads are computed."""
    parser.add_argument(
        "--kv",
        choices=("dense", "lazy"),  # engine.cache.KV_POLICIES
        default="dense",
        help="where heads are left out: keys and values of every head at once (dense, default), or of a head "
        "when it is needed; both exact",
    )


def add_context(parser: Parser) -> None:
    """Add what is remembered of a sequence, and the budget of a stream."""
    add = parser.add_argument
    add(
        "--context",
        choices=("exact", "streaming"),  # engine.context.CONTEXTS
        default="exact",
        help="keep every key and value, up to the model's positions (exact, default), or go on without end "
        "in constant memory (streaming)",
    )
    tokens = "with streaming, per layer and kv head: "
    add("--window", type=positive, metavar="N", help=f"{tokens}the latest tokens kept exactly (1024)")
    add("--heavy", type=whole, metavar="N", help=f"{tokens}the heaviest of the older keys kept exactly (256)")
    add("--sinks", type=whole, metavar="N", help=f"{tokens}the first tokens kept exactly (4)")
    add("--clusters", type=positive, metavar="N", help=f"{tokens}clusters that stand for the others (64)")
    add(
        "--remainder",
        choices=("on", "off", "zero"),
        help="with streaming: clusters speak (on, default), are forgotten, or weigh and say nothing",
    )
    add(
        "--position",
        choices=("clamp", "cache"),
        help="with streaming: old tokens of a rotary model stand at the trained length (default), or right "
        "behind the window",
    )


def add_constant_work(parser: Parser) -> None:
    """Add that every step computes as many neurons as any other."""
    parser.add_argument(
        "--constant-work",
        action="store_true",
        help="every step computes the same number of neurons per layer, so that its time tells less of the "
        "text; same tokens, slower",
    )


def add_json(parser: Parser) -> None:
    """Add the choice of one JSON object."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def add_sampling(parser: Parser, max_tokens: int, temperature: float, top_p: float) -> None:
    """Add how tokens are chosen and when to stop, with these defaults."""
    add = parser.add_argument
    add(
        "--max-tokens",
        type=positive,
        default=max_tokens,
        metavar="N",
        help=f"length of the answer ({max_tokens})",
    )
    add(
        "--temperature",
        type=real,
        default=temperature,
        metavar="T",
        help=f"0 takes the likeliest token ({temperature:g})",
    )
    add(
        "--top-p",
        type=real,
        default=top_p,
        metavar="P",
        help=f"sample from the likeliest tokens of this mass ({top_p:g})",
    )
    add("--top-k", type=whole, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    add(
        "--min-p",
        type=real,
        default=0.0,
        metavar="P",
        help="leave out what is less likely than P x the best (0)",
    )
    add("--repetition-penalty", type=real, default=1.0, metavar="R", help="above 1: fewer repetitions (1)")
    add("--seed", type=whole, default=0, metavar="S", help="same seed, same tokens (0)")
    add(
        "--logit-bias",
        type=bias,
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


def add_generate(parser: Parser) -> None:
    """Add what `winnow generate` takes."""
    add_sampling(parser, max_tokens=64, temperature=0.0, top_p=1.0)
    add = parser.add_argument
    add("--prompt-file", type=Path, metavar="FILE", help="the prompt is this UTF-8 text, instead of PROMPT")
    add("--ignore-eos", action="store_true", help="go on past the end token")
    add("--logprobs", action="store_true", help="with --json: the log-probability of every token")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default); cuda is not in this version")
    add("--explain", action="store_true", help="per layer: density, recall, bytes, time; on standard error")
    add_constant_work(parser)
    add_kv(parser)
    add_context(parser)
    add_model_options(parser)
    add_json(parser)


def add_chat(parser: Parser) -> None:
    """Add what `winnow chat` takes."""
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told beforehand")
    add_sampling(parser, max_tokens=256, temperature=0.7, top_p=0.95)
    add_constant_work(parser)
    add_model_options(parser)
    parser.set_defaults(ignore_eos=False, logprobs=False)


def add_calibrate(parser: Parser) -> None:
    """Add what `winnow calibrate` takes."""
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
    add("--target-kld", type=real, default=0.001, metavar="NATS", help="loss allowed per token (0.001)")
    add(
        "--predictor",
        choices=("auto", "svd", "low-rank", "gate", "index"),
        default="auto",
        help="what chooses the neurons: auto (default) takes for each layer what reads the least; svd is a "
        "closed form, low-rank is fitted from it, gate computes all gates of a gated MLP; index "
        "compares signs, misses more than svd at equal bytes, and is never tried by auto",
    )
    add(
        "--lookahead",
        choices=("same-layer", "half-layer", "next-layer"),
        default="same-layer",
        help="from the MLP's own input (default), its attention's, or the MLP's of the layer below",
    )
    add(
        "--heads",
        type=heads,
        nargs="?",
        default=1.0,
        const="auto",
        metavar="SHARE",
        help="also leave heads out: keep this share of the kv heads, spread over layers by what each loses, "
        "whatever that is; without a number the smallest share with which the plan keeps the target, if any",
    )
    add("--no-heads", dest="heads", action="store_const", const=1.0, help="compute every head (default)")
    add_limit(parser)
    add_model_options(parser, "fp32", among=("fp32", "bf16"))


def add_limit(parser: Parser) -> None:
    """Add how much of a text is read."""
    parser.add_argument("--limit", type=positive, metavar="TOKENS", help="read at most this much of the text")


def add_fidelity(parser: Parser) -> None:
    """Add what `winnow fidelity` takes."""
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE.svg", help="also at other densities: a table, and a chart in FILE"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="PLAN", help="default: winnow-plan.safetensors beside the weights"
    )
    add_limit(parser)
    add_model_options(parser, "fp32")
    add_json(parser)


def add_perplexity(parser: Parser) -> None:
    """Add what `winnow perplexity` takes."""
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    add_limit(parser)
    add_model_options(parser, "fp32")
    add_json(parser)


def add_bench(parser: Parser) -> None:
    """Add what `winnow bench` takes."""
    add = parser.add_argument
    add(
        "--shape",
        metavar="NAME",
        help="instead of MODEL, a random one of a known shape: opt-1.3b, llama-1b, ...",
    )
    add("--density", type=real, default=0.1, metavar="SHARE", help="with --shape: neurons computed (0.1)")
    add("--head-density", type=real, default=1.0, metavar="SHARE", help="with --shape: heads computed (1)")
    add_kv(parser)
    add(
        "--context",
        type=lengths,
        metavar="RANGE",
        help="instead of a race: memory and time of one layer's attention against the tokens before a step, "
        "exact and streaming, at 2k..1M or 2k,32k,1M; the shape is 8 heads of width 64, or the model's",
    )
    add("--text", type=Path, metavar="FILE", help="with MODEL: the prompt is the beginning of this text")
    add(
        "--against",
        type=engines,
        default={},
        metavar="ENGINES",
        help="the same weights in others: hf (transformers), llama.cpp, ctranslate2; separated by commas. "
        "llama.cpp:q4_0, :q8_0 or :bf16 holds them so whatever --dtype is",
    )
    add("--prompt-tokens", type=positive, default=128, metavar="N", help="length of the prompt (128)")
    add("--max-tokens", type=positive, default=64, metavar="N", help="length of the answer (64)")
    add("--repeats", type=positive, default=5, metavar="N", help="counted rounds; medians are shown (5)")
    add(
        "--svg",
        type=Path,
        metavar="FILE.svg",
        help="draw bytes against time, the memory limit a line, every engine a point",
    )
    add("--markdown", action="store_true", help="print the table as Markdown")
    add_model_options(parser)
    add_json(parser)


def add_inspect(parser: Parser) -> None:
    """Add what `winnow inspect` takes."""
    parser.add_argument("--offline", action="store_true", help="never reach for the network")
    add_check_tensors(parser)
    add_json(parser)


def add_convert(parser: Parser) -> None:
    """Add what `winnow convert` takes."""
    add = parser.add_argument
    add("--pack", action="store_true", help="write the weights as the kernels read them, beside the model")
    add(
        "--dtype",
        choices=("fp32", "fp16", *PRECISIONS[1:]),
        help="cast the weights (fp32, fp16, bf16); default: as they are stored. With --pack, in which they "
        "are held (fp32, bf16, int8, int4); default: bf16",
    )
    add("--head-dtype", choices=PRECISIONS, help="with --pack: that of the map to logits (as --dtype)")
    add("--offline", action="store_true", help="never reach for the network")
    add_json(parser)


def add_doctor(parser: Parser) -> None:
    """Add what `winnow doctor` takes."""
    parser.add_argument("--threads", type=positive, metavar="N", help="default: the processors at hand")
    add_json(parser)


def add_train(parser: Parser) -> None:
    """Add what `winnow train` takes."""
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
    add("--tokens", type=positive, metavar="N", help="train on about N tokens instead of the recipe's")
    add("--compile", action="store_true", help="compile the training step first; quicker in long runs")
