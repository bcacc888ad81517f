// One neuron's record, by operands.py, and its activation.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Where the parts of a record lie: w_in | w_up if gated | w_out | bias, bias_up.
template <class W>
struct Parts {
  const NeuronRecords& records;

  const W* row(std::int64_t neuron) const {
    return reinterpret_cast<const W*>(records.data + neuron * records.record_bytes);
  }
  const float* biases(std::int64_t neuron) const {
    return reinterpret_cast<const float*>(records.data + neuron * records.record_bytes + bias_offset());
  }

  // In elements from the start of a record.
  std::int64_t up() const { return records.width; }
  std::int64_t out() const { return (records.gated ? 2 : 1) * records.width; }

 private:
  std::int64_t bias_offset() const {  // in bytes
    return ((out() + records.width) * static_cast<std::int64_t>(sizeof(W)) + 3) / 4 * 4;
  }
};

// act(v) for eight values, in room for sixteen; what is not a number stays so.
inline void activate(Activation activation, float v[2 * kRows]) {
  if (activation == Activation::relu) {
    for (int r = 0; r < kRows; ++r) v[r] = v[r] > 0.f ? v[r] : (v[r] != v[r] ? v[r] : 0.f);
    return;
  }
  for (int r = 0; r < kRows; r += kLanes) {
    const Floats a = load(v + r);
    store(v + r, a / (splat(1.f) + exponential(zero() - a)));
  }
}

}  // namespace winnow::WINNOW_LEVEL
