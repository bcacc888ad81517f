"""Attention inversion: 100 tokens from the first layer of a GPT-2 shape, and a real encoder's texts.

    python -m benchmarks.audit_attention [DIRECTORY]

DIRECTORY is that of a real BERT-like encoder with tokenizer.json; without it the second part is left out. The
GPT-2 shape has 12 heads, width 768, 50,257 tokens and weights drawn as transformers draws them.
"""

import sys
import time
from pathlib import Path

import torch
from benchmarks.recorded import BOOK, machine, record
from transformers import BertModel, GPT2Config, GPT2LMHeadModel

from winnow.audit.attention import Exposure, FirstLayer, Shown, decode_causal, decode_encoder, precision
from winnow.base.rng import generator
from winnow.engine.tokenizer import Tokenizer

N_TOKENS = 100
N_THREADS = 1  # beside other work on the machine a second one waits more than it helps
ENCODER_TOKENS, ENCODER_TEXTS = 40, 2


def gpt2_shape(rounding: str) -> dict:
    """Decode 100 random tokens, the first two jointly among V^2 pairs."""
    config = GPT2Config(n_layer=1, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(config.vocab_size, (N_TOKENS,), generator=generator(1))
    seen = Exposure(rounding).show(model(input_ids=ids[None], output_attentions=True).attentions[0][0])
    started = time.perf_counter()
    decoded = decode_causal(FirstLayer(model), Shown(seen, precision(seen)))
    return row("gpt2 shape, random weights", rounding, [(ids, decoded)], time.perf_counter() - started)


def encoder(directory: Path, rounding: str) -> dict:
    """Decode pieces of a book from the first layer of a real encoder, token by token."""
    model = BertModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = Tokenizer.open(directory)
    first, last = tokenizer.encode("")[0], tokenizer.encode("")[-1]
    text = tokenizer.encode(BOOK.read_text(encoding="utf-8")[20_000:40_000], special=False)
    size = ENCODER_TOKENS - 2
    pieces = [text[start : start + size] for start in range(0, size * ENCODER_TEXTS, size)]
    layer, done, seconds = FirstLayer(model), [], 0.0
    for piece in pieces:
        ids = torch.tensor([first, *piece, last])
        seen = Exposure(rounding).show(model(input_ids=ids[None], output_attentions=True).attentions[0][0])
        started = time.perf_counter()
        done.append((ids, decode_encoder(layer, Shown(seen, precision(seen)), (first, last))))
        seconds += time.perf_counter() - started
    return row("all-MiniLM-L6-v2, real weights", rounding, done, seconds)


def row(model: str, rounding: str, done: list, seconds: float) -> dict:
    """Return what is recorded of texts and what was read of them."""
    right = torch.cat([decoded.tokens == ids for ids, decoded in done])
    return {
        "model": model,
        "rounding": rounding,
        "texts": len(done),
        "tokens": len(right),
        "token_recall": float(right.float().mean()),
        "first_token_right": all(bool(decoded.tokens[0] == ids[0]) for ids, decoded in done),
        "texts_whole": sum(decoded.is_whole for _, decoded in done),
        "least_margin": min(float(decoded.margins.min()) for _, decoded in done),
        "seconds": seconds,
    }


def main() -> None:
    """Write audit-attention.json."""
    torch.set_num_threads(N_THREADS)
    roundings = ("fp32", "fp16", "2 decimals")
    rows = []
    with torch.no_grad():
        rows.append(gpt2_shape("fp32"))
        print(rows[-1])
        for directory in sys.argv[1:]:
            rows += [encoder(Path(directory), rounding) for rounding in roundings]
            print(rows[-3:])
    record("audit-attention", {"machine": machine() | {"threads": N_THREADS}, "rows": rows})


if __name__ == "__main__":
    main()
