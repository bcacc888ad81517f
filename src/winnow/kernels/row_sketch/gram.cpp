// Gram: block^T block, the columns in strips, one tile of the result in registers over a whole segment of rows.
#include "../native/pool.hpp"
#include "doubles.hpp"
#include "rows.hpp"

namespace winnow::WINNOW_LEVEL {

#if defined(WINNOW_AVX512)
constexpr int kTall = 8, kVectors = 3;
#elif defined(WINNOW_AVX2)
constexpr int kTall = 4, kVectors = 3;
#else
constexpr int kTall = 4, kVectors = 2;
#endif
constexpr std::int64_t kStrip = kVectors * kDoubles;
static_assert(kStrip % kTall == 0, "a strip is cut into tiles");

// sums = left[rows][kTall]^T right[rows][kStrip], both `kStrip` numbers from row to row
static void tile(const double* left, const double* right, std::int64_t rows, double* out) {
  Doubles sums[kTall][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = nil();
  }
  for (std::int64_t k = 0; k < rows; ++k, left += kStrip, right += kStrip) {
    Doubles with[kVectors];
#pragma GCC unroll 3
    for (int c = 0; c < kVectors; ++c) with[c] = wide(right + c * kDoubles);
#pragma GCC unroll 8
    for (int t = 0; t < kTall; ++t) {
      const Doubles by = all(left[t]);
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) sums[t][c] = fused(by, with[c], sums[t][c]);
    }
  }
  for (int t = 0; t < kTall; ++t) {
    for (int c = 0; c < kVectors; ++c) put(out + t * kStrip + c * kDoubles, sums[t][c]);
  }
}

// One strip of the rows as float64, side by side; columns beyond the last are 0.
template <class T>
static void lay_strip(const T* data, std::int64_t rows, std::int64_t n, std::int64_t strip, double* out) {
  const std::int64_t begin = strip * kStrip, width = n - begin < kStrip ? n - begin : kStrip;
  for (std::int64_t r = 0; r < rows; ++r, out += kStrip) {
    const T* from = data + r * n + begin;
    std::int64_t j = 0;
    for (; j + kDoubles <= width; j += kDoubles) put(out + j, wide(from + j));
    for (; j < width; ++j) out[j] = from[j];
    for (; j < kStrip; ++j) out[j] = 0.;
  }
}

static void add_pair(const double* packed, std::int64_t rows, std::int64_t n, std::int64_t i, std::int64_t j,
                     double* out) {
  const double *left = packed + i * kSegment * kStrip, *right = packed + j * kSegment * kStrip;
  const std::int64_t width = n - j * kStrip < kStrip ? n - j * kStrip : kStrip;
  for (std::int64_t from = 0; from < kStrip && i * kStrip + from < n; from += kTall) {
    double sums[kTall * kStrip];
    tile(left + from, right, rows, sums);
    for (std::int64_t t = 0; t < kTall && i * kStrip + from + t < n; ++t) {
      double* row = out + (i * kStrip + from + t) * n + j * kStrip;
      for (std::int64_t c = 0; c < width; ++c) row[c] += sums[t * kStrip + c];
    }
  }
}

void gram_rows(Context& context, const RowBlock& block, double* out) {
  const std::int64_t n = block.columns, strips = (n + kStrip - 1) / kStrip, pairs = strips * (strips + 1) / 2;
  auto* packed = static_cast<double*>(context.scratch.bytes(0, strips * kStrip * kSegment * 8));
  for (std::int64_t begin = 0; begin < block.rows; begin += kSegment) {
    const std::int64_t rows = block.rows - begin < kSegment ? block.rows - begin : kSegment;
    auto job = [&](Pool& pool) {
      each_block(pool, 0, strips, [&](std::int64_t s) {
        double* to = packed + s * kSegment * kStrip;
        if (block.is_double) {
          lay_strip(reinterpret_cast<const double*>(block.data) + begin * n, rows, n, s, to);
        } else {
          lay_strip(reinterpret_cast<const float*>(block.data) + begin * n, rows, n, s, to);
        }
      });
      pool.wait(0, strips);
      each_block(pool, 1, pairs, [&](std::int64_t p) {
        std::int64_t i = 0;
        for (; p >= strips - i; ++i) p -= strips - i;
        add_pair(packed, rows, n, i, i + p, out);
      });
      pool.wait(1, pairs);
    };
    run_job(context.pool, rows * n * 8, job);
  }
}

}  // namespace winnow::WINNOW_LEVEL
