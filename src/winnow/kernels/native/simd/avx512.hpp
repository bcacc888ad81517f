// AVX-512 F, BW, VL, DQ, BF16 and VNNI: sixteen floats; for bfloat16 see bf16_avx512.hpp. Bytes are multiplied four at a
// time, twice: the input of int8 is a sum of two bytes, sixteen bits of its largest magnitude.
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
inline __mmask16 there(std::int64_t left) {  // the first of 16 lanes, as many as are left
  return left >= kLanes ? static_cast<__mmask16>(~0) : left > 0 ? first(left) : __mmask16{0};
}
inline __m512 widen(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }

// A vector for int8: whole steps of a common size, each high * 256 + low, two bytes. An element stands for the place of
// one float: behind a head of 64 elements, block k of 64 elements holds 64 high bytes, then 64 low ones.
struct Bytes {
  std::int32_t part;
};
constexpr std::int64_t kBytesHead = 64;

// Lane by lane, -128 times the sums of what step() multiplies with 128 too much; and the size of a step.
struct BytesHead {
  __m512i high, low;
  float step;
};
inline const BytesHead& head(const Bytes* x) { return *reinterpret_cast<const BytesHead*>(x); }

// Sums over four neighbours, in the lanes 0..3: as the products of bytes are summed.
inline __m128i fours(__m512i a) {
  const __m512i pairs = _mm512_add_epi32(a, _mm512_srli_epi64(a, 32));
  const __m512i quads = _mm512_add_epi32(pairs, _mm512_bsrli_epi128(pairs, 8));
  return _mm512_castsi512_si128(_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), quads));
}
inline std::int64_t whole_blocks(std::int64_t n) { return (n + 63) / 64 * 64; }

inline void lay_out(const float* x, std::int64_t n, Bytes* out) {
  constexpr float kMost = 32512.f;  // high stays within -127..127
  __m512 most = _mm512_setzero_ps(), wrong = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const __m512 a = _mm512_maskz_loadu_ps(there(n - i), x + i);
    most = _mm512_max_ps(most, _mm512_abs_ps(a));
    wrong = _mm512_fmadd_ps(a, _mm512_setzero_ps(), wrong);  // what is infinite or no number makes all of it NaN
  }
  const float largest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(largest > 0.f ? kMost / largest : 0.f);
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i highs = _mm512_setzero_si512(), lows = highs;
  for (std::int64_t i = 0; i < whole_blocks(n); i += 64) {
    char* block = reinterpret_cast<char*>(out + kBytesHead + i);
    for (std::int64_t at = 0; at < 64; at += kLanes) {
      const __m512 a = _mm512_maskz_loadu_ps(there(n - i - at), x + i + at);
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
      const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(block + at), _mm512_cvtepi32_epi8(high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(block + 64 + at), _mm512_cvtepi32_epi8(low));
    }
    highs = _mm512_dpbusd_epi32(highs, ones, _mm512_loadu_si512(block));
    lows = _mm512_dpbusd_epi32(lows, ones, _mm512_loadu_si512(block + 64));
  }
  auto* begin = reinterpret_cast<BytesHead*>(out);
  begin->high = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(highs, 7));
  begin->low = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(lows, 7));
  begin->step = largest / kMost + _mm512_reduce_add_ps(wrong);
}

inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const bf16* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline __m512 widen8(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)); }
inline Floats load(const int8* p) { return {widen8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Floats load_some(const int8* p, std::int64_t n) { return {widen8(_mm_maskz_loadu_epi8(first(n), p))}; }
inline Floats load_some(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Floats load_some(const bf16* p, std::int64_t n) { return {widen(_mm256_maskz_loadu_epi16(first(n), p))}; }
// Two vectors of bfloat16: the even elements and the odd ones, for one load and no widening.
inline void load_pair(__m512i both, Floats& even, Floats& odd) {
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void load_pair(const bf16* p, Floats& even, Floats& odd) { load_pair(_mm512_loadu_si512(p), even, odd); }
inline void settle_pair(const bf16*, float* y) {
  const __m512 even = _mm512_loadu_ps(y), odd = _mm512_loadu_ps(y + kLanes);
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(y, _mm512_permutex2var_ps(even, low, odd));
  _mm512_storeu_ps(y + kLanes, _mm512_permutex2var_ps(even, high, odd));
}
// Of two vectors, where their even and odd elements stand.
inline __m512i evens() { return _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
inline __m512i odds() { return _mm512_add_epi32(evens(), _mm512_set1_epi32(1)); }
// The inverse of settle_pair: y in the order in which load_pair gives bfloat16.
inline void split_pair(const bf16*, const float* x, float* y) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + kLanes);
  _mm512_storeu_ps(y, _mm512_permutex2var_ps(a, evens(), b));
  _mm512_storeu_ps(y + kLanes, _mm512_permutex2var_ps(a, odds(), b));
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

// Lane i of a is given lane i ^ kDistance.
template <int kDistance>
inline Floats exchange(Floats a) {
  if constexpr (kDistance >= 4) return {_mm512_shuffle_f32x4(a.v, a.v, kDistance == 8 ? 0x4e : 0xb1)};
  return {_mm512_permute_ps(a.v, kDistance == 2 ? 0x4e : 0xb1)};
}

// Lane by lane the sum of one of sixteen vectors.
inline Floats sum_each(const Floats a[16]) {
  __m512 fours[4];  // in each quarter, the sums of four vectors' quarters
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * i].v, a[4 * i + 1].v),
                                    _mm512_unpackhi_ps(a[4 * i].v, a[4 * i + 1].v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * i + 2].v, a[4 * i + 3].v),
                                    _mm512_unpackhi_ps(a[4 * i + 2].v, a[4 * i + 3].v));
    const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x44),
                                   _mm512_shuffle_f32x4(fours[0], fours[1], 0xee));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x44),
                                    _mm512_shuffle_f32x4(fours[2], fours[3], 0xee));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd))};
}

}  // namespace winnow::WINNOW_LEVEL

