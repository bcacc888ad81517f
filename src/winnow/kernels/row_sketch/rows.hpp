// What a level offers for tall matrices: passes over their rows, and the triangle that these end in.
#pragma once

#include "../native/kernels.hpp"

namespace winnow {

// Rows that are summed by themselves: a sum over rows is a sum over segments, in order, whoever computed them.
constexpr std::int64_t kSegment = 1024;
constexpr std::int64_t kTile = 16;  // columns of a sketch that lie together

struct RowBlock {
  const char* data;  // float64, or float32 that is widened as it is loaded
  std::int64_t rows, columns;
  bool is_double;
};

struct RowKernels {
  // out[tile][height][kTile] += signs @ block, row after row; `first` is the number of the block's first row
  void (*sketch)(Context&, const RowBlock&, std::int64_t first, std::uint64_t seed, std::int64_t nonzeros,
                 std::int64_t height, double* out);
  // the upper triangle of out[columns][columns] += block^T block
  void (*gram)(Context&, const RowBlock&, double* out);
  // v = x[vectors] block^T - b; out[vectors][columns] += v block; squares[vectors] += |v|^2. b: null for none, a vector
  // every b_stride numbers.
  void (*normal)(Context&, const RowBlock&, std::int64_t vectors, const double* x, const double* b,
                 std::int64_t b_stride, double* out, double* squares);
  // out[rows] = sum over the vectors of (x block^T)^2
  void (*scores)(Context&, const RowBlock&, std::int64_t vectors, const double* x, double* out);
  // g[n][n] = R^T R by its upper triangle, in place; returns the first row whose pivot is not above 0, or n
  std::int64_t (*cholesky)(double* g, std::int64_t n);
  // x[vectors][n] = R^-1 x or R^-T x
  void (*solve)(const double* r, std::int64_t n, bool transposed, std::int64_t vectors, double* x);
};

}  // namespace winnow
