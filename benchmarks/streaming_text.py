"""Streaming text: perplexity of the bundled models on held-out books, by what a layer may hold.

    python -m benchmarks.streaming_text FOLDER_OF_BOOKS

Books are read one after the other as one stream of 64k tokens; a context's perplexity is that of the 1024
tokens before its end. At equal bytes per layer: sinks and a window alone; the hybrid of window, heavy keys
and clusters; the hybrid with its remainder left off; and "calibrated", for each kv head the one of these
three that had the least error on another book. Where learned positions end, the last one is used. Old tokens
of the rotary model stand no farther than the trained length ("clamp") or right behind the window ("cache").
Full attention is a state that keeps every key, clamped too; its time is quadratic, and it ends at 8k. A row
says which is best at its bytes. Takes about fifteen minutes on two cores.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.recorded import BOOK, ROOT, machine, record
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from winnow.attention import StreamingCache, register
from winnow.attention.hf.captured import calibrated
from winnow.attention.streaming import PerHead, Rotation, Streaming, StreamingOptions

BUDGETS = ((96, 48, 48), (256, 128, 64), (640, 256, 96))  # window, heavy, clusters of the hybrid
CASES = (("pico-llama", "clamp"), ("pico", "absolute"), ("pico-llama", "cache"))
CONTEXTS = tuple(1024 * k for k in (2, 4, 8, 16, 32, 64))
SHOWN = (2 * 1024, 8 * 1024, 64 * 1024)  # in docs/how-to-choose.md
FULL, COUNTED, CHUNK, BLOCK, TRAINED = 8 * 1024, 1024, 512, 128, 2048
ALIKE = ("window", "hybrid", "hybrid_off")  # the same for all heads
RIVALS = (*ALIKE, "calibrated")


def perplexities(
    model: PreTrainedModel, ids: torch.Tensor, kinds: Streaming | Sequence[PerHead]
) -> tuple[dict[int, float], int]:
    """Return the perplexity at each context that `ids` reach, and the bytes of a layer."""
    cache = StreamingCache(model.config, kinds)
    lengths = model.config.max_position_embeddings if model.config.model_type == "opt" else len(ids)
    losses = []
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, CHUNK):
            part = ids[start : start + CHUNK]
            positions = torch.arange(start, start + len(part)).clamp(max=lengths - 1)
            logits = model(
                part[None], past_key_values=cache, use_cache=True, position_ids=positions[None]
            ).logits
            targets = ids[start + 1 : start + 1 + len(part)]
            losses.append(cross_entropy(logits[0, : len(targets)].float(), targets, reduction="none"))
    loss = torch.cat(losses)
    found = {n: float(loss[n - COUNTED - 1 : n - 1].mean().exp()) for n in CONTEXTS if n <= len(ids)}
    return found, cache.n_bytes // model.config.num_hidden_layers


def kind_of(held: dict, position: str, width: int) -> Streaming:
    turned = {} if position == "absolute" else {"rotation": Rotation.of(1e4, width), "trained": TRAINED}
    return Streaming(StreamingOptions(**held, block=BLOCK, reservoir=2, position=position, **turned))


def rivals(budget: tuple[int, int, int], sizes: tuple[int, int], position: str) -> dict[str, Streaming]:
    """Return the three contestants; the window alone gets the bytes of the others, or a token more."""
    (window, heavy, clusters), (heads, width) = budget, sizes
    hybrid = {"window": window, "heavy": heavy, "clusters": clusters}
    kinds = {
        "hybrid": kind_of(hybrid, position, width),
        "hybrid_off": kind_of({**hybrid, "remainder": "off"}, position, width),
    }
    n_bytes = kinds["hybrid"].start(1, heads, width, width).n_bytes
    alone = {"window": window, "heavy": 0, "clusters": 1, "remainder": "off"}
    while kind_of(alone, position, width).start(1, heads, width, width).n_bytes < n_bytes:
        alone["window"] += 1
    return {"window": kind_of(alone, position, width), **kinds}


def by_head(model: PreTrainedModel, ids: torch.Tensor, among: dict[str, Streaming]) -> list[PerHead]:
    """Return the kind of each layer: for each kv head the one of least error on `ids`."""
    options = [among[name].options for name in ALIKE]
    still = [replace(each, position="absolute", rotation=None, trained=None) for each in options]
    found = calibrated(model, ids[None, :TRAINED], still, budget_bytes=sys.maxsize)
    for layer, each in enumerate(found):
        print("layer", layer, "heads take", [ALIKE[at] for at in each.chosen], flush=True)
    return [PerHead(tuple(options[at] for at in each.chosen)) for each in found]


def rows_of(name: str, position: str, folder: Path) -> list[dict]:
    """Return a row per budget and context."""
    torch.set_num_threads(1)
    register()
    directory = ROOT / "src/winnow/zoo" / name
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    model.set_attn_implementation("winnow_streaming")
    tokenizer, ids = Tokenizer.from_file(str(directory / "tokenizer.json")), []
    for book in sorted(folder.glob("*.txt")):
        ids += tokenizer.encode(book.read_text(encoding="utf-8")).ids
    if len(ids) < CONTEXTS[-1]:
        raise SystemExit(f"{folder} holds {len(ids)} tokens; expected {CONTEXTS[-1]} of plain-text books")
    stream = torch.tensor(ids[: CONTEXTS[-1]])
    other = torch.tensor(tokenizer.encode(BOOK.read_text(encoding="utf-8")).ids)
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    sizes = (heads, model.config.hidden_size // model.config.num_attention_heads)
    everything = {"window": TRAINED - BLOCK, "heavy": FULL, "clusters": 1}
    full, _ = perplexities(model, stream[:FULL], kind_of(everything, position, sizes[1]))
    print(name, position, "full", full, flush=True)
    rows = []
    for budget in BUDGETS:
        found, n_bytes = {}, 0
        kinds: dict[str, Streaming | Sequence[PerHead]] = {**rivals(budget, sizes, position)}
        kinds["calibrated"] = by_head(model, other, rivals(budget, sizes, position))
        for rival, kind in kinds.items():
            found[rival], n_bytes = perplexities(model, stream, kind)
            print(name, position, budget, rival, found[rival], flush=True)
        for n in CONTEXTS:
            each = {rival: found[rival][n] for rival in RIVALS}
            best = min(RIVALS, key=lambda rival: each[rival])
            row = {"model": name, "position": position, "context": n, "bytes_per_layer": n_bytes}
            is_best = best in ("hybrid", "calibrated")
            rows.append({**row, "full": full.get(n), **each, "best": best, "is_streaming_best": is_best})
    return rows


def main() -> None:
    """Write streaming-text.json."""
    if len(sys.argv) != 2:
        raise SystemExit("expected one argument: a folder of plain-text books")
    folder = Path(sys.argv[1])
    with ProcessPoolExecutor(2) as pool:
        done = [pool.submit(rows_of, *case, folder) for case in CASES]
        rows = [row for each in done for row in each.result()]
    lost = sum(not row["is_streaming_best"] for row in rows)
    found = {"machine": {**machine(), "threads": 1}, "rows": rows, "streaming_not_best": lost}
    found["shown"] = [row for row in rows if row["context"] in SHOWN]
    record("streaming-text", found)


if __name__ == "__main__":
    main()
