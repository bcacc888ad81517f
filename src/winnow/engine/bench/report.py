"""Report: what a bench run found, in the keys that others rely on.   (floor 5 · engine)"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One engine's medians over the turns that count; the slowest and fastest of them beside.

    A turn counts where the read bandwidth before and after it was that of one state of the machine,
    whose figure the report names; the others are set aside. Where none counts, the medians are over
    those set aside and the report is void. A turn's decode speed leaves the prompt out and is that of its
    median step; `tokens_per_second_mean` goes by all steps. `bytes_per_token` counts
    the weights, predictors and cached keys and values that a decode step reads; `bandwidth_share` holds
    it against the probed read bandwidth. `rss_bytes` is that of all engines together.
    """

    engine: str
    shape: str
    dtype: str
    mlp_density: float
    head_density: float
    prompt_tokens: int
    tokens_per_second: float
    tokens_per_second_min: float
    tokens_per_second_max: float
    tokens_per_second_mean: float
    turns: int
    turns_set_aside: int
    ms_per_token: float
    ttft_s: float
    bytes_per_token: float | int
    gb_per_s: float
    bandwidth_share: float
    rss_bytes: int


@dataclass(frozen=True)
class Machine:
    """Where and on what the figures were taken; the bandwidth of the turns that count, the least probed."""

    cpu: str
    threads: int
    isa: str
    read_gb_per_s: float
    read_gb_per_s_min: float
    commit: str


@dataclass(frozen=True)
class BenchReport:
    """Rows in the order the engines took their turns, and what the run checked about itself.

    `notes` say what a reader of the figures has to know and cannot see in them.
    """

    machine: Machine
    rows: tuple[Row, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def was_disturbed(self) -> bool:
        """Whether some engine has no turn in a state of the machine that lasted: other tenants."""
        return any(row.turns == 0 for row in self.rows)

    @property
    def is_void(self) -> bool:
        """Whether the figures must not be quoted: a check failed or the machine was disturbed."""
        return bool(self.failures) or self.was_disturbed

    def to_json(self) -> dict:
        """Return one object with the published keys."""
        return {
            "machine": asdict(self.machine),
            "rows": [asdict(row) for row in self.rows],
            "failures": list(self.failures),
            "notes": list(self.notes),
            "void": self.is_void,
        }
