// Rows of a matrix as floats: blocks of rows, claimed in order.
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

static inline void put(float* p, Floats a) { store(p, a); }
static inline void put_some(float* p, Floats a, std::int64_t n) { store_some(p, a, n); }

#if defined(WINNOW_AVX512)
static inline void put(bf16* p, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}
#else
static inline void put(bf16* p, Floats a) {
  float floats[kLanes];
  store(floats, a);
  for (int i = 0; i < kLanes; ++i) p[i] = round_bf16(floats[i]);
}
#endif
static inline void put_some(bf16* p, Floats a, std::int64_t n) {
  float floats[kLanes];
  store(floats, a);
  for (std::int64_t i = 0; i < n; ++i) p[i] = round_bf16(floats[i]);
}

// `ahead` is a row that is read soon: parts of records are short streams, too short for the processor's own prefetching.
template <class W, class T>
static void unpack_row(Row<W> row, Row<W> ahead, float scale, std::int64_t n, T* out) {
  constexpr bool kScaled = std::is_same_v<W, int8>;
  const Floats factor = splat(scale);
  std::int64_t i = 0;
  for (; i + kLine<W> <= n; i += kLine<W>) {
    prefetch(ahead + i);
#pragma GCC unroll 8
    for (std::int64_t l = 0; l < kLine<W>; l += kLanes) {
      const Floats a = load(row + (i + l));
      put(out + i + l, kScaled ? a * factor : a);
    }
  }
  for (; i < n; i += kLanes) {
    const std::int64_t some = n - i < kLanes ? n - i : kLanes;
    const Floats a = some == kLanes ? load(row + i) : load_some(row + i, some);
    put_some(out + i, kScaled ? a * factor : a, some);
  }
}

// kPast: whole lines are written past the caches, and need not be read first. `settle` has others see them before what
// follows.
#if defined(WINNOW_AVX512)
template <bool kPast>
static void decode_chunk(CodedRow row, bf16 out[kChunk]) {
  const Chunk chunk = decode(row);
  for (int i = 0; i < 4; ++i) {
    kPast ? _mm512_stream_si512(reinterpret_cast<__m512i*>(out + 32 * i), chunk.part[i])
          : _mm512_storeu_si512(out + 32 * i, chunk.part[i]);
  }
}
static void settle() { _mm_sfence(); }
#else
template <bool kPast>
static void decode_chunk(CodedRow row, bf16 out[kChunk]) {
  for (std::int64_t i = 0; i < kChunk; ++i) out[i] = row[i];
}
static void settle() {}
#endif

template <bool kPast>
static void decode_chunk(CodedRow row, float out[kChunk]) {
  bf16 chunk[kChunk];
  decode_chunk<false>(row, chunk);
  for (std::int64_t i = 0; i < kChunk; ++i) out[i] = widened(chunk[i]);
}

static inline void put_one(float* p, bf16 a) { *p = widened(a); }
static inline void put_one(bf16* p, bf16 a) { *p = a; }

template <bool kPast, class T>
static void unpack_row(CodedRow row, CodedRow ahead, std::int64_t n, T* out) {
  for (std::int64_t i = 0; i < n; i += kChunk) {
    prefetch(ahead + i);
    decode_chunk<kPast>(row + i, out + i);
  }
  for (std::int64_t p = 0; p < row.patches(); ++p) put_one(out + row.column(p), row.value(p));
}

constexpr std::int64_t kAheadRows = 2;

template <class W>
static void fetch_scales(const Matrix& matrix, std::int64_t i) {
  if constexpr (std::is_same_v<W, int8>) {
    prefetch(reinterpret_cast<const float*>(matrix.scales) + i * matrix.scale_stride);
  } else if constexpr (std::is_same_v<W, int4>) {
    for (std::int64_t d = 0; d < matrix.columns; d += kLineBytes / 2 * kGroup) {
      prefetch((row_of<W>(matrix, i) + d).group_scale());
    }
  }
}

constexpr std::int64_t kPastBytes = 4 << 20;  // more than a second level holds; coded rows alone gain from it

template <class T>
static void unpack_as(Context& context, const Matrix& matrix, std::int64_t begin, std::int64_t end, T* out) {
  constexpr std::int64_t block = 16;
  const bool past = (end - begin) * matrix.columns * static_cast<std::int64_t>(sizeof(T)) >= kPastBytes &&
                    reinterpret_cast<std::uintptr_t>(out) % kLineBytes == 0;
  const std::int64_t blocks = (end - begin + block - 1) / block;
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  auto job = [&](Pool& pool) {
    each_block(pool, 0, blocks, [&](std::int64_t b) {
      const std::int64_t first = begin + b * block, last = first + block < end ? first + block : end;
      of_weights(matrix.dtype, [&](auto w) {
        using W = decltype(w);
        for (std::int64_t i = first; i < last; ++i) {
          const std::int64_t ahead = i + kAheadRows < matrix.rows ? i + kAheadRows : i;
          fetch_scales<W>(matrix, ahead);
          const float scale = std::is_same_v<W, int8> ? scales[i * matrix.scale_stride] : 1.f;
          T* to = out + (i - begin) * matrix.columns;
          if constexpr (std::is_same_v<W, coded>) {
            const auto row = row_of<W>(matrix, i), next = row_of<W>(matrix, ahead);
            past ? unpack_row<true>(row, next, matrix.columns, to) : unpack_row<false>(row, next, matrix.columns, to);
          } else {
            unpack_row<W>(row_of<W>(matrix, i), row_of<W>(matrix, ahead), scale, matrix.columns, to);
          }
        }
      });
      if (past) settle();
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, (end - begin) * matrix.columns * static_cast<std::int64_t>(sizeof(T)), job);
}

void unpack(Context& context, const Matrix& matrix, std::int64_t begin, std::int64_t end, Dtype dtype, void* out) {
  dtype == Dtype::float32 ? unpack_as(context, matrix, begin, end, static_cast<float*>(out))
                          : unpack_as(context, matrix, begin, end, static_cast<bf16*>(out));
}

}  // namespace winnow::WINNOW_LEVEL
