// AVX-512 F, BW, VL, DQ and BF16: sixteen floats; bfloat16 pairs are multiplied and added by one instruction, twice: the
// input is a sum of two bfloat16, so that it loses nothing that float32 sums would keep.
#pragma once

#include <immintrin.h>

namespace winnow::WINNOW_LEVEL {

constexpr int kLanes = 16;

struct Floats {
  __m512 v;
};

inline Floats zero() { return {_mm512_setzero_ps()}; }
inline Floats splat(float a) { return {_mm512_set1_ps(a)}; }
inline __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }  // n < 16
inline __mmask32 first32(std::int64_t n) { return static_cast<__mmask32>((1ull << n) - 1ull); }  // n <= 32
inline __m512 widen(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }

// A vector as sums of two bfloat16, 16 bits of mantissa together: 32 high parts, their 32 low parts, the next 32, ...
// An element stands for the place of one float: block k begins at element 32 k.
struct Halves {
  bf16 part[2];
};

inline void lay_out(const float* x, std::int64_t n, Halves* out) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 there = n - i < kLanes ? first(n - i) : static_cast<__mmask16>(~0);
    const __m512 a = _mm512_maskz_loadu_ps(there, x + i);
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(a);
    const __m512 rest = _mm512_sub_ps(a, widen(high));
    // What is infinite or no number has no rest.
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(rest), _mm512_set1_ps(3.4e38f), _CMP_LT_OQ);
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_mov_ps(finite, rest));
    char* block = reinterpret_cast<char*>(out) + i / 32 * 128 + i % 32 * 2;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + 64), low);
  }
}

inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const bf16* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline __m512 widen8(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)); }
inline Floats load(const int8* p) { return {widen8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Floats load_some(const int8* p, std::int64_t n) { return {widen8(_mm_maskz_loadu_epi8(first(n), p))}; }
inline Floats load_some(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Floats load_some(const bf16* p, std::int64_t n) { return {widen(_mm256_maskz_loadu_epi16(first(n), p))}; }
// Two vectors of bfloat16: the even elements and the odd ones, for one load and no widening.
inline void load_pair(const bf16* p, Floats& even, Floats& odd) {
  const __m512i both = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void settle_pair(const bf16*, float* y) {
  const __m512 even = _mm512_loadu_ps(y), odd = _mm512_loadu_ps(y + kLanes);
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(y, _mm512_permutex2var_ps(even, low, odd));
  _mm512_storeu_ps(y + kLanes, _mm512_permutex2var_ps(even, high, odd));
}
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline void store_some(float* p, Floats a, std::int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN

// p * 2^n, where n stands in the low bits of `shifted`.
inline Floats scale2(Floats p, Floats shifted) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), n))};
}

inline __m256 halves(Floats a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
}

inline void sum8(const Floats a[8], float out[8]) {
  const __m256 ab = _mm256_hadd_ps(halves(a[0]), halves(a[1])), cd = _mm256_hadd_ps(halves(a[2]), halves(a[3]));
  const __m256 ef = _mm256_hadd_ps(halves(a[4]), halves(a[5])), gh = _mm256_hadd_ps(halves(a[6]), halves(a[7]));
  const __m256 abcd = _mm256_hadd_ps(ab, cd), efgh = _mm256_hadd_ps(ef, gh);
  const __m256 low = _mm256_permute2f128_ps(abcd, efgh, 0x20), high = _mm256_permute2f128_ps(abcd, efgh, 0x31);
  _mm256_storeu_ps(out, _mm256_add_ps(low, high));
}

template <class W, class X>
constexpr int kStep = 16;
template <>
inline constexpr int kStep<bf16, Halves> = 32;

inline Floats step(Floats acc, const float* w, const float* x) { return fma(load(w), load(x), acc); }
inline Floats step(Floats acc, const int8* w, const float* x) { return fma(load(w), load(x), acc); }
inline Floats step(Floats acc, const bf16* w, const float* x) { return fma(load(w), load(x), acc); }
inline Floats dot_halves(Floats acc, __m512i w, const Halves* x, __mmask32 mask) {
  const char* parts = reinterpret_cast<const char*>(x);
  acc.v = _mm512_dpbf16_ps(acc.v, (__m512bh)w, (__m512bh)_mm512_maskz_loadu_epi16(mask, parts));
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)w, (__m512bh)_mm512_maskz_loadu_epi16(mask, parts + 64))};
}
inline Floats step(Floats acc, const bf16* w, const Halves* x) {
  return dot_halves(acc, _mm512_loadu_si512(w), x, ~__mmask32{0});
}

inline Floats step_some(Floats acc, const float* w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline Floats step_some(Floats acc, const int8* w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline Floats step_some(Floats acc, const bf16* w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline Floats step_some(Floats acc, const bf16* w, const Halves* x, std::int64_t n) {
  return dot_halves(acc, _mm512_maskz_loadu_epi16(first32(n), w), x, first32(n));
}

template <class W>
struct InputFor;
template <>
struct InputFor<float> {
  using type = float;
};
template <>
struct InputFor<int8> {
  using type = float;
};
template <>
struct InputFor<bf16> {
  using type = Halves;
};

}  // namespace winnow::WINNOW_LEVEL
