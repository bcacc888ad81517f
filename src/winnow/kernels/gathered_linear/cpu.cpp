// Products with some blocks of a matrix: of its rows, or of its columns.
//
// A block is read once for all vectors of a batch that list it. The lists of a batch ascend.
#include "../linear/product.hpp"

namespace winnow::WINNOW_LEVEL {

// The blocks that any vector lists, and which vectors do: bit b for vector b.
class Union {
 public:
  Union(const Lists& lists, std::int64_t batch, std::int64_t things, void* room)
      : listed_(static_cast<std::int32_t*>(room)), by_(reinterpret_cast<unsigned char*>(listed_ + room_of(lists, things))) {
    if (batch == 1) {  // in the order of the list
      size_ = lists.counts[0];
      for (std::int64_t i = 0; i < size_; ++i) listed_[i] = lists.indices[i];
      for (std::int64_t i = 0; i < size_; ++i) by_[i] = 1;
      return;
    }
    unsigned char* masks = by_ + room_of(lists, things);
    for (std::int64_t i = 0; i < things; ++i) masks[i] = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t i = 0; i < lists.counts[b]; ++i) {
        masks[lists.of(b)[i]] = static_cast<unsigned char>(masks[lists.of(b)[i]] | (1 << b));
      }
    }
    for (std::int64_t i = 0; i < things; ++i) {
      if (masks[i]) add(i, masks[i]);
    }
  }

  static std::int64_t bytes(const Lists& lists, std::int64_t things) { return 5 * room_of(lists, things) + things; }

  std::int64_t size() const { return size_; }
  std::int64_t block(std::int64_t i) const { return listed_[i]; }
  bool is_of(std::int64_t i, std::int64_t b) const { return by_[i] >> b & 1; }

 private:
  static std::int64_t room_of(const Lists& lists, std::int64_t things) { return lists.room > things ? lists.room : things; }

  void add(std::int64_t block, unsigned char by) {
    listed_[size_] = static_cast<std::int32_t>(block);
    by_[size_++] = by;
  }

  std::int32_t* listed_;
  unsigned char* by_;
  std::int64_t size_ = 0;
};

// The bits of a row are those of `linear`.
void gathered_rows(Context& context, const float* x, std::int64_t batch, const Matrix& matrix, const float* bias,
                   const Lists& lists, std::int64_t rows, float* out) {
  float* room = context.scratch.floats(0, batch * input_floats(matrix.columns));
  const Vectors xs = vectors(matrix.dtype, x, batch, matrix.columns, room, out, matrix.rows);
  const std::int64_t blocks = matrix.rows / rows;
  const Union listed(lists, batch, blocks, context.scratch.bytes(1, Union::bytes(lists, blocks)));
  auto job = [&](Pool& pool) {
    each_block_ahead(pool, 0, listed.size(), [&](std::int64_t i, std::int64_t next) {
      Vectors some;
      for (std::int64_t b = 0; b < batch; ++b) {
        if (!listed.is_of(i, b)) continue;
        some.x[some.count] = xs.x[b];
        some.out[some.count++] = xs.out[b];
      }
      const std::int64_t begin = listed.block(i) * rows;
      product_any(matrix, begin, begin + rows, next < 0 ? -1 : listed.block(next) * rows, some, bias);
    });
    pool.wait(0, listed.size());
  };
  run_job(context.pool, listed.size() * rows * row_bytes_of(matrix.dtype, matrix.columns), job);
}

constexpr std::int64_t kPanel = 32;  // rows, as in layout.py

// Panels read side by side, a block of each in turn while the next one's is fetched: about 8 KB under way.
template <class W>
constexpr std::int64_t kAbreast = kLine<W> < 64 ? 2 : 4;

// A product over the listed blocks of columns. Rows of a panel lie together, block after block: what is read lies in
// order, whatever is left out, and no two rows have anything between them. Each row is summed in the order of the list.
template <class W>
class Columns {
 public:
  // x: of every listed block, `stride` floats apart
  Columns(const Matrix& matrix, const Union& listed, std::int64_t blocks, const Vectors& vectors, std::int64_t stride)
      : matrix_(matrix), listed_(listed), vectors_(vectors), blocks_(blocks), stride_(stride) {}

  std::int64_t panels() const { return (rows() + kPanel - 1) / kPanel; }

  // Sums the panels begin..end-1, at most kAbreast of them; those from `after` on are read next (none if negative).
  void sum(std::int64_t begin, std::int64_t end, std::int64_t after, const float* bias) const {
    Floats totals[kMostBatch][kAbreast<W> * kPanel];
    for (int b = 0; b < vectors_.count; ++b) {
      for (auto& total : totals[b]) total = zero();
    }
    for (std::int64_t i = 0; i < listed_.size(); ++i) {
      for (std::int64_t at_row = 0; at_row < kPanel; at_row += kRows) {
        for (std::int64_t panel = begin; panel < end; ++panel) {
          Place ahead{panel, i + 1};
          if (ahead.i >= listed_.size()) ahead = {after < 0 ? panel : after + panel - begin, 0};
          if (ahead.panel >= panels()) ahead = {panel, i};
          add({panel, i}, ahead, at_row, totals, (panel - begin) * kPanel);
        }
      }
    }
    for (int b = 0; b < vectors_.count; ++b) {
      for (std::int64_t panel = begin; panel < end; ++panel) {
        float sums[kPanel];
        for (std::int64_t r = 0; r < kPanel; r += kRows) sum8(totals[b] + (panel - begin) * kPanel + r, sums + r);
        for (std::int64_t r = 0; r < size(panel); ++r) {
          vectors_.out[b][panel * kPanel + r] = sums[r] + (bias ? bias[panel * kPanel + r] : 0.f);
        }
      }
    }
  }

