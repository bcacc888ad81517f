// Eight counts of bits in one instruction. Compiled for AVX-512 with VPOPCNTDQ, called where the processor has it.
#include <immintrin.h>

#include "bits.hpp"

namespace winnow {
namespace {

struct Counting {
  using Lanes = __m512i;
  static Lanes all(std::uint64_t word) { return _mm512_set1_epi64(static_cast<long long>(word)); }
  static Lanes load(const std::uint64_t* eight) { return _mm512_loadu_si512(eight); }
  static Lanes add(Lanes a, Lanes b) { return _mm512_add_epi64(a, b); }
  static Lanes count(Lanes a, Lanes b) { return _mm512_popcnt_epi64(_mm512_xor_si512(a, b)); }
  static unsigned at_most(Lanes sums, std::int64_t limit) {
    return _mm512_cmple_epi64_mask(sums, _mm512_set1_epi64(limit));
  }
  static void store(Lanes sums, std::int64_t* out) { _mm512_store_si512(out, sums); }
};

}  // namespace

BitTile vpopcntdq_tile(std::int64_t words) { return tile_for<Counting>(words); }

}  // namespace winnow
