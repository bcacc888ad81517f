// One instruction set per compilation: WINNOW_LEVEL is the namespace, WINNOW_AVX512 / WINNOW_AVX2 choose the header.
//
// Trap: these sources are compiled with flags the running processor may lack, and the linker keeps one copy of every
// inline function. So nothing here may instantiate inline code of the standard library; everything lives in the
// namespace of its level.
//
// Each header defines, for vectors of kLanes floats:
//   zero splat load load_some store store_some + - * / fma maximum sum sum8 scale2
//   step(acc, w, x)            acc + w * x over kStep elements, for the pairs (float, float), (bf16, float) and
//                              (bf16, Input<bf16>)
//   step_some(acc, w, x, n)    the same over the first n elements, reading no others
#pragma once

#include <cstdint>

namespace winnow {
struct bf16 {
  std::uint16_t bits;
};
struct int8 {
  std::int8_t value;  // times the scale of its row
};
}  // namespace winnow

#if defined(WINNOW_AVX512)
#include "simd_avx512.hpp"
#elif defined(WINNOW_AVX2)
#include "simd_avx2.hpp"
#else
#include "simd_generic.hpp"
#endif
