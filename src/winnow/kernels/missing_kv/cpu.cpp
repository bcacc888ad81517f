// Keys and values of some heads at all positions they lack: a task is the keys of a head, or its values.
#include "../decode_attention/store.hpp"
#include "../linear/product.hpp"

#include <cstring>

namespace winnow::WINNOW_LEVEL {

void rms_norm(const float*, std::int64_t, std::int64_t, const float*, float, float*);
void rotate(float*, std::int64_t, std::int64_t, const float*, const float*);

// out[t * rows + i] = row (begin + i) . x[t] for i < rows, t < count; the rows that begin at `ahead` are read next.
template <class W>
static void products(const Matrix& matrix, std::int64_t begin, std::int64_t rows, std::int64_t ahead,
                     const Input<W>* const* x, std::int64_t count, float* out) {
  for (std::int64_t first = 0; first < count; first += kMostBatch) {
    Vectors some;
    for (std::int64_t t = first; t < count && some.count < kMostBatch; ++t) {
      some.x[some.count] = x[t];
      some.out[some.count++] = out + t * rows - begin;
    }
    product<W>(matrix, begin, begin + rows, ahead, some);
  }
}

// What `linear`, the norm and the rotation give: `count` rows of y, the positions from `first` on.
static void settle_rows(const LazyKv& lazy, std::int64_t begin, bool are_keys, std::int64_t first, std::int64_t count,
                        float* y) {
  const std::int64_t width = lazy.kv.width;
  const auto* scales = reinterpret_cast<const float*>(lazy.matrix.scales);
  for (std::int64_t t = 0; t < count; ++t) {
    float* row = y + t * width;
    for (std::int64_t i = 0; lazy.matrix.dtype == Dtype::int8 && i < width; ++i) {
      row[i] *= scales[(begin + i) * lazy.matrix.scale_stride];
    }
    for (std::int64_t i = 0; lazy.bias && i < width; ++i) row[i] += lazy.bias[begin + i];
  }
  if (!are_keys) return;
  if (lazy.norm) rms_norm(y, count, width, lazy.norm, lazy.eps, y);
  for (std::int64_t t = 0; lazy.cosines && t < count; ++t) {
    const std::int64_t angle = (first + t) % lazy.window * (width / 2);
    rotate(y + t * width, 1, width, lazy.cosines + angle, lazy.sines + angle);
  }
}

// The input at `position`, laid out at most once.
template <class W>
static const Input<W>* laid_out(LazyKv& lazy, std::int64_t position) {
  const std::int64_t n = lazy.matrix.columns, row = position % lazy.window, room = input_floats(n);
  float* memory = lazy.laid.floats(0, lazy.window * room) + row * room;
  LazyKv::Laid& laid = lazy.laid_of[row];
  if (laid.position == position && laid.by == &kernels()) return reinterpret_cast<const Input<W>*>(memory);
  laid = {position, &kernels()};
  return input<W>(lazy.inputs + row * n, n, memory);
}

template <class W>
static void compute(Context& context, LazyKv& lazy, std::int64_t position, const std::int32_t* heads,
                    std::int64_t count) {
  const Matrix& matrix = lazy.matrix;
  const std::int64_t width = lazy.kv.width;
  std::int64_t most = 0;
  for (std::int64_t a = 0; a < count; ++a) {
    const std::int64_t missing = lazy.missing(heads[a], position);
    most = missing > most ? missing : most;
  }
  const Input<W>* x[kMostWindow];  // of the last `most` positions
  for (std::int64_t t = 0; t < most; ++t) x[t] = laid_out<W>(lazy, position + 1 - most + t);
  float* found = context.scratch.floats(0, 2 * count * most * width);
  const auto begin_of = [&](std::int64_t task) {
    return (task % 2 * lazy.kv.kv_heads + heads[task / 2]) * width;
  };
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, 2 * count, [&](std::int64_t task, std::int64_t next) {
      const std::int64_t head = heads[task / 2], missing = lazy.missing(head, position);
      if (missing == 0) return;
      const std::int64_t begin = begin_of(task), first = position + 1 - missing;
      float* y = found + task * most * width;
      fetch_scales_and_bias(matrix, begin, begin + width, lazy.bias);
      products<W>(matrix, begin, width, next < 0 ? -1 : begin_of(next), x + most - missing, missing, y);
      settle_rows(lazy, begin, task % 2 == 0, first, missing, y);
      store_rows(lazy.kv, task % 2 == 0, head, first, missing, y);
    });
    pool.wait(0, 2 * count);
  };
  run_job(context.pool, 2 * count * width * row_bytes_of(matrix.dtype, matrix.columns), job);
}

void missing_kv(Context& context, const float* x, LazyKv& lazy, std::int64_t position, const std::int32_t* heads,
                std::int64_t count) {
  const std::int64_t n = lazy.matrix.columns, row = position % lazy.window;
  std::memmove(lazy.inputs + row * n, x, static_cast<std::size_t>(n) * sizeof(float));
  lazy.laid_of[row] = {};
  of_weights(lazy.matrix.dtype,
             [&](auto w) { compute<decltype(w)>(context, lazy, position, heads, count); });
  for (std::int64_t a = 0; a < count; ++a) {
    if (lazy.filled[heads[a]] <= position) lazy.filled[heads[a]] = position + 1;
  }
}

}  // namespace winnow::WINNOW_LEVEL
