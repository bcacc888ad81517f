// Keys and values on their way into the cache, rounded to its type.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// Rounds x to whole steps of the returned scale, its largest magnitude to 127: the rule of pack/reference.py.
inline float round_int8(const float* x, std::int64_t n, std::int8_t* to) {
  std::uint32_t most = 0;  // magnitudes are ordered as their bits are, what is no number above all
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float largest;
  __builtin_memcpy(&largest, &most, 4);
  const float scale = largest / 127.f, step = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
  for (std::int64_t i = 0; i < n; ++i) {
    const float shifted = x[i] / step + 12582912.f;  // 1.5 * 2^23: rounds to an integer, kept in the low bits
    std::uint32_t bits;
    __builtin_memcpy(&bits, &shifted, 4);
    to[i] = static_cast<std::int8_t>(bits & 0xffu);
  }
  return scale;
}

// Writes `count` positions of a head's keys or values, from `position` on.
inline void store_rows(const KvBlock& kv, bool are_keys, std::int64_t head, std::int64_t position, std::int64_t count,
                       const float* x) {
  const std::int64_t row = head * kv.capacity + position, at = row * kv.width, n = count * kv.width;
  char* into = are_keys ? kv.keys : kv.values;
  if (kv.dtype == Dtype::int8) {
    auto* to = reinterpret_cast<std::int8_t*>(into) + at;
    float* scales = (are_keys ? kv.key_scales : kv.value_scales) + row;
    for (std::int64_t t = 0; t < count; ++t) scales[t] = round_int8(x + t * kv.width, kv.width, to + t * kv.width);
  } else if (kv.dtype == Dtype::bfloat16) {
    bf16* to = reinterpret_cast<bf16*>(into) + at;
    for (std::int64_t i = 0; i < n; ++i) to[i] = round_bf16(x[i]);
  } else {
    float* to = reinterpret_cast<float*>(into) + at;
    for (std::int64_t i = 0; i < n; ++i) to[i] = x[i];
  }
}

}  // namespace winnow::WINNOW_LEVEL
