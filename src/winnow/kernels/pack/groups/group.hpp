// A group of 32 floats into four bits each and a scale.
//
// Plain loops, as in ../cpu.cpp, each short enough to be turned into vectors.
#pragma once

#include "../../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

inline std::int32_t magnitude(float a) {  // whole numbers in the order of |a|, what is no number above all
  std::int32_t bits;
  __builtin_memcpy(&bits, &a, 4);
  return bits & 0x7fffffff;
}

inline float nearest(float a) {  // whole, ties to even, for |a| < 2^22
  return (a + 12582912.f) - 12582912.f;
}

// The first of the largest magnitudes, with its sign.
inline float peak_of(const float* x) {
  std::int32_t most = 0, first = kGroup;
  for (std::int32_t j = 0; j < kGroup; ++j) {
    const std::int32_t own = magnitude(x[j]);
    most = own > most ? own : most;
  }
  for (std::int32_t j = 0; j < kGroup; ++j) {
    const std::int32_t found = magnitude(x[j]) == most ? j : static_cast<std::int32_t>(kGroup);
    first = found < first ? found : first;
  }
  return x[first];
}

inline float whole_step(float steps) {
  const float whole = nearest(steps), high = whole < -8.f ? -8.f : whole;
  return high > 7.f ? 7.f : high;
}

// The squares of what rounding to whole steps loses, in 1024ths of a step: their sum is the same in any order.
inline std::int32_t lost_in_steps(const float* x, float scale) {
  const float inverse = 1.f / scale;
  std::int32_t lost[kGroup], sum = 0;
  for (std::int64_t j = 0; j < kGroup; ++j) {
    const float steps = x[j] * inverse, own = nearest((steps - whole_step(steps)) * 1024.f);
    lost[j] = static_cast<std::int32_t>(own == own ? own : 0.f);
  }
  for (std::int64_t j = 0; j < kGroup; ++j) sum += lost[j] * lost[j];
  return sum;
}

constexpr float kLeastNormal = 1.17549435e-38f;

// Of the scales that put the peak at the first of these steps, -8, or at another, the one that loses least; the first
// where it is so small that it may have no inverse.
inline bf16 scale_of(const float* x) {
  constexpr float kPeaks[7] = {-8.f, -7.5f, -7.75f, -8.25f, -8.5f, -8.75f, -9.f};
  const float peak = peak_of(x);
  bf16 best = round_bf16(peak / kPeaks[0]);
  const float first = widened(best);
  if (__builtin_fabsf(first) < kLeastNormal) return best;
  float least = static_cast<float>(lost_in_steps(x, first));
  for (int i = 1; i < 7; ++i) {
    const bf16 scale = round_bf16(peak / kPeaks[i]);
    const float ratio = widened(scale) / first;
    const float lost = static_cast<float>(lost_in_steps(x, widened(scale))) * (ratio * ratio);
    if (lost < least) {  // never where the peak is not finite
      least = lost;
      best = scale;
    }
  }
  return best;
}

inline void pack_group(const float* x, unsigned char* bytes, bf16* scale) {
  *scale = scale_of(x);
  const float exact = widened(*scale), divisor = exact == 0.f ? 1.f : exact;
  std::int32_t steps[kGroup];
  for (std::int64_t j = 0; j < kGroup; ++j) {
    const float step = whole_step(x[j] / divisor);
    steps[j] = static_cast<std::int32_t>(step == step ? step + 8.f : 0.f);
  }
  for (std::int64_t j = 0; j < kGroup / 2; ++j) {
    bytes[j] = static_cast<unsigned char>(steps[j] | steps[j + kGroup / 2] << 4);
  }
}

}  // namespace winnow::WINNOW_LEVEL
