// int4 by AVX-512: loops of its own, since a weight takes more work than memory gives it time.
//
// The input is rounded to bytes, one scale for each of its groups of 32, whose products with the weights are whole
// numbers. 16 groups, 512 weights, go together: their scales are one vector.
#pragma once

#include "../rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kSuper = 16 * kGroup;

// An element stands for the place of one float. Super-block k of 512 elements holds 16 scales, then for each four groups
// the first halves of all four, their second halves, and 16 sums of what one lane multiplies, times -8: what the weights,
// 8 too large, add too much.
struct Groups {
  std::int32_t part;
};
constexpr std::int64_t kQuad = 4;  // groups, 64 bytes of a row
inline const char* quad_of(const Groups* super, std::int64_t quad) {
  return reinterpret_cast<const char*>(super) + 64 + quad * 192;
}

inline void lay_out(const float* x, std::int64_t n, Groups* out) {
  for (std::int64_t i = 0; i < n; i += kSuper) _mm512_storeu_ps(out + i, _mm512_setzero_ps());  // of no group: 0
  constexpr std::int64_t kWhole = kQuad * kGroup;  // quads are read whole
  for (std::int64_t i = 0; i < (n + kWhole - 1) / kWhole * kWhole; i += kGroup) {
    const __m512 low = _mm512_maskz_loadu_ps(there(n - i), x + i);
    const __m512 high = _mm512_maskz_loadu_ps(there(n - i - kLanes), x + i + kLanes);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const float wrong = _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_add_ps(low, high), _mm512_setzero_ps()));
    const __m512 inverse = _mm512_set1_ps(most > 0.f ? 127.f / most : 0.f);
    const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    Groups* super = out + i / kSuper * kSuper;
    const std::int64_t group = i % kSuper / kGroup;
    reinterpret_cast<float*>(super)[group] = most / 127.f + wrong;  // NaN where the input is not finite
    auto* at = reinterpret_cast<__m128i*>(const_cast<char*>(quad_of(super, group / kQuad)) + group % kQuad * 16);
    _mm_storeu_si128(at, _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(at + 4, _mm512_cvtepi32_epi8(second));
    const __m128i sums = _mm_add_epi32(fours(first), fours(second));
    _mm_storeu_si128(at + 8, _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), sums), 3));
  }
}

inline __m512 scales16(const bf16* p, std::int64_t groups) {  // no others are read
  return widen(_mm256_maskz_loadu_epi16(there(groups), p));
}

// What the sixteen values of a weight stand for, to be looked up.
inline __m512 values16() { return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7); }

// Sixteen weights, from a multiple of sixteen on.
inline Floats load(Int4Row p) {
  const __m512 steps = values16();
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.bytes())));
  const __m512i halves = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(p.shift()));
  return {_mm512_mul_ps(_mm512_permutexvar_ps(halves, steps), _mm512_set1_ps(p.scale()))};  // by the low four bits alone
}
inline Floats load_some(Int4Row p, std::int64_t) { return load(p); }  // rows are whole groups of 32

// The products of four groups with four of a vector: 16 whole numbers, four of each group.
inline __m512i quad_products(__m512i bytes, __m512i first, __m512i second, __m512i shift) {
  const __m512i low = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(shift, low, first), high, second);
}

// Lane by lane the number of the group, of four from `group` on.
inline __m512i lanes_of(std::int64_t group) {
  return _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                          _mm512_set1_epi32(static_cast<int>(group)));
}

// Prefetches here: the compiler would make one burst of a loop's, and a processor that is asked for many lines at once
// waits for them.
inline void prefetch_here(Int4Row row) {
  prefetch(row);
  asm volatile("" ::: "memory");
}

