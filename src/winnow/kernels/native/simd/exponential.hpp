// The exponential function of a vector.
#pragma once

#include "level.hpp"

namespace winnow::WINNOW_LEVEL {

// exp, to 2 units in the last place for -87 < x < 88; smaller x give 2^-126, larger 2^127. NaN stays NaN.
inline Floats exponential(Floats x) {
  const Floats shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  x = minimum(splat(88.f), maximum(splat(-87.f), x));
  const Floats shifted = fma(x, splat(1.44269504f), shift);
  const Floats n = shifted - shift;
  Floats r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  Floats p = splat(1.98756915e-4f);
  p = fma(p, r, splat(1.39819995e-3f));
  p = fma(p, r, splat(8.33345191e-3f));
  p = fma(p, r, splat(4.16657962e-2f));
  p = fma(p, r, splat(1.66666655e-1f));
  p = fma(p, r, splat(5.00000012e-1f));
  p = fma(p, r * r, r) + splat(1.f);
  return fma(x, zero(), scale2(p, shifted));  // the product is 0, or NaN where scale2 may have made a number of one
}

}  // namespace winnow::WINNOW_LEVEL
