// Bit products: pairs within a distance, distances of listed pairs, sampled bits as keys, signs as bits.
#include <algorithm>
#include <cstring>

#include "../native/kernels.hpp"
#if defined(WINNOW_AVX2) || defined(WINNOW_AVX512)
#include <immintrin.h>
#endif

namespace winnow {

#if defined(WINNOW_AVX512)
BitTile vpopcntdq_tile(std::int64_t words);
#endif

namespace {

#if defined(WINNOW_AVX2) || defined(WINNOW_AVX512)
// A table of sixteen counts, looked up for both halves of each byte.
struct Eight {
  struct Lanes {
    __m256i low, high;
  };
  static Lanes all(std::uint64_t word) {
    const __m256i four = _mm256_set1_epi64x(static_cast<long long>(word));
    return {four, four};
  }
  static Lanes load(const std::uint64_t* eight) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(eight)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(eight + 4))};
  }
  static Lanes add(Lanes a, Lanes b) { return {_mm256_add_epi64(a.low, b.low), _mm256_add_epi64(a.high, b.high)}; }
  static Lanes count(Lanes a, Lanes b) {
    return {bits(_mm256_xor_si256(a.low, b.low)), bits(_mm256_xor_si256(a.high, b.high))};
  }
  static unsigned at_most(Lanes sums, std::int64_t limit) {
    const __m256i most = _mm256_set1_epi64x(limit);
    return ~(above(sums.low, most) | above(sums.high, most) << 4) & 0xffu;
  }
  static void store(Lanes sums, std::int64_t* out) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), sums.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + 4), sums.high);
  }

 private:
  static unsigned above(__m256i sums, __m256i most) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(sums, most))));
  }
  static __m256i bits(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, half));
    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), half));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
  }
};
constexpr const char* kTables = "tables";
#else
struct Eight {
  struct Lanes {
    std::uint64_t of[8];
  };
  static Lanes all(std::uint64_t word) {
    Lanes lanes;
    for (auto& lane : lanes.of) lane = word;
    return lanes;
  }
  static Lanes load(const std::uint64_t* eight) {
    Lanes lanes;
    std::memcpy(lanes.of, eight, sizeof(lanes.of));
    return lanes;
  }
  static Lanes add(Lanes a, const Lanes& b) {
    for (int k = 0; k < 8; ++k) a.of[k] += b.of[k];
    return a;
  }
  // Sums of neighbouring bits, pairs, halves of bytes, bytes: without an instruction that counts.
  static Lanes count(Lanes a, const Lanes& b) {
    for (int k = 0; k < 8; ++k) {
      std::uint64_t x = a.of[k] ^ b.of[k];
      x -= (x >> 1) & 0x5555555555555555u;
      x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
      x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
      a.of[k] = (x * 0x0101010101010101u) >> 56;
    }
    return a;
  }
  static unsigned at_most(const Lanes& sums, std::int64_t limit) {
    unsigned mask = 0;
    for (int k = 0; k < 8; ++k) mask |= unsigned(static_cast<std::int64_t>(sums.of[k]) <= limit) << k;
    return mask;
  }
  static void store(const Lanes& sums, std::int64_t* out) { std::memcpy(out, sums.of, sizeof(sums.of)); }
};
constexpr const char* kTables = "portable";
#endif

bool counts_bits() {
#if defined(WINNOW_AVX512)
  static const bool has = __builtin_cpu_supports("avx512vpopcntdq");
  return has;
#else
  return false;
#endif
}

BitTile choose(std::int64_t words) {
#if defined(WINNOW_AVX512)
  if (counts_bits()) return vpopcntdq_tile(words);
#endif
  return tile_for<Eight>(words);
}

constexpr std::int64_t kTileRows = 256;
constexpr std::int64_t kPanelWords = 4096;  // 32 KiB

}  // namespace

