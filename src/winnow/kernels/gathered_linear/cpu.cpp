// Products with some blocks of rows of a matrix: each block's own outputs, or the sum of what the rows add to all.
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

// The bits of a row are those of `linear`.
void gathered_rows(Context& context, const float* x, const Matrix& matrix, const float* bias, const std::int32_t* blocks,
                   std::int64_t count, std::int64_t rows, float* out) {
  const void* input = input_any(matrix.dtype, x, matrix.columns, context.scratch.floats(0, input_floats(matrix.columns)));
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, count, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = blocks[b] * rows;
      product_any(matrix, begin, begin + rows, next < 0 ? -1 : blocks[next] * rows, input, out + begin);
      if (bias) {
        for (std::int64_t i = begin; i < begin + rows; ++i) out[i] += bias[i];
      }
    });
    pool.wait(0, count);
  };
  run_job(context.pool, count * rows * row_bytes_of(matrix.dtype, matrix.columns), job);
}

// The columns begin..end-1 of the sum, row after row: who works on them changes no bit. begin is a multiple of kPair
// and of a group.
template <class W>
static void add_rows(const float* a, const Matrix& matrix, const float* bias, const std::int32_t* blocks,
                     std::int64_t count, std::int64_t rows, std::int64_t begin, std::int64_t end, float* out) {
  const std::int64_t all = count * rows, width = end - begin;
  const auto row = [&](std::int64_t i) { return blocks[i / rows] * rows + i % rows; };
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  float* y = out + begin;
  for (std::int64_t d = 0; d < width; ++d) y[d] = 0.f;
  Row<W> now[kRows], next[kRows];
  float weights[kRows];
  for (std::int64_t i = 0; i < all; i += kRows) {
    const int size = static_cast<int>(all - i < kRows ? all - i : kRows);
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t ahead = i + kRows + r < all ? i + kRows + r : all - 1;
      next[r] = row_of<W>(matrix, row(ahead)) + begin;
      if (r >= size) continue;
      const std::int64_t own = row(i + r);
      now[r] = row_of<W>(matrix, own) + begin;
      weights[r] = a[own];
      if constexpr (std::is_same_v<W, int8>) weights[r] *= scales[own * matrix.scale_stride];
    }
    axpy8<W>(now, weights, size, width, y, next);
  }
  settle<W>(y, width);
  if (bias) {
    for (std::int64_t d = 0; d < width; ++d) y[d] += bias[begin + d];
  }
}

void gathered_columns(Context& context, const float* a, const Matrix& matrix, const float* bias,
                      const std::int32_t* blocks, std::int64_t count, std::int64_t rows, float* out) {
  constexpr std::int64_t unit = 64, least = 256;  // columns: of a piece's beginning, and of a piece
  const std::int64_t columns = matrix.columns, wanted = 2 * context.pool.threads();
  const std::int64_t pieces = columns / least < 1 ? 1 : columns / least < wanted ? columns / least : wanted;
  const auto start = [&](std::int64_t piece) { return piece < pieces ? piece * columns / pieces / unit * unit : columns; };
  auto job = [&](Pool& pool) {
    each_block(pool, 0, pieces, [&](std::int64_t piece) {
      of_weights(matrix.dtype, [&](auto w) {
        add_rows<decltype(w)>(a, matrix, bias, blocks, count, rows, start(piece), start(piece + 1), out);
      });
    });
    pool.wait(0, pieces);
  };
  run_job(context.pool, count * rows * row_bytes_of(matrix.dtype, columns), job);
}

}  // namespace winnow::WINNOW_LEVEL
