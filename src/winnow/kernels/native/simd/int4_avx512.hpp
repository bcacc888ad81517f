// int4 by AVX-512: loops of its own, since a weight takes more work than memory gives it time.
//
// The input is rounded to bytes, one scale for each of its groups of 32, whose products with the weights are whole
// numbers. 16 groups, 512 weights, go together: their scales are one vector.
#pragma once

#include "../rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kSuper = 16 * kGroup;
constexpr std::int64_t kPairWeights = 2 * kGroup;

// An element stands for the place of one float. Super-block k of 512 elements holds 16 scales, then for each pair of
// groups 64 bytes and 16 sums over four of them times -8: what the weights, 8 too large, add too much.
struct Groups {
  std::int32_t part;
};
inline const char* pair_of(const Groups* super, std::int64_t pair) {
  return reinterpret_cast<const char*>(super) + 64 + pair * 128;
}

inline void lay_out(const float* x, std::int64_t n, Groups* out) {
  for (std::int64_t i = 0; i < (n + kSuper - 1) / kSuper * kSuper; i += kGroup) {
    const __m512 low = _mm512_maskz_loadu_ps(there(n - i), x + i);
    const __m512 high = _mm512_maskz_loadu_ps(there(n - i - kLanes), x + i + kLanes);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const float wrong = _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_add_ps(low, high), _mm512_setzero_ps()));
    const __m512 inverse = _mm512_set1_ps(most > 0.f ? 127.f / most : 0.f);
    const __m512i whole[2] = {_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)),
                              _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse))};
    Groups* super = out + i / kSuper * kSuper;
    const std::int64_t group = i % kSuper / kGroup;
    reinterpret_cast<float*>(super)[group] = most / 127.f + wrong;  // NaN where the input is not finite
    char* bytes = const_cast<char*>(pair_of(super, group / 2)) + group % 2 * 32;
    for (int half = 0; half < 2; ++half) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + half * 16), _mm512_cvtepi32_epi8(whole[half]));
      const __m128i sums = _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), fours(whole[half])), 3);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 64 + half * 16), sums);
    }
  }
}

inline __m512 scales16(const bf16* p, std::int64_t groups) {  // no others are read
  return widen(_mm256_maskz_loadu_epi16(there(groups), p));
}

// The 64 weights of two groups as bytes 0..15; `kOne` where only the first is there.
template <bool kOne>
inline __m512i pair_bytes(const unsigned char* p) {
  const __m256i halves = kOne ? _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
                              : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i twice = _mm512_shuffle_i64x2(_mm512_castsi256_si512(halves), _mm512_castsi256_si512(halves), 0x50);
  return _mm512_and_si512(_mm512_srlv_epi64(twice, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0)), _mm512_set1_epi8(15));
}

// Sixteen weights, from a multiple of sixteen on.
inline Floats load(Int4Row p) {
  const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.bytes())));
  const __m512i halves = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(p.shift()));
  return {_mm512_mul_ps(_mm512_permutexvar_ps(halves, steps), _mm512_set1_ps(p.scale()))};  // by the low four bits alone
}
inline Floats load_some(Int4Row p, std::int64_t) { return load(p); }  // rows are whole groups of 32

// Fetches a part of what is read 512 weights after `ahead` begins to be: the lines of `kCount` rows, evenly spread over
// `kParts` calls, since a processor that is asked for many lines at once waits for them.
template <int kCount, int kParts>
inline void prefetch_part(const Int4Row ahead[kCount], std::int64_t part) {
  constexpr int kLines = kSuper / kLine<int4>, kTurns = kParts / kLines;
  for (int r = static_cast<int>(part % kTurns); r < kCount; r += kTurns) {
    prefetch(ahead[r] + part / kTurns * kLine<int4>);
  }
  if (part < kCount) prefetch(ahead[part].group_scale());
  asm volatile("" ::: "memory");  // or the compiler makes one burst of all parts
}

template <int kCount, bool kOne>
inline void dot_pair(const unsigned char* const rows[kCount], const __m512 scales[kCount], const Groups* super,
                     std::int64_t pair, __m512 sums[kCount]) {
  const __m512i x = _mm512_loadu_si512(pair_of(super, pair)), shift = _mm512_loadu_si512(pair_of(super, pair) + 64);
  const __m512i of_lanes = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                            _mm512_set1_epi32(static_cast<int>(2 * pair)));
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) {
    const __m512i products = _mm512_dpbusd_epi32(shift, pair_bytes<kOne>(rows[r] + pair * kGroup), x);
    sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_permutexvar_ps(of_lanes, scales[r]), sums[r]);
  }
}

