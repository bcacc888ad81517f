// The low-rank guess: two products, then one ascending list.
#include "../linear/product.hpp"
#include "listing.hpp"
#include "select.hpp"

namespace winnow::WINNOW_LEVEL {

std::int64_t active_set(Context& context, const float* x, const Matrix& p1, const Matrix& p2, const float* bias,
                        std::int64_t cap, std::int32_t* indices) {
  constexpr std::int64_t block = 256;
  const std::int64_t rank = p1.rows, neurons = p2.rows, blocks = (neurons + block - 1) / block;
  const std::int64_t hidden_blocks = (rank + kRows - 1) / kRows;
  const void* input = input_any(p1.dtype, x, p1.columns, context.scratch.floats(0, input_floats(p1.columns)));
  float* hidden = context.scratch.floats(1, 2 * input_floats(rank));
  float* hidden_input = hidden + input_floats(rank);
  float* scores = context.scratch.floats(2, neurons);
  auto* counts = static_cast<std::int64_t*>(context.scratch.bytes(3, blocks * 8));
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, hidden_blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * kRows, end = begin + kRows < rank ? begin + kRows : rank;
      product_any(p1, begin, end, next < 0 ? -1 : next * kRows, input, hidden + begin);
    });
    pool.wait(0, hidden_blocks);
    each_block(pool, 1, 1, [&](std::int64_t) { input_any(p2.dtype, hidden, rank, hidden_input); });
    pool.wait(1, 1);
    each_block_ahead(pool, 2, blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * block, end = begin + block < neurons ? begin + block : neurons;
      product_any(p2, begin, end, next < 0 ? -1 : next * block, hidden_input, scores + begin);
      for (std::int64_t f = begin; f < end; ++f) scores[f] += bias[f];
      // what is not a number is selected
      counts[b] = list_block(begin, end, indices, [&](std::int64_t f) { return !(scores[f] <= 0.f); });
    });
    pool.wait(2, blocks);
  };
  run_job(context.pool, rank * row_bytes_of(p1.dtype, p1.columns) + neurons * row_bytes_of(p2.dtype, rank), job);
  const std::int64_t n = join_blocks(block, blocks, counts, indices);
  return cap > 0 && n > cap ? keep_highest(scores, indices, n, cap) : n;
}

}  // namespace winnow::WINNOW_LEVEL