namespace WINNOW_LEVEL {

const char* bit_path() { return counts_bits() ? "vpopcntdq" : kTables; }

void bit_products(Context& context, const BitScan& scan, const BitFound& into) {
  const BitTile tile = choose(scan.scan_words);
  const std::int64_t panel = std::max<std::int64_t>(kPanelWords / scan.scan_words / 8 * 8, 64);
  const std::int64_t panels = (scan.n_columns + panel - 1) / panel, chunks = (scan.n_rows + kTileRows - 1) / kTileRows;
  auto job = [&](Pool& pool) {
    each_block(pool, 0, panels * chunks, [&](std::int64_t block) {
      const std::int64_t row = block / panels * kTileRows, end_row = std::min(row + kTileRows, scan.n_rows);
      const std::int64_t column = block % panels * panel;
      const std::int64_t end_column = std::min(column + panel, scan.n_columns);
      if (end_column - 1 > scan.after + row) tile(scan, into, row, end_row, column, end_column);
    });
    pool.wait(0, panels * chunks);
  };
  run_job(context.pool, scan.n_rows * scan.n_columns * scan.scan_words, job);
}

void bit_distances(Context& context, const std::uint64_t* a, const std::uint64_t* b, std::int64_t words,
                   const std::int32_t* rows, const std::int32_t* columns, std::int64_t pairs, std::int32_t* out) {
  constexpr std::int64_t kBlock = 2048, kAhead = 12;
  const std::int64_t blocks = (pairs + kBlock - 1) / kBlock;
  auto job = [&](Pool& pool) {
    each_block(pool, 0, blocks, [&](std::int64_t block) {
      const std::int64_t end = std::min((block + 1) * kBlock, pairs);
      for (std::int64_t p = block * kBlock; p < end; ++p) {
        if (p + kAhead < end) {
          for (std::int64_t w = 0; w < words; w += 8) {
            __builtin_prefetch(a + rows[p + kAhead] * words + w);
            __builtin_prefetch(b + columns[p + kAhead] * words + w);
          }
        }
        out[p] = static_cast<std::int32_t>(distance(a + rows[p] * words, b + columns[p] * words, words));
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, pairs * words * 16, job);
}

void bit_keys(Context& context, const std::uint64_t* planes, std::int64_t stride, const std::int32_t* positions,
              std::int64_t bits, std::uint64_t* out) {
  constexpr std::int64_t kBlock = 1024;
  const std::int64_t blocks = (stride + kBlock - 1) / kBlock;
  auto job = [&](Pool& pool) {
    each_block(pool, 0, blocks, [&](std::int64_t block) {
      const std::int64_t first = block * kBlock, n = std::min(kBlock, stride - first);
      std::uint64_t* keys = out + first;
      std::fill(keys, keys + n, 0);
      for (std::int64_t t = 0; t < bits; ++t) {
        const std::uint64_t* plane = planes + positions[t] / 64 * stride + first;
        const int shift = positions[t] % 64;
        for (std::int64_t k = 0; k < n; ++k) keys[k] |= (plane[k] >> shift & 1) << t;
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, stride * bits * 8, job);
}

bool pack_signs(Context& context, const std::int8_t* signs, std::int64_t rows, std::int64_t width, std::uint64_t* out) {
  constexpr std::int64_t kBlock = 64;
  constexpr std::uint64_t kOnes = 0x0101010101010101u;
  const std::int64_t blocks = (rows + kBlock - 1) / kBlock, words = (width + 63) / 64;
  bool wrong = false;
  auto job = [&](Pool& pool) {
    each_block(pool, 0, blocks, [&](std::int64_t block) {
      bool broken = false;
      for (std::int64_t r = block * kBlock; r < std::min((block + 1) * kBlock, rows); ++r) {
        const std::int8_t* row = signs + r * width;
        for (std::int64_t w = 0; w < words; ++w) {
          std::uint64_t word = 0;
          for (std::int64_t at = w * 64; at < std::min(w * 64 + 64, width); at += 8) {
            std::uint64_t eight = kOnes;
            std::memcpy(&eight, row + at, static_cast<std::size_t>(std::min<std::int64_t>(8, width - at)));
            const std::uint64_t negative = eight >> 7 & kOnes;
            broken = broken || eight != (kOnes | negative * 0xfe);
            const std::uint64_t past = width - at < 8 ? 0xffu << (width - at) & 0xffu : 0;
            word |= ((((negative ^ kOnes) * 0x0102040810204080u) >> 56) & ~past) << (at % 64);
          }
          out[r * words + w] = word;
        }
      }
      if (broken) __atomic_store_n(&wrong, true, __ATOMIC_RELAXED);
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, rows * width, job);
  return !wrong;
}

}  // namespace WINNOW_LEVEL
}  // namespace winnow
