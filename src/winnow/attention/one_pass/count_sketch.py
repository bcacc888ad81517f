"""CountSketch: a table of signed sums from which large entries can be read back.   (floor 4 · attention)

    table[r, bucket_r(i)] += sign_r(i) * y_i        estimate_i = median over r of sign_r(i) * table[r,
    bucket_r(i)]

For n entries in M columns with `n_rows` of O(log(n / delta)) rows, width 12 k / eps: with probability 1 -
delta every estimate is within sqrt(eps / k) of the norm of all but the k largest entries, up to a constant.
The dyadic sketch keeps one such table per level of blocks of 1, 2, 4 ... positions, with the signs of the
single positions, so that the square of a bucket estimates the energy of a block: large entries are found
without a scan.
"""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from winnow.attention.one_pass.hashing import LARGEST, Hashing, check_positions
from winnow.base.errors import UsageError


@final
@dataclass(frozen=True)
class SketchOptions:
    """How many large entries are wanted, at which error, and for how many positions at most.

    `n_rows` of 15 is for up to 1e5 positions; two more for each factor of ten beyond.
    """

    k: int
    eps: float = 1.0
    n_rows: int = 15
    width_factor: int = 12  # in units of k / eps; 8 is the least that holds, 4 fails

    def __post_init__(self) -> None:
        """Refuse what cannot be a table."""
        if self.k < 1 or self.n_rows < 1 or self.width_factor < 1:
            raise UsageError(f"{self}; expected k, n_rows and width_factor of at least 1.")
        if not 0 < self.eps <= 1:
            raise UsageError(f"eps is {self.eps}; expected 0 < eps <= 1.")

    @property
    def width(self) -> int:
        """Buckets per row."""
        return math.ceil(self.width_factor * self.k / self.eps)


@final
@dataclass
class CountSketch:
    """One table: ``4 * n_rows * width * M`` bytes, whatever the number of positions."""

    table: Float[Tensor, "rows width M"]  # on CUDA sums come in any order: the last bits vary
    hashing: Hashing
    block_bits: int = 0  # positions >> block_bits share a bucket
    end: int = 0  # one more than the last position seen

    @classmethod
    def empty(
        cls,
        options: SketchOptions,
        n_columns: int,
        *,
        seed: int,
        block_bits: int = 0,
        device: torch.device | None = None,
    ) -> "CountSketch":
        """Return a table of zeros whose hashing belongs to `seed` and `block_bits`."""
        if n_columns < 1:
            raise UsageError(f"n_columns is {n_columns}; expected at least 1.")
        table = torch.zeros(options.n_rows, options.width, n_columns, device=device)
        return cls(table, Hashing.drawn(options.n_rows, seed, block_bits, device), block_bits)

    @property
    def n_bytes(self) -> int:
        """Bytes of table and hashing."""
        return self.table.nbytes + self.hashing.coefficients.nbytes

    def add(self, positions: Int64[Tensor, " N"], y: Float[Tensor, "N M"]) -> None:
        """Add the rows of `y` at their positions; sums are float32, in the order given."""
        check_positions(positions)
        if y.shape != (len(positions), self.table.shape[2]):
            raise UsageError(
                f"y is {tuple(y.shape)}; expected {(len(positions), self.table.shape[2])}, a row "
                "per position."
            )
        self._add(positions, y, 1.0)
        if len(positions):
            self.end = max(self.end, int(positions.max()) + 1)

    def estimates(self, positions: Int64[Tensor, " N"]) -> Float[Tensor, "N M"]:
        """Return the median estimate of the rows at `positions`."""
        return (self._buckets(positions) * self.hashing.signs(positions)[..., None]).median(dim=0).values

    def energies(self, blocks: Int64[Tensor, " N"]) -> Float[Tensor, "N M"]:
        """Return the estimated sum of squares of each block ``position >> block_bits``.

        The mean over the rows: two large entries of one block cancel in every second row, a median would
        lose both.
        """
        return self._buckets(blocks << self.block_bits).square().mean(dim=0)

    def norms(self) -> Float[Tensor, " M"]:
        """Return the estimated Euclidean norm of each column: the median over the rows of the table's."""
        return self.table.norm(dim=1).median(dim=0).values

    def without(self, positions: Int64[Tensor, "N M"], values: Float[Tensor, "N M"]) -> "CountSketch":
        """Return the sketch of what is left when in each column its own entries are taken away."""
        rest = CountSketch(self.table.clone(), self.hashing, self.block_bits, self.end)
        for column in range(positions.shape[1]):
            taken = self.table.new_zeros(len(positions), self.table.shape[2])
            taken[:, column] = values[:, column]
            rest._add(positions[:, column], taken, -1.0)
        return rest

    def merge(self, other: "CountSketch") -> "CountSketch":
        """Return the sketch of both streams; raises UsageError unless both hash alike, in equal sizes."""
        if self.table.shape != other.table.shape or self.block_bits != other.block_bits:
            raise UsageError(
                f"merge received a table {tuple(other.table.shape)}, this one is {tuple(self.table.shape)}; "
                "make both with the same options."
            )
        if not torch.equal(self.hashing.coefficients, other.hashing.coefficients):
            raise UsageError("merge received a sketch of another seed; make both with the same rng.")
        end = max(self.end, other.end)
        return CountSketch(self.table + other.table, self.hashing, self.block_bits, end)

    def _add(self, positions: Tensor, y: Tensor, factor: float) -> None:
        buckets = self.hashing.buckets(positions >> self.block_bits, self.table.shape[1])
        signs = self.hashing.signs(positions)
        for row, at, sign in zip(self.table, buckets, signs, strict=True):
            row.index_add_(0, at, factor * sign[:, None] * y.to(row.dtype))

    def _buckets(self, positions: Tensor) -> Tensor:
        buckets = self.hashing.buckets(positions >> self.block_bits, self.table.shape[1])
        return torch.gather(self.table, 1, buckets[..., None].expand(-1, -1, self.table.shape[2]))


