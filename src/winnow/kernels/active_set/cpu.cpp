// The low-rank guess: two products, then one ascending list for each vector.
#include "../linear/product.hpp"
#include "listing.hpp"
#include "select.hpp"

namespace winnow::WINNOW_LEVEL {

void active_set(Context& context, const float* x, std::int64_t batch, const Matrix& p1, const Matrix& p2,
                const float* bias, std::int64_t cap, std::int32_t* indices, std::int64_t* count) {
  constexpr std::int64_t block = 256;
  const std::int64_t rank = p1.rows, neurons = p2.rows, blocks = (neurons + block - 1) / block;
  const std::int64_t hidden_blocks = (rank + kRows - 1) / kRows, hidden_room = batch * input_floats(rank);
  float* room = context.scratch.floats(0, batch * input_floats(p1.columns));
  float* hidden = context.scratch.floats(1, (1 + context.pool.threads()) * hidden_room);
  float* scores = context.scratch.floats(2, batch * neurons);
  auto* counts = static_cast<std::int64_t*>(context.scratch.bytes(3, batch * blocks * 8));
  const Vectors xs = vectors(p1.dtype, x, batch, p1.columns, room, hidden, rank);
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, hidden_blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * kRows, end = begin + kRows < rank ? begin + kRows : rank;
      product_any(p1, begin, end, next < 0 ? -1 : next * kRows, xs);
    });
    pool.wait(0, hidden_blocks);
    float* own_room = hidden + (1 + pool.member()) * hidden_room;  // laid out by each sooner than waited for
    const Vectors hiddens = vectors(p2.dtype, hidden, batch, rank, own_room, scores, neurons);
    each_block_ahead(pool, 1, blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * block, end = begin + block < neurons ? begin + block : neurons;
      product_any(p2, begin, end, next < 0 ? -1 : next * block, hiddens, bias);
      for (std::int64_t v = 0; v < batch; ++v) {
        const float* score = scores + v * neurons;
        // what is not a number is selected
        counts[v * blocks + b] =
            list_block(begin, end, indices + v * neurons, [&](std::int64_t f) { return !(score[f] <= 0.f); });
      }
    });
    pool.wait(1, blocks);
  };
  run_job(context.pool, rank * row_bytes_of(p1.dtype, p1.columns) + neurons * row_bytes_of(p2.dtype, rank), job);
  for (std::int64_t v = 0; v < batch; ++v) {
    std::int32_t* listed = indices + v * neurons;
    const std::int64_t n = join_blocks(block, blocks, counts + v * blocks, listed);
    count[v] = cap > 0 && n > cap ? keep_highest(scores + v * neurons, listed, n, cap) : n;
  }
}

}  // namespace winnow::WINNOW_LEVEL
