// Products of +-1 vectors held as bits: what a level offers, and the loops, for one kind of register each.
//
// Eight columns share a register: `planes` holds word 0 of all columns, then word 1. Four rows stay at hand while a panel
// of columns, small enough for the first cache, goes by.
#pragma once

#include <cstdint>

namespace winnow {

// Pairs (row, column) with at most `limit` differing bits; with `whole_rows`, of these the pairs whose whole vectors, of
// `words` words, differ in at most `whole_limit` bits.
struct BitScan {
  const std::uint64_t *rows, *planes;  // [n_rows, scan_words], [scan_words, stride]
  std::int64_t n_rows, n_columns, scan_words, stride;  // stride: n_columns up to a multiple of 8
  std::int64_t limit;
  const std::uint64_t *whole_rows, *whole_columns;  // [n_rows, words], [n_columns, words]; null: none
  std::int64_t words, whole_limit;
  std::int64_t after;  // row r meets columns above after + r; below -n_rows: all
};

// Room for what is found, in no particular order; found counts what had no room too.
struct BitFound {
  std::int32_t *rows, *columns, *distances;
  std::int64_t room;
  std::int64_t *found, *survivors;  // survivors: pairs within `limit`
};

using BitTile = void (*)(const BitScan&, const BitFound&, std::int64_t row, std::int64_t end_row, std::int64_t column,
                         std::int64_t end_column);

namespace {  // one copy for each compilation, with the instructions of that compilation

inline std::int64_t distance(const std::uint64_t* a, const std::uint64_t* b, std::int64_t words) {
  std::int64_t total = 0;
  for (std::int64_t w = 0; w < words; ++w) total += __builtin_popcountll(a[w] ^ b[w]);
  return total;
}

// Lanes `mask` of the eight columns from `column` on are within the limit of row `row`; returns how many count.
inline std::int64_t keep(const BitScan& scan, const BitFound& into, std::int64_t row, std::int64_t column, unsigned mask,
                         const std::int64_t* distances) {
  std::int64_t survivors = 0;
  for (; mask; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const std::int64_t at = column + lane;
    if (at >= scan.n_columns || at <= scan.after + row) continue;
    ++survivors;
    std::int64_t bits = distances[lane];
    if (scan.whole_rows) {
      bits = distance(scan.whole_rows + row * scan.words, scan.whole_columns + at * scan.words, scan.words);
      if (bits > scan.whole_limit) continue;
    }
    const std::int64_t place = __atomic_fetch_add(into.found, 1, __ATOMIC_RELAXED);
    if (place >= into.room) continue;
    into.rows[place] = static_cast<std::int32_t>(row);
    into.columns[place] = static_cast<std::int32_t>(at);
    into.distances[place] = static_cast<std::int32_t>(bits);
  }
  return survivors;
}

// L: eight lanes of 64 bits. kWords: how many words, 0 for any number.
template <class L, int kWords>
void scan_tile(const BitScan& scan, const BitFound& into, std::int64_t row, std::int64_t end_row, std::int64_t column,
               std::int64_t end_column) {
  constexpr int kRows = 4;
  const std::int64_t words = kWords ? kWords : scan.scan_words;
  std::int64_t survivors = 0;
  for (; row < end_row; row += kRows) {
    const std::uint64_t* queries[kRows];
    for (int q = 0; q < kRows; ++q) queries[q] = scan.rows + (row + q < end_row ? row + q : row) * words;
    typename L::Lanes held[kRows][kWords ? kWords : 1];
    for (int w = 0; w < kWords; ++w) {
      for (int q = 0; q < kRows; ++q) held[q][w] = L::all(queries[q][w]);
    }
    for (std::int64_t c = column; c < end_column; c += 8) {
      typename L::Lanes sums[kRows];
      for (auto& sum : sums) sum = L::all(0);
      for (std::int64_t w = 0; w < words; ++w) {
        const auto eight = L::load(scan.planes + w * scan.stride + c);
        for (int q = 0; q < kRows; ++q) {
          sums[q] = L::add(sums[q], L::count(eight, kWords ? held[q][w] : L::all(queries[q][w])));
        }
      }
      unsigned masks[kRows], any = 0;
      for (int q = 0; q < kRows; ++q) any |= masks[q] = L::at_most(sums[q], scan.limit);
      if (!any) continue;
      for (int q = 0; q < kRows && row + q < end_row; ++q) {
        if (!masks[q]) continue;
        alignas(64) std::int64_t distances[8];
        L::store(sums[q], distances);
        survivors += keep(scan, into, row + q, c, masks[q], distances);
      }
    }
  }
  __atomic_fetch_add(into.survivors, survivors, __ATOMIC_RELAXED);
}

// The rows' words in registers, where they are few.
template <class L>
BitTile tile_for(std::int64_t words) {
  switch (words) {
    case 1: return scan_tile<L, 1>;
    case 2: return scan_tile<L, 2>;
    case 3: return scan_tile<L, 3>;
    case 4: return scan_tile<L, 4>;
    default: return scan_tile<L, 0>;
  }
}

}  // namespace
}  // namespace winnow
