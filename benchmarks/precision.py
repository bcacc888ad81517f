"""Precision: what int8 and int4, of weights or of keys and values, cost the bundled models, plans aside.

python -m benchmarks.precision
"""

from benchmarks.recorded import BOOK, machine, record, winnow_json

from winnow.engine.checkpoint import bundled

TOKENS = 20_000
# The types of layers, of the map to logits, of keys and values.
HELD = (
    ("bf16", "bf16", "bf16"),
    ("bf16", "bf16", "int8"),
    ("int8", "int8", "bf16"),
    ("int8", "int8", "int8"),
    ("int4", "int4", "bf16"),
    ("int4", "int8", "bf16"),
)


def main() -> None:
    """Write precision.json."""
    rows = []
    for name in ("pico", "pico-llama"):
        for dtype, head, kv in HELD:
            line = ("fidelity", bundled(name), "--text", BOOK, "--limit", str(TOKENS), "--dtype", dtype)
            found = winnow_json(*line, "--head-dtype", head, "--kv-dtype", kv)
            kept = ("tokens", "kld_quantised", "kld_mean", "kld_p999", "same_top", "mlp_density")
            types = {"dtype": dtype, "head_dtype": head, "kv_dtype": kv}
            rows.append({"model": name, **types, **{key: found[key] for key in kept}})
    record("precision", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
