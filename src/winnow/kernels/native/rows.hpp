// Rows of weights: the loops every kernel stands on.
//
//   dot        inner products of a few rows with one vector   one accumulator per row, so a row's bits do not depend on
//                                                             its neighbours
//   dot_sums   the same, not yet added up
//   row_sums   those of one row or two with one vector or two   for rows that lie in order: one stream of memory
//   axpy8      y += a[0] * row 0 + ... + a[7] * row 7         row after row, so a row whose weight is 0 changes no bit;
//                                                             y stands in pair order, `settle` puts it right; int4 by
//                                                             AVX-512 rounds the eight together, see its file
//
// Memory is kept at work by prefetching: of rows side by side each a little ahead of where it is read, and near its end
// the beginning of the one that follows it; of a single stream a few rows ahead.
#pragma once

#include <type_traits>

#include "kernels.hpp"
#include "simd/level.hpp"
#include "simd/patches.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr int kRows = 8;
constexpr std::int64_t kLineBytes = 64;

template <class W>
using Input = typename InputFor<W>::type;
template <class W>
using Sum = typename SumFor<W>::type;

// A row of weights: a pointer to them, or what stands for one.
template <class W>
struct RowFor {
  using type = const W*;
};
template <>
struct RowFor<int4> {
  using type = Int4Row;
};
template <>
struct RowFor<coded> {
  using type = CodedRow;
};
template <class W>
using Row = typename RowFor<W>::type;

// Whether a level has loops of its own for this type of weight.
template <class W>
constexpr bool kOwnLoops = false;
#if defined(WINNOW_AVX512)
template <>
inline constexpr bool kOwnLoops<int4> = true;
inline void lay_out(const float* x, std::int64_t n, Groups* out);
#endif
template <int kCount, int kVectors>
inline void row_groups(const Int4Row rows[kCount], const Int4Row later[kCount], int fetched,
                       const Groups* const x[kVectors], std::int64_t n, Floats out[kVectors][kCount]);
inline void dot_groups(const Int4Row rows[8], const Groups* x, std::int64_t n, Floats sums[8], const Int4Row next[8]);
inline void settle_groups(float* y, std::int64_t n);
template <int kCount>
inline void axpy_groups(const Int4Row rows[], const float a[], std::int64_t n, float* y, const Int4Row next[8]);

// A level may have a quicker way to add eight short rows that follow each other, times a vector, to eight sums, of one run
// after the other.
template <class R, class X>
inline bool add_short(const Short<R, X>*, int, std::int64_t, Floats*) {
  return false;
}

// Calls work(W{}) for the type of weight that a dtype stands for.
template <class F>
inline void of_weights(Dtype dtype, F work) {
  switch (dtype) {
    case Dtype::float32: return work(float{});
    case Dtype::bfloat16: return work(bf16{});
    case Dtype::int8: return work(int8{});
    case Dtype::int4: return work(int4{});
    case Dtype::coded: return work(coded{});
  }
}

inline std::int64_t row_bytes_of(Dtype dtype, std::int64_t n) {
  if (dtype == Dtype::int4) return n / 2 + n / kGroup * 2;
  if (dtype == Dtype::coded) return coded_row_bytes(n);
  return dtype == Dtype::int8 ? n : dtype == Dtype::bfloat16 ? 2 * n : 4 * n;
}

// To the nearest, ties to even; a NaN stays one. The rule of torch.
inline bf16 round_bf16(float a) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &a, 4);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(a != a ? 0x7fc0u : rounded)};
}

inline void lay_out(const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i];
}

// Elements that `input` needs room for, of four bytes each.
inline std::int64_t input_floats(std::int64_t n) { return (n + 511) / 512 * 512 + 64; }

// x in the form that `step` multiplies with rows of W.
template <class W>
inline const Input<W>* input(const float* x, std::int64_t n, void* memory) {
  auto* out = static_cast<Input<W>*>(memory);
  lay_out(x, n, out);
  return out;
}

// Into which cache: see `avx512_kernels`.
#if defined(WINNOW_NEAR)
constexpr int kLocality = 3;  // the first level
#else
constexpr int kLocality = 2;  // the second
#endif

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, kLocality); }
inline void prefetch(Int4Row row) { prefetch(row.group_bytes()); }
inline void prefetch(CodedRow row) {
  const unsigned char* chunk = row.chunk();
  if (row.at == 0) prefetch(chunk - kLineBytes);  // what decodes it
  for (std::int64_t line = 0; line < kChunkBytes; line += kLineBytes) prefetch(chunk + line);
}

