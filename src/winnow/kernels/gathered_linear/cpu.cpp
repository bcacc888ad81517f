// Products with some blocks of rows of a matrix: each block's own outputs, or the sum of what the rows add to all.
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

// The rows of the listed blocks for the vectors that list them, eight at a time: block after block, and all of a block
// for one vector before the next, whose rows the caches then hold.
template <class W>
class Eights {
 public:
  struct Eight {
    std::int64_t numbers[kRows];
    Row<W> places[kRows];
    std::int64_t vector;
    int size = 0;
  };

  Eights(const Matrix& matrix, const Union& listed, std::int64_t batch, std::int64_t rows, std::int64_t begin)
      : matrix_(matrix), listed_(listed), batch_(batch), rows_(rows), begin_(begin) {
    find();
  }

  // Their numbers and where they are read from; the last one stands in for those that are missing.
  void read(Eight& eight) {
    eight.size = 0;
    eight.vector = vector_;
    for (int r = 0; r < kRows; ++r) {
      if (eight.size == r && at_ < listed_.size() && vector_ == eight.vector) {
        last_ = listed_.block(at_) * rows_ + row_;
        ++eight.size;
        if (++row_ == rows_) {
          row_ = 0;
          ++vector_;
          find();
        }
      }
      eight.numbers[r] = last_;
      eight.places[r] = row_of<W>(matrix_, last_) + begin_;
    }
  }

 private:
  // The next vector that lists a block, from where we are on.
  void find() {
    for (; at_ < listed_.size(); ++at_, vector_ = 0) {
      for (; vector_ < batch_; ++vector_) {
        if (listed_.is_of(at_, vector_)) return;
      }
    }
  }

  const Matrix& matrix_;
  const Union& listed_;
  std::int64_t batch_, rows_, begin_, at_ = 0, vector_ = 0, row_ = 0, last_ = 0;
};

// The columns begin..end-1 of the sums, row after row: who works on them changes no bit. begin is a multiple of kPair
// and of a group.
template <class W>
static void add_rows(const float* a, std::int64_t batch, const Matrix& matrix, const float* bias, const Union& listed,
                     std::int64_t rows, std::int64_t begin, std::int64_t end, float* out) {
  const std::int64_t width = end - begin;
  const auto* scales = reinterpret_cast<const float*>(matrix.scales);
  const auto sums = [&](std::int64_t b) { return out + b * matrix.columns + begin; };
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t d = 0; d < width; ++d) sums(b)[d] = 0.f;
  }
  Eights<W> eights(matrix, listed, batch, rows, begin);
  // A part of eight rows is short: those fetched while it is added are the ones after the next, or they come too late.
  typename Eights<W>::Eight ring[3];
  for (int e = 0; e < 2; ++e) eights.read(ring[e]);
  for (int now = 0; ring[now].size > 0; now = (now + 1) % 3) {
    auto &eight = ring[now], &later = ring[(now + 2) % 3];
    eights.read(later);
    float weights[kRows];
    for (int r = 0; r < eight.size; ++r) {
      weights[r] = a[eight.vector * matrix.rows + eight.numbers[r]];
      if constexpr (std::is_same_v<W, int8>) weights[r] *= scales[eight.numbers[r] * matrix.scale_stride];
    }
    axpy8<W>(eight.places, weights, eight.size, width, sums(eight.vector), later.places);
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    settle<W>(sums(b), width);
    for (std::int64_t d = 0; bias && d < width; ++d) sums(b)[d] += bias[begin + d];
  }
}

void gathered_columns(Context& context, const float* a, std::int64_t batch, const Matrix& matrix, const float* bias,
                      const Lists& lists, std::int64_t rows, float* out) {
  constexpr std::int64_t unit = 64, least = 256;  // columns: of a piece's beginning, and of a piece
  const std::int64_t columns = matrix.columns, wanted = context.pool.threads(), blocks = matrix.rows / rows;
  const std::int64_t pieces = columns / least < 1 ? 1 : columns / least < wanted ? columns / least : wanted;
  const auto start = [&](std::int64_t piece) { return piece < pieces ? piece * columns / pieces / unit * unit : columns; };
  const Union listed(lists, batch, blocks, context.scratch.bytes(1, Union::bytes(lists, blocks)));
  auto job = [&](Pool& pool) {
    each_block(pool, 0, pieces, [&](std::int64_t piece) {
      of_weights(matrix.dtype, [&](auto w) {
        add_rows<decltype(w)>(a, batch, matrix, bias, listed, rows, start(piece), start(piece + 1), out);
      });
    });
    pool.wait(0, pieces);
  };
  run_job(context.pool, listed.size() * rows * row_bytes_of(matrix.dtype, columns), job);
}

}  // namespace winnow::WINNOW_LEVEL
