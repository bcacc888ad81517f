// Sparse sign sketch. Row i of the matrix goes, with a sign each, to one row of every one of `nonzeros` equal parts of
// the result; which, is drawn by Philox4x32-10 from (seed, i) alone.
//
// A batch of rows is sorted by where it goes, so that a row of the result stays in registers while all that goes there is
// added, in the order of the rows: the bits are those of one row after the other, whatever the batches.
#include "../native/pool.hpp"
#include "doubles.hpp"
#include "rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kBatch = 2048;
constexpr std::int64_t kPackRows = 64;

static void philox(std::uint64_t key, std::uint64_t row, std::uint32_t draw, std::uint32_t out[4]) {
  std::uint32_t c[4] = {static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(row >> 32), draw, 0};
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c[0], b = std::uint64_t{0xCD9E8D57u} * c[2];
    const std::uint32_t next[4] = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
                                   static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
  }
  for (int i = 0; i < 4; ++i) out[i] = c[i];
}

// What goes to each row of the parts 4 * draw .. 4 * draw + 3: entries row * 2 + (1 for minus), sorted, and where each
// row's begin.
struct Sorted {
  std::uint32_t* entries;  // [nonzeros][kBatch]
  std::int32_t* begins;    // [nonzeros][part + 1]
  std::uint32_t* drawn;    // [nonzeros][kBatch]
  std::int64_t part;       // rows of the result in a part
};

static void sort_rows(const Sorted& to, std::int64_t first, std::int64_t rows, std::uint64_t seed, std::int64_t draw,
                      std::int64_t nonzeros) {
  const std::int64_t count = nonzeros - 4 * draw < 4 ? nonzeros - 4 * draw : 4;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::uint32_t words[4];
    philox(seed, static_cast<std::uint64_t>(first + r), static_cast<std::uint32_t>(draw), words);
    for (std::int64_t q = 0; q < count; ++q) to.drawn[(4 * draw + q) * kBatch + r] = words[q];
  }
  for (std::int64_t k = 4 * draw; k < 4 * draw + count; ++k) {
    std::int32_t* begins = to.begins + k * (to.part + 1);
    const std::uint32_t* drawn = to.drawn + k * kBatch;
    const auto place = [&](std::int64_t r) {
      return static_cast<std::int64_t>((std::uint64_t{drawn[r] >> 1} * static_cast<std::uint64_t>(to.part)) >> 31);
    };
    for (std::int64_t i = 0; i <= to.part; ++i) begins[i] = 0;
    for (std::int64_t r = 0; r < rows; ++r) ++begins[place(r)];
    for (std::int64_t i = 0; i < to.part; ++i) begins[i + 1] += begins[i];
    // begins[i] is where row i's entries end; filled from the last, each moves down to where they begin.
    for (std::int64_t r = rows; r-- > 0;) {
      to.entries[k * kBatch + --begins[place(r)]] = static_cast<std::uint32_t>(r) << 1 | (drawn[r] & 1u);
    }
  }
}

// Rows begin..end-1 as float64 in tiles of columns; columns beyond the last are 0.
template <class T>
static void lay_rows(const T* data, std::int64_t begin, std::int64_t end, std::int64_t n, double* out) {
  for (std::int64_t r = begin; r < end; ++r) {
    const T* row = data + r * n;
    for (std::int64_t t = 0, j = 0; j < n; ++t, j += kTile) {
      double* to = out + (t * kBatch + r) * kTile;
      if (j + kTile <= n) {
        for (std::int64_t i = 0; i < kTile; i += kDoubles) put(to + i, wide(row + j + i));
      } else {
        for (std::int64_t i = 0; i < kTile; ++i) to[i] = j + i < n ? row[j + i] : 0.;
      }
    }
  }
}

// One tile of columns of one part of the result.
static void gather(const Sorted& from, std::int64_t k, const double* packed, double* out) {
  static constexpr double signs[2] = {1., -1.};
  constexpr int kCount = kTile / kDoubles;
  const std::int32_t* begins = from.begins + k * (from.part + 1);
  const std::uint32_t* entries = from.entries + k * kBatch;
  for (std::int64_t i = 0; i < from.part; ++i, out += kTile) {
    if (begins[i] == begins[i + 1]) continue;
    Doubles sums[kCount];
    for (int c = 0; c < kCount; ++c) sums[c] = wide(out + c * kDoubles);
    for (std::int32_t e = begins[i]; e < begins[i + 1]; ++e) {
      const double* row = packed + (entries[e] >> 1) * kTile;
      const Doubles sign = all(signs[entries[e] & 1u]);
      for (int c = 0; c < kCount; ++c) sums[c] = fused(wide(row + c * kDoubles), sign, sums[c]);
    }
    for (int c = 0; c < kCount; ++c) put(out + c * kDoubles, sums[c]);
  }
}

void sketch_rows(Context& context, const RowBlock& block, std::int64_t first, std::uint64_t seed,
                 std::int64_t nonzeros, std::int64_t height, double* out) {
  const std::int64_t n = block.columns, tiles = (n + kTile - 1) / kTile, part = height / nonzeros;
  const std::int64_t draws = (nonzeros + 3) / 4, parts = tiles * nonzeros;
  auto* packed = static_cast<double*>(context.scratch.bytes(0, tiles * kBatch * kTile * 8));
  auto* lists = static_cast<std::uint32_t*>(context.scratch.bytes(1, nonzeros * (2 * kBatch + part + 1) * 4));
  const Sorted sorted{lists, reinterpret_cast<std::int32_t*>(lists + 2 * nonzeros * kBatch), lists + nonzeros * kBatch,
                      part};
  for (std::int64_t begin = 0; begin < block.rows; begin += kBatch) {
    const std::int64_t rows = block.rows - begin < kBatch ? block.rows - begin : kBatch;
    const std::int64_t packs = (rows + kPackRows - 1) / kPackRows;
    auto job = [&](Pool& pool) {
      each_block(pool, 0, draws, [&](std::int64_t d) { sort_rows(sorted, first + begin, rows, seed, d, nonzeros); });
      each_block(pool, 1, packs, [&](std::int64_t p) {
        const std::int64_t from = p * kPackRows, to = from + kPackRows < rows ? from + kPackRows : rows;
        if (block.is_double) {
          lay_rows(reinterpret_cast<const double*>(block.data) + begin * n, from, to, n, packed);
        } else {
          lay_rows(reinterpret_cast<const float*>(block.data) + begin * n, from, to, n, packed);
        }
      });
      pool.wait(0, draws);
      pool.wait(1, packs);
      each_block(pool, 2, parts, [&](std::int64_t p) {
        const std::int64_t t = p / nonzeros, k = p % nonzeros;
        gather(sorted, k, packed + t * kBatch * kTile, out + (t * height + k * part) * kTile);
      });
      pool.wait(2, parts);
    };
    run_job(context.pool, rows * n * 8, job);
  }
}

void sketch_rows(Context&, const RowBlock&, std::int64_t, std::uint64_t, std::int64_t, std::int64_t, double*);
void gram_rows(Context&, const RowBlock&, double*);
void normal_rows(Context&, const RowBlock&, std::int64_t, const double*, const double*, std::int64_t, double*, double*);
void score_rows(Context&, const RowBlock&, std::int64_t, const double*, double*);
std::int64_t cholesky(double*, std::int64_t);
void triangle(const double*, std::int64_t, bool, std::int64_t, double*);

const RowKernels& row_kernels() {
  static constexpr RowKernels table = {sketch_rows, gram_rows, normal_rows, score_rows, cholesky, triangle};
  return table;
}

}  // namespace winnow::WINNOW_LEVEL
