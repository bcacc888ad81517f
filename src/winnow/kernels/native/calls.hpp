// The kernels as Python calls them: at once, or recorded on a tape that is run many times.
//
// Lengths are checked when a call is made; numbers that change from step to step stand in cells, arrays of one element,
// and are checked when the kernel runs. No call reads or writes outside an array.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../missing_kv/due.hpp"
#include "arrays.hpp"
#include "features.hpp"
#include "memory.hpp"

namespace winnow {

class Calls {
 public:
  Calls(const Kernels& kernels, Context& context) : kernels_(kernels), context_(context) {}
  virtual ~Calls() = default;
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  void linear(In2 x, const Matrix& matrix, std::optional<In> bias, Out2 out) {
    check_rows("x", x, matrix.columns, x);
    check_rows("out", out, matrix.rows, x);
    if (bias) expect("bias", length(*bias), matrix.rows);
    take([this, &matrix, batch = length(x), x = x.data(), bias = bias ? bias->data() : nullptr, out = out.data()] {
      kernels_.linear(context_, x, batch, matrix, bias, out);
    });
  }

  void add(In x, Out out) {
    expect("out", length(out), length(x));
    take([this, n = length(x), x = x.data(), out = out.data()] { kernels_.add(x, n, out); });
  }

  void layer_norm(In2 x, In weight, In bias, float eps, Out2 out) {
    check_norm(x, weight, out);
    expect("bias", length(bias), length(x, 1));
    take([this, n = length(x), width = length(x, 1), x = x.data(), weight = weight.data(), bias = bias.data(), eps,
          out = out.data()] { kernels_.layer_norm(x, n, width, weight, bias, eps, out); });
  }

  void rms_norm(In2 x, In weight, float eps, Out2 out) {
    check_norm(x, weight, out);
    take([this, n = length(x), width = length(x, 1), x = x.data(), weight = weight.data(), eps, out = out.data()] {
      kernels_.rms_norm(x, n, width, weight, eps, out);
    });
  }

  void rotate(Out2 x, In cosines, In sines) {
    expect("head width of x", length(x, 1), 2 * length(cosines));
    expect("sin", length(sines), length(cosines));
    take([this, heads = length(x), width = length(x, 1), x = x.data(), cosines = cosines.data(),
          sines = sines.data()] { kernels_.rotate(x, heads, width, cosines, sines); });
  }

  void append_kv(const KvBlock& kv, Cell position, In2 k, In2 v) {
    expect("heads of k", length(k), kv.kv_heads);
    expect("heads of v", length(v), kv.kv_heads);
    expect("head width of k", length(k, 1), kv.width);
    expect("head width of v", length(v, 1), kv.width);
    take([this, &kv, position = cell("position", position), k = k.data(), v = v.data()] {
      check_position(kv, *position);
      kernels_.append_kv(kv, *position, k, v);
    });
  }

  void attend(In2 q, const KvBlock& kv, Cell position, std::int64_t window, float scale, Out2 out,
              std::optional<Indices> heads, std::optional<Cell> count) {
    expect("head width of q", length(q, 1), kv.width);
    expect("heads of out", length(out), length(q));
    expect("head width of out", length(out, 1), kv.width);
    if (length(q) == 0 || length(q) % kv.kv_heads) {
      refuse("q has " + std::to_string(length(q)) + " heads, expected a multiple of " + std::to_string(kv.kv_heads) +
             ".");
    }
    if (window < 0) refuse("window is " + std::to_string(window) + ", expected 0 for none or more.");
    const Listed listed(heads, count, kv.kv_heads);
    take([this, &kv, heads = length(q), q = q.data(), position = cell("position", position), window, scale, listed,
          out = out.data()] {
      check_position(kv, *position);
      listed.check();
      const std::int64_t end = *position + 1, start = window > 0 && end > window ? end - window : 0;
      kernels_.attend(context_, q, heads, kv, start, end, scale, listed.lists.indices, listed.size(), out);
    });
  }

  void due_heads(const LazyKv& lazy, Cell position, Indices selected, Cell count, Array<std::int32_t, 1> due,
                 OutCells due_count, OutCells most) {
    const Listed listed(selected, count, lazy.kv.kv_heads);
    expect("due", length(due), lazy.kv.kv_heads);
    take([this, &lazy, position = cell("position", position), listed, due = due.data(),
          due_count = cell("count of due", due_count), most = cell("most", most)] {
      check_kept(lazy, *position);
      listed.check();
      *due_count = winnow::due_heads(lazy, *position, listed.lists.indices, listed.size(), due);
      *most = 0;
      for (std::int64_t a = 0; a < *due_count; ++a) *most = std::max(*most, lazy.missing(due[a], *position));
    });
  }

  void missing_kv(In x, LazyKv& lazy, Cell position, Indices heads, Cell count) {
    expect("x", length(x), lazy.matrix.columns);
    const Listed listed(heads, count, lazy.kv.kv_heads);
    take([this, x = x.data(), &lazy, position = cell("position", position), listed] {
      check_kept(lazy, *position);
      listed.check();
      kernels_.missing_kv(context_, x, lazy, *position, listed.lists.indices, listed.size());
    });
  }

