"""Data options: what the commands about vectors and matrices take.   (floor 8 · cli)"""

from pathlib import Path

from winnow.cli.line import Parser
from winnow.cli.model_options import add_json
from winnow.cli.values import above_zero, not_negative, positive, real, seed, whole


def add_lstsq(parser: Parser) -> None:
    """Add what `winnow solve lstsq` takes."""
    add = parser.add_argument
    add(
        "--eps",
        type=above_zero,
        metavar="E",
        help="certify |A x - b|^2 <= (1 + E) min; default: to rounding",
    )
    add("--ridge", type=not_negative, default=0.0, metavar="R", help="minimise |A x - b|^2 + R |x|^2 (0)")
    add(
        "--method",
        choices=("auto", "gram", "sketch", "lapack"),  # linalg.least_squares
        default="auto",
        help="auto (default) takes what a model of costs expects to be the quickest",
    )
    add("--seed", type=seed, default=0, metavar="S", help="of the sketch (0)")
    add("--out", type=Path, metavar="X.npy", help="write x there; default: print it")
    add("--threads", type=positive, metavar="N", help="default: the processors at hand")
    add_json(parser)


def add_two_layer(parser: Parser) -> None:
    """Add what `winnow solve two-layer` takes."""
    add = parser.add_argument
    add(
        "--w",
        default="0",
        metavar="W",
        help="weight of the logits: a number, or a .npy file of one per row (0)",
    )
    add(
        "--method",
        choices=("lm", "newton_cg", "full", "sketch", "w2"),  # linalg.two_layer.METHODS
        default="lm",
        help="lm (default) for any w; newton_cg for many columns; sketch and w2 for a large w",
    )
    add("--seed", type=seed, default=0, metavar="S", help="of the rows that are sampled (0)")
    add("--out", type=Path, metavar="X.npy", help="write x there; default: print it")
    add("--threads", type=positive, metavar="N", help="default: the processors at hand")
    add_json(parser)


def add_search(parser: Parser) -> None:
    """Add what `winnow search` takes."""
    add = parser.add_argument
    add(
        "--rho",
        type=real,
        required=True,
        metavar="R",
        help="heavy is a product of R x the width, of real vectors a cosine of R",
    )
    add(
        "--recall",
        type=real,
        default=0.99,
        metavar="P",
        help="find a heavy pair with this probability (0.99)",
    )
    add(
        "--method",
        choices=("auto", "exact", "cascade", "aggregate", "lsh", "gemm"),  # search.pairs.METHODS
        default="auto",
        help="auto (default) takes the cheapest by a measured cost model",
    )
    add("--seed", type=whole, default=0, metavar="S", help="same seed, same pairs (0)")
    add("--max-pairs", type=positive, metavar="N", help="expect up to N pairs, however they came about")
    add("--group-size", choices=("auto", "paper"), default="auto", help="with aggregate (auto)")
    add(
        "--width",
        type=whole,
        default=0,
        metavar="D",
        help="coordinates in packed uint64 words (0: all bits)",
    )
    add("--out", type=Path, metavar="FILE", help="write i, j, product to a .csv or .npy file")
    add("--threads", type=positive, metavar="N", help="default: the processors at hand")
    add_json(parser)
