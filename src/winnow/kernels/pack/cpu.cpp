// Floats into the form in which products read them: blocks of rows, claimed in order, each first made float32.
//
// Plain loops over whole numbers and floats, which compilers turn into vectors by themselves.
#include "../linear/product.hpp"
#include "coded/row.hpp"
#include "groups/group.hpp"

namespace winnow::WINNOW_LEVEL {

struct f16 {
  std::uint16_t bits;
};

static inline float widened(float a) { return a; }
// No step passes through a float that is subnormal: some libraries make the processor take those for zero.
static inline float widened(f16 a) {
  const std::uint32_t sign = (a.bits & 0x8000u) << 16, rest = static_cast<std::uint32_t>(a.bits & 0x7fffu) << 13;
  const float small = static_cast<float>(static_cast<std::int32_t>(a.bits & 0x3ffu)) * 0x1p-24f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &small, 4);
  bits = rest < 0x00800000u ? bits : rest + 0x38000000u;   // the exponents of the two differ in their middle
  bits = rest >= 0x0f800000u ? rest | 0x7f800000u : bits;  // infinite, or no number
  bits |= sign;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

constexpr std::int64_t kTile = 16;
constexpr std::int64_t kBlock = 32;  // rows; where columns are contiguous, a line of memory of bfloat16

// The rows begin..end-1 in float32, `stride` apart.
template <class S>
static void widen_rows(const Source& source, std::int64_t begin, std::int64_t end, std::int64_t columns, float* out,
                       std::int64_t stride) {
  const auto* data = reinterpret_cast<const S*>(source.data) + begin * source.row_stride;
  const std::int64_t rows = end - begin;
  if (source.column_stride == 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < columns; ++d) out[r * stride + d] = widened(data[r * source.row_stride + d]);
    }
    return;
  }
  for (std::int64_t d = 0; d < columns; d += kTile) {
    const std::int64_t wide = columns - d < kTile ? columns - d : kTile;
    float tile[kTile][kBlock];
    for (std::int64_t c = 0; c < wide; ++c) {
      const S* column = data + (d + c) * source.column_stride;
      prefetch(column + kTile * source.column_stride);
      if (source.row_stride == 1 && rows == kBlock) {
        for (std::int64_t r = 0; r < kBlock; ++r) tile[c][r] = widened(column[r]);
      } else {
        for (std::int64_t r = 0; r < rows; ++r) tile[c][r] = widened(column[r * source.row_stride]);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < wide; ++c) out[r * stride + d + c] = tile[c][r];
    }
  }
}

static void pack_row(const float* x, std::int64_t n, float* out, void*) { __builtin_memcpy(out, x, n * 4); }

static void pack_row(const float* x, std::int64_t n, bf16* out, void*) {
  for (std::int64_t d = 0; d < n; ++d) out[d] = round_bf16(x[d]);
}

static void pack_row(const float* x, std::int64_t n, int8* out, float* scale) {
  std::int32_t most = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    const std::int32_t own = magnitude(x[d]);
    most = own > most ? own : most;
  }
  float peak;
  __builtin_memcpy(&peak, &most, 4);
  *scale = peak / 127.f;
  const float divisor = *scale < kLeastNormal ? kLeastNormal : *scale;
  for (std::int64_t d = 0; d < n; ++d) {
    const float step = x[d] / divisor;
    out[d].value = static_cast<std::int8_t>(static_cast<std::int32_t>(step == step ? nearest(step) : 0.f));
  }
}

// False where the row holds no row of such weights.
static bool pack_into(const Matrix& into, std::int64_t i, const float* x) {
  char *data = const_cast<char*>(into.data), *scales = const_cast<char*>(into.scales);
  bool fits = true;
  of_weights(into.dtype, [&](auto w) {
    using W = decltype(w);
    if constexpr (std::is_same_v<W, coded>) {
      auto* row = reinterpret_cast<unsigned char*>(data) + i * into.row_stride;
      fits = pack_coded(x, into.columns, row + front_bytes(into.columns));
    } else if constexpr (std::is_same_v<W, int4>) {
      auto* bytes = reinterpret_cast<unsigned char*>(data) + i * into.row_stride / 2;
      auto* own = reinterpret_cast<bf16*>(scales) + i * into.scale_stride;
      for (std::int64_t d = 0; d < into.columns; d += kGroup) pack_group(x + d, bytes + d / 2, own + d / kGroup);
    } else {
      float* own = scales ? reinterpret_cast<float*>(scales) + i * into.scale_stride : nullptr;
      pack_row(x, into.columns, reinterpret_cast<W*>(data) + i * into.row_stride, own);
    }
  });
  return fits;
}

bool pack(Context& context, const Source& source, const Matrix& into) {
  const std::int64_t blocks = (into.rows + kBlock - 1) / kBlock;
  const std::int64_t stride = into.columns + kTile;  // no power of two
  bool fit = true;
  float* rooms = context.scratch.floats(0, context.pool.threads() * kBlock * stride);
  auto job = [&](Pool& pool) {
    float* room = rooms + pool.member() * kBlock * stride;
    each_block(pool, 0, blocks, [&](std::int64_t b) {
      const std::int64_t begin = b * kBlock, end = begin + kBlock < into.rows ? begin + kBlock : into.rows;
      switch (source.type) {
        case Stored::float32: widen_rows<float>(source, begin, end, into.columns, room, stride); break;
        case Stored::bfloat16: widen_rows<bf16>(source, begin, end, into.columns, room, stride); break;
        case Stored::float16: widen_rows<f16>(source, begin, end, into.columns, room, stride); break;
      }
      for (std::int64_t i = begin; i < end; ++i) {
        if (!pack_into(into, i, room + (i - begin) * stride)) __atomic_store_n(&fit, false, __ATOMIC_RELAXED);
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, into.rows * into.columns * 4, job);
  return fit;
}

}  // namespace winnow::WINNOW_LEVEL
