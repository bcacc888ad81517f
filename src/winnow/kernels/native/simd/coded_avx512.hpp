// Coded bfloat16 on AVX-512: a chunk of 128 weights becomes four vectors of bfloat16 in a dozen instructions, and is
// multiplied as those are.
#pragma once

namespace winnow::WINNOW_LEVEL {

struct Chunk {
  __m512i part[4];  // 32 weights each, in their order
};

inline Chunk decode(CodedRow row) {
  const unsigned char* bytes = row.chunk();
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row.table())));
  const __m512i codes = _mm512_loadu_si512(bytes + kChunk), half = _mm512_set1_epi8(15);
  const __m512i of[2] = {_mm512_and_si512(codes, half), _mm512_and_si512(_mm512_srli_epi16(codes, 4), half)};
  Chunk chunk;
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512i low = _mm512_loadu_si512(bytes + 64 * h), high = _mm512_shuffle_epi8(table, of[h]);
    chunk.part[2 * h] = _mm512_unpacklo_epi8(low, high);
    chunk.part[2 * h + 1] = _mm512_unpackhi_epi8(low, high);
  }
  return chunk;
}

template <>
inline constexpr int kStep<coded, PairInput> = kChunk;
template <>
struct InputFor<coded> {
  using type = PairInput;
};

inline Floats step(Floats acc, CodedRow w, const PairInput* x) {
  const Chunk chunk = decode(w);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) acc = multiply_pairs(acc, chunk.part[i], x + 32 * i);
  return acc;
}

// 32 weights or 128, from a multiple of their number on, in pair order, that of bfloat16.
template <int kVectors>
inline void load_vectors(CodedRow row, Floats out[]) {
  const Chunk chunk = decode(row);
  if constexpr (kVectors == 2) {
    load_pair(chunk.part[row.at % kChunk / 32], out[0], out[1]);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) load_pair(chunk.part[i], out[2 * i], out[2 * i + 1]);
  }
}
inline Floats step_some(Floats acc, CodedRow w, const PairInput* x, std::int64_t n) {
  alignas(64) float products[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) products[i % kLanes] += widened(w[i]) * element(x, i);
  return {_mm512_add_ps(acc.v, _mm512_load_ps(products))};
}
inline void settle_pair(const coded*, float* y) { settle_pair(static_cast<const bf16*>(nullptr), y); }
// Where in pair order an element stands.
inline std::int64_t pair_place(std::int64_t i) { return i / 32 * 32 + i % 2 * 16 + i % 32 / 2; }

}  // namespace winnow::WINNOW_LEVEL