// Adds the products of `groups`, four or fewer, of each row to its sum; `ahead` is null or what is fetched meanwhile.
template <int kCount>
inline void dot_quad(const unsigned char* const rows[kCount], const __m512 scales[kCount], const Groups* super,
                     std::int64_t quad, std::int64_t groups, __m512 sums[kCount], const Int4Row* ahead = nullptr) {
  const char* x = quad_of(super, quad);
  const __m512i first = _mm512_loadu_si512(x), second = _mm512_loadu_si512(x + 64), shift = _mm512_loadu_si512(x + 128);
  const __m512i lanes = lanes_of(quad * kQuad);
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) {
    if (ahead) prefetch_here(ahead[r] + quad * kLine<int4>);
    const unsigned char* at = rows[r] + quad * 64;
    const __m512i bytes =
        groups == kQuad ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi32(there(4 * groups), at);
    const __m512 products = _mm512_cvtepi32_ps(quad_products(bytes, first, second, shift));
    sums[r] = _mm512_fmadd_ps(products, _mm512_permutexvar_ps(lanes, scales[r]), sums[r]);
  }
}

// Adds the products of 16 groups from element `i` on, or of the last groups, fewer, to the sums of each fourth quad.
template <int kCount, int kVectors, bool kWhole>
inline void add_super(const Int4Row rows[kCount], const Int4Row later[kCount], int fetched,
                      const Groups* const x[kVectors], std::int64_t i, std::int64_t groups,
                      __m512 sums[4][kVectors][kCount]) {
  const unsigned char *at[kCount], *next[kCount];
  __m512 scales[kVectors][kCount];
#pragma GCC unroll 2
  for (int r = 0; r < kCount; ++r) {
    next[r] = (later[r] + i / kLinesAtOnce * fetched).group_bytes();
    if (fetched) prefetch((later[r] + i / kLinesAtOnce * fetched).group_scale());
    at[r] = (rows[r] + i).group_bytes();
    const __m512 of_row = scales16((rows[r] + i).group_scale(), kWhole ? 16 : groups);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      scales[v][r] = _mm512_mul_ps(of_row, _mm512_loadu_ps(reinterpret_cast<const float*>(x[v] + i)));
    }
  }
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) {
    const std::int64_t left = kWhole ? kQuad : groups - quad * kQuad;
    if (left <= 0) break;
#pragma GCC unroll 2
    for (int r = 0; r < kCount; ++r) {
      if (quad < fetched) prefetch(next[r] + quad * kLineBytes);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      dot_quad<kCount>(at, scales[v], x[v] + i, quad, left < kQuad ? left : kQuad, sums[quad][v]);
    }
  }
}

// Vectors that add up to rows[r] . x[v], for `row_sums`.
template <int kCount, int kVectors>
inline void row_groups(const Int4Row rows[kCount], const Int4Row later[kCount], int fetched,
                       const Groups* const x[kVectors], std::int64_t n, Floats out[kVectors][kCount]) {
  __m512 acc[4][kVectors][kCount];
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kCount; ++r) acc[quad][v][r] = _mm512_setzero_ps();
    }
  }
  std::int64_t i = 0;
  for (; i + kSuper <= n; i += kSuper) add_super<kCount, kVectors, true>(rows, later, fetched, x, i, 16, acc);
  if (i < n) add_super<kCount, kVectors, false>(rows, later, fetched, x, i, (n - i) / kGroup, acc);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
    for (int r = 0; r < kCount; ++r) {
      out[v][r].v = _mm512_add_ps(_mm512_add_ps(acc[0][v][r], acc[1][v][r]), _mm512_add_ps(acc[2][v][r], acc[3][v][r]));
    }
  }
}

// What is fetched while a row is read at `i`: its own weights further on or, at its end, those of the row after it.
inline Int4Row place_ahead(Int4Row row, Int4Row next, std::int64_t i, std::int64_t n) {
  const std::int64_t past = i + kAhead<int4> - n;
  return past < 0 ? row + (i + kAhead<int4>) : next + (n < kAhead<int4> ? i : past);
}

