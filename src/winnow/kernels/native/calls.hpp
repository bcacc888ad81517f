// The kernels as Python calls them: at once, or recorded on a tape that is run many times.
//
// Lengths are checked when a call is made; numbers that change from step to step stand in cells, arrays of one element,
// and are checked when the kernel runs. No call reads or writes outside an array.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

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
#include "features.hpp"
#include "memory.hpp"

namespace winnow {

template <class T, int kAxes>
using Array = nanobind::ndarray<T, nanobind::ndim<kAxes>, nanobind::c_contig, nanobind::device::cpu>;
using In = Array<const float, 1>;
using In2 = Array<const float, 2>;
using Out = Array<float, 1>;
using Out2 = Array<float, 2>;
using Cell = Array<const std::int64_t, 1>;
using OutCell = Array<std::int64_t, 1>;
using Indices = Array<const std::int32_t, 1>;

inline void refuse(const std::string& message) { throw std::invalid_argument(message); }

inline void expect(const char* name, std::int64_t received, std::int64_t expected) {
  if (received != expected) {
    refuse(std::string(name) + " has length " + std::to_string(received) + ", expected " + std::to_string(expected) +
           ".");
  }
}

template <class T>
std::int64_t length(const T& array, std::size_t axis = 0) {
  return static_cast<std::int64_t>(array.shape(axis));
}

template <class C>
auto* cell(const char* name, const C& array) {
  expect(name, length(array), 1);
  return array.data();
}

// Some of the things numbered 0..things-1: the first *count of `indices`, or all of them where there is no list.
struct List {
  const std::int32_t* indices = nullptr;
  const std::int64_t* count = nullptr;
  std::int64_t room = 0, things = 0;

  List(const Indices& listed, const Cell& number, std::int64_t of)
      : indices(listed.data()), count(cell("count", number)), room(length(listed)), things(of) {}
  List(const std::optional<Indices>& listed, const std::optional<Cell>& number, std::int64_t of) : things(of) {
    if (listed.has_value() != number.has_value()) refuse("a list and its count were not given together.");
    if (listed) *this = List(*listed, *number, of);
  }

  std::int64_t size() const { return indices ? *count : things; }

