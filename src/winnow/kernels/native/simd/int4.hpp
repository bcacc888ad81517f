// Rows of four-bit weights.
//
// A group of 32 weights is 16 bytes: the low half of byte b is weight b, the high half weight b + 16; a weight is
// (half - 8) times the group's scale, a bfloat16. Rows are whole groups. Groups lie one after the other, so do their
// scales.
#pragma once

#include <cstdint>
#include <cstring>

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kGroup = 32;

// Stands where other rows are pointers: moved and compared in weights.
struct Int4Row {
  const unsigned char* groups;
  const bf16* scales;
  std::int64_t at;  // weights from the beginning

  const unsigned char* bytes() const { return groups + at / kGroup * (kGroup / 2) + at % (kGroup / 2); }
  int shift() const { return at % kGroup < kGroup / 2 ? 0 : 4; }
  // Where `at` is the beginning of a group: its bytes, its scale. Unsigned, since a division by two is then a shift.
  const unsigned char* group_bytes() const { return groups + static_cast<std::uint64_t>(at) / 2; }
  const bf16* group_scale() const { return scales + static_cast<std::uint64_t>(at) / kGroup; }
  float scale() const {
    const std::uint32_t bits = static_cast<std::uint32_t>(group_scale()->bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
};

struct Groups;  // a vector laid out for int4, where a level has loops of its own for it

inline Int4Row operator+(Int4Row row, std::int64_t weights) { return {row.groups, row.scales, row.at + weights}; }
inline Int4Row operator-(Int4Row row, std::int64_t weights) { return row + -weights; }

}  // namespace winnow::WINNOW_LEVEL
