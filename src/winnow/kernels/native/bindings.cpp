// The Python module. Lengths and ranges are checked here, so that no call reads or writes outside an array.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "features.hpp"
#include "memory.hpp"

namespace nb = nanobind;

namespace winnow {
namespace {

template <class T, int kAxes>
using Array = nb::ndarray<T, nb::ndim<kAxes>, nb::c_contig, nb::device::cpu>;
using In = Array<const float, 1>;
using In2 = Array<const float, 2>;
using Out = Array<float, 1>;
using Out2 = Array<float, 2>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

void expect(const char* name, std::int64_t received, std::int64_t expected) {
  if (received != expected) {
    throw std::invalid_argument(std::string(name) + " has length " + std::to_string(received) + ", expected " +
                                std::to_string(expected) + ".");
  }
}

template <class T>
std::int64_t length(const T& array, std::size_t axis = 0) {
  return static_cast<std::int64_t>(array.shape(axis));
}

class Cpu {
 public:
  Cpu(int threads, const std::string& isa) : kernels_(find(isa)), pool_(threads) {}

  void linear(In x, const Matrix& matrix, std::optional<In> bias, Out out) {
    expect("x", length(x), matrix.columns);
    expect("out", length(out), matrix.rows);
    if (bias) expect("bias", length(*bias), matrix.rows);
    Call call(*this);
    kernels_.linear(context_, x.data(), matrix, bias ? bias->data() : nullptr, out.data());
  }

  void layer_norm(In2 x, In weight, In bias, float eps, Out2 out) {
    check_norm(x, weight, out);
    expect("bias", length(bias), length(x, 1));
    kernels_.layer_norm(x.data(), length(x), length(x, 1), weight.data(), bias.data(), eps, out.data());
  }

  void rms_norm(In2 x, In weight, float eps, Out2 out) {
    check_norm(x, weight, out);
    kernels_.rms_norm(x.data(), length(x), length(x, 1), weight.data(), eps, out.data());
  }

  void rotate(Out2 x, In cosines, In sines) {
    expect("head width of x", length(x, 1), 2 * length(cosines));
    expect("sin", length(sines), length(cosines));
    kernels_.rotate(x.data(), length(x), length(x, 1), cosines.data(), sines.data());
  }

  void append_kv(const KvBlock& kv, std::int64_t position, In2 k, In2 v) {
    expect("heads of k", length(k), kv.kv_heads);
    expect("heads of v", length(v), kv.kv_heads);
    expect("head width of k", length(k, 1), kv.width);
    expect("head width of v", length(v, 1), kv.width);
    if (position < 0 || position >= kv.capacity) {
      throw std::invalid_argument("position " + std::to_string(position) + " lies outside the cache of " +
                                  std::to_string(kv.capacity) + ".");
    }
    kernels_.append_kv(kv, position, k.data(), v.data());
  }

  void attend(In2 q, const KvBlock& kv, std::int64_t start, std::int64_t end, float scale, Out2 out) {
    expect("head width of q", length(q, 1), kv.width);
    expect("heads of out", length(out), length(q));
    expect("head width of out", length(out, 1), kv.width);
    if (length(q) == 0 || length(q) % kv.kv_heads) {
      throw std::invalid_argument("q has " + std::to_string(length(q)) + " heads, expected a multiple of " +
                                  std::to_string(kv.kv_heads) + ".");
    }
    if (start < 0 || start >= end || end > kv.capacity) {
      throw std::invalid_argument("positions " + std::to_string(start) + ".." + std::to_string(end) +
                                  " (end excluded) are empty or outside the cache of " + std::to_string(kv.capacity) +
                                  ".");
    }
    Call call(*this);
    kernels_.attend(context_, q.data(), length(q), kv, start, end, scale, out.data());
  }

  std::int64_t active_set(In x, const Matrix& p1, const Matrix& p2, In bias, std::int64_t cap,
                          Array<std::int32_t, 1> indices) {
    expect("x", length(x), p1.columns);
    expect("columns of p2", p2.columns, p1.rows);
    expect("bias", length(bias), p2.rows);
    expect("indices", length(indices), p2.rows);
    Call call(*this);
    return kernels_.active_set(context_, x.data(), p1, p2, bias.data(), cap, indices.data());
  }

  std::int64_t gate_set(In x, const NeuronRecords& records, In thresholds, int activation,
                        Array<std::int32_t, 1> indices, Out gates) {
    expect("x", length(x), records.width);
    expect("thresholds", length(thresholds), records.neurons);
    expect("indices", length(indices), records.neurons);
    check_gates(records, length(gates));
    Call call(*this);
    return kernels_.gate_set(context_, x.data(), records, thresholds.data(), static_cast<Activation>(activation),
                             indices.data(), gates.data());
  }

  void gathered_mlp(In x, const NeuronRecords& records, Array<const std::int32_t, 1> indices, int activation, Out out,
                    std::optional<In> gates) {
    check_mlp(x, records, out);
    if (gates) check_gates(records, length(*gates));
    const std::int64_t count = length(indices);
    std::uint32_t highest = 0;  // a negative index is a high one
    for (std::int64_t a = 0; a < count; ++a) {
      const auto index = static_cast<std::uint32_t>(indices.data()[a]);
      highest = index > highest ? index : highest;
    }
    if (count && highest >= records.neurons) {
      throw std::invalid_argument("an index lies outside the records, which hold neurons 0.." +
                                  std::to_string(records.neurons - 1) + ".");
    }
    Call call(*this);
    kernels_.mlp(context_, x.data(), records, indices.data(), count, static_cast<Activation>(activation),
                 gates ? gates->data() : nullptr, out.data());
  }

