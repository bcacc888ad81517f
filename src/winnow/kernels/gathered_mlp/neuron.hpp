// One neuron's record, by operands, and its activation.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"
#include "../native/simd/exponential.hpp"

namespace winnow::WINNOW_LEVEL {

// Where the parts of a record lie:
//
//   float32, bfloat16   w_in | w_up if gated | w_out | bias, bias_up
//   int8                the same, then the scales of w_in, w_up, w_out
//   int4                the groups of w_in, w_up, w_out | their scales | bias, bias_up
//   coded               w_in, w_up, w_out as coded rows, each with its own front | bias, bias_up
template <class W>
struct Parts {
  const NeuronRecords& records;

  Row<W> row(std::int64_t neuron) const {
    const char* record = at(neuron);
    if constexpr (std::is_same_v<W, int4>) {
      return {reinterpret_cast<const unsigned char*>(record), reinterpret_cast<const bf16*>(record + weights() / 2), 0};
    } else if constexpr (std::is_same_v<W, coded>) {
      return {reinterpret_cast<const unsigned char*>(record) + front_bytes(records.width), 0};
    } else {
      return reinterpret_cast<const W*>(record);
    }
  }

  // From the beginning of one part of a record to that of another, `weights` later.
  Row<W> moved(Row<W> row, std::int64_t weights) const {
    if constexpr (std::is_same_v<W, coded>) {
      return {row.chunks + weights / records.width * coded_row_bytes(records.width), 0};
    } else {
      return row + weights;
    }
  }

  // bias, bias_up if gated, and what else belongs to the neuron as a whole
  const float* tail(std::int64_t neuron) const {
    std::int64_t offset;
    if constexpr (std::is_same_v<W, int4>) {
      offset = weights() / 2 + weights() / kGroup * 2;
    } else if constexpr (std::is_same_v<W, coded>) {
      offset = parts() * coded_row_bytes(records.width);
    } else {
      offset = weights() * static_cast<std::int64_t>(sizeof(W));
    }
    return reinterpret_cast<const float*>(at(neuron) + (offset + 3) / 4 * 4);
  }

  // In weights from the start of a record.
  std::int64_t up() const { return records.width; }
  std::int64_t out() const { return (parts() - 1) * records.width; }

  // The scale of the part that begins at `part`, for int8.
  float scale(const float* tail, std::int64_t part) const { return tail[parts() - 1 + part / records.width]; }

 private:
  std::int64_t parts() const { return records.gated ? 3 : 2; }
  std::int64_t weights() const { return parts() * records.width; }
  const char* at(std::int64_t neuron) const { return records.data + neuron * records.record_bytes; }
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

// The inner products of eight neurons' parts at `part` with x; `rows` point to them.
template <class W>
inline void part_dots(const Parts<W>& parts, const Row<W> rows[kRows], const float* const tails[kRows], std::int64_t part,
                      const Input<W>* x, float out[kRows], const Row<W>* next) {
  dot<W>(rows, x, parts.records.width, out, next);
  if constexpr (std::is_same_v<W, int8>) {
    for (int r = 0; r < kRows; ++r) out[r] *= parts.scale(tails[r], part);
  }
}

}  // namespace winnow::WINNOW_LEVEL
