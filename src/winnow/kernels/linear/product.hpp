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

// out[i] = row (begin + i) . x, for i < end - begin; the rows from `ahead` on are prefetched (not if negative).
template <class W>
inline void product(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead, const Input<W>* x,
                    float* out) {
  const auto* data = reinterpret_cast<const W*>(matrix.data);
  const auto point = [&](const W* rows[kRows], std::int64_t first, std::int64_t last) {
    for (int r = 0; r < kRows; ++r) {  // the last row stands in for those that are missing
      rows[r] = data + (first + r < last ? first + r : last) * matrix.row_stride;
    }
  };
  for (std::int64_t i = begin; i < end; i += kRows) {
    const W *rows[kRows], *next[kRows];
    point(rows, i, end - 1);
    const std::int64_t then = i + kRows < end ? i + kRows : ahead;
    if (then >= 0) point(next, then, matrix.rows - 1);
    float sums[kRows];
    dot8(rows, x, matrix.columns, sums, then >= 0 ? next : nullptr);
    for (int r = 0; r < kRows && i + r < end; ++r) out[i - begin + r] = sums[r];
  }
}

// product() with `x` as `input_any` has laid it out.
inline void product_any(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead, const void* x,
                        float* out) {
  if (matrix.dtype == Dtype::bfloat16) {
    product<bf16>(matrix, begin, end, ahead, static_cast<const Input<bf16>*>(x), out);
  } else if (matrix.dtype == Dtype::int8) {
    product<int8>(matrix, begin, end, ahead, static_cast<const float*>(x), out);
    for (std::int64_t i = begin; i < end; ++i) out[i - begin] *= matrix.scales[i];
  } else {
    product<float>(matrix, begin, end, ahead, static_cast<const float*>(x), out);
  }
}

inline const void* input_any(Dtype dtype, const float* x, std::int64_t n, void* memory) {
  if (dtype == Dtype::bfloat16) return input<bf16>(x, n, memory);
  return input<float>(x, n, memory);
}

inline std::int64_t item_bytes(Dtype dtype) {
  return dtype == Dtype::int8 ? 1 : dtype == Dtype::bfloat16 ? 2 : 4;
}

}  // namespace winnow::WINNOW_LEVEL