  void dense_mlp(In x, const NeuronRecords& records, int activation, Out out) {
    check_mlp(x, records, out);
    Call call(*this);
    kernels_.mlp(context_, x.data(), records, nullptr, records.neurons, static_cast<Activation>(activation), nullptr,
                 out.data());
  }

  double bandwidth(std::int64_t bytes, double seconds) {
    if (bytes < 1 << 20) throw std::invalid_argument("n_bytes is below 1 MiB.");
    Call call(*this);
    return read_bandwidth(context_, kernels_, bytes, seconds);
  }

 private:
  using Call = struct CallGuard {
    explicit CallGuard(Cpu& cpu) : lock(cpu.one_call_) {}
    std::lock_guard<std::mutex> lock;  // the pool and the scratch memory serve one call at a time
  };

  static const Kernels& find(const std::string& isa) {
    for (const Level& level : levels()) {
      if (isa == level.name) return *level.kernels;
    }
    throw std::invalid_argument("this machine and build have no instruction set " + isa + ".");
  }

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
    if (!records.gated) throw std::invalid_argument("the records are ungated, expected gated ones.");
    expect("gates", gates, records.neurons);
  }

  const Kernels& kernels_;
  Pool pool_;
  Scratch scratch_;
  Context context_{pool_, scratch_};
  std::mutex one_call_;
};

}  // namespace
}  // namespace winnow

NB_MODULE(_native, m) {
  using namespace winnow;
  using nb::arg;

  m.def("isa_levels", [] {
    std::vector<std::string> names;
    for (const Level& level : levels()) names.emplace_back(level.name);
    return names;
  });
  m.def("advise_huge_pages", [](std::uintptr_t memory, std::int64_t bytes) {
    advise_huge_pages(reinterpret_cast<void*>(memory), bytes);
  });

  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", [](Matrix* self, std::uintptr_t data, std::int64_t rows, std::int64_t columns,
                          std::int64_t row_stride, int dtype, std::uintptr_t scales) {
        new (self) Matrix{reinterpret_cast<const char*>(data), rows,
                          columns,                             row_stride,
                          static_cast<Dtype>(dtype),           reinterpret_cast<const float*>(scales)};
      });
  nb::class_<NeuronRecords>(m, "NeuronRecords")
      .def("__init__", [](NeuronRecords* self, std::uintptr_t data, std::int64_t neurons, std::int64_t width,
                          std::int64_t record_bytes, int dtype, bool gated) {
        new (self) NeuronRecords{
            reinterpret_cast<const char*>(data), neurons, width, record_bytes, static_cast<Dtype>(dtype), gated};
      });
  nb::class_<KvBlock>(m, "KvBlock")
      .def("__init__", [](KvBlock* self, std::uintptr_t keys, std::uintptr_t values, std::int64_t kv_heads,
                          std::int64_t capacity, std::int64_t width, int dtype) {
        new (self) KvBlock{reinterpret_cast<char*>(keys), reinterpret_cast<char*>(values), kv_heads, capacity, width,
                           static_cast<Dtype>(dtype)};
      });

  // noconvert: a converted array would be a copy, and what is written to it would be lost.
  nb::class_<Cpu>(m, "Cpu")
      .def(nb::init<int, const std::string&>())
      .def("linear", &Cpu::linear, arg().noconvert(), arg(), arg().none().noconvert(), arg().noconvert(), Unlocked())
      .def("layer_norm", &Cpu::layer_norm, arg().noconvert(), arg().noconvert(), arg().noconvert(), arg(),
           arg().noconvert(), Unlocked())
      .def("rms_norm", &Cpu::rms_norm, arg().noconvert(), arg().noconvert(), arg(), arg().noconvert(), Unlocked())
      .def("rotate", &Cpu::rotate, arg().noconvert(), arg().noconvert(), arg().noconvert(), Unlocked())
      .def("append_kv", &Cpu::append_kv, arg(), arg(), arg().noconvert(), arg().noconvert(), Unlocked())
      .def("attend", &Cpu::attend, arg().noconvert(), arg(), arg(), arg(), arg(), arg().noconvert(), Unlocked())
      .def("active_set", &Cpu::active_set, arg().noconvert(), arg(), arg(), arg().noconvert(), arg(),
           arg().noconvert(), Unlocked())
      .def("gate_set", &Cpu::gate_set, arg().noconvert(), arg(), arg().noconvert(), arg(), arg().noconvert(),
           arg().noconvert(), Unlocked())
      .def("gathered_mlp", &Cpu::gathered_mlp, arg().noconvert(), arg(), arg().noconvert(), arg(), arg().noconvert(),
           arg().none().noconvert() = nb::none(), Unlocked())
      .def("dense_mlp", &Cpu::dense_mlp, arg().noconvert(), arg(), arg(), arg().noconvert(), Unlocked())
      .def("read_bandwidth", &Cpu::bandwidth, Unlocked());
}
