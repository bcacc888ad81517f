// The gate rows of gated records, a third of each: every neuron's gate, then one ascending list for each vector.
#include "../active_set/listing.hpp"
#include "../gathered_mlp/neuron.hpp"
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

// The gates of the neurons begin..end-1, eight rows side by side; the block that begins at `ahead` is read next (none if
// negative). The bits of a gate are those of the MLP.
template <class W>
static void gates_of(const Parts<W>& parts, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                     const Vectors& xs, Activation activation) {
  const std::int64_t last = parts.records.neurons - 1;
  struct Eight {
    Row<W> rows[kRows];
    const float* tails[kRows];
  };
  const auto point = [&](Eight& eight, std::int64_t first) {
    for (int r = 0; r < kRows; ++r) {  // the last neuron stands in for those that are missing
      const std::int64_t neuron = first + r < last ? first + r : last;
      eight.rows[r] = parts.row(neuron);
      eight.tails[r] = parts.tail(neuron);
      prefetch(eight.tails[r]);
    }
  };
  Eight now, next = {};
  point(now, begin);
  for (std::int64_t f = begin; f < end; f += kRows) {
    const std::int64_t then = f + kRows < end ? f + kRows : ahead;
    if (then >= 0) point(next, then);
    const int size = static_cast<int>(f + kRows < end ? kRows : end - f);
    for (int v = 0; v < xs.count; ++v) {
      float values[2 * kRows] = {};
      part_dots<W>(parts, now.rows, now.tails, 0, static_cast<const Input<W>*>(xs.x[v]), values,
                   v == 0 && then >= 0 ? next.rows : nullptr);
      for (int r = 0; r < size; ++r) values[r] += now.tails[r][0];
      activate(activation, values);
      for (int r = 0; r < size; ++r) xs.out[v][f + r] = values[r];
    }
    now = next;
  }
}

void gate_set(Context& context, const float* x, std::int64_t batch, const NeuronRecords& records,
              const float* thresholds, Activation activation, std::int32_t* indices, std::int64_t* count,
              float* gates) {
  const std::int64_t neurons = records.neurons, row_bytes = row_bytes_of(records.dtype, records.width);
  const std::int64_t block = block_rows(neurons, row_bytes), blocks = (neurons + block - 1) / block;
  float* room = context.scratch.floats(0, batch * input_floats(records.width));
  const Vectors xs = vectors(records.dtype, x, batch, records.width, room, gates, neurons);
  auto* counts = static_cast<std::int64_t*>(context.scratch.bytes(3, batch * blocks * 8));
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * block, end = begin + block < neurons ? begin + block : neurons;
      of_weights(records.dtype, [&](auto w) {
        using W = decltype(w);
        gates_of<W>(Parts<W>{records}, begin, end, next < 0 ? -1 : next * block, xs, activation);
      });
      for (std::int64_t v = 0; v < batch; ++v) {
        const float* gate = gates + v * neurons;
        counts[v * blocks + b] = list_block(begin, end, indices + v * neurons, [&](std::int64_t f) {
          return !(__builtin_fabsf(gate[f]) <= thresholds[f]);  // what is not a number is selected
        });
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, neurons * row_bytes, job);
  for (std::int64_t v = 0; v < batch; ++v) {
    count[v] = join_blocks(block, blocks, counts + v * blocks, indices + v * neurons);
  }
}

}  // namespace winnow::WINNOW_LEVEL