// Vectors that add up to rows[r] . x; `next` is null, or what is read after each row.
inline void dot_groups(const Int4Row rows[kRows], const Groups* x, std::int64_t n, Floats sums[kRows],
                       const Int4Row next[kRows]) {
  __m512 acc[kRows];
  for (auto& sum : acc) sum = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += kSuper) {
    const std::int64_t groups = n - i < kSuper ? (n - i) / kGroup : 16;
    const unsigned char* at[kRows];
    Int4Row ahead[kRows];
    __m512 scales[kRows];
    const __m512 input = _mm512_loadu_ps(reinterpret_cast<const float*>(x + i));
    for (int r = 0; r < kRows; ++r) {
      at[r] = (rows[r] + i).group_bytes();
      scales[r] = _mm512_mul_ps(scales16((rows[r] + i).group_scale(), groups), input);
      if (next) ahead[r] = place_ahead(rows[r], next[r], i, n);
    }
    for (std::int64_t quad = 0; quad < groups / kQuad; ++quad) {
      dot_quad<kRows>(at, scales, x + i, quad, kQuad, acc, next ? ahead : nullptr);
    }
    for (int r = 0; next && r < kRows; ++r) prefetch(ahead[r].group_scale());
    if (groups % kQuad) dot_quad<kRows>(at, scales, x + i, groups / kQuad, groups % kQuad, acc);
  }
  for (int r = 0; r < kRows; ++r) sums[r].v = acc[r];
}

