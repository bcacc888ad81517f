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

template <class W>
inline const char* address(const W* row) {
  return reinterpret_cast<const char*>(row);
}
inline const char* address(Int4Row row) { return reinterpret_cast<const char*>(row.group_bytes()); }
inline const char* address(CodedRow row) { return reinterpret_cast<const char*>(row.chunk()); }

constexpr std::int64_t kPiece = 512;  // sums kept at once, of all vectors
constexpr std::int64_t kRunsFarBytes = 8 << 10;  // how far ahead each is fetched
constexpr std::int64_t kRuns = 4;  // blocks read side by side, so that sums are stored once for all of them

// A product over the listed blocks of columns. The rows of a block lie together, one after the other: what is read of a
// block is one run of memory, whatever is left out; a few are read side by side. Each row is summed in the order of the
// list.
template <class W>
class Columns {
 public:
  // x: of every listed block, `stride` floats apart
  Columns(const Matrix& matrix, const Union& listed, std::int64_t blocks, const Vectors& vectors, std::int64_t stride)
      : matrix_(matrix), listed_(listed), vectors_(vectors), rows_(matrix.rows / blocks), stride_(stride),
        piece_(piece_of(rows_, vectors.count)), far_(far_of(row_bytes_of(matrix.dtype, matrix.columns))),
        eight_bytes_(kRows * matrix.columns * kLineBytes / kLine<W>) {}

  std::int64_t pieces() const { return (rows_ + piece_ - 1) / piece_; }

  // Sums the rows of a piece; the piece `after` is read next (none if negative).
  void sum(std::int64_t piece, std::int64_t after, const float* bias) const {
    const std::int64_t begin = piece * piece_, end = begin + piece_ < rows_ ? begin + piece_ : rows_;
    Floats totals[kPiece];
    for (std::int64_t t = 0; t < vectors_.count * piece_; ++t) totals[t] = zero();
    for (std::int64_t i = 0; i < listed_.size(); i += kRuns) sum_runs(i, begin, end, after < 0 ? piece : after, totals);
    for (int b = 0; b < vectors_.count; ++b) {
      for (std::int64_t at = 0; at < end - begin; at += kRows) {
        float sums[kRows];
        sum8(totals + b * piece_ + at, sums);
        for (std::int64_t r = 0; r < kRows && begin + at + r < end; ++r) {
          vectors_.out[b][begin + at + r] = sums[r] + (bias ? bias[begin + at + r] : 0.f);
        }
      }
    }
  }

 private:
  // At least eight pieces where there are rows enough; the totals of all vectors have room for kPiece.
  static std::int64_t piece_of(std::int64_t rows, std::int64_t batch) {
    const std::int64_t share = (rows / 8 + kRows - 1) / kRows * kRows, room = kPiece / batch / kRows * kRows;
    return share < kRows ? kRows : share < room ? share : room;
  }

  // How many rows ahead memory is fetched, in whole eights.
  static std::int64_t far_of(std::int64_t row_bytes) {
    const std::int64_t rows = kRunsFarBytes / row_bytes / kRows * kRows;
    return rows < kRows ? kRows : rows;
  }

  Row<W> row(std::int64_t i, std::int64_t at) const {
    return row_of<W>(matrix_, 0) + (listed_.block(i) * rows_ + at) * matrix_.columns;  // they lie in order
  }

  // Adds rows begin..end-1 of the listed blocks from the i-th on, kRuns at most, to the totals of every vector. What they
  // are is worked out once and moved on: found anew for every eight rows it took as long as their products.
  void sum_runs(std::int64_t i, std::int64_t begin, std::int64_t end, std::int64_t after, Floats* totals) const {
    const std::int64_t last = i + kRuns < listed_.size() ? i + kRuns : listed_.size(), n = matrix_.columns;
    Row<W> ahead[kRuns], nexts[kRuns];  // ahead: what is fetched; next: what is read after a run
    Short<Row<W>, Input<W>> runs[kMostBatch][kRuns];
    int counts[kMostBatch] = {};
    for (std::int64_t k = i; k < last; ++k) {
      ahead[k - i] = row(k, begin + far_);
      nexts[k - i] = k + kRuns < listed_.size() ? row(k + kRuns, begin) : row(k % kRuns, after * piece_);
      for (int b = 0; b < vectors_.count; ++b) {
        if (listed_.is_of(k, b)) runs[b][counts[b]++] = {row(k, begin), scales(k, begin), x(b, k)};
      }
    }
    for (std::int64_t at = 0; at < end - begin; at += kRows) {
      const std::int64_t later = at + far_ - (end - begin), some = end - begin - at < kRows ? end - begin - at : kRows;
      const bool is_turn = later >= 0 && (at == 0 || later < kRows);  // `ahead` has come to the end of the runs
      for (std::int64_t k = 0; k < last - i; ++k) {
        if (is_turn) ahead[k] = nexts[k] + later * n;
        fetch(ahead[k]);
        ahead[k] = ahead[k] + kRows * n;
      }
      for (int b = 0; b < vectors_.count; ++b) {
        add(runs[b], counts[b], some, totals + b * piece_ + at);
        for (int k = 0; k < counts[b]; ++k) {
          runs[b][k].first = runs[b][k].first + kRows * n;
          if constexpr (std::is_same_v<W, int8>) runs[b][k].scales += kRows;
        }
      }
    }
  }

  const float* scales(std::int64_t i, std::int64_t at) const {
    if constexpr (!std::is_same_v<W, int8>) return nullptr;
    return reinterpret_cast<const float*>(matrix_.scales) + listed_.block(i) * rows_ + at;
  }

  const Input<W>* x(int b, std::int64_t i) const {
    return reinterpret_cast<const Input<W>*>(static_cast<const float*>(vectors_.x[b]) + i * stride_);
  }

  void fetch(Row<W> at) const {
    const char* bytes = address(at);
    for (std::int64_t l = 0; l < eight_bytes_; l += kLineBytes) prefetch(bytes + l);
    if constexpr (std::is_same_v<W, int4>) prefetch(at.group_scale());
  }

  // Adds the products of `some` rows, at most eight, of each run to their totals, run after run.
  void add(const Short<Row<W>, Input<W>> runs[], int count, std::int64_t some, Floats* totals) const {
    const std::int64_t n = matrix_.columns;
    if (some == kRows && add_short(runs, count, n, totals)) return;
    for (int k = 0; k < count; ++k) {
      Row<W> rows[kRows];
      for (std::int64_t r = 0; r < kRows; ++r) rows[r] = runs[k].first + (r < some ? r : some - 1) * n;
      Floats sums[kRows];
      dot_sums<W>(rows, runs[k].x, n, sums);
      for (std::int64_t r = 0; r < some; ++r) {
        if constexpr (std::is_same_v<W, int8>) {
          totals[r] = fma(sums[r], splat(unit(runs[k].x) * runs[k].scales[r]), totals[r]);
        } else {
          totals[r] = totals[r] + sums[r];
        }
      }
    }
  }

  const Matrix& matrix_;
  const Union& listed_;
  const Vectors& vectors_;
  std::int64_t rows_, stride_, piece_, far_, eight_bytes_;  // of eight rows, without their scales
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
    auto job = [&](Pool& pool) {
      each_block_ahead(pool, 0, columns.pieces(),
                       [&](std::int64_t piece, std::int64_t next) { columns.sum(piece, next, bias); });
      pool.wait(0, columns.pieces());
    };
    run_job(context.pool, matrix.rows / blocks * listed.size() * row_bytes_of(matrix.dtype, width), job);
  });
}

}  // namespace winnow::WINNOW_LEVEL
