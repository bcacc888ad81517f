// The gate rows of gated records, a third of each: every neuron's gate, then one ascending list.
#include "../active_set/listing.hpp"
#include "../gathered_mlp/neuron.hpp"
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

// The gates of the neurons begin..end-1, eight rows side by side; the block that begins at `ahead` is read next (none if
// negative). The bits of a gate are those of the MLP.
template <class W>
static void gates_of(const Parts<W>& parts, std::int64_t begin, std::int64_t end, std::int64_t ahead,
                     const Input<W>* x, Activation activation, float* gates) {
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
    float values[2 * kRows] = {};
    part_dots<W>(parts, now.rows, now.tails, 0, x, values, then >= 0 ? next.rows : nullptr);
    const int size = static_cast<int>(f + kRows < end ? kRows : end - f);
    for (int r = 0; r < size; ++r) values[r] += now.tails[r][0];
    activate(activation, values);
    for (int r = 0; r < size; ++r) gates[f + r] = values[r];
    now = next;
  }
}

template <class W>
static std::int64_t gate_set_typed(Context& context, const float* x, const NeuronRecords& records,
                                   const float* thresholds, Activation activation, std::int32_t* indices,
                                   float* gates) {
  const std::int64_t neurons = records.neurons, row_bytes = row_bytes_of(records.dtype, records.width);
  const std::int64_t block = block_rows(neurons, row_bytes), blocks = (neurons + block - 1) / block;
  const Input<W>* laid_out = input<W>(x, records.width, context.scratch.floats(0, input_floats(records.width)));
  auto* counts = static_cast<std::int64_t*>(context.scratch.bytes(3, blocks * 8));
  const Parts<W> parts{records};
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, blocks, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = b * block, end = begin + block < neurons ? begin + block : neurons;
      gates_of<W>(parts, begin, end, next < 0 ? -1 : next * block, laid_out, activation, gates);
      counts[b] = list_block(begin, end, indices, [&](std::int64_t f) {
        return !(__builtin_fabsf(gates[f]) <= thresholds[f]);  // what is not a number is selected
      });
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, neurons * row_bytes, job);
  return join_blocks(block, blocks, counts, indices);
}

std::int64_t gate_set(Context& context, const float* x, const NeuronRecords& records, const float* thresholds,
                      Activation activation, std::int32_t* indices, float* gates) {
  std::int64_t count = 0;
  of_weights(records.dtype, [&](auto w) {
    count = gate_set_typed<decltype(w)>(context, x, records, thresholds, activation, indices, gates);
  });
  return count;
}

}  // namespace winnow::WINNOW_LEVEL
