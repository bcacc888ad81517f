// AVX2 and FMA: eight floats; bfloat16 is widened to float as it is loaded.
#pragma once

#include <immintrin.h>

namespace winnow::WINNOW_LEVEL {

constexpr int kLanes = 8;

struct Floats {
  __m256 v;
};

inline Floats zero() { return {_mm256_setzero_ps()}; }
inline Floats splat(float a) { return {_mm256_set1_ps(a)}; }
inline __m256 widen(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
inline __m256i first(std::int64_t n) {  // n < 8
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Floats load(const bf16* p) { return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Floats load(const int8* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline Floats load(Int4Row p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p.bytes()));
  const __m256i nibbles = _mm256_srl_epi32(_mm256_cvtepu8_epi32(bytes), _mm_cvtsi32_si128(p.shift()));
  const __m256i steps = _mm256_sub_epi32(_mm256_and_si256(nibbles, _mm256_set1_epi32(15)), _mm256_set1_epi32(8));
  return {_mm256_mul_ps(_mm256_cvtepi32_ps(steps), _mm256_set1_ps(p.scale()))};
}
inline Floats load_some(const float* p, std::int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
inline Floats load_some(Int4Row p, std::int64_t) { return load(p); }  // rows are whole groups of 32
template <class W>
inline Floats load_some(const W* p, std::int64_t n) {
  W padded[8] = {};
  for (std::int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a.v); }
inline void store_some(float* p, Floats a, std::int64_t n) { _mm256_maskstore_ps(p, first(n), a.v); }

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Floats minimum(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }  // b where either is NaN

// p * 2^n, where n stands in the low bits of `shifted`.
inline Floats scale2(Floats p, Floats shifted) {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), n))};
}

// Lane i of a is given lane i ^ kDistance.
template <int kDistance>
inline Floats exchange(Floats a) {
  if constexpr (kDistance == 4) return {_mm256_permute2f128_ps(a.v, a.v, 1)};
  return {_mm256_permute_ps(a.v, kDistance == 2 ? 0x4e : 0xb1)};
}

// Lane by lane the sum of one of eight vectors.
inline Floats sum_each(const Floats a[8]) {
  const __m256 ab = _mm256_hadd_ps(a[0].v, a[1].v), cd = _mm256_hadd_ps(a[2].v, a[3].v);
  const __m256 ef = _mm256_hadd_ps(a[4].v, a[5].v), gh = _mm256_hadd_ps(a[6].v, a[7].v);
  const __m256 abcd = _mm256_hadd_ps(ab, cd), efgh = _mm256_hadd_ps(ef, gh);
  const __m256 low = _mm256_permute2f128_ps(abcd, efgh, 0x20), high = _mm256_permute2f128_ps(abcd, efgh, 0x31);
  return {_mm256_add_ps(low, high)};
}
inline void sum8(const Floats a[8], float out[8]) { store(out, sum_each(a)); }

template <class W, class X>
constexpr int kStep = 8;

template <class R>
inline Floats step(Floats acc, R w, const float* x) {
  return fma(load(w), load(x), acc);
}
template <class R>
inline Floats step_some(Floats acc, R w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline void begin(Floats& sum) { sum = zero(); }
inline Floats floats(Floats sum, const float*) { return sum; }
inline float unit(const float*) { return 1.f; }

template <class W>
struct InputFor {
  using type = float;
};
template <class W>
struct SumFor {
  using type = Floats;
};

}  // namespace winnow::WINNOW_LEVEL

#include "coded_avx2.hpp"
