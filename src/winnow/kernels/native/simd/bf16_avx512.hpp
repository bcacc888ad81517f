// What 32 bfloat16 are multiplied with on AVX-512: two vectors, in one of two forms. A processor that multiplies and adds
// pairs of bfloat16 at full rate does so with the input's high parts and its low parts, all that float32 sums would keep;
// one that takes two cycles for it (Intel's) widens the weights, for the input's even elements and its odd ones.
#pragma once

namespace winnow::WINNOW_LEVEL {

// An element stands for the place of one float: block k, two vectors, begins at element 32 k.
struct PairInput {
  bf16 part[2];
};

#if defined(WINNOW_WIDENING)

inline void lay_out(const float* x, std::int64_t n, PairInput* out) {
  auto* to = reinterpret_cast<float*>(out);
  for (std::int64_t i = 0; i < n; i += 32) {
    const __m512 a = _mm512_maskz_loadu_ps(there(n - i), x + i);
    const __m512 b = _mm512_maskz_loadu_ps(there(n - i - kLanes), x + i + kLanes);
    _mm512_storeu_ps(to + i, _mm512_permutex2var_ps(a, evens(), b));
    _mm512_storeu_ps(to + i + kLanes, _mm512_permutex2var_ps(a, odds(), b));
  }
}

inline __m512 multiply_pairs(__m512 sum, __m512i w, __m512i first, __m512i second) {
  Floats even, odd;
  load_pair(w, even, odd);
  sum = _mm512_fmadd_ps(even.v, _mm512_castsi512_ps(first), sum);
  return _mm512_fmadd_ps(odd.v, _mm512_castsi512_ps(second), sum);
}

inline float element(const PairInput* x, std::int64_t i) {
  return reinterpret_cast<const float*>(x)[i / 32 * 32 + i % 2 * kLanes + i % 32 / 2];
}

#else

inline void lay_out(const float* x, std::int64_t n, PairInput* out) {
  for (std::int64_t i = 0; i < (n + 31) / 32 * 32; i += kLanes) {
    const __m512 a = _mm512_maskz_loadu_ps(there(n - i), x + i);
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

inline __m512 multiply_pairs(__m512 sum, __m512i w, __m512i first, __m512i second) {
  return _mm512_dpbf16_ps(_mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)first), (__m512bh)w, (__m512bh)second);
}

inline float element(const PairInput* x, std::int64_t i) {
  const auto* parts = reinterpret_cast<const bf16*>(x) + i / 32 * 64 + i % 32;
  return widened(parts[0]) + widened(parts[32]);
}

#endif

// Adds the products of 32 weights.
inline Floats multiply_pairs(Floats sum, __m512i w, const PairInput* x) {
  return {multiply_pairs(sum.v, w, _mm512_loadu_si512(x), _mm512_loadu_si512(x + kLanes))};
}

// Eight short rows that follow each other, of a few runs, each run with a vector of its own in registers.
template <int kLines>
inline void add_rows(const Short<const bf16*, PairInput> runs[], int count, Floats sums[8]) {
  __m512 acc[8];
  for (int r = 0; r < 8; ++r) acc[r] = sums[r].v;
  for (int k = 0; k < count; ++k) {
    __m512i x[2 * kLines];
    for (int i = 0; i < 2 * kLines; ++i) x[i] = _mm512_loadu_si512(runs[k].x + kLanes * i);
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
#pragma GCC unroll 8
      for (int l = 0; l < kLines; ++l) {
        const __m512i w = _mm512_loadu_si512(runs[k].first + (r * kLines + l) * 32);
        acc[r] = multiply_pairs(acc[r], w, x[2 * l], x[2 * l + 1]);
      }
    }
  }
  for (int r = 0; r < 8; ++r) sums[r].v = acc[r];
}

inline bool add_short(const Short<const bf16*, PairInput> runs[], int count, std::int64_t n, Floats sums[8]) {
  switch (n) {
    case 64: add_rows<2>(runs, count, sums); return true;
    case 128: add_rows<4>(runs, count, sums); return true;
    default: return false;
  }
}

}  // namespace winnow::WINNOW_LEVEL
