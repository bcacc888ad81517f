// Matrix times a few vectors: blocks of rows, claimed in order.
#include "product.hpp"

namespace winnow::WINNOW_LEVEL {

void linear(Context& context, const float* x, std::int64_t batch, const Matrix& matrix, const float* bias, float* out) {
  float* room = context.scratch.floats(0, batch * input_floats(matrix.columns));
  const Vectors xs = vectors(matrix.dtype, x, batch, matrix.columns, room, out, matrix.rows);
  const std::int64_t rows = block_rows(matrix.rows, row_bytes_of(matrix.dtype, matrix.columns));
  const std::int64_t blocks = (matrix.rows + rows - 1) / rows;
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, blocks, [&](std::int64_t block, std::int64_t next) {
      const std::int64_t begin = block * rows, end = begin + rows < matrix.rows ? begin + rows : matrix.rows;
      product_any(matrix, begin, end, next < 0 ? -1 : next * rows, xs, bias);
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, matrix.rows * row_bytes_of(matrix.dtype, matrix.columns), job);
}

}  // namespace winnow::WINNOW_LEVEL
