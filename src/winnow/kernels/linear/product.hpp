// A range of rows of a matrix times a few vectors, for the kernels that need it as a part.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Rows per block: about 64 KB of weights, and at least 32 blocks where there are rows enough.
inline std::int64_t block_rows(std::int64_t rows, std::int64_t row_bytes) {
  std::int64_t by_bytes = (64 << 10) / row_bytes, by_share = rows / 32;
  std::int64_t n = by_bytes < by_share ? by_bytes : by_share;
  return n < kRows ? kRows : n / kRows * kRows;
}

template <class W>
inline Row<W> row_of(const Matrix& matrix, std::int64_t i) {
  if constexpr (std::is_same_v<W, int4>) {
    const auto* groups = reinterpret_cast<const unsigned char*>(matrix.data);
    const auto* scales = reinterpret_cast<const bf16*>(matrix.scales);
    return {groups + i * (matrix.row_stride / 2), scales + i * matrix.scale_stride, 0};
  } else if constexpr (std::is_same_v<W, coded>) {
    const auto* rows = reinterpret_cast<const unsigned char*>(matrix.data);
    return {rows + i * matrix.row_stride + front_bytes(matrix.columns), 0};
  } else {
    return reinterpret_cast<const W*>(matrix.data) + i * matrix.row_stride;
  }
}

