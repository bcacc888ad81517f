// Coded bfloat16 on AVX2: 32 bytes at a time, which are two runs of sixteen weights.
#pragma once

namespace winnow::WINNOW_LEVEL {

// The words of two runs: sixteen weights from element 64 * half + 16 * quarter of a chunk on, and those 32 later.
struct Runs {
  __m256i first, second;
};

inline Runs decode(CodedRow row, int half, int quarter) {
  const unsigned char* bytes = row.chunk() + 32 * quarter;
  const auto* table = reinterpret_cast<const __m128i*>(row.table());
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * half));
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + kChunk));
  const __m256i codes = _mm256_and_si256(half ? _mm256_srli_epi16(pairs, 4) : pairs, _mm256_set1_epi8(15));
  const __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table)), codes);
  return {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
}

inline Floats first_eight(__m256i words) { return {widen(_mm256_castsi256_si128(words))}; }
inline Floats last_eight(__m256i words) { return {widen(_mm256_extracti128_si256(words, 1))}; }

template <>
inline constexpr int kStep<coded, float> = kChunk;

inline Floats step(Floats acc, CodedRow w, const float* x) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
    for (int quarter = 0; quarter < 2; ++quarter) {
      const Runs runs = decode(w, half, quarter);
      const float* at = x + 64 * half + 16 * quarter;
      acc = fma(first_eight(runs.first), load(at), acc);
      acc = fma(last_eight(runs.first), load(at + 8), acc);
      acc = fma(first_eight(runs.second), load(at + 32), acc);
      acc = fma(last_eight(runs.second), load(at + 40), acc);
    }
  }
  return acc;
}

inline float element(const float* x, std::int64_t i) { return x[i]; }
inline std::int64_t pair_place(std::int64_t i) { return i; }  // pairs are halves

// Sixteen weights or 32, from a multiple of their number on.
template <int kVectors>
inline void load_vectors(CodedRow row, Floats out[]) {
  const int half = static_cast<int>(row.at % kChunk / 64), quarter = static_cast<int>(row.at % 32 / 16);
#pragma GCC unroll 2
  for (int c = 0; c < kVectors; c += 2) {
    const Runs runs = decode(row, half, quarter + c / 2);
    const __m256i words = row.at % 64 < 32 ? runs.first : runs.second;
    out[c] = first_eight(words);
    out[c + 1] = last_eight(words);
  }
}

}  // namespace winnow::WINNOW_LEVEL
