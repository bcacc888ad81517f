// Products with some blocks of rows of a matrix: each block's own outputs, or the sum of what the rows add to all.
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

// The bits of a row are those of `linear`.
void gathered_rows(Context& context, const float* x, const Matrix& matrix, const float* bias, const std::int32_t* blocks,
                   std::int64_t count, std::int64_t rows, float* out) {
  const void* input = input_any(matrix.dtype, x, matrix.columns, context.scratch.floats(0, input_floats(matrix.columns)));
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, count, [&](std::int64_t b, std::int64_t next) {
      const std::int64_t begin = blocks[b] * rows;
      product_any(matrix, begin, begin + rows, next < 0 ? -1 : blocks[next] * rows, input, out + begin);
      if (bias) {
        for (std::int64_t i = begin; i < begin + rows; ++i) out[i] += bias[i];
      }
    });
    pool.wait(0, count);
  };
  run_job(context.pool, count * rows * row_bytes_of(matrix.dtype, matrix.columns), job);
}

// The rows of the listed blocks, one after the other, eight at a time.
template <class W>
class Eights {
 public:
  Eights(const Matrix& matrix, const std::int32_t* blocks, std::int64_t count, std::int64_t rows, std::int64_t begin)
      : matrix_(matrix), blocks_(blocks), count_(count), rows_(rows), begin_(begin) {}

  // Their numbers and where they are read from; the last one stands in for those that are missing.
  int read(std::int64_t numbers[kRows], Row<W> at[kRows]) {
    int size = 0;
    for (int r = 0; r < kRows; ++r) {
      if (block_ < count_) {
        last_ = blocks_[block_] * rows_ + row_;
        if (++row_ == rows_) {
          row_ = 0;
          ++block_;
        }
        ++size;
      }
      numbers[r] = last_;
      at[r] = row_of<W>(matrix_, last_) + begin_;
    }
    return size;
  }

 private:
  const Matrix& matrix_;
  const std::int32_t* blocks_;
  std::int64_t count_, rows_, begin_, block_ = 0, row_ = 0, last_ = 0;
};

// The columns begin..end-1 of the sum, row after row: who works on them changes no bit. begin is a multiple of kPair
// and of a group.
template <class W>
static void add_rows(const float* a, const Matrix& matrix, const float* bias, const std::int32_t* blocks,
                     std::int64_t count, std::int64_t rows, std::int64_t begin, std::int64_t end, float* out) {
  const std::int64_t width = end - begin;
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  float* y = out + begin;
  for (std::int64_t d = 0; d < width; ++d) y[d] = 0.f;
  Eights<W> eights(matrix, blocks, count, rows, begin);
  // A part of eight rows is short: those fetched while it is added are the ones after the next, or they come too late.
  struct Eight {
    std::int64_t numbers[kRows];
    Row<W> places[kRows];
    int size;
  } ring[3];
  for (int e = 0; e < 2; ++e) ring[e].size = eights.read(ring[e].numbers, ring[e].places);
  for (int now = 0; ring[now].size > 0; now = (now + 1) % 3) {
    Eight &eight = ring[now], &later = ring[(now + 2) % 3];
    later.size = eights.read(later.numbers, later.places);
    float weights[kRows];
    for (int r = 0; r < eight.size; ++r) {
      weights[r] = a[eight.numbers[r]];
      if constexpr (std::is_same_v<W, int8>) weights[r] *= scales[eight.numbers[r] * matrix.scale_stride];
    }
    axpy8<W>(eight.places, weights, eight.size, width, y, later.places);
  }
  settle<W>(y, width);
  if (bias) {
    for (std::int64_t d = 0; d < width; ++d) y[d] += bias[begin + d];
  }
}

void gathered_columns(Context& context, const float* a, const Matrix& matrix, const float* bias,
                      const std::int32_t* blocks, std::int64_t count, std::int64_t rows, float* out) {
  constexpr std::int64_t unit = 64, least = 256;  // columns: of a piece's beginning, and of a piece
  const std::int64_t columns = matrix.columns, wanted = context.pool.threads();
  const std::int64_t pieces = columns / least < 1 ? 1 : columns / least < wanted ? columns / least : wanted;
  const auto start = [&](std::int64_t piece) { return piece < pieces ? piece * columns / pieces / unit * unit : columns; };
  auto job = [&](Pool& pool) {
    each_block(pool, 0, pieces, [&](std::int64_t piece) {
      of_weights(matrix.dtype, [&](auto w) {
        add_rows<decltype(w)>(a, matrix, bias, blocks, count, rows, start(piece), start(piece + 1), out);
      });
    });
    pool.wait(0, pieces);
  };
  run_job(context.pool, count * rows * row_bytes_of(matrix.dtype, columns), job);
}

}  // namespace winnow::WINNOW_LEVEL