// The same for eight rows of 2, 4, 8 or 16 groups that follow each other, whose scales then fill whole vectors, of a few
// runs; added to `sums`. Four groups are two rows of two.
template <int kGroups>
inline void dot_short(const Short<Int4Row, Groups> runs[], int count, Floats sums[kRows]) {
  const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = sums[r].v;
  for (int k = 0; k < count; ++k) {
    const Groups* x = runs[k].x;
    const __m512 input = _mm512_permutexvar_ps(_mm512_and_si512(places, _mm512_set1_epi32(kGroups - 1)),
                                               _mm512_loadu_ps(reinterpret_cast<const float*>(x)));
    const unsigned char* bytes = runs[k].first.group_bytes();
#pragma GCC unroll 8
    for (int v = 0; v < kGroups / 2; ++v) {
      const __m512 scales = _mm512_mul_ps(scales16(runs[k].first.group_scale() + 16 * v, 16), input);
#pragma GCC unroll 4
      for (int group = 0; group < 16; group += kQuad) {
        const char* at = quad_of(x, group % kGroups / kQuad);
        __m512i parts[3];
        for (int i = 0; i < 3; ++i) {
          parts[i] = _mm512_loadu_si512(at + 64 * i);
          if (kGroups == 2) parts[i] = _mm512_shuffle_i64x2(parts[i], parts[i], 0x44);
        }
        const __m512i weights = _mm512_loadu_si512(bytes + (16 * v + group) * (kGroup / 2));
        const __m512 products = _mm512_cvtepi32_ps(quad_products(weights, parts[0], parts[1], parts[2]));
        const __m512 scale = _mm512_permutexvar_ps(lanes_of(group), scales);
        const int r = (16 * v + group) / kGroups;
        if (kGroups == 2) {
          acc[r] = _mm512_mask3_fmadd_ps(products, scale, acc[r], 0x00ff);
          acc[r + 1] = _mm512_mask3_fmadd_ps(products, scale, acc[r + 1], 0xff00);
        } else {
          acc[r] = _mm512_fmadd_ps(products, scale, acc[r]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r].v = acc[r];
}

inline bool add_short(const Short<Int4Row, Groups> runs[], int count, std::int64_t n, Floats sums[kRows]) {
  switch (n) {
    case 64: dot_short<2>(runs, count, sums); return true;
    case 128: dot_short<4>(runs, count, sums); return true;
    case 256: dot_short<8>(runs, count, sums); return true;
    case 512: dot_short<16>(runs, count, sums); return true;
    default: return false;
  }
}

// Fetches a sixteenth of the 512 weights that eight rows begin with: two lines, and scales.
inline void prefetch_part(const Int4Row ahead[kRows], std::int64_t part) {
  const std::int64_t line = part / 4 * kLine<int4>;
  for (std::int64_t r = part % 4; r < kRows; r += 4) prefetch_here(ahead[r] + line);
  if (part < kRows) prefetch(ahead[part].group_scale());
}

// Pair order, here of four groups at a time: vector v of eight holds, of each four bytes, number v / 2's low half of the
// byte for an even v, its high half for an odd one.
inline void settle_quad(float* y) {
  __m512 v[8];
  for (int i = 0; i < 8; ++i) v[i] = _mm512_loadu_ps(y + i * kLanes);
  for (int half = 0; half < 2; ++half) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(v[half], v[half + 2]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(v[half + 4], v[half + 6]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(v[half], v[half + 2]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(v[half + 4], v[half + 6]));
    const __m512d fours[] = {_mm512_unpacklo_pd(low01, low23), _mm512_unpackhi_pd(low01, low23),
                             _mm512_unpacklo_pd(high01, high23), _mm512_unpackhi_pd(high01, high23)};
    for (int i = 0; i < 4; ++i) {  // of each group, numbers 4 i to 4 i + 3 of this half
      alignas(64) float of_groups[kLanes];
      _mm512_store_pd(of_groups, fours[i]);
      for (int group = 0; group < 4; ++group) {
        _mm_storeu_ps(y + group * kGroup + half * kLanes + 4 * i, _mm_load_ps(of_groups + 4 * group));
      }
    }
  }
}

inline void settle_groups(float* y, std::int64_t n) {
  for (std::int64_t i = 0; i + kQuad * kGroup <= n; i += kQuad * kGroup) settle_quad(y + i);
}

// Of a word's four weights of four bits the lower three are multiplied where they stand, the fourth is shifted down.
constexpr int times_too_large(int k) { return k == 3 ? 1 : 1 << (4 * k); }

// Adds four groups of two rows times their weights, which stand for these groups in the halves of a lane, the first's
// above. A word of each row makes a lane.
inline void add_pair(const unsigned char* row, const unsigned char* second, __m512i weights, __m512i sums[8]) {
  const __m512i words[2] = {_mm512_mask_loadu_epi16(_mm512_loadu_si512(second), 0xaaaaaaaau, row - 2),
                            _mm512_mask_loadu_epi16(_mm512_loadu_si512(row), 0x55555555u, second + 2)};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m512i steps = k == 3 ? _mm512_srli_epi16(words[i], 12)
                                   : _mm512_and_si512(words[i], _mm512_set1_epi16(static_cast<short>(15 << 4 * k)));
      sums[4 * i + k] = _mm512_dpwssd_epi32(sums[4 * i + k], steps, weights);
    }
  }
}

// The last groups of a row, fewer than four, from group `g` of a super-block on: in the order of the elements.
template <int kCount>
inline void add_last_groups(const unsigned char* const at[kCount], const __m512 weights[kCount], std::int64_t g,
                            std::int64_t groups, float* y) {
  const __m512 steps = values16();
  for (; g < groups; ++g) {
    __m512 low = _mm512_loadu_ps(y + g * kGroup), high = _mm512_loadu_ps(y + g * kGroup + kLanes);
    for (int r = 0; r < kCount; ++r) {
      const __m512i bytes =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at[r] + g * (kGroup / 2))));
      const __m512 weight = _mm512_permutexvar_ps(_mm512_set1_epi32(static_cast<int>(g)), weights[r]);
      low = _mm512_fmadd_ps(_mm512_permutexvar_ps(bytes, steps), weight, low);  // by the low four bits alone
      high = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), steps), weight, high);
    }
    _mm512_storeu_ps(y + g * kGroup, low);
    _mm512_storeu_ps(y + g * kGroup + kLanes, high);
  }
}