  void gathered_rows(In2 x, const Matrix& matrix, std::optional<In> bias, Indices2 blocks, Cells count, Out2 out) {
    check_rows("x", x, matrix.columns, x);
    check_rows("out", out, matrix.rows, x);
    if (bias) expect("bias", length(*bias), matrix.rows);
    const Listed listed(blocks, count, length(x), check_blocks(matrix, length(blocks, 1)));
    take([this, &matrix, x = x.data(), bias = bias ? bias->data() : nullptr, listed, out = out.data()] {
      listed.check();
      kernels_.gathered_rows(context_, x, listed.batch, matrix, bias, listed.lists, matrix.rows / listed.things, out);
    });
  }

  void gathered_columns(In2 a, const Matrix& matrix, std::optional<In> bias, Indices2 listed, Cells count, Out2 out) {
    const std::int64_t blocks = check_blocks(matrix, length(listed, 1)), rows = matrix.rows / blocks;
    check_rows("a", a, blocks * matrix.columns, a);
    check_rows("out", out, rows, a);
    expect("a row of the matrix with its gap", matrix.row_stride, matrix.columns);
    if (bias) expect("bias", length(*bias), rows);
    const Listed some(listed, count, length(a), blocks);
    take([this, &matrix, a = a.data(), bias = bias ? bias->data() : nullptr, some, out = out.data()] {
      some.check();
      kernels_.gathered_columns(context_, a, some.batch, matrix, bias, some.lists, some.things, out);
    });
  }

  void active_set(In2 x, const Matrix& p1, const Matrix& p2, In bias, std::int64_t cap, OutIndices indices,
                  OutCells count) {
    check_rows("x", x, p1.columns, x);
    expect("columns of p2", p2.columns, p1.rows);
    expect("bias", length(bias), p2.rows);
    check_rows("indices", indices, p2.rows, x);
    expect("count", length(count), length(x));
    take([this, &p1, &p2, batch = length(x), x = x.data(), bias = bias.data(), cap, indices = indices.data(),
          count = count.data()] { kernels_.active_set(context_, x, batch, p1, p2, bias, cap, indices, count); });
  }

  void sign_set(In2 projected, Array<const std::uint64_t, 2> signs, In cosines, In sizes, In bias, OutIndices indices,
                OutCells count) {
    const SignIndex index{signs.data(), cosines.data(), sizes.data(), bias.data(), length(signs), length(signs, 1)};
    check_rows("projected", projected, 64 * index.words, projected);
    expect("cosines", length(cosines), 64 * index.words + 1);
    expect("sizes", length(sizes), index.neurons);
    expect("bias", length(bias), index.neurons);
    check_rows("indices", indices, index.neurons, projected);
    expect("count", length(count), length(projected));
    take([this, index, batch = length(projected), projected = projected.data(), indices = indices.data(),
          count = count.data()] { kernels_.sign_set(context_, projected, batch, index, indices, count); });
  }

  void gate_set(In2 x, const NeuronRecords& records, In thresholds, int activation, OutIndices indices, OutCells count,
                Out2 gates) {
    check_rows("x", x, records.width, x);
    expect("thresholds", length(thresholds), records.neurons);
    check_rows("indices", indices, records.neurons, x);
    expect("count", length(count), length(x));
    check_gates(records, gates, x);
    take([this, &records, batch = length(x), x = x.data(), thresholds = thresholds.data(), activation,
          indices = indices.data(), count = count.data(), gates = gates.data()] {
      kernels_.gate_set(context_, x, batch, records, thresholds, static_cast<Activation>(activation), indices, count,
                        gates);
    });
  }

  void gathered_mlp(In2 x, const NeuronRecords& records, Indices2 indices, Cells count, int activation, Out2 out,
                    std::optional<In2> gates) {
    check_mlp(x, records, out);
    if (gates) check_gates(records, *gates, x);
    const Listed listed(indices, count, length(x), records.neurons);
    take([this, &records, x = x.data(), listed, activation, out = out.data(), gates = gates ? gates->data() : nullptr] {
      listed.check();
      kernels_.mlp(context_, x, listed.batch, records, &listed.lists, static_cast<Activation>(activation), gates, out);
    });
  }

  void dense_mlp(In2 x, const NeuronRecords& records, int activation, Out2 out) {
    check_mlp(x, records, out);
    take([this, &records, batch = length(x), x = x.data(), activation, out = out.data()] {
      kernels_.mlp(context_, x, batch, records, nullptr, static_cast<Activation>(activation), nullptr, out);
    });
  }

  // T: float, or the bits of a bfloat16.
  template <class T>
  void unpack(const Matrix& matrix, std::int64_t begin, Array<T, 2> out) {
    const std::int64_t end = begin + length(out);
    expect("width of out", length(out, 1), matrix.columns);
    if (begin < 0 || end > matrix.rows) {
      refuse("rows " + std::to_string(begin) + ".." + std::to_string(end) + " were asked of " +
             std::to_string(matrix.rows) + ".");
    }
    constexpr Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::bfloat16;
    take([this, &matrix, begin, end, out = out.data()] { kernels_.unpack(context_, matrix, begin, end, dtype, out); });
  }

