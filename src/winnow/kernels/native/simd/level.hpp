// One instruction set per compilation: WINNOW_LEVEL is the namespace, WINNOW_AVX512 / WINNOW_AVX2 choose the header.
//
// Trap: these sources are compiled with flags the running processor may lack, and the linker keeps one copy of every
// inline function. So nothing here may instantiate inline code of the standard library; everything lives in the
// namespace of its level.
//
// Each header defines, for vectors of kLanes floats:
//   zero splat load load_some store store_some + - * / fma maximum sum sum8 sum_each exchange scale2
//   InputFor<W>                the form that `lay_out` gives a vector to be multiplied with rows of W
//   SumFor<W>, begin(sum)      what a product is summed in, and its zero
//   step(sum, w, x)            sum + w * x over kStep elements
//   step_some(sum, w, x, n)    the same over the first n elements, reading no others
//   floats(sum, x), unit(x)    a sum as floats, to be added up and multiplied by the unit
#pragma once

#include <cstdint>

namespace winnow {
struct bf16 {
  std::uint16_t bits;
};
struct int8 {
  std::int8_t value;  // times the scale of its row
};
struct int4 {};  // two to a byte, see Int4Row
struct coded {};  // bfloat16 in twelve bits, see CodedRow
}  // namespace winnow

#include "coded.hpp"
#include "int4.hpp"

namespace winnow::WINNOW_LEVEL {
// Short rows that follow each other, the scale of each where they have one, and the vector to multiply them with.
template <class R, class X>
struct Short {
  R first;
  const float* scales;
  const X* x;
};
}  // namespace winnow::WINNOW_LEVEL

#if defined(WINNOW_AVX512)
#include "avx512.hpp"
#elif defined(WINNOW_AVX2)
#include "avx2.hpp"
#else
#include "generic.hpp"
#endif