 private:
  struct Place {
    std::int64_t panel, i;  // the i-th listed block
  };

  std::int64_t rows() const { return matrix_.rows / blocks_; }
  std::int64_t size(std::int64_t panel) const {
    return panel * kPanel + kPanel <= rows() ? kPanel : rows() - panel * kPanel;
  }
  std::int64_t first(Place at) const { return at.panel * kPanel * blocks_ + listed_.block(at.i) * size(at.panel); }

  Row<W> row(std::int64_t i) const { return row_of<W>(matrix_, 0) + i * matrix_.columns; }  // they lie in order

  void fetch(std::int64_t begin) const {
    const Row<W> at = row(begin);
    for (std::int64_t l = 0; l < kRows * matrix_.columns; l += kLine<W>) prefetch(at + l);
    if constexpr (std::is_same_v<W, int4>) prefetch(at.group_scale());
    if constexpr (std::is_same_v<W, int8>) prefetch(scales() + begin);
  }

  const float* scales() const { return reinterpret_cast<const float*>(matrix_.scales); }

  // Adds the products of eight rows of a panel, from its row `at_row` on, to its totals, which begin at `stand`.
  void add(Place at, Place ahead, std::int64_t at_row, Floats (*totals)[kAbreast<W> * kPanel], std::int64_t stand) const {
    const std::int64_t begin = first(at), n = size(at.panel);
    if (at_row >= n) return;
    const std::int64_t some = n - at_row < kRows ? n - at_row : kRows;
    Row<W> rows[kRows];
    if (at_row + kRows <= size(ahead.panel)) fetch(first(ahead) + at_row);
    for (std::int64_t r = 0; r < kRows; ++r) rows[r] = row(begin + at_row + (r < some ? r : some - 1));
    for (int b = 0; b < vectors_.count; ++b) {
      if (!listed_.is_of(at.i, b)) continue;
      Floats sums[kRows], *total = totals[b] + stand + at_row;
      const auto* x = reinterpret_cast<const Input<W>*>(static_cast<const float*>(vectors_.x[b]) + at.i * stride_);
      if (some == kRows && add_dots(rows[0], x, matrix_.columns, total)) continue;
      dot_sums<W>(rows, x, matrix_.columns, sums);
      for (std::int64_t r = 0; r < kRows; ++r) {
        if constexpr (std::is_same_v<W, int8>) {
          const float scale = scales()[begin + at_row + (r < some ? r : some - 1)];
          total[r] = fma(sums[r], splat(unit(x) * scale), total[r]);
        } else {
          total[r] = total[r] + sums[r];
        }
      }
    }
  }

  const Matrix& matrix_;
  const Union& listed_;
  const Vectors& vectors_;
  std::int64_t blocks_, stride_;
};

void gathered_columns(Context& context, const float* a, std::int64_t batch, const Matrix& matrix, const float* bias,
                      const Lists& lists, std::int64_t blocks, float* out) {
  const Union listed(lists, batch, blocks, context.scratch.bytes(1, Union::bytes(lists, blocks)));
  const std::int64_t width = matrix.columns, stride = input_floats(width);
  float* room = context.scratch.floats(0, batch * listed.size() * stride + 1);
  of_weights(matrix.dtype, [&](auto w) {
    using W = decltype(w);
    Vectors vectors;
    for (std::int64_t b = 0; b < batch; ++b) {
      float* laid_out = room + b * listed.size() * stride;
      for (std::int64_t i = 0; i < listed.size(); ++i) {
        input<W>(a + (b * blocks + listed.block(i)) * width, width, laid_out + i * stride);
      }
      vectors.x[b] = laid_out;
      vectors.out[b] = out + b * (matrix.rows / blocks);
    }
    vectors.count = static_cast<int>(batch);
    const Columns<W> columns(matrix, listed, blocks, vectors, stride);
    const std::int64_t panels = columns.panels(), pieces = (panels + kAbreast<W> - 1) / kAbreast<W>;
    auto job = [&](Pool& pool) {
      each_block_ahead(pool, 0, pieces, [&](std::int64_t piece, std::int64_t next) {
        const std::int64_t begin = piece * kAbreast<W>, end = begin + kAbreast<W>;
        columns.sum(begin, end < panels ? end : panels, next < 0 ? -1 : next * kAbreast<W>, bias);
      });
      pool.wait(0, pieces);
    };
    run_job(context.pool, matrix.rows / blocks * listed.size() * row_bytes_of(matrix.dtype, width), job);
  });
}

}  // namespace winnow::WINNOW_LEVEL