// The weights of some rows for 16 groups each, as whole numbers of 16 bits with one step for a group of all rows: their
// products with weights of four bits are added up without rounding, in any order.
template <int kCount>
struct Shares {
  __m512i pairs[kCount / 2];  // the first of two rows in the upper half of a lane
  __m512i excess;             // what the steps of weights, 8 too large, add too much
  __m512 step;

  Shares(const __m512 weights[kCount], float wrong) {
    __m512 most = _mm512_setzero_ps();
    for (int r = 0; r < kCount; ++r) most = _mm512_max_ps(most, _mm512_abs_ps(weights[r]));
    // Below, nothing: the inverse must be finite.
    const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(32767.f), most);
    __m512i whole[kCount], sum = _mm512_setzero_si512();
    for (int r = 0; r < kCount; ++r) {
      whole[r] = _mm512_cvtps_epi32(_mm512_mul_ps(weights[r], inverse));
      sum = _mm512_add_epi32(sum, whole[r]);
    }
    for (int p = 0; p < kCount / 2; ++p) {
      pairs[p] = _mm512_mask_blend_epi16(0xaaaaaaaau, whole[2 * p + 1], _mm512_slli_epi32(whole[2 * p], 16));
    }
    excess = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sum), 3);
    step = _mm512_add_ps(_mm512_mul_ps(most, _mm512_set1_ps(1.f / 32767.f)), _mm512_set1_ps(wrong));
  }
};

// y += a[r] * rows[r]; a[r] times the scale of a group is rounded to a 32767th of the largest of all these rows.
template <int kCount>
inline void axpy_groups(const Int4Row rows[], const float a[], std::int64_t n, float* y, const Int4Row next[kRows]) {
  float wrong = 0.f;  // NaN where a weight is not finite
  for (int r = 0; r < kCount; ++r) wrong += a[r] * 0.f;
  for (std::int64_t i = 0; i < n; i += kSuper) {
    const std::int64_t groups = n - i < kSuper ? (n - i) / kGroup : 16;
    const unsigned char* at[kCount];
    __m512 weights[kCount];
    for (int r = 0; r < kCount; ++r) {
      at[r] = (rows[r] + i).group_bytes();
      weights[r] = _mm512_mul_ps(scales16((rows[r] + i).group_scale(), groups), _mm512_set1_ps(a[r]));
    }
    const Shares<kCount> shares(weights, wrong);
    Int4Row ahead[kRows];
    for (int r = 0; next && r < kRows; ++r) ahead[r] = place_ahead(rows[r % kCount], next[r], i, n);
    for (std::int64_t quad = 0; quad < groups / kQuad; ++quad) {
      if (next) {
        for (std::int64_t g = quad * kQuad; g < (quad + 1) * kQuad; ++g) prefetch_part(ahead, g);
      }
      const __m512i lanes = lanes_of(quad * kQuad), excess = _mm512_permutexvar_epi32(lanes, shares.excess);
      __m512i sums[8];
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) sums[v] = _mm512_mullo_epi32(excess, _mm512_set1_epi32(times_too_large(v % 4)));
#pragma GCC unroll 4
      for (int p = 0; p < kCount / 2; ++p) {
        const __m512i pair = _mm512_permutexvar_epi32(lanes, shares.pairs[p]);
        add_pair(at[2 * p] + quad * 64, at[2 * p + 1] + quad * 64, pair, sums);
      }
      const __m512 step = _mm512_permutexvar_ps(lanes, shares.step);
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        float* at_y = y + i + quad * kQuad * kGroup + v * kLanes;
        const __m512 unit = _mm512_mul_ps(step, _mm512_set1_ps(1.f / static_cast<float>(times_too_large(v % 4))));
        _mm512_storeu_ps(at_y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), unit, _mm512_loadu_ps(at_y)));
      }
    }
    add_last_groups<kCount>(at, weights, groups / kQuad * kQuad, groups, y + i);
  }
}

}  // namespace winnow::WINNOW_LEVEL
