// The table of one level.
#include "kernels.hpp"
#include "rows.hpp"

namespace winnow::WINNOW_LEVEL {

void linear(Context&, const float*, std::int64_t, const Matrix&, const float*, float*);
void add(const float*, std::int64_t, float*);
void layer_norm(const float*, std::int64_t, std::int64_t, const float*, const float*, float, float*);
void rms_norm(const float*, std::int64_t, std::int64_t, const float*, float, float*);
void rotate(float*, std::int64_t, std::int64_t, const float*, const float*);
void append_kv(const KvBlock&, std::int64_t, const float*, const float*);
void attend(Context&, const float*, std::int64_t, const KvBlock&, std::int64_t, std::int64_t, float, const std::int32_t*,
            std::int64_t, float*);
void missing_kv(Context&, const float*, LazyKv&, std::int64_t, const std::int32_t*, std::int64_t);
void gathered_rows(Context&, const float*, std::int64_t, const Matrix&, const float*, const Lists&, std::int64_t,
                   float*);
void gathered_columns(Context&, const float*, std::int64_t, const Matrix&, const float*, const Lists&, std::int64_t,
                      float*);
void active_set(Context&, const float*, std::int64_t, const Matrix&, const Matrix&, const float*, std::int64_t,
                std::int32_t*, std::int64_t*);
void sign_set(Context&, const float*, std::int64_t, const SignIndex&, std::int32_t*, std::int64_t*);
void gate_set(Context&, const float*, std::int64_t, const NeuronRecords&, const float*, Activation, std::int32_t*,
              std::int64_t*, float*);
void mlp(Context&, const float*, std::int64_t, const NeuronRecords&, const Lists*, Activation, const float*, float*);
void unpack(Context&, const Matrix&, std::int64_t, std::int64_t, Dtype, void*);
bool pack(Context&, const Source&, const Matrix&);
const RowKernels& row_kernels();
void bit_products(Context&, const BitScan&, const BitFound&);
void bit_distances(Context&, const std::uint64_t*, const std::uint64_t*, std::int64_t, const std::int32_t*,
                   const std::int32_t*, std::int64_t, std::int32_t*);
void bit_keys(Context&, const std::uint64_t*, std::int64_t, const std::int32_t*, std::int64_t, std::uint64_t*);
bool pack_signs(Context&, const std::int8_t*, std::int64_t, std::int64_t, std::uint64_t*);
const char* bit_path();

// Reads memory in order; the sum is returned so that the loads are not left out.
template <bool kPrefetch>
static float read_all(const char* memory, std::int64_t bytes) {
  constexpr std::int64_t stride = 8 * kLanes;
  const auto* p = reinterpret_cast<const float*>(memory);
  const auto* end = p + bytes / 4 / stride * stride;
  Floats sums[8];
  for (auto& sum : sums) sum = zero();
  for (; p < end; p += stride) {
    for (int k = 0; k < 8; ++k) sums[k] = sums[k] + load(p + k * kLanes);
    if (kPrefetch) {
      asm volatile("" ::: "memory");  // loads in order, then prefetches: mixed, both get slower
      for (std::int64_t line = 0; line < stride * 4; line += kLineBytes) {
        __builtin_prefetch(reinterpret_cast<const char*>(p) + 512 + line);
      }
    }
  }
  float totals[8];
  sum8(sums, totals);
  return totals[0] + totals[1] + totals[2] + totals[3] + totals[4] + totals[5] + totals[6] + totals[7];
}

static float read(const char* memory, std::int64_t bytes, bool prefetching) {
  return prefetching ? read_all<true>(memory, bytes) : read_all<false>(memory, bytes);
}

const Kernels& kernels() {
  static const Kernels table = {linear,     add,           layer_norm,       rms_norm,   rotate,   append_kv, attend,
                                    missing_kv, gathered_rows, gathered_columns, active_set, sign_set, gate_set,  mlp,
                                    unpack,     pack,          read,             &row_kernels(),
                                    bit_products, bit_distances, bit_keys, pack_signs, bit_path};
  return table;
}

}  // namespace winnow::WINNOW_LEVEL
