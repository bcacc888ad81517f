// A range of rows of a matrix times one vector, for the kernels that need it as a part.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Rows per block: about 256 KB of weights, and at least sixteen blocks where there are rows enough.
inline std::int64_t block_rows(std::int64_t rows, std::int64_t row_bytes) {
  std::int64_t by_bytes = (256 << 10) / row_bytes, by_share = rows / 16;
  std::int64_t n = by_bytes < by_share ? by_bytes : by_share;
  return n < kRows ? kRows : n / kRows * kRows;
}

constexpr int kStreams = 4;

template <class W>
inline Row<W> row_of(const Matrix& matrix, std::int64_t i) {
  if constexpr (std::is_same_v<W, int4>) {
    const auto* groups = reinterpret_cast<const unsigned char*>(matrix.data);
    const auto* scales = reinterpret_cast<const bf16*>(matrix.scales);
    return {groups + i * (matrix.row_stride / 2), scales + i * matrix.scale_stride, 0};
  } else {
    return reinterpret_cast<const W*>(matrix.data) + i * matrix.row_stride;
  }
}

// out[i] = row (begin + i) . x, for i < end - begin; the block that begins at `ahead` is read next (none if negative).
// The rows are four runs, read side by side: each is memory in order.
template <class W>
inline void product(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead, const Input<W>* x,
                    float* out) {
  const std::int64_t run = (end - begin) / kStreams, last = matrix.rows - 1;
  const auto row = [&](std::int64_t i) { return row_of<W>(matrix, i < last ? i : last); };
  Row<W> rows[kStreams], next[kStreams];
  float sums[kRows];
  for (std::int64_t i = 0; i < run; ++i) {
    for (int s = 0; s < kStreams; ++s) {
      rows[s] = row(begin + s * run + i);
      next[s] = row(i + 1 < run || ahead < 0 ? begin + s * run + i + 1 : ahead + s * run);
    }
    dot<W, kStreams>(rows, x, matrix.columns, sums, next);
    for (int s = 0; s < kStreams; ++s) out[s * run + i] = sums[s];
  }
  if (const std::int64_t done = kStreams * run; begin + done < end) {
    for (int s = 0; s < kStreams; ++s) rows[s] = row(begin + done + s);
    dot<W, kStreams>(rows, x, matrix.columns, sums);
    for (std::int64_t i = begin + done; i < end; ++i) out[i - begin] = sums[i - begin - done];
  }
}

// product() with `x` as `input_any` has laid it out.
inline void product_any(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead, const void* x,
                        float* out) {
  of_weights(matrix.dtype, [&](auto w) {
    using W = decltype(w);
    product<W>(matrix, begin, end, ahead, static_cast<const Input<W>*>(x), out);
  });
  if (matrix.dtype == Dtype::int8) {
    const auto* scales = reinterpret_cast<const float*>(matrix.scales);
    for (std::int64_t i = begin; i < end; ++i) out[i - begin] *= scales[i * matrix.scale_stride];
  }
}

inline const void* input_any(Dtype dtype, const float* x, std::int64_t n, void* memory) {
  const void* laid_out = nullptr;
  of_weights(dtype, [&](auto w) { laid_out = input<decltype(w)>(x, n, memory); });
  return laid_out;
}

}  // namespace winnow::WINNOW_LEVEL
