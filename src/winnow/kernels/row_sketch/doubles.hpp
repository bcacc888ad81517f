// Vectors of kDoubles float64, loaded from float64 or widened from float32. The trap of simd/level.hpp holds here too.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(WINNOW_AVX512) || defined(WINNOW_AVX2)
#include <immintrin.h>
#endif

namespace winnow::WINNOW_LEVEL {

#if defined(WINNOW_AVX512)

constexpr int kDoubles = 8;
struct Doubles {
  __m512d v;
};
inline __mmask8 first8(std::int64_t n) { return static_cast<__mmask8>((1u << n) - 1u); }  // n < 8
inline Doubles nil() { return {_mm512_setzero_pd()}; }
inline Doubles all(double a) { return {_mm512_set1_pd(a)}; }
inline Doubles wide(const double* p) { return {_mm512_loadu_pd(p)}; }
inline Doubles wide(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
inline Doubles wide_some(const double* p, std::int64_t n) { return {_mm512_maskz_loadu_pd(first8(n), p)}; }
inline Doubles wide_some(const float* p, std::int64_t n) {
  return {_mm512_cvtps_pd(_mm256_maskz_loadu_ps(first8(n), p))};
}
inline void put(double* p, Doubles a) { _mm512_storeu_pd(p, a.v); }
inline void put_some(double* p, Doubles a, std::int64_t n) { _mm512_mask_storeu_pd(p, first8(n), a.v); }
inline Doubles plus(Doubles a, Doubles b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Doubles fused(Doubles a, Doubles b, Doubles c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }

#else

#if defined(WINNOW_AVX2)
constexpr int kDoubles = 4;
struct Doubles {
  __m256d v;
};
inline Doubles nil() { return {_mm256_setzero_pd()}; }
inline Doubles all(double a) { return {_mm256_set1_pd(a)}; }
inline Doubles wide(const double* p) { return {_mm256_loadu_pd(p)}; }
inline Doubles wide(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
inline void put(double* p, Doubles a) { _mm256_storeu_pd(p, a.v); }
inline Doubles plus(Doubles a, Doubles b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Doubles fused(Doubles a, Doubles b, Doubles c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
#else
constexpr int kDoubles = 2;
using Pair = double __attribute__((vector_size(16)));
struct Doubles {
  Pair v;
};
inline Doubles nil() { return {Pair{0, 0}}; }
inline Doubles all(double a) { return {Pair{a, a}}; }
inline Doubles wide(const double* p) { return {Pair{p[0], p[1]}}; }
inline Doubles wide(const float* p) { return {Pair{p[0], p[1]}}; }
inline void put(double* p, Doubles a) { std::memcpy(p, &a.v, sizeof a.v); }
inline Doubles plus(Doubles a, Doubles b) { return {a.v + b.v}; }
inline Doubles fused(Doubles a, Doubles b, Doubles c) { return {a.v * b.v + c.v}; }
#endif

template <class T>
inline Doubles wide_some(const T* p, std::int64_t n) {  // n < kDoubles
  T padded[kDoubles] = {};
  for (std::int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return wide(padded);
}
inline void put_some(double* p, Doubles a, std::int64_t n) {
  double whole[kDoubles];
  put(whole, a);
  for (std::int64_t i = 0; i < n; ++i) p[i] = whole[i];
}

#endif

inline double total(Doubles a) {
  double each[kDoubles];
  put(each, a);
  for (int half = kDoubles / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) each[i] += each[i + half];
  }
  return each[0];
}

}  // namespace winnow::WINNOW_LEVEL
