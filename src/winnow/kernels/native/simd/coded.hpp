// Rows of bfloat16 at twelve bits a weight, none lost.
//
// The high bytes of a row's weights, the sign and all of the exponent but its last bit, take few values: sixteen of them
// have codes of four bits. The rare weights with another high byte stand in front of the row, and in it as if their code
// were 0.
//
//   patches   up to kMostPatches words, the last one first: column | weight << 16
//   count     a word: how many there are
//   table     16 bytes: by code, a high byte
//   chunks    of 128 weights: 128 low bytes, then 64 bytes of codes, those of the first 64 weights in the low halves
//
// Bytes of 64 weights stand in the order in which two interleaved vectors give the weights in theirs: see `place`.
#pragma once

#include <cstdint>
#include <cstring>

namespace winnow::WINNOW_LEVEL {

inline float widened(bf16 a) {
  const std::uint32_t bits = static_cast<std::uint32_t>(a.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

constexpr std::int64_t kChunk = 128, kChunkBytes = 192;
constexpr std::int64_t kTableBytes = 16, kLeadBytes = kTableBytes + 4;  // in front of the chunks, beside the patches
constexpr std::int64_t kMostCoded = 16384, kMostPatches = (kMostCoded / 2048 * 64 - kLeadBytes) / 4;  // of a row

// In front of the chunks: a line for each 2048 weights, so that rows begin on lines and patches are as many as may be.
inline std::int64_t front_bytes(std::int64_t n) { return (n + 2047) / 2048 * 64; }
inline std::int64_t coded_row_bytes(std::int64_t n) { return front_bytes(n) + n / kChunk * kChunkBytes; }

// Where in 64 bytes that of a weight stands.
inline std::int64_t place(std::int64_t i) { return i % 32 / 8 * 16 + i / 32 % 2 * 8 + i % 8; }

// Stands where other rows are pointers: moved and compared in weights.
struct CodedRow {
  const unsigned char* chunks;
  std::int64_t at;  // weights from the beginning

  const unsigned char* table() const { return chunks - kTableBytes; }
  const unsigned char* chunk() const {
    return chunks + static_cast<std::uint64_t>(at) / kChunk * static_cast<std::uint64_t>(kChunkBytes);
  }
  std::int64_t patches() const { return word(0); }
  std::int64_t column(std::int64_t patch) const { return word(1 + patch) & 0xffff; }
  bf16 value(std::int64_t patch) const { return {static_cast<std::uint16_t>(word(1 + patch) >> 16)}; }

  // A weight without its patch.
  bf16 operator[](std::int64_t i) const {
    const std::uint64_t from = static_cast<std::uint64_t>(at + i), inside = from % kChunk;
    const unsigned char* bytes = chunks + from / kChunk * kChunkBytes;
    const auto at64 = static_cast<std::uint64_t>(place(static_cast<std::int64_t>(inside % 64)));
    const unsigned low = bytes[inside / 64 * 64 + at64], code = bytes[kChunk + at64] >> (inside < 64 ? 0 : 4) & 15;
    return {static_cast<std::uint16_t>(table()[code] << 8 | low)};
  }

 private:
  std::uint32_t word(std::int64_t i) const {
    std::uint32_t found;
    std::memcpy(&found, chunks - kLeadBytes - 4 * i, 4);
    return found;
  }
};

inline CodedRow operator+(CodedRow row, std::int64_t weights) { return {row.chunks, row.at + weights}; }
inline CodedRow operator-(CodedRow row, std::int64_t weights) { return row + -weights; }

}  // namespace winnow::WINNOW_LEVEL