constexpr std::int64_t kAheadBytes = 1280;  // of 512 to 2048 tried; less comes late, more throws out what is waiting
// How far ahead rows are fetched, in how many streams. Intel's second level itself fetches ahead in every page read.
#if defined(WINNOW_WIDENING)
constexpr std::int64_t kFarBytes = 46 * kLineBytes;  // of 16 to 128 lines tried
constexpr int kStreams = 2;  // of 1 to 8 tried
#else
constexpr std::int64_t kFarBytes = 8 << 10;  // of 2 to 12 KB tried
constexpr int kStreams = 1;
#endif
template <class W>
constexpr std::int64_t kLine = kLineBytes / static_cast<std::int64_t>(sizeof(W));
template <>
inline constexpr std::int64_t kLine<int4> = 2 * kLineBytes;
template <>
inline constexpr std::int64_t kLine<coded> = kChunk;
template <class W>
constexpr std::int64_t kAhead = kAheadBytes / kLineBytes * kLine<W>;
template <>
inline constexpr std::int64_t kAhead<coded> = 10 * kChunk;  // of 4 to 10 chunks tried

// Where the rows' own prefetching ends and that of the next rows begins: a whole number of lines.
template <class W>
inline std::int64_t own_end(std::int64_t n) {
  return n > kAhead<W> ? (n - kAhead<W>) / kLine<W> * kLine<W> : 0;
}

// Prefetches what a row's stream needs first: the lines that nothing before it has fetched.
template <class W>
inline void prefetch_start(Row<W> row, std::int64_t n) {
  for (std::int64_t l = 0; l < n && l < kAhead<W>; l += kLine<W>) prefetch(row + l);
}

template <int kLines, bool kPrefetch, class W, class X>
inline std::int64_t dot_lines(Sum<W> acc[kRows], const Row<W> rows[kRows], const X* x, std::int64_t i, std::int64_t n,
                              const Row<W> ahead[kRows]) {
  for (; i + kLines * kLine<W> <= n; i += kLines * kLine<W>) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (std::int64_t l = i; l < i + kLines * kLine<W>; l += kLine<W>) {
        if (kPrefetch) prefetch(ahead[r] + l);
#pragma GCC unroll 8
        for (std::int64_t s = l; s < l + kLine<W>; s += kStep<W, X>) acc[r] = step(acc[r], rows[r] + s, x + s);
      }
    }
  }
  return i;
}

template <bool kPrefetch, class W, class X>
inline void dot_loop(const Row<W> rows[kRows], const X* x, std::int64_t n, Floats out[kRows],
                     const Row<W> next[kRows]) {
  Sum<W> acc[kRows];
  for (auto& a : acc) begin(a);
  std::int64_t i = 0;
  Row<W> ahead[kRows];
  if (kPrefetch) {
    const std::int64_t own = own_end<W>(n);
    for (int r = 0; r < kRows; ++r) ahead[r] = rows[r] + kAhead<W>;
    i = dot_lines<2, true, W>(acc, rows, x, i, own, ahead);
    i = dot_lines<1, true, W>(acc, rows, x, i, own, ahead);
    for (int r = 0; r < kRows; ++r) ahead[r] = next[r] - own;
  }
  i = dot_lines<2, kPrefetch, W>(acc, rows, x, i, n, ahead);
  i = dot_lines<1, kPrefetch, W>(acc, rows, x, i, n, ahead);
  for (; i + kStep<W, X> <= n; i += kStep<W, X>) {
    for (int r = 0; r < kRows; ++r) acc[r] = step(acc[r], rows[r] + i, x + i);
  }
  if (i < n) {
    for (int r = 0; r < kRows; ++r) acc[r] = step_some(acc[r], rows[r] + i, x + i, n - i);
  }
  for (int r = 0; r < kRows; ++r) out[r] = patched(floats(acc[r], x), rows[r], x);
}

// Vectors whose sum, times unit(x), is rows[r] . x for r < 8; `next` is null, or what is read after each row.
template <class W, class X>
inline void dot_sums(const Row<W> rows[kRows], const X* x, std::int64_t n, Floats out[kRows],
                     const Row<W> next[kRows] = nullptr) {
  if constexpr (kOwnLoops<W>) {
    dot_groups(rows, x, n, out, next);
  } else if (next) {
    dot_loop<true, W>(rows, x, n, out, next);
  } else {
    dot_loop<false, W>(rows, x, n, out, next);
  }
}

