"""Precision: what int8 and int4 cost the bundled models, apart from what their plans cost.

python -m benchmarks.precision
"""

from benchmarks.recorded import BOOK, machine, record, winnow_json

from winnow.engine.checkpoint import bundled

TOKENS = 20_000


def main() -> None:
    """Write precision.json."""
    rows = []
    for name in ("pico", "pico-llama"):
        for dtype, head in (("bf16", "bf16"), ("int8", "int8"), ("int4", "int4"), ("int4", "int8")):
            line = ("fidelity", bundled(name), "--text", BOOK, "--limit", str(TOKENS), "--dtype", dtype)
            found = winnow_json(*line, "--head-dtype", head)
            kept = ("tokens", "kld_quantised", "kld_mean", "kld_p999", "same_top", "mlp_density")
            rows.append(
                {"model": name, "dtype": dtype, "head_dtype": head, **{key: found[key] for key in kept}}
            )
    record("precision", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
