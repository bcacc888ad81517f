// Normal equations and leverage scores: each row is read once from memory, twice from the first-level cache.
#include "../native/pool.hpp"
#include "doubles.hpp"
#include "rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr int kGroup = 8;
constexpr std::int64_t kWave = 64;  // segments of one fork

// out[r] = row r . x, each row's sum its own: its bits do not depend on its neighbours. The group that follows is fetched.
template <int kCount, class T>
static void dots(const T* rows, std::int64_t n, const double* x, double* out) {
  Doubles sums[kCount];
  for (auto& sum : sums) sum = nil();
  std::int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles with = wide(x + i);
    for (int r = 0; r < kCount; ++r) {
      const T* at = rows + r * n + i;
      __builtin_prefetch(at + kCount * n);
      sums[r] = fused(wide(at), with, sums[r]);
    }
  }
  if (i < n) {
    const Doubles with = wide_some(x + i, n - i);
    for (int r = 0; r < kCount; ++r) sums[r] = fused(wide_some(rows + r * n + i, n - i), with, sums[r]);
  }
  for (int r = 0; r < kCount; ++r) out[r] = total(sums[r]);
}

// w += v[0] * row 0 + v[1] * row 1 ..., row after row
template <int kCount, class T>
static void axpys(const T* rows, std::int64_t n, const double* v, double* w) {
  Doubles by[kCount];
  for (int r = 0; r < kCount; ++r) by[r] = all(v[r]);
  std::int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    Doubles sum = wide(w + i);
    for (int r = 0; r < kCount; ++r) sum = fused(wide(rows + r * n + i), by[r], sum);
    put(w + i, sum);
  }
  if (i < n) {
    Doubles sum = wide_some(w + i, n - i);
    for (int r = 0; r < kCount; ++r) sum = fused(wide_some(rows + r * n + i, n - i), by[r], sum);
    put_some(w + i, sum, n - i);
  }
}

struct Targets {
  const double *x, *b;  // b: of the block's first row
  std::int64_t b_stride, vectors;
};

template <int kCount, class T>
static void group(const T* rows, std::int64_t n, const Targets& to, std::int64_t first, double* out, double* squares) {
  for (std::int64_t c = 0; c < to.vectors; ++c) {
    double v[kCount];
    dots<kCount>(rows, n, to.x + c * n, v);
    for (int r = 0; r < kCount; ++r) {
      if (to.b) v[r] -= to.b[c * to.b_stride + first + r];
      squares[c] += v[r] * v[r];
    }
    axpys<kCount>(rows, n, v, out + c * n);
  }
}

template <class T>
static void segment(const T* data, std::int64_t n, const Targets& to, std::int64_t begin, std::int64_t end, double* out,
                    double* squares) {
  for (std::int64_t i = 0; i < to.vectors * n; ++i) out[i] = 0.;
  for (std::int64_t c = 0; c < to.vectors; ++c) squares[c] = 0.;
  std::int64_t row = begin;
  for (; row + kGroup <= end; row += kGroup) group<kGroup>(data + row * n, n, to, row, out, squares);
  for (; row < end; ++row) group<1>(data + row * n, n, to, row, out, squares);
}

void normal_rows(Context& context, const RowBlock& block, std::int64_t vectors, const double* x, const double* b,
                 std::int64_t b_stride, double* out, double* squares) {
  const std::int64_t n = block.columns, size = vectors * (n + 1);
  const std::int64_t segments = (block.rows + kSegment - 1) / kSegment;
  auto* parts = static_cast<double*>(context.scratch.bytes(0, kWave * size * 8));
  const Targets to{x, b, b_stride, vectors};
  for (std::int64_t first = 0; first < segments; first += kWave) {
    const std::int64_t count = segments - first < kWave ? segments - first : kWave;
    auto job = [&](Pool& pool) {
      each_block(pool, 0, count, [&](std::int64_t s) {
        const std::int64_t begin = (first + s) * kSegment;
        const std::int64_t end = begin + kSegment < block.rows ? begin + kSegment : block.rows;
        double* part = parts + s * size;
        if (block.is_double) {
          segment(reinterpret_cast<const double*>(block.data), n, to, begin, end, part, part + vectors * n);
        } else {
          segment(reinterpret_cast<const float*>(block.data), n, to, begin, end, part, part + vectors * n);
        }
      });
      pool.wait(0, count);
    };
    run_job(context.pool, count * kSegment * n * 4, job);
    for (std::int64_t s = 0; s < count; ++s) {
      const double* part = parts + s * size;
      for (std::int64_t i = 0; i < vectors * n; ++i) out[i] += part[i];
      for (std::int64_t c = 0; c < vectors; ++c) squares[c] += part[vectors * n + c];
    }
  }
}

