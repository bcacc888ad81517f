// A range of rows of a matrix times a few vectors, for the kernels that need it as a part.
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

// The vectors of a batch, each in the form that rows are multiplied with, and where its products go.
struct Vectors {
  const void* x[kMostBatch];
  float* out[kMostBatch];
  int count = 0;
};

// Lays out the `batch` rows of x; the products of each with a matrix of `rows` rows stand in a row of `out`.
inline Vectors vectors(Dtype dtype, const float* x, std::int64_t batch, std::int64_t n, float* memory, float* out,
                       std::int64_t rows) {
  Vectors made;
  of_weights(dtype, [&](auto w) {
    for (std::int64_t b = 0; b < batch; ++b) {
      made.x[b] = input<decltype(w)>(x + b * n, n, memory + b * input_floats(n));
      made.out[b] = out + b * rows;
    }
  });
  made.count = static_cast<int>(batch);
  return made;
}

constexpr std::int64_t kShortBytes = 256;  // rows of no more are read eight at a time, one after the other

// product() for short rows that lie in order: one run of memory. The bits are the same.
template <class W>
inline void product_of_short(const Matrix& matrix, std::int64_t begin, std::int64_t end, const Vectors& vectors) {
  const std::int64_t n = matrix.columns, last = matrix.rows - 1;
  for (std::int64_t i = begin; i < end; i += kRows) {
    Row<W> rows[kRows];
    for (std::int64_t r = 0; r < kRows; ++r) rows[r] = row_of<W>(matrix, i + r < last ? i + r : last);
    for (std::int64_t l = 0; l < kRows * n; l += kLine<W>) prefetch(rows[0] + l + kStreams * kAhead<W>);
    for (int b = 0; b < vectors.count; ++b) {
      float sums[kRows];
      dot<W>(rows, static_cast<const Input<W>*>(vectors.x[b]), n, sums);
      for (std::int64_t r = 0; r < kRows && i + r < end; ++r) vectors.out[b][i + r] = sums[r];
    }
  }
}

// out[b][i] = row i . x[b], for begin <= i < end; the block that begins at `ahead` is read next (none if negative).
// The rows are four runs, read side by side: each is memory in order, and read once for all vectors.
template <class W>
inline void product(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                    const Vectors& vectors) {
  if (matrix.row_stride == matrix.columns && row_bytes_of(matrix.dtype, matrix.columns) <= kShortBytes) {
    return product_of_short<W>(matrix, begin, end, vectors);
  }
  const std::int64_t run = (end - begin) / kStreams, last = matrix.rows - 1;
  const auto row = [&](std::int64_t i) { return row_of<W>(matrix, i < last ? i : last); };
  const Input<W>* x[kMostBatch];
  for (int b = 0; b < vectors.count; ++b) x[b] = static_cast<const Input<W>*>(vectors.x[b]);
  Row<W> rows[kStreams], next[kStreams];
  float sums[kTogether<W>][kRows];
  for (std::int64_t i = 0; i < run; ++i) {
    for (int s = 0; s < kStreams; ++s) {
      rows[s] = row(begin + s * run + i);
      next[s] = row(i + 1 < run || ahead < 0 ? begin + s * run + i + 1 : ahead + s * run);
    }
    const auto keep = [&](int b, const float* sum) {
      for (int s = 0; s < kStreams; ++s) vectors.out[b][begin + s * run + i] = sum[s];
    };
    int b = 0;
    for (; b + kTogether<W> <= vectors.count; b += kTogether<W>) {
      dots<W, kStreams>(rows, x + b, matrix.columns, sums, b == 0 ? next : nullptr);
      for (int v = 0; v < kTogether<W>; ++v) keep(b + v, sums[v]);
    }
    for (; b < vectors.count; ++b) {
      dot<W, kStreams>(rows, x[b], matrix.columns, sums[0], b == 0 ? next : nullptr);
      keep(b, sums[0]);
    }
  }
  if (const std::int64_t done = begin + kStreams * run; done < end) {
    for (int s = 0; s < kStreams; ++s) rows[s] = row(done + s);
    for (int b = 0; b < vectors.count; ++b) {
      dot<W, kStreams>(rows, x[b], matrix.columns, sums[0]);
      for (std::int64_t i = done; i < end; ++i) vectors.out[b][i] = sums[0][i - done];
    }
  }
}

// product() for the matrix's type, plus the bias if there is one.
inline void product_any(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                        const Vectors& vectors, const float* bias = nullptr) {
  of_weights(matrix.dtype, [&](auto w) { product<decltype(w)>(matrix, begin, end, ahead, vectors); });
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  for (int b = 0; b < vectors.count; ++b) {
    float* out = vectors.out[b];
    if (matrix.dtype == Dtype::int8) {
      for (std::int64_t i = begin; i < end; ++i) out[i] *= scales[i * matrix.scale_stride];
    }
    if (bias) {
      for (std::int64_t i = begin; i < end; ++i) out[i] += bias[i];
    }
  }
}

}  // namespace winnow::WINNOW_LEVEL