template <class X>
inline void add_up(const Floats sums[kRows], const X* x, float out[kRows]) {
  sum8(sums, out);
  for (int r = 0; r < kRows; ++r) out[r] *= unit(x);
}

// out[r] = rows[r] . x for r < 8.
template <class W, class X>
inline void dot(const Row<W> rows[kRows], const X* x, std::int64_t n, float out[kRows],
                const Row<W> next[kRows] = nullptr) {
  Floats sums[kRows];
  dot_sums<W>(rows, x, n, sums, next);
  add_up(sums, x, out);
}

// Rows and vectors that `row_sums` takes: each is loaded once for all of the others. Vectors are longer than rows, and a
// few of them fill the first-level cache.
constexpr int kRowsTogether = kLanes == 16 ? 2 : 1;
constexpr int kVectorsTogether = 2;
constexpr int kLinesAtOnce = 4;  // lines of a row that are gone through at once

// Sums of one row and one vector: as many as the registers hold, but four of floats, whose order is part of the result.
template <class W, int kProducts>
constexpr int kSums = kLanes == 16 && kProducts == 4 && std::is_same_v<W, int8> ? 2 : 4;

// Vectors whose sums, times unit(x[v]), are rows[r] . x[v]: each fourth line of a row goes to the same sum, so that the
// products of one row need not wait for each other. Meanwhile `fetched` lines are prefetched for every kLinesAtOnce of a
// row, of rows that are read later, from `later` on.
//
// A loop over sums that is not unrolled would keep them in memory, in all other loops too.
template <int kCount, int kVectors, class W, class X>
inline void row_sums(const Row<W> rows[kCount], const Row<W> later[kCount], int fetched, const X* const x[kVectors],
                     std::int64_t n, Floats out[kVectors][kCount]) {
  if constexpr (kOwnLoops<W>) {
    row_groups<kCount, kVectors>(rows, later, fetched, x, n, out);
  } else {
    constexpr int kParts = kSums<W, kCount * kVectors>;
    Sum<W> acc[kVectors][kCount][kParts];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
        for (int k = 0; k < kParts; ++k) begin(acc[v][r][k]);
      }
    }
    std::int64_t i = 0;
    for (; i + kLinesAtOnce * kLine<W> <= n; i += kLinesAtOnce * kLine<W>) {
#pragma GCC unroll 4
      for (int k = 0; k < kLinesAtOnce; ++k) {
#pragma GCC unroll 2
        for (int r = 0; r < kCount; ++r) {
          if (k < fetched) prefetch(later[r] + (i / kLinesAtOnce * fetched + k * kLine<W>));
        }
        const std::int64_t line = i + k * kLine<W>;
#pragma GCC unroll 8
        for (std::int64_t s = line; s < line + kLine<W>; s += kStep<W, X>) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
            for (int r = 0; r < kCount; ++r) {
              Sum<W>& sum = acc[v][r][k % kParts];
              sum = step(sum, rows[r] + s, x[v] + s);
            }
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kCount; ++r) {
        auto& sums = acc[v][r];
        std::int64_t j = i;
        for (; j + kStep<W, X> <= n; j += kStep<W, X>) sums[0] = step(sums[0], rows[r] + j, x[v] + j);
        if (j < n) sums[1] = step_some(sums[1], rows[r] + j, x[v] + j, n - j);
        Sum<W> all = sums[0] + sums[1];
        if constexpr (kParts == 4) all = all + (sums[2] + sums[3]);
        out[v][r] = patched(floats(all, x[v]), rows[r], x[v]);
      }
    }
  }
}

// Two vectors of a row. A level may split them otherwise than into halves where that is quicker: that is pair order.
template <class R>
inline void load_pair(R p, Floats& a, Floats& b) {
  a = load(p);
  b = load(p + kLanes);
}
template <class W>
inline void settle_pair(const W*, float*) {}  // W alone matters
template <class W>
inline void split_pair(const W*, const float* x, float* y) {
  store(y, load(x));
  store(y + kLanes, load(x + kLanes));
}

constexpr std::int64_t kPair = 2 * kLanes;

template <int kVectors, class R>
inline void load_vectors(R row, Floats out[kVectors]) {
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; c += 2) load_pair(row + c * kLanes, out[c], out[c + 1]);
}

