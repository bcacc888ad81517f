// A block of positions of one kv head, with as many of the query heads that share it as the registers hold.
//
//   scores   the sums of kLanes products are added up together, each in its own lane: rows * queries of them
//   sums     the values' weighted sum stays in registers from the first row to the last
//
// A number of query q at position t stands at t * kQueries + q. Each phase prefetches the memory of the next one, line
// for line at the pace at which it reads its own: the streams are short, and begin too late for the processor's own.
#pragma once

#include "../native/rows.hpp"
#include "../native/simd/exponential.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kBlock = 256;  // positions at most
constexpr std::int64_t kUnit = 16;  // a block but the last is whole units of positions, whatever the level
constexpr int kMostQueries = kLanes / 4;
constexpr int kAccumulators = kLanes == 16 ? 16 : 8;

// A head width known to the compiler, whose loops over it are then unrolled.
template <std::int64_t kWidth>
struct Fixed {
  constexpr operator std::int64_t() const { return kWidth; }
};

// What heads have of one block, one after the other: maximum score, sum of exponentials, their weighted sum of values.
struct Parts {
  static constexpr std::int64_t kHead = 16;  // floats before the values, which begin a line
  float* first;
  std::int64_t stride;

  float& maximum(std::int64_t q) const { return first[q * stride]; }
  float& total(std::int64_t q) const { return first[q * stride + 1]; }
  float* values(std::int64_t q) const { return first + q * stride + kHead; }
};

// A query's numbers in the order in which load_pair gives rows of W.
template <class W>
inline void split(const float* q, std::int64_t width, float* out) {
  std::int64_t i = 0;
  for (; i + kPair <= width; i += kPair) split_pair(static_cast<const W*>(nullptr), q + i, out + i);
  for (; i < width; ++i) out[i] = q[i];
}

// acc[r * kQueries + q] = row(r) . query q, lane by lane, over kLanes / kQueries rows. What is read next lies `ahead`
// bytes after each line.
template <int kQueries, bool kPrefetch, class W, class At, class Width>
inline __attribute__((always_inline)) void multiply(At row, const float* queries, Width width, std::int64_t ahead,
                                                    Floats acc[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes / kQueries; ++r) {
    const W* at = row(r);
    Floats* sums = acc + r * kQueries;
    for (int q = 0; q < kQueries; ++q) sums[q] = zero();
    std::int64_t i = 0;
    for (; i + kPair <= width; i += kPair) {
      if (kPrefetch && i % kLine<W> == 0) {  // a line of bytes is two pairs
#pragma GCC unroll 4
        for (std::int64_t l = i; l < i + kPair; l += kLine<W>) prefetch(reinterpret_cast<const char*>(at + l) + ahead);
      }
      Floats a, b;
      load_pair(at + i, a, b);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        sums[q] = fma(a, load(queries + q * width + i), sums[q]);
        sums[q] = fma(b, load(queries + q * width + i + kLanes), sums[q]);
      }
    }
    for (; i < width; i += kLanes) {  // less than a pair
      const std::int64_t some = width - i < kLanes ? width - i : kLanes;
      const Floats a = some == kLanes ? load(at + i) : load_some(at + i, some);
      for (int q = 0; q < kQueries; ++q) {
        const float* query = queries + q * width + i;
        sums[q] = fma(a, some == kLanes ? load(query) : load_some(query, some), sums[q]);
      }
    }
  }
}

template <int kQueries, bool kPrefetch, class W, class Width>
inline void score(const float* queries, const W* keys, std::int64_t n, Width width, float scale, std::int64_t ahead,
                  float* scores) {
  constexpr int kTogetherRows = kLanes / kQueries;
  Floats acc[kLanes];
  std::int64_t t = 0;
  for (; t + kTogetherRows <= n; t += kTogetherRows) {
    const W* first = keys + t * width;
    multiply<kQueries, kPrefetch, W>([&](int r) { return first + r * width; }, queries, width, ahead, acc);
    store(scores + t * kQueries, sum_each(acc) * splat(scale));
  }
  if (t == n) return;
  const auto row = [&](int r) { return keys + (t + r < n ? t + r : n - 1) * width; };
  multiply<kQueries, kPrefetch, W>(row, queries, width, ahead, acc);
  store(scores + t * kQueries, sum_each(acc) * splat(scale));
}

// Lane by lane what all lanes of the same query come to.
template <int kQueries, int kDistance = kLanes / 2, class F>
inline Floats over_rows(Floats a, F join) {
  if constexpr (kDistance < kQueries) {
    return a;
  } else {
    return over_rows<kQueries, kDistance / 2>(join(a, exchange<kDistance>(a)), join);
  }
}