@final
@dataclass
class DyadicSketch:
    """One CountSketch per level: ``levels`` times the bytes and the time to add, O(k levels) to decode."""

    levels: list[CountSketch] = field(default_factory=list)

    @classmethod
    def empty(
        cls,
        options: SketchOptions,
        n_columns: int,
        *,
        seed: int,
        n_positions: int,
        device: torch.device | None = None,
    ) -> "DyadicSketch":
        """Return empty levels for positions below `n_positions`, from single positions up to few blocks."""
        if not 0 < n_positions <= LARGEST:
            raise UsageError(f"n_positions is {n_positions}; expected 1 to 2**62.")
        n_levels = max(1, (n_positions - 1).bit_length() - (4 * options.k).bit_length() + 1)
        return cls(
            [
                CountSketch.empty(options, n_columns, seed=seed, block_bits=bits, device=device)
                for bits in range(n_levels)
            ]
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.n_bytes for level in self.levels)

    def add(self, positions: Int64[Tensor, " N"], y: Float[Tensor, "N M"]) -> None:
        """Add the rows of `y` to every level."""
        for level in self.levels:
            level.add(positions, y)

    def candidates(self, k: int) -> Int64[Tensor, "N M"]:
        """Return for each column positions among which its k largest entries are.

        From the top level down, each column keeps the 4 k blocks of most energy and halves them.
        """
        top = self.levels[-1]
        n_columns = top.table.shape[2]
        n_blocks = ((top.end - 1) >> top.block_bits) + 1
        blocks = torch.arange(n_blocks, device=top.table.device)[:, None].expand(-1, n_columns)
        for level in self.levels[::-1]:
            if level is not top:
                blocks = torch.cat([2 * blocks, 2 * blocks + 1])
            if len(blocks) > 4 * k:
                energies = torch.stack(
                    [level.energies(column)[:, at] for at, column in enumerate(blocks.unbind(1))], dim=1
                )
                energies = energies.masked_fill(blocks << level.block_bits >= level.end, -1.0)
                blocks = blocks.gather(0, energies.topk(4 * k, dim=0).indices)
        return blocks