#include "bf16_avx512.hpp"

namespace winnow::WINNOW_LEVEL {

template <class W, class X>
constexpr int kStep = 16;
template <>
inline constexpr int kStep<bf16, PairInput> = 32;
template <class W>
constexpr int kStep<W, Bytes> = 64;

inline Floats step(Floats acc, const float* w, const float* x) { return fma(load(w), load(x), acc); }
inline Floats step(Floats acc, const bf16* w, const float* x) { return fma(load(w), load(x), acc); }
inline Floats step(Floats acc, const bf16* w, const PairInput* x) {
  return multiply_pairs(acc, _mm512_loadu_si512(w), x);
}

inline Floats step_some(Floats acc, const float* w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline Floats step_some(Floats acc, const bf16* w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline Floats step_some(Floats acc, const bf16* w, const PairInput* x, std::int64_t n) {
  return multiply_pairs(acc, _mm512_maskz_loadu_epi16(first32(n), w), x);  // beyond n the input is 0
}

// Products of bytes: of an unsigned one, the weight plus 128, with a signed one of the input.
struct ByteSums {
  __m512i high, low;
};

inline ByteSums operator+(ByteSums a, ByteSums b) {
  return {_mm512_add_epi32(a.high, b.high), _mm512_add_epi32(a.low, b.low)};
}
inline void begin(Floats& sum) { sum = zero(); }
inline void begin(ByteSums& sum) { sum.high = sum.low = _mm512_setzero_si512(); }

inline ByteSums step_bytes(ByteSums sum, __m512i w, const Bytes* x) {
  const __m512i shifted = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
  return {_mm512_dpbusd_epi32(sum.high, shifted, _mm512_loadu_si512(x + kBytesHead)),
          _mm512_dpbusd_epi32(sum.low, shifted, _mm512_loadu_si512(x + kBytesHead + 16))};
}
inline ByteSums step(ByteSums sum, const int8* w, const Bytes* x) {
  return step_bytes(sum, _mm512_loadu_si512(w), x);
}
inline ByteSums step_some(ByteSums sum, const int8* w, const Bytes* x, std::int64_t n) {
  return step_bytes(sum, _mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, w), x);  // beyond n the input is 0
}

template <class X>
inline Floats floats(Floats sum, const X*) {
  return sum;
}
inline Floats floats(ByteSums sum, const Bytes* x) {
  const BytesHead& begin = head(x);
  const __m512 high = _mm512_cvtepi32_ps(_mm512_add_epi32(sum.high, begin.high));
  const __m512 low = _mm512_cvtepi32_ps(_mm512_add_epi32(sum.low, begin.low));
  return {_mm512_fmadd_ps(high, _mm512_set1_ps(256.f), low)};
}
template <class X>
inline float unit(const X*) {
  return 1.f;
}
inline float unit(const Bytes* x) { return head(x).step; }

template <class W>
struct InputFor;
template <>
struct InputFor<float> {
  using type = float;
};
template <>
struct InputFor<bf16> {
  using type = PairInput;
};
template <>
struct InputFor<int8> {
  using type = Bytes;
};
template <>
struct InputFor<int4> {
  using type = Groups;
};

template <class W>
struct SumFor {
  using type = Floats;
};
template <>
struct SumFor<int8> {
  using type = ByteSums;
};

template <int kLines>
inline void add_rows(const Short<const int8*, Bytes> runs[], int count, Floats sums[8]) {
  __m512 acc[8];
  for (int r = 0; r < 8; ++r) acc[r] = sums[r].v;
  for (int k = 0; k < count; ++k) {
    const BytesHead& begin = head(runs[k].x);
    const __m512i begin_high = begin.high, begin_low = begin.low;
    alignas(32) float steps[8];
    _mm256_store_ps(steps, _mm256_mul_ps(_mm256_loadu_ps(runs[k].scales), _mm256_set1_ps(begin.step)));
    __m512i x[2 * kLines];
    for (int i = 0; i < 2 * kLines; ++i) x[i] = _mm512_loadu_si512(runs[k].x + kBytesHead + 32 * (i / 2) * 2 + 16 * (i % 2));
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      __m512i high = begin_high, low = begin_low;
#pragma GCC unroll 8
      for (int l = 0; l < kLines; ++l) {
        const __m512i stored = _mm512_loadu_si512(runs[k].first + (r * kLines + l) * 64);
        const __m512i w = _mm512_xor_si512(stored, _mm512_set1_epi8(-128));
        high = _mm512_dpbusd_epi32(high, w, x[2 * l]);
        low = _mm512_dpbusd_epi32(low, w, x[2 * l + 1]);
      }
      const __m512 product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.f), _mm512_cvtepi32_ps(low));
      acc[r] = _mm512_fmadd_ps(product, _mm512_set1_ps(steps[r]), acc[r]);
    }
  }
  for (int r = 0; r < 8; ++r) sums[r].v = acc[r];
}

inline bool add_short(const Short<const int8*, Bytes> runs[], int count, std::int64_t n, Floats sums[8]) {
  switch (n) {
    case 64: add_rows<1>(runs, count, sums); return true;
    case 128: add_rows<2>(runs, count, sums); return true;
    default: return false;
  }
}

}  // namespace winnow::WINNOW_LEVEL

#include "coded_avx512.hpp"
