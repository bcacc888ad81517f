"""winnow perplexity: score a text with every neuron.   (floor 8 · cli)"""

import argparse
from dataclasses import asdict

from winnow.base.progress import Progress
from winnow.cli.opening import cut, open_engine, read_text
from winnow.cli.show import show_json
from winnow.engine.generate import torch_threads
from winnow.engine.sparsity import perplexity


def run(arguments: argparse.Namespace) -> int:
    """Print tokens, perplexity and bits per byte of --text."""
    text = read_text(arguments.text)
    engine = open_engine(arguments, plan=None)
    pieces, n_bytes = cut(engine, [text], arguments.limit)
    progress = Progress("scoring", len(pieces), quiet=arguments.quiet)
    with torch_threads(engine.cpu.threads):
        found = perplexity(engine.weights, pieces, n_bytes, progress.update)
    if arguments.json:
        show_json(asdict(found))
    else:
        print(
            f"perplexity {found.ppl:.4f} over {found.tokens} tokens, {found.bits_per_byte:.4f} bits per byte"
        )
    return 0
