"""Streaming text: perplexity of the bundled models on held-out text, by what a layer may hold.

    python -m benchmarks.streaming_text

At equal bytes per layer: sinks and a window alone; the hybrid of window, heavy keys and clusters; the hybrid
with its remainder left off. Full attention is the measure. Beyond the trained length of 2048 tokens the old
tokens of the rotary model are clamped, or stay where they were when they left the window; the model with
learned positions cannot go there. Counted are the tokens of the second half. A row says which is best.
"""

import torch
from benchmarks.recorded import BOOK, ROOT, machine, record
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from winnow.attention import StreamingCache, register
from winnow.attention.streaming import Rotation, Streaming, StreamingOptions

BUDGETS = ((32, 16, 16), (96, 48, 48), (192, 128, 64))  # window, heavy, clusters of the hybrid
CASES = (("pico", 1600, "absolute"), ("pico-llama", 1600, "absolute"))
BEYOND = (("pico-llama", 4096, "absolute"), ("pico-llama", 4096, "clamp"), ("pico-llama", 4096, "cache"))
FIRST, CHUNK, TRAINED = 2000, 400, 2048  # the book's first pages are contents and preface


def perplexity(model: PreTrainedModel, ids: list[int], cache: StreamingCache | None) -> float:
    """Return the perplexity of the second half, read in chunks."""
    model.set_attn_implementation("sdpa" if cache is None else "winnow_streaming")
    past = DynamicCache(config=model.config) if cache is None else cache
    x = torch.tensor([ids])
    with torch.inference_mode():
        parts = [model(part, past_key_values=past, use_cache=True).logits for part in x.split(CHUNK, 1)]
    logits, half = torch.cat(parts, 1)[0], len(ids) // 2
    return float(cross_entropy(logits[half:-1], x[0, half + 1 :]).exp())


def rivals(budget: tuple[int, int, int], sizes: tuple[int, int], position: str) -> dict[str, Streaming]:
    """Return the three contestants; the window alone gets the bytes of the others, or a token more."""
    window, heavy, clusters = budget
    heads, width = sizes
    turned = {"position": position, "rotation": Rotation.of(1e4, width), "trained": TRAINED}

    def made(window: int, heavy: int, clusters: int, remainder: str) -> Streaming:
        held = {"window": window, "heavy": heavy, "clusters": clusters, "remainder": remainder}
        return Streaming(StreamingOptions(**held, block=16, reservoir=2, **turned))

    hybrid = made(window, heavy, clusters, "on")
    n_bytes = hybrid.start(1, heads, width, width).n_bytes
    alone = window
    while made(alone, 0, 1, "off").start(1, heads, width, width).n_bytes < n_bytes:
        alone += 1
    off = made(window, heavy, clusters, "off")
    return {"window": made(alone, 0, 1, "off"), "hybrid": hybrid, "hybrid_off": off}


def rows_of(name: str, n: int, position: str) -> list[dict]:
    """Return a row per budget."""
    directory = ROOT / "src/winnow/zoo" / name
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(BOOK.read_text(encoding="utf-8")).ids[FIRST : FIRST + n]
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    sizes = (heads, model.config.hidden_size // model.config.num_attention_heads)
    full, rows = perplexity(model, ids, None), []
    for budget in BUDGETS:
        row = {"model": name, "tokens": n, "position": position, "full": full}
        for rival, kind in rivals(budget, sizes, position).items():
            cache = StreamingCache(model.config, kind)
            row[rival] = perplexity(model, ids, cache)
            row["bytes_per_layer"] = cache.n_bytes // model.config.num_hidden_layers
        row["best"] = min(("window", "hybrid", "hybrid_off"), key=lambda rival: row[rival])
        row["window_tokens"] = rivals(budget, sizes, position)["window"].options.window
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Write streaming-text.json."""
    torch.set_num_threads(1)
    register()
    rows = [row for case in CASES + BEYOND for row in rows_of(*case)]
    record("streaming-text", {"machine": {**machine(), "threads": 1}, "rows": rows})


if __name__ == "__main__":
    main()
