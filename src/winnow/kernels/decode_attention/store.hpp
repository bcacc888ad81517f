// Keys and values on their way into the cache, rounded to its type.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Writes n numbers into a block's keys or values, from element `at` on.
inline void store_rows(const KvBlock& kv, char* into, std::int64_t at, std::int64_t n, const float* x) {
  if (kv.dtype == Dtype::bfloat16) {
    bf16* to = reinterpret_cast<bf16*>(into) + at;
    for (std::int64_t i = 0; i < n; ++i) to[i] = round_bf16(x[i]);
  } else {
    float* to = reinterpret_cast<float*>(into) + at;
    for (std::int64_t i = 0; i < n; ++i) to[i] = x[i];
  }
}

}  // namespace winnow::WINNOW_LEVEL