  void check() const {
    if (!indices) return;
    if (*count < 0 || *count > room) {
      refuse("count is " + std::to_string(*count) + ", expected 0.." + std::to_string(room) +
             ", the length of the list.");
    }
    std::uint32_t highest = 0;  // a negative index is a high one
    for (std::int64_t a = 0; a < *count; ++a) {
      const auto index = static_cast<std::uint32_t>(indices[a]);
      highest = index > highest ? index : highest;
    }
    if (*count && highest >= things) {
      refuse("an index lies outside 0.." + std::to_string(things - 1) + ".");
    }
  }
};

class Calls {
 public:
  Calls(const Kernels& kernels, Context& context) : kernels_(kernels), context_(context) {}
  virtual ~Calls() = default;
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  void linear(In x, const Matrix& matrix, std::optional<In> bias, Out out) {
    expect("x", length(x), matrix.columns);
    expect("out", length(out), matrix.rows);
    if (bias) expect("bias", length(*bias), matrix.rows);
    take([this, &matrix, x = x.data(), bias = bias ? bias->data() : nullptr, out = out.data()] {
      kernels_.linear(context_, x, matrix, bias, out);
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
    const List listed(heads, count, kv.kv_heads);
    take([this, &kv, heads = length(q), q = q.data(), position = cell("position", position), window, scale, listed,
          out = out.data()] {
      check_position(kv, *position);
      listed.check();
      const std::int64_t end = *position + 1, start = window > 0 && end > window ? end - window : 0;
      kernels_.attend(context_, q, heads, kv, start, end, scale, listed.indices, listed.size(), out);
    });
  }

  void due_heads(const LazyKv& lazy, Cell position, Indices selected, Cell count, Array<std::int32_t, 1> due,
                 OutCell due_count, OutCell most) {
    const List listed(selected, count, lazy.kv.kv_heads);
    expect("due", length(due), lazy.kv.kv_heads);
    take([this, &lazy, position = cell("position", position), listed, due = due.data(),
          due_count = cell("count of due", due_count), most = cell("most", most)] {
      check_kept(lazy, *position);
      listed.check();
      *due_count = winnow::due_heads(lazy, *position, listed.indices, listed.size(), due);
      *most = 0;
      for (std::int64_t a = 0; a < *due_count; ++a) *most = std::max(*most, lazy.missing(due[a], *position));
    });
  }

  void missing_kv(In x, const LazyKv& lazy, Cell position, Indices heads, Cell count) {
    expect("x", length(x), lazy.matrix.columns);
    const List listed(heads, count, lazy.kv.kv_heads);
    take([this, x = x.data(), &lazy, position = cell("position", position), listed] {
      check_kept(lazy, *position);
      listed.check();
      kernels_.missing_kv(context_, x, lazy, *position, listed.indices, listed.size());
    });
  }

  void gathered_rows(In x, const Matrix& matrix, std::optional<In> bias, Indices blocks, Cell count, Out out) {
    expect("x", length(x), matrix.columns);
    expect("out", length(out), matrix.rows);
    if (bias) expect("bias", length(*bias), matrix.rows);
    const List listed(blocks, count, check_blocks(matrix, length(blocks)));
    take([this, &matrix, x = x.data(), bias = bias ? bias->data() : nullptr, listed, out = out.data()] {
      listed.check();
      kernels_.gathered_rows(context_, x, matrix, bias, listed.indices, listed.size(), matrix.rows / listed.room, out);
    });
  }

  void gathered_columns(In a, const Matrix& matrix, std::optional<In> bias, Indices blocks, Cell count, Out out) {
    expect("a", length(a), matrix.rows);
    expect("out", length(out), matrix.columns);
    if (bias) expect("bias", length(*bias), matrix.columns);
    const List listed(blocks, count, check_blocks(matrix, length(blocks)));
    take([this, &matrix, a = a.data(), bias = bias ? bias->data() : nullptr, listed, out = out.data()] {
      listed.check();
      kernels_.gathered_columns(context_, a, matrix, bias, listed.indices, listed.size(), matrix.rows / listed.room,
                                out);
    });
  }

  void active_set(In x, const Matrix& p1, const Matrix& p2, In bias, std::int64_t cap, Array<std::int32_t, 1> indices,
                  OutCell count) {
    expect("x", length(x), p1.columns);
    expect("columns of p2", p2.columns, p1.rows);
    expect("bias", length(bias), p2.rows);
    expect("indices", length(indices), p2.rows);
    take([this, &p1, &p2, x = x.data(), bias = bias.data(), cap, indices = indices.data(),
          count = cell("count", count)] { *count = kernels_.active_set(context_, x, p1, p2, bias, cap, indices); });
  }

  void gate_set(In x, const NeuronRecords& records, In thresholds, int activation, Array<std::int32_t, 1> indices,
                OutCell count, Out gates) {
    expect("x", length(x), records.width);
    expect("thresholds", length(thresholds), records.neurons);
    expect("indices", length(indices), records.neurons);
    check_gates(records, length(gates));
    take([this, &records, x = x.data(), thresholds = thresholds.data(), activation, indices = indices.data(),
          count = cell("count", count), gates = gates.data()] {
      *count = kernels_.gate_set(context_, x, records, thresholds, static_cast<Activation>(activation), indices, gates);
    });
  }

  void gathered_mlp(In x, const NeuronRecords& records, Indices indices, Cell count, int activation, Out out,
                    std::optional<In> gates) {
    check_mlp(x, records, out);
    if (gates) check_gates(records, length(*gates));
    const List listed(indices, count, records.neurons);
    take([this, &records, x = x.data(), listed, activation, out = out.data(), gates = gates ? gates->data() : nullptr] {
      listed.check();
      kernels_.mlp(context_, x, records, listed.indices, listed.size(), static_cast<Activation>(activation), gates,
                   out);
    });
  }

  void dense_mlp(In x, const NeuronRecords& records, int activation, Out out) {
    check_mlp(x, records, out);
    take([this, &records, x = x.data(), activation, out = out.data()] {
      kernels_.mlp(context_, x, records, nullptr, records.neurons, static_cast<Activation>(activation), nullptr, out);
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

  static void check_mlp(const In& x, const NeuronRecords& records, const Out& out) {
    expect("x", length(x), records.width);
    expect("out", length(out), records.width);
  }

  static void check_gates(const NeuronRecords& records, std::int64_t gates) {
    if (!records.gated) refuse("the records are ungated, expected gated ones.");
    expect("gates", gates, records.neurons);
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

  void pack(std::uintptr_t data, int type, std::int64_t row_stride, std::int64_t column_stride, const Matrix& into) {
    const Source source{reinterpret_cast<const char*>(data), row_stride, column_stride, static_cast<Stored>(type)};
    std::lock_guard<std::mutex> lock(one_call);
    kernels.pack(context, source, into);
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