// Vectors that add up to rows[r] . x; `next` is null, or what is read after each row.
template <int kCount>
inline void dot_groups(const Int4Row rows[kCount], const Groups* x, std::int64_t n, Floats sums[kRows],
                       const Int4Row next[kCount]) {
  for (int r = kCount; r < kRows; ++r) sums[r] = zero();
  __m512 acc[kCount];
  for (auto& sum : acc) sum = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += kSuper) {
    const std::int64_t groups = n - i < kSuper ? (n - i) / kGroup : 16;
    const unsigned char* at[kCount];
    Int4Row ahead[kCount];
    __m512 scales[kCount];
    const __m512 input = _mm512_loadu_ps(reinterpret_cast<const float*>(x + i));
    for (int r = 0; r < kCount; ++r) {
      at[r] = rows[r].groups + (rows[r].at + i) / 2;
      scales[r] = _mm512_mul_ps(scales16((rows[r] + i).group_scale(), groups), input);
      if (next) {
        const std::int64_t past = i + kAhead<int4> - n;
        ahead[r] = past < 0 ? rows[r] + (i + kAhead<int4>) : next[r] + (n < kAhead<int4> ? i : past);
      }
    }
    for (std::int64_t pair = 0; pair < groups / 2; ++pair) {
      if (next) prefetch_part<kCount, 8>(ahead, pair);
      dot_pair<kCount, false>(at, scales, x + i, pair, acc);
    }
    if (groups % 2) dot_pair<kCount, true>(at, scales, x + i, groups / 2, acc);
  }
  for (int r = 0; r < kCount; ++r) sums[r].v = acc[r];
}

// The same for eight rows of 2, 4, 8 or 16 groups that follow each other, whose scales then fill whole vectors; added to
// `sums`.
template <int kGroups>
inline void dot_short(Int4Row first, const Groups* x, Floats sums[kRows]) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512 input = _mm512_permutexvar_ps(_mm512_and_si512(lanes, _mm512_set1_epi32(kGroups - 1)),
                                             _mm512_loadu_ps(reinterpret_cast<const float*>(x)));
  const unsigned char* bytes = first.groups + first.at / 2;
#pragma GCC unroll 8
  for (int v = 0; v < kGroups / 2; ++v) {
    const __m512 scales = _mm512_mul_ps(scales16(first.group_scale() + 16 * v, 16), input);
#pragma GCC unroll 8
    for (int lane = 0; lane < 16; lane += 2) {
      const int r = (16 * v + lane) / kGroups, pair = lane % kGroups / 2;
      const __m512i products = _mm512_dpbusd_epi32(_mm512_loadu_si512(pair_of(x, pair) + 64),
                                                   pair_bytes<false>(bytes + (8 * v + lane / 2) * kGroup),
                                                   _mm512_loadu_si512(pair_of(x, pair)));
      const __m512 scale = _mm512_permutexvar_ps(_mm512_add_epi32(halves, _mm512_set1_epi32(lane)), scales);
      sums[r].v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sums[r].v);
    }
  }
}

// Adds eight rows of n weights that follow each other, times x, to `sums`; false where n is no length for that.
inline bool add_dots(Int4Row first, const Groups* x, std::int64_t n, Floats sums[kRows]) {
  switch (n) {
    case 64: dot_short<2>(first, x, sums); return true;
    case 128: dot_short<4>(first, x, sums); return true;
    case 256: dot_short<8>(first, x, sums); return true;
    case 512: dot_short<16>(first, x, sums); return true;
    default: return false;
  }
}

// y += a[r] * rows[r], row after row.
template <int kCount>
inline void axpy_groups(const Int4Row rows[], const float a[], std::int64_t n, float* y, const Int4Row next[kRows]) {
  const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  for (std::int64_t i = 0; i < n; i += kSuper) {
    const std::int64_t groups = n - i < kSuper ? (n - i) / kGroup : 16;
    alignas(64) float weights[kCount][16];
    const unsigned char* at[kCount];
    for (int r = 0; r < kCount; ++r) {
      at[r] = rows[r].groups + (rows[r].at + i) / 2;
      const __m512 scales = scales16((rows[r] + i).group_scale(), groups);
      _mm512_store_ps(weights[r], _mm512_mul_ps(scales, _mm512_set1_ps(a[r])));
    }
    Int4Row ahead[kRows];
    if (next) {
      for (int r = 0; r < kRows; ++r) ahead[r] = next[r] + i;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      if (next) prefetch_part<kRows, 16>(ahead, g);
      __m512 low = _mm512_loadu_ps(y + i + g * kGroup), high = _mm512_loadu_ps(y + i + g * kGroup + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) {
        const __m512i bytes =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at[r] + g * (kGroup / 2))));
        const __m512 weight = _mm512_set1_ps(weights[r][g]);
        low = _mm512_fmadd_ps(_mm512_permutexvar_ps(bytes, steps), weight, low);  // by the low four bits alone
        high = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), steps), weight, high);
      }
      _mm512_storeu_ps(y + i + g * kGroup, low);
      _mm512_storeu_ps(y + i + g * kGroup + kLanes, high);
    }
  }
}

}  // namespace winnow::WINNOW_LEVEL
