// Lists of neurons: each block keeps its own part, the parts are joined in order.
#pragma once

#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Writes the neurons of the block for which `keeps(neuron)` to the start of its part of `indices`; returns how many.
template <class F>
inline std::int64_t list_block(std::int64_t begin, std::int64_t end, std::int32_t* indices, F keeps) {
  std::int64_t n = begin;
  for (std::int64_t f = begin; f < end; ++f) {
    indices[n] = static_cast<std::int32_t>(f);
    n += keeps(f);
  }
  return n - begin;
}

// Moves the parts of blocks of `block` neurons together; returns how many neurons they hold.
inline std::int64_t join_blocks(std::int64_t block, std::int64_t blocks, const std::int64_t* counts,
                                std::int32_t* indices) {
  std::int64_t n = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    __builtin_memmove(indices + n, indices + b * block, static_cast<std::size_t>(counts[b]) * sizeof(std::int32_t));
    n += counts[b];
  }
  return n;
}

}  // namespace winnow::WINNOW_LEVEL
