// What a level offers: one table of functions, filled by table.cpp once per level.
#pragma once

#include <cstdint>

#include "../bit_products/bits.hpp"
#include "pool.hpp"

namespace winnow {

// coded: bfloat16 in twelve bits a weight, see simd/coded.hpp.
enum class Dtype : int { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3, coded = 4 };
enum class Activation : int { relu = 0, silu = 1 };

// Views of memory that Python owns; operands.py has checked them.
struct Matrix {
  const char* data;
  std::int64_t rows, columns, row_stride;  // stride in elements, of coded rows in bytes
  Dtype dtype;
  const char* scales;  // int8: a float32 per row; int4: a bfloat16 per group of 32; null otherwise
  std::int64_t scale_stride;  // from row to row, in scales
};

// Vectors that one call takes at most; each is computed as if it were alone.
constexpr std::int64_t kMostBatch = 8;

// For each vector of a batch some of the things numbered 0..: the first counts[b] of the `room` indices from b * room on.
struct Lists {
  const std::int32_t* indices;
  const std::int64_t* counts;
  std::int64_t room;

  const std::int32_t* of(std::int64_t b) const { return indices + b * room; }
};

// Floats as a checkpoint holds them; strides in elements.
enum class Stored : int { float32 = 0, bfloat16 = 1, float16 = 2 };
struct Source {
  const char* data;
  std::int64_t row_stride, column_stride;
  Stored type;
};

struct NeuronRecords {
  const char* data;
  std::int64_t neurons, width, record_bytes;
  Dtype dtype;
  bool gated;
};

// Neurons by the signs of their projections: score = sizes * |p| * cosines[differing signs] + bias.
struct SignIndex {
  const std::uint64_t* signs;  // [neurons, words]
  const float *cosines, *sizes, *bias;  // [64 * words + 1], [neurons], [neurons]
  std::int64_t neurons, words;
};

struct KvBlock {
  char *keys, *values;
  std::int64_t kv_heads, capacity, width;
  Dtype dtype;
  float *key_scales, *value_scales;  // int8: [kv_heads, capacity] each; null otherwise
};

// Memory that is grown and never shrunk; 64-byte aligned. That of a context a kernel may use until it returns.
class Scratch {
 public:
  static constexpr int kSlots = 4;
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* bytes(int slot, std::int64_t count);
  float* floats(int slot, std::int64_t count);

 private:
  void* memory_[kSlots] = {};
  std::int64_t size_[kSlots] = {};
};

constexpr std::int64_t kMostWindow = 64;  // lazy_kv.py holds windows to it

struct Kernels;

// A layer's cache of which heads may lack the last positions, and what these are computed from. Position p has row
// p % window of inputs, cosines and sines.
struct LazyKv {
  // Whose input a row of `laid` is, and who laid it out.
  struct Laid {
    std::int64_t position = -1;
    const Kernels* by = nullptr;
  };

  KvBlock kv;
  Matrix matrix;  // rows of keys, then of values
  const float *bias, *norm;  // null where there is none; `norm` is of the keys
  const float *cosines, *sines;  // null where keys are not rotated
  float* inputs;
  std::int64_t* filled;  // per head, how many positions are whole
  float eps;
  std::int64_t window;
  Scratch laid;  // the inputs once more, in the form that rows are multiplied with
  Laid laid_of[kMostWindow];

  // Positions that a head lacks up to `position`, which is among them.
  std::int64_t missing(std::int64_t head, std::int64_t position) const {
    return filled[head] <= position ? position + 1 - filled[head] : 0;
  }
};

struct Context {
  Pool& pool;
  Scratch& scratch;
};

struct RowKernels;  // row_sketch/rows.hpp

struct Kernels {
  // x, out and what belongs to them: `batch` rows, one after the other
  void (*linear)(Context&, const float* x, std::int64_t batch, const Matrix&, const float* bias, float* out);
  void (*add)(const float* x, std::int64_t n, float* out);
  void (*layer_norm)(const float* x, std::int64_t rows, std::int64_t width, const float* weight, const float* bias,
                     float eps, float* out);
  void (*rms_norm)(const float* x, std::int64_t rows, std::int64_t width, const float* weight, float eps, float* out);
  void (*rotate)(float* x, std::int64_t heads, std::int64_t width, const float* cosines, const float* sines);
  void (*append_kv)(const KvBlock&, std::int64_t position, const float* k, const float* v);
  // listed: the `count` kv heads to attend with, null for all, which `count` then is
  void (*attend)(Context&, const float* q, std::int64_t heads, const KvBlock&, std::int64_t start, std::int64_t length,
                 float scale, const std::int32_t* listed, std::int64_t count, float* out);
  // x is the input at `position`
  void (*missing_kv)(Context&, const float* x, LazyKv&, std::int64_t position, const std::int32_t* heads,
                     std::int64_t count);
  // the listed blocks of `rows` rows each
  void (*gathered_rows)(Context&, const float* x, std::int64_t batch, const Matrix&, const float* bias, const Lists&,
                        std::int64_t rows, float* out);
  // the listed ones of `blocks` blocks of columns; the matrix holds their rows in the order of gathered_linear
  void (*gathered_columns)(Context&, const float* a, std::int64_t batch, const Matrix&, const float* bias, const Lists&,
                           std::int64_t blocks, float* out);
  void (*active_set)(Context&, const float* x, std::int64_t batch, const Matrix& p1, const Matrix& p2, const float* bias,
                     std::int64_t cap, std::int32_t* indices, std::int64_t* count);
  // projected: `batch` rows of 64 * words
  void (*sign_set)(Context&, const float* projected, std::int64_t batch, const SignIndex&, std::int32_t* indices,
                   std::int64_t* count);
  void (*gate_set)(Context&, const float* x, std::int64_t batch, const NeuronRecords&, const float* thresholds,
                   Activation, std::int32_t* indices, std::int64_t* count, float* gates);
  // lists null: all neurons, and every byte of them. gates null: to be computed; otherwise those of every neuron.
  void (*mlp)(Context&, const float* x, std::int64_t batch, const NeuronRecords&, const Lists* lists, Activation,
              const float* gates, float* out);
  // out: rows begin..end-1, one after the other, as float32 or as bfloat16
  void (*unpack)(Context&, const Matrix&, std::int64_t begin, std::int64_t end, Dtype, void* out);
  bool (*pack)(Context&, const Source&, const Matrix& into);  // false where coded rows cannot hold the source
  float (*read)(const char* memory, std::int64_t bytes, bool prefetching);
  const RowKernels* rows;
  void (*bit_products)(Context&, const BitScan&, const BitFound&);
  // out: the differing bits of pairs (rows[p], columns[p])
  void (*bit_distances)(Context&, const std::uint64_t* a, const std::uint64_t* b, std::int64_t words,
                        const std::int32_t* rows, const std::int32_t* columns, std::int64_t pairs, std::int32_t* out);
  // out: the bits at `positions` of each column, the first lowest
  void (*bit_keys)(Context&, const std::uint64_t* planes, std::int64_t stride, const std::int32_t* positions,
                   std::int64_t bits, std::uint64_t* out);
  // bit 1 for +1; false where something else than +-1 stands
  bool (*pack_signs)(Context&, const std::int8_t* signs, std::int64_t rows, std::int64_t width, std::uint64_t* out);
  const char* (*bit_path)();  // how this processor counts bits at this level
};

namespace generic {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512_near {  // prefetches into the first-level cache
const Kernels& kernels();
}
namespace avx512_widening {  // multiplies bfloat16 as floats
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}

}  // namespace winnow