// Puts what axpy8 of rows of W has summed, all of it, into the order of the elements.
template <class W>
inline void settle(float* y, std::int64_t n) {
  if constexpr (kOwnLoops<W>) return settle_groups(y, n);
  for (std::int64_t i = 0; i + kPair <= n; i += kPair) settle_pair(static_cast<const W*>(nullptr), y + i);
}

// `ahead` and the rows are different ones where fewer rows are added than will be read next.
template <int kCount, int kVectors, int kFetched, class W>
inline std::int64_t axpy_lines(const Row<W> rows[], const Floats weight[], std::int64_t i, std::int64_t n, float* y,
                               const Row<W> ahead[]) {
  for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
    Floats sum[kVectors];
    for (int c = 0; c < kVectors; ++c) sum[c] = load(y + i + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if (r < kFetched) {
#pragma GCC unroll 8
        for (std::int64_t l = 0; l < kVectors * kLanes; l += kLine<W>) prefetch(ahead[r] + i + l);
      }
      if (r < kCount) {
        Floats w[kVectors];
        load_vectors<kVectors>(rows[r] + i, w);
        for (int c = 0; c < kVectors; ++c) sum[c] = fma(weight[r], w[c], sum[c]);
      }
    }
    for (int c = 0; c < kVectors; ++c) store(y + i + c * kLanes, sum[c]);
  }
  return i;
}

template <int kCount, bool kPrefetch, class W>
inline void axpy_loop(const Row<W> rows[], const float a[], std::int64_t n, float* y, const Row<W> next[kRows]) {
  constexpr int kVectors = kLanes == 16 ? 8 : 4;  // what the registers hold
  Floats weight[kCount];
  for (int r = 0; r < kCount; ++r) weight[r] = splat(a[r]);
  std::int64_t i = 0;
  Row<W> ahead[kRows];
  if (kPrefetch) {
    for (int r = 0; r < kCount; ++r) ahead[r] = rows[r] + kAhead<W>;
    i = axpy_lines<kCount, kVectors, kCount, W>(rows, weight, i, own_end<W>(n), y, ahead);
    for (int r = 0; r < kRows; ++r) ahead[r] = next[r] - i;
  }
  i = axpy_lines<kCount, kVectors, kPrefetch ? kRows : 0, W>(rows, weight, i, n, y, ahead);
  i = axpy_lines<kCount, 2, 0, W>(rows, weight, i, n, y, ahead);
  for (; i < n; i += kLanes) {  // less than a pair
    const std::int64_t some = n - i < kLanes ? n - i : kLanes;
    Floats sum = some == kLanes ? load(y + i) : load_some(y + i, some);
    for (int r = 0; r < kCount; ++r) {
      sum = fma(weight[r], some == kLanes ? load(rows[r] + i) : load_some(rows[r] + i, some), sum);
    }
    some == kLanes ? store(y + i, sum) : store_some(y + i, sum, some);
  }
}

// y, in pair order, += sum of a[r] * rows[r] over r < count <= 8, one after the other; `next` is null, or the eight
// rows that are read next.
// Where count is neither 4 nor 8 the last row is repeated with weight 0: `rows` and `a` have room for eight.
template <class W>
inline void axpy8(Row<W> rows[kRows], float a[kRows], int count, std::int64_t n, float* y,
                  const Row<W> next[kRows] = nullptr) {
  const int whole = count <= kRows / 2 ? kRows / 2 : kRows;
  for (int r = count; r < whole; ++r) {
    rows[r] = rows[count - 1];
    a[r] = 0.f;
  }
  const Patches<W> patches(rows, whole, y);
  if constexpr (kOwnLoops<W>) {
    whole == kRows ? axpy_groups<kRows>(rows, a, n, y, next) : axpy_groups<kRows / 2>(rows, a, n, y, next);
  } else if (whole == kRows) {
    next ? axpy_loop<kRows, true, W>(rows, a, n, y, next) : axpy_loop<kRows, false, W>(rows, a, n, y, next);
  } else {
    next ? axpy_loop<kRows / 2, true, W>(rows, a, n, y, next) : axpy_loop<kRows / 2, false, W>(rows, a, n, y, next);
  }
  patches.add(rows, a, whole, y);
}

}  // namespace winnow::WINNOW_LEVEL

#if defined(WINNOW_AVX512)
#include "simd/int4_avx512.hpp"
#endif