// The row after `row` of the same matrix.
template <class W>
inline Row<W> row_after(const Matrix& matrix, Row<W> row) {
  if constexpr (std::is_same_v<W, int4>) {
    return {row.groups + matrix.row_stride / 2, row.scales + matrix.scale_stride, row.at};
  } else if constexpr (std::is_same_v<W, coded>) {
    return {row.chunks + matrix.row_stride, row.at};
  } else {
    return row + matrix.row_stride;
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

constexpr std::int64_t kShortBytes = 256;  // rows of no more are read eight at a time

// product() for short rows that lie in order. The bits are those of `dot`.
template <class W>
inline void product_of_short(const Matrix& matrix, std::int64_t begin, std::int64_t end, const Vectors& vectors) {
  const std::int64_t n = matrix.columns, far = kFarBytes / kLineBytes * kLine<W>;
  for (std::int64_t i = begin; i < end; i += kRows) {
    const std::int64_t some = end - i < kRows ? end - i : kRows;
    Row<W> rows[kRows], later[kRows];
    rows[0] = row_of<W>(matrix, i);
    for (std::int64_t r = 1; r < kRows; ++r) rows[r] = r < some ? row_after<W>(matrix, rows[r - 1]) : rows[r - 1];
    if constexpr (kStreams == 1) {
      for (std::int64_t l = 0; l < kRows * n; l += kLine<W>) prefetch(rows[0] + l + far);
    } else {  // between the products: asked for so many lines at once Intel's processors wait
      for (std::int64_t r = 0; r < kRows; ++r) later[r] = rows[r] + far;
    }
    for (int b = 0; b < vectors.count; ++b) {
      float sums[kRows];
      dot<W>(rows, static_cast<const Input<W>*>(vectors.x[b]), n, sums, kStreams > 1 && b == 0 ? later : nullptr);
      float* out = vectors.out[b] + i;
      if (some == kRows) {
        __builtin_memcpy(out, sums, sizeof sums);
      } else {
        for (std::int64_t r = 0; r < some; ++r) out[r] = sums[r];
      }
    }
  }
}

// The sums of one row or two, from the first on, with one vector or two; `sums` is that of the first of them.
template <int kCount, int kVectors, class W>
inline void some_sums(const Row<W>* rows, const Row<W>* later, int fetched, const Input<W>* const* x, std::int64_t n,
                      Floats (*sums)[kRows]) {
  Floats found[kVectors][kCount];
  row_sums<kCount, kVectors, W>(rows, later, fetched, x, n, found);
  for (int v = 0; v < kVectors; ++v) {
    for (int r = 0; r < kCount; ++r) sums[v][r] = found[v][r];
  }
}

// A walk through a range of rows, in order, or by turns through as many parts of it as there are streams; with what is
// fetched meanwhile: the rows `far` later in their stream, then those with which a range of as many rows from `ahead` on
// begins (none if negative: then its own).
template <class W>
class Walk {
 public:
  Walk(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead, std::int64_t far)
      : matrix_(matrix), part_((end - begin + kStreams - 1) / kStreams) {
    for (int s = 0; s < kStreams; ++s) {
      const std::int64_t first = begin + s * part_, rows = end - first < part_ ? end - first : part_;
      const std::int64_t over = far < rows ? 0 : far - rows;
      numbers_[s] = first;
      rows_[s] = row_of<W>(matrix, first);
      later_[s] = row_of<W>(matrix, first + far);
      left_[s] = rows - far + over;
      nexts_[s] = (ahead < 0 ? first : ahead + s * part_) + over;
    }
  }

  static_assert(kRows % kStreams == 0, "each eight rows of a walk begin with its first stream");
  // Row number i of the walk, what is fetched while it is read, and its number in the matrix.
  std::int64_t next(std::int64_t i, Row<W>& row, Row<W>& later) {
    const int s = static_cast<int>(i % kStreams);
    if (left_[s]-- == 0) later_[s] = row_of<W>(matrix_, nexts_[s]);
    row = rows_[s];
    later = later_[s];
    rows_[s] = row_after<W>(matrix_, row);
    later_[s] = row_after<W>(matrix_, later);
    return numbers_[s]++;
  }

 private:
  const Matrix& matrix_;
  std::int64_t part_;
  std::int64_t numbers_[kStreams], left_[kStreams], nexts_[kStreams];
  Row<W> rows_[kStreams], later_[kStreams];
};

// out[b][i] = row i . x[b], for begin <= i < end: rows one after the other, one or two streams of memory, read once for all
// vectors. The block that begins at `ahead` is read next (none if negative).
//
// Eight rows stay in the cache while the vectors pass, two at a time; each pass fetches its part of the next eight.
template <class W>
inline void product(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                    const Vectors& vectors) {
  const std::int64_t n = matrix.columns, bytes = row_bytes_of(matrix.dtype, n);
  if (matrix.row_stride == n && bytes <= kShortBytes) return product_of_short<W>(matrix, begin, end, vectors);
  const int count = vectors.count, passes = (count + kVectorsTogether - 1) / kVectorsTogether;
  // Each of as many passes fetches its part of a row.
  const int parts = passes >= kLinesAtOnce ? kLinesAtOnce : passes >= 2 ? 2 : 1;
  const std::int64_t part = (n / parts + kLine<W> - 1) / kLine<W> * kLine<W>;
  Walk<W> walk(matrix, begin, end, ahead, passes > 1 ? kRows / kStreams : (kFarBytes + bytes - 1) / bytes);
  // With few vectors rows wait for memory, and rows one by one are quicker than two at once.
  const int together = count > kVectorsTogether || kOwnLoops<W> ? kRowsTogether : 1;
  const Input<W>* x[kMostBatch];
  for (int b = 0; b < count; ++b) x[b] = static_cast<const Input<W>*>(vectors.x[b]);
  for (std::int64_t first = 0; first < end - begin; first += kRows) {
    const int some = end - begin - first < kRows ? static_cast<int>(end - begin - first) : kRows;
    Row<W> rows[kRows], later[kRows];
    std::int64_t numbers[kRows];
    for (int r = 0; r < some; ++r) numbers[r] = walk.next(r, rows[r], later[r]);
    Floats sums[kMostBatch][kRows];
    for (int pass = 0; pass < passes; ++pass) {
      const int b = pass * kVectorsTogether, fetched = pass < parts ? kLinesAtOnce / parts : 0;
      for (int r = 0, taken; r < some; r += taken) {
        taken = r + together <= some ? together : 1;
        const bool are_two = b + 1 < count;
        auto* to = reinterpret_cast<Floats(*)[kRows]>(&sums[b][r]);
        if (taken == 1) {
          are_two ? some_sums<1, 2, W>(rows + r, later + r, fetched, x + b, n, to)
                  : some_sums<1, 1, W>(rows + r, later + r, fetched, x + b, n, to);
        } else {
          are_two ? some_sums<kRowsTogether, 2, W>(rows + r, later + r, fetched, x + b, n, to)
                  : some_sums<kRowsTogether, 1, W>(rows + r, later + r, fetched, x + b, n, to);
        }
        for (int i = r; i < r + taken; ++i) later[i] = later[i] + part;
      }
    }
    for (int b = 0; b < count; ++b) {
      for (int r = some; r < kRows; ++r) sums[b][r] = zero();
      float added[kRows];
      add_up(sums[b], x[b], added);
      for (int r = 0; r < some; ++r) vectors.out[b][numbers[r]] = added[r];
    }
  }
}

// Fetches what the products of a range of rows are multiplied by and moved by, so that they need not wait for it.
inline void fetch_scales_and_bias(const Matrix& matrix, std::int64_t begin, std::int64_t end, const float* bias) {
  constexpr std::int64_t line = kLineBytes / static_cast<std::int64_t>(sizeof(float));
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  for (std::int64_t i = begin; i < end; i += line) {
    if (matrix.dtype == Dtype::int8) prefetch(scales + i * matrix.scale_stride);
    if (bias) prefetch(bias + i);
  }
}

// product() for the matrix's type, plus the bias if there is one.
inline void product_any(const Matrix& matrix, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                        const Vectors& vectors, const float* bias = nullptr) {
  fetch_scales_and_bias(matrix, begin, end, bias);
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