template <class T>
static void score(const T* data, std::int64_t n, std::int64_t vectors, const double* x, std::int64_t begin,
                  std::int64_t end, double* out) {
  std::int64_t row = begin;
  for (; row < end; row += kGroup) {
    const std::int64_t count = end - row < kGroup ? end - row : kGroup;
    for (std::int64_t r = 0; r < count; ++r) out[row + r] = 0.;
    for (std::int64_t c = 0; c < vectors; ++c) {
      double v[kGroup];
      if (count == kGroup) {
        dots<kGroup>(data + row * n, n, x + c * n, v);
      } else {
        for (std::int64_t r = 0; r < count; ++r) dots<1>(data + (row + r) * n, n, x + c * n, v + r);
      }
      for (std::int64_t r = 0; r < count; ++r) out[row + r] += v[r] * v[r];
    }
  }
}

void score_rows(Context& context, const RowBlock& block, std::int64_t vectors, const double* x, double* out) {
  const std::int64_t segments = (block.rows + kSegment - 1) / kSegment;
  auto job = [&](Pool& pool) {
    each_block(pool, 0, segments, [&](std::int64_t s) {
      const std::int64_t begin = s * kSegment;
      const std::int64_t end = begin + kSegment < block.rows ? begin + kSegment : block.rows;
      if (block.is_double) {
        score(reinterpret_cast<const double*>(block.data), block.columns, vectors, x, begin, end, out);
      } else {
        score(reinterpret_cast<const float*>(block.data), block.columns, vectors, x, begin, end, out);
      }
    });
    pool.wait(0, segments);
  };
  run_job(context.pool, block.rows * block.columns * 4 * vectors, job);
}

std::int64_t cholesky(double* g, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    double* row = g + i * n;
    // Row i less what the rows above explain, four of them at a time.
    std::int64_t k = 0;
    for (; k + 4 <= i; k += 4) {
      const double* above = g + k * n;
      const double a = above[i], b = above[n + i], c = above[2 * n + i], d = above[3 * n + i];
      for (std::int64_t j = i; j < n; ++j) {
        row[j] -= (a * above[j] + b * above[n + j]) + (c * above[2 * n + j] + d * above[3 * n + j]);
      }
    }
    for (; k < i; ++k) {
      const double a = g[k * n + i];
      for (std::int64_t j = i; j < n; ++j) row[j] -= a * g[k * n + j];
    }
    if (!(row[i] > 0.)) return i;
    const double inverse = 1. / __builtin_sqrt(row[i]);
    for (std::int64_t j = i; j < n; ++j) row[j] *= inverse;
    for (std::int64_t j = 0; j < i; ++j) row[j] = 0.;
  }
  return n;
}

void triangle(const double* r, std::int64_t n, bool transposed, std::int64_t vectors, double* x) {
  for (std::int64_t c = 0; c < vectors; ++c, x += n) {
    if (transposed) {
      for (std::int64_t k = 0; k < n; ++k) {
        const double* row = r + k * n;
        const double y = x[k] /= row[k];
        for (std::int64_t j = k + 1; j < n; ++j) x[j] -= y * row[j];
      }
    } else {
      for (std::int64_t k = n - 1; k >= 0; --k) {
        double sum;
        dots<1>(r + k * n + k + 1, n - k - 1, x + k + 1, &sum);
        x[k] = (x[k] - sum) / r[k * n + k];
      }
    }
  }
}

}  // namespace winnow::WINNOW_LEVEL
