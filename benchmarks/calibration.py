"""Calibration: how long a plan for a large model takes, in how much memory, and how near it comes.

    python -m benchmarks.calibration [--shape opt-1.3b] [--tokens 50000] [--dtype bf16] [--out NAME]

The model is random, made in memory, with a tenth of its neurons firing; so the figures are those of the
work, not of a model's quality. The text is random tokens in windows of 512.
"""

import argparse
import resource
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.recorded import THREADS, machine, record

from winnow.base.rng import generator
from winnow.engine.generate import DTYPES, torch_threads
from winnow.engine.sparsity import CalibrationOptions, calibrate, windows
from winnow.engine.synthetic import OPT_SHAPES, opt_config, synthetic_model, synthetic_shape

SMALL = (4, 256, 4)  # layers, width, heads of --shape small, to try the benchmark itself
DENSITY = 0.1
SEED = 0


class Peak:
    """The largest resident memory of this process while it is watched, from the system's own count."""

    def __init__(self) -> None:
        """Begin to look, ten times a second."""
        self.before_bytes = resident_bytes()
        self.peak_bytes = self.before_bytes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())

    def stop(self) -> int:
        """Return how much more was resident at the peak than at the start."""
        self._done.set()
        self._thread.join()
        return self.peak_bytes - self.before_bytes


def resident_bytes() -> int:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main(argv: Sequence[str] | None = None) -> None:
    """Write calibration.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="opt-1.3b", choices=["small", *OPT_SHAPES])
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--target-kld", type=float, default=0.001)
    parser.add_argument("--out", default="calibration")
    arguments = parser.parse_args(argv)
    dtype = DTYPES[arguments.dtype]
    if arguments.shape == "small":
        weights = synthetic_model(opt_config(*SMALL), dtype, DENSITY, SEED).weights
    else:
        weights = synthetic_shape(arguments.shape, dtype, DENSITY, SEED).weights
    ids = torch.randint(0, weights.config.vocab_size, (arguments.tokens,), generator=generator(SEED + 1))
    texts = windows(ids.tolist(), [2])
    options = CalibrationOptions(target_kld=arguments.target_kld)
    found = machine()
    peak, started = Peak(), time.monotonic()
    with torch_threads(THREADS):
        plan = calibrate(weights, "", texts, options)
    seconds, beside_bytes = time.monotonic() - started, peak.stop()
    said = plan.provenance
    result = {
        "machine": found,
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "tokens": arguments.tokens,
        "seconds": seconds,
        "minutes": seconds / 60,
        "rss_beside_weights_bytes": beside_bytes,
        "target_kld": said.target_kld,
        "measured_kld": said.measured_kld,
        "kld_over_target": said.measured_kld / said.target_kld,
        "mlp_density": said.measured_density,
        "predictor_bytes": plan.n_bytes,
    }
    record(arguments.out, result)


if __name__ == "__main__":
    main()
