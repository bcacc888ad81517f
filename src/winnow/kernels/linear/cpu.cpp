// Matrix times vector: blocks of rows, claimed in order.
#include "product.hpp"

namespace winnow::WINNOW_LEVEL {

void linear(Context& context, const float* x, const Matrix& matrix, const float* bias, float* out) {
  const void* input = input_any(matrix.dtype, x, matrix.columns, context.scratch.floats(0, input_floats(matrix.columns)));
  const std::int64_t rows = block_rows(matrix.rows, row_bytes_of(matrix.dtype, matrix.columns));
  const std::int64_t blocks = (matrix.rows + rows - 1) / rows;
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, blocks, [&](std::int64_t block, std::int64_t next) {
      const std::int64_t begin = block * rows, end = begin + rows < matrix.rows ? begin + rows : matrix.rows;
      product_any(matrix, begin, end, next < 0 ? -1 : next * rows, input, out + begin);
      if (bias) {
        for (std::int64_t i = begin; i < end; ++i) out[i] += bias[i];
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, matrix.rows * row_bytes_of(matrix.dtype, matrix.columns), job);
}

}  // namespace winnow::WINNOW_LEVEL