// The scores become exp(score - maximum); the room up to a whole vector beyond them is used.
template <int kQueries>
inline void exponentiate(float* scores, std::int64_t n, Parts parts) {
  constexpr float kLowest = -3e38f;  // its exponential is nothing beside that of the maximum, which is 1
  const std::int64_t end = n * kQueries;
  for (std::int64_t t = end; t % kLanes; ++t) scores[t] = kLowest;
  Floats highs = splat(kLowest), totals = zero();
  for (std::int64_t t = 0; t < end; t += kLanes) highs = maximum(load(scores + t), highs);
  highs = over_rows<kQueries>(highs, [](Floats a, Floats b) { return maximum(a, b); });
  for (std::int64_t t = 0; t < end; t += kLanes) {
    const Floats e = exponential(load(scores + t) - highs);
    store(scores + t, e);
    totals = totals + e;
  }
  totals = over_rows<kQueries>(totals, [](Floats a, Floats b) { return a + b; });
  float high[kLanes], total[kLanes];
  store(high, highs);
  store(total, totals);
  for (int q = 0; q < kQueries; ++q) {
    parts.maximum(q) = high[q];
    parts.total(q) = total[q];
  }
}

// The numbers of each position times its scale.
template <int kQueries>
inline void multiply_by(const float* scales, std::int64_t n, float* numbers) {
  for (std::int64_t t = 0; t < n; ++t) {
    for (int q = 0; q < kQueries; ++q) numbers[t * kQueries + q] *= scales[t];
  }
}

// Columns i.. of the values' sums, kVectors vectors at a time, then fewer; the first to be done prefetch.
template <int kQueries, int kVectors, bool kPrefetch, class W>
inline std::int64_t sum_columns(const float* weights, const W* values, std::int64_t n, std::int64_t width,
                                std::int64_t ahead, std::int64_t i, Parts parts) {
  // Independent sums, so that one addition need not wait for the one before it.
  constexpr int kSets = kQueries * kVectors < kAccumulators ? kAccumulators / kQueries / kVectors : 1;
  for (; i + kVectors * kLanes <= width; i += kVectors * kLanes) {
    Floats sums[kSets][kQueries][kVectors];
    for (auto& set : sums) {
      for (auto& query : set) {
        for (auto& sum : query) sum = zero();
      }
    }
    const auto add = [&](auto& set, std::int64_t t) {
      const W* row = values + t * width + i;
      if (kPrefetch) {
#pragma GCC unroll 8
        for (std::int64_t l = 0; l < kVectors * kLanes; l += kLine<W>) {
          prefetch(reinterpret_cast<const char*>(row + l) + ahead);
        }
      }
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; c += 2) {
        Floats a, b;
        load_pair(row + c * kLanes, a, b);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q) {
          const Floats weight = splat(weights[t * kQueries + q]);
          set[q][c] = fma(weight, a, set[q][c]);
          set[q][c + 1] = fma(weight, b, set[q][c + 1]);
        }
      }
    };
    std::int64_t t = 0;
    for (; t + kSets <= n; t += kSets) {
#pragma GCC unroll 8
      for (int s = 0; s < kSets; ++s) add(sums[s], t + s);
    }
    for (; t < n; ++t) add(sums[0], t);
    for (int q = 0; q < kQueries; ++q) {
      for (int c = 0; c < kVectors; ++c) {
        Floats sum = sums[0][q][c];
        for (int s = 1; s < kSets; ++s) sum = sum + sums[s][q][c];
        store(parts.values(q) + i + c * kLanes, sum);
      }
    }
  }
  if constexpr (kVectors > 2) {
    return sum_columns<kQueries, kVectors / 2, kPrefetch, W>(weights, values, n, width, ahead, i, parts);
  } else {
    return i;
  }
}

template <int kQueries, bool kPrefetch, class W>
inline void sum_values(const float* weights, const W* values, std::int64_t n, std::int64_t width, std::int64_t ahead,
                       Parts parts) {
  constexpr int kVectors = kAccumulators / kQueries < 8 ? kAccumulators / kQueries : 8;
  std::int64_t i = sum_columns<kQueries, kVectors, kPrefetch, W>(weights, values, n, width, ahead, 0, parts);
  for (int q = 0; q < kQueries; ++q) settle<W>(parts.values(q), i);
  for (; i < width; i += kLanes) {  // less than a pair
    const std::int64_t some = width - i < kLanes ? width - i : kLanes;
    for (int q = 0; q < kQueries; ++q) {
      Floats sum = zero();
      for (std::int64_t t = 0; t < n; ++t) {
        const W* row = values + t * width + i;
        sum = fma(splat(weights[t * kQueries + q]), some == kLanes ? load(row) : load_some(row, some), sum);
      }
      some == kLanes ? store(parts.values(q) + i, sum) : store_some(parts.values(q) + i, sum, some);
    }
  }
}

}  // namespace winnow::WINNOW_LEVEL