  // Seconds of a clock that only grows.
  void clock(Array<double, 1> out) {
    take([out = cell("out", out)] {
      *out = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
  }

 protected:
  virtual void take(std::function<void()> call) = 0;

  const Kernels& kernels_;
  Context& context_;

 private:
  static void check_norm(const In2& x, const In& weight, const Out2& out) {
    expect("weight", length(weight), length(x, 1));
    expect("rows of out", length(out), length(x));
    expect("columns of out", length(out, 1), length(x, 1));
  }

  // `array` has a row of `width` for each row of x, the batch.
  template <class A, class X>
  static void check_rows(const char* name, const A& array, std::int64_t width, const X& x) {
    if (length(x) < 1 || length(x) > kMostBatch) {
      refuse("a batch of " + std::to_string(length(x)) + " was given, expected 1.." + std::to_string(kMostBatch) + ".");
    }
    expect(name, length(array, 1), width);
    if (length(array) != length(x)) refuse(std::string(name) + " has not the batch's number of rows.");
  }

  static void check_mlp(const In2& x, const NeuronRecords& records, const Out2& out) {
    check_rows("x", x, records.width, x);
    check_rows("out", out, records.width, x);
  }

  template <class A>
  static void check_gates(const NeuronRecords& records, const A& gates, const In2& x) {
    if (!records.gated) refuse("the records are ungated, expected gated ones.");
    check_rows("gates", gates, records.neurons, x);
  }

  static void check_position(const KvBlock& kv, std::int64_t position) {
    if (position < 0 || position >= kv.capacity) {
      refuse("position " + std::to_string(position) + " lies outside the cache of " + std::to_string(kv.capacity) +
             ".");
    }
  }

  // The inputs at all positions that heads lack are still there.
  static void check_kept(const LazyKv& lazy, std::int64_t position) {
    check_position(lazy.kv, position);
    for (std::int64_t h = 0; h < lazy.kv.kv_heads; ++h) {
      if (lazy.filled[h] < 0 || lazy.missing(h, position) > lazy.window) {
        refuse("head " + std::to_string(h) + " holds " + std::to_string(lazy.filled[h]) + " positions, expected " +
               std::to_string(position) + " or up to " + std::to_string(lazy.window - 1) + " fewer.");
      }
    }
  }

  static std::int64_t check_blocks(const Matrix& matrix, std::int64_t blocks) {
    if (blocks < 1 || matrix.rows % blocks) {
      refuse("blocks has length " + std::to_string(blocks) + ", expected a divisor of the matrix's " +
             std::to_string(matrix.rows) + " rows.");
    }
    return blocks;
  }
};

// What a Cpu stands on, made before its calls.
struct Engine {
  Engine(int threads, const std::string& isa) : kernels(find(isa)), pool(threads) {}

  const Kernels& kernels;
  Pool pool;
  Scratch scratch;
  Context context{pool, scratch};
  std::mutex one_call;  // the pool and the scratch memory serve one call at a time

 private:
  static const Kernels& find(const std::string& isa) {
    for (const Level& level : levels()) {
      if (isa == level.name) return *level.kernels;
    }
    throw std::invalid_argument("this machine and build have no instruction set " + isa + ".");
  }
};

// Each call runs as it is made.
class Cpu final : private Engine, public Calls {
 public:
  Cpu(int threads, const std::string& isa) : Engine(threads, isa), Calls(Engine::kernels, Engine::context) {}

  double bandwidth(std::int64_t bytes, double seconds) {
    if (bytes < 1 << 20) refuse("n_bytes is below 1 MiB.");
    std::lock_guard<std::mutex> lock(one_call);
    return read_bandwidth(context, kernels, bytes, seconds);
  }

  bool pack(std::uintptr_t data, int type, std::int64_t row_stride, std::int64_t column_stride, const Matrix& into) {
    const Source source{reinterpret_cast<const char*>(data), row_stride, column_stride, static_cast<Stored>(type)};
    std::lock_guard<std::mutex> lock(one_call);
    return kernels.pack(context, source, into);
  }

  Engine& engine() { return *this; }

 private:
  void take(std::function<void()> call) override {
    std::lock_guard<std::mutex> lock(one_call);
    call();
  }
};

// Calls are kept, in order, and run together: one crossing from Python for a whole step.
class Tape final : public Calls {
 public:
  explicit Tape(Cpu& cpu) : Calls(cpu.engine().kernels, cpu.engine().context), one_call_(cpu.engine().one_call) {}

  void run() {
    std::lock_guard<std::mutex> lock(one_call_);
    for (const auto& call : calls_) call();
  }

 private:
  void take(std::function<void()> call) override { calls_.push_back(std::move(call)); }

  std::mutex& one_call_;
  std::vector<std::function<void()>> calls_;
};

}  // namespace winnow
