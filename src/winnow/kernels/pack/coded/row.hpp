// One row of coded bfloat16; the layout is that of native/simd/coded.hpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr int kCodes = 16;

// Fills the table with the high bytes that most weights of a row have, of equally many the lower ones, in their order; what
// is left of it is 0.
inline void choose_codes(const std::int32_t weights[256], unsigned char table[kCodes]) {
  int kept[256], n_kept = 0;
  for (int high = 0; high < 256; ++high) {
    if (weights[high] > 0) kept[n_kept++] = high;
  }
  for (; n_kept > kCodes; --n_kept) {
    int least = 0;
    for (int i = 1; i < n_kept; ++i) least = weights[kept[i]] <= weights[kept[least]] ? i : least;
    for (int i = least; i + 1 < n_kept; ++i) kept[i] = kept[i + 1];
  }
  for (int c = 0; c < kCodes; ++c) table[c] = static_cast<unsigned char>(c < n_kept ? kept[c] : 0);
}

// Writes n weights, rounded to bfloat16, in front of and behind `chunks`; false, and no row, where more of them have
// another high byte than there is room for.
inline bool pack_coded(const float* x, std::int64_t n, unsigned char* chunks) {
  std::int32_t weights[256] = {};
  for (std::int64_t d = 0; d < n; ++d) ++weights[round_bf16(x[d]).bits >> 8];
  unsigned char code_of[256], *table = chunks - kTableBytes;
  choose_codes(weights, table);
  std::memset(code_of, kCodes, sizeof code_of);
  for (int c = kCodes - 1; c >= 0; --c) code_of[table[c]] = static_cast<unsigned char>(c);
  const std::int64_t front = front_bytes(n), most = (front - kLeadBytes) / 4;
  std::memset(chunks - front, 0, static_cast<std::size_t>(front - kTableBytes));
  std::uint32_t count = 0;
  for (std::int64_t d = 0; d < n; d += 64) {
    unsigned char* chunk = chunks + d / kChunk * kChunkBytes;
    unsigned char *low = chunk + d % kChunk, *codes = chunk + kChunk;
    for (std::int64_t i = 0; i < 64; ++i) {
      const std::uint32_t bits = round_bf16(x[d + i]).bits;
      unsigned code = code_of[bits >> 8];
      if (code == kCodes) {
        if (count == most) return false;
        const std::uint32_t patch = static_cast<std::uint32_t>(d + i) | bits << 16;
        ++count;
        std::memcpy(chunks - kLeadBytes - 4 * static_cast<std::int64_t>(count), &patch, 4);
        code = 0;
      }
      low[place(i)] = static_cast<unsigned char>(bits);
      unsigned char& pair = codes[place(i)];
      pair = static_cast<unsigned char>(d % kChunk == 0 ? code : pair | code << 4);
    }
  }
  std::memcpy(chunks - kLeadBytes, &count, 4);
  return true;
}

}  // namespace winnow::WINNOW_LEVEL
