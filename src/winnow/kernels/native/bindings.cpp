// The Python module.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "../row_sketch/passes.hpp"
#include "../bit_products/calls.hpp"
#include "calls.hpp"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  using namespace winnow;
  using nb::arg;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;

  m.def("isa_levels", [] {
    std::vector<std::string> names;
    for (const Level& level : levels()) names.emplace_back(level.name);
    return names;
  });

  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", [](Matrix* self, std::uintptr_t data, std::int64_t rows, std::int64_t columns,
                          std::int64_t row_stride, int dtype, std::uintptr_t scales, std::int64_t scale_stride) {
        new (self) Matrix{reinterpret_cast<const char*>(data),
                          rows,
                          columns,
                          row_stride,
                          static_cast<Dtype>(dtype),
                          reinterpret_cast<const char*>(scales),
                          scale_stride};
      });
  nb::class_<NeuronRecords>(m, "NeuronRecords")
      .def("__init__", [](NeuronRecords* self, std::uintptr_t data, std::int64_t neurons, std::int64_t width,
                          std::int64_t record_bytes, int dtype, bool gated) {
        new (self) NeuronRecords{
            reinterpret_cast<const char*>(data), neurons, width, record_bytes, static_cast<Dtype>(dtype), gated};
      });
  nb::class_<KvBlock>(m, "KvBlock")
      .def("__init__", [](KvBlock* self, std::uintptr_t keys, std::uintptr_t values, std::int64_t kv_heads,
                          std::int64_t capacity, std::int64_t width, int dtype, std::uintptr_t key_scales,
                          std::uintptr_t value_scales) {
        new (self) KvBlock{reinterpret_cast<char*>(keys), reinterpret_cast<char*>(values), kv_heads, capacity, width,
                           static_cast<Dtype>(dtype), reinterpret_cast<float*>(key_scales),
                           reinterpret_cast<float*>(value_scales)};
      });

  nb::class_<LazyKv>(m, "LazyKv")
      .def("__init__", [](LazyKv* self, const KvBlock& kv, const Matrix& matrix, std::uintptr_t bias,
                          std::uintptr_t norm, std::uintptr_t cosines, std::uintptr_t sines, std::uintptr_t inputs,
                          std::uintptr_t filled, float eps, std::int64_t window) {
        const auto floats = [](std::uintptr_t memory) { return reinterpret_cast<float*>(memory); };
        new (self) LazyKv{kv, matrix, floats(bias), floats(norm), floats(cosines), floats(sines), floats(inputs),
                          reinterpret_cast<std::int64_t*>(filled), eps, window, {}, {}};
      });

  // Arrays are never converted: a converted one would be a copy, and what is written to it would be lost.
  const auto array = [] { return arg().noconvert(); };
  const auto maybe = [] { return arg().none().noconvert(); };
  nb::class_<Calls>(m, "Calls")
      .def("linear", &Calls::linear, array(), arg(), maybe(), array(), Unlocked())
      .def("add", &Calls::add, array(), array(), Unlocked())
      .def("layer_norm", &Calls::layer_norm, array(), array(), array(), arg(), array(), Unlocked())
      .def("rms_norm", &Calls::rms_norm, array(), array(), arg(), array(), Unlocked())
      .def("rotate", &Calls::rotate, array(), array(), array(), Unlocked())
      .def("append_kv", &Calls::append_kv, arg(), array(), array(), array(), Unlocked())
      .def("attend", &Calls::attend, array(), arg(), array(), arg(), arg(), array(), maybe(), maybe(), Unlocked())
      .def("due_heads", &Calls::due_heads, arg(), array(), array(), array(), array(), array(), array(), Unlocked())
      .def("missing_kv", &Calls::missing_kv, array(), arg(), array(), array(), array(), Unlocked())
      .def("gathered_rows", &Calls::gathered_rows, array(), arg(), maybe(), array(), array(), array(), Unlocked())
      .def("gathered_columns", &Calls::gathered_columns, array(), arg(), maybe(), array(), array(), array(), Unlocked())
      .def("active_set", &Calls::active_set, array(), arg(), arg(), array(), arg(), array(), array(), Unlocked())
      .def("sign_set", &Calls::sign_set, array(), array(), array(), array(), array(), array(), array(), Unlocked())
      .def("gate_set", &Calls::gate_set, array(), arg(), array(), arg(), array(), array(), array(), Unlocked())
      .def("gathered_mlp", &Calls::gathered_mlp, array(), arg(), array(), array(), arg(), array(), maybe(), Unlocked())
      .def("dense_mlp", &Calls::dense_mlp, array(), arg(), arg(), array(), Unlocked())
      .def("unpack", &Calls::unpack<float>, arg(), arg(), array(), Unlocked())
      .def("unpack", &Calls::unpack<std::uint16_t>, arg(), arg(), array(), Unlocked())
      .def("clock", &Calls::clock, array(), Unlocked());
  nb::class_<Cpu, Calls>(m, "Cpu")
      .def(nb::init<int, const std::string&>())
      .def("pack", &Cpu::pack, Unlocked())
      .def("read_bandwidth", &Cpu::bandwidth, Unlocked())
      .def("bit_products", &bit_products, array(), array(), arg(), arg(), maybe(), maybe(), arg(), arg(), array(),
           array(), array(), Unlocked())
      .def("bit_distances", &bit_distances, array(), array(), array(), array(), array(), Unlocked())
      .def("bit_keys", &bit_keys, array(), array(), array(), Unlocked())
      .def("pack_signs", &pack_signs, array(), array(), Unlocked())
      .def("bit_path", [](Cpu& cpu) { return std::string(cpu.engine().kernels.bit_path()); });
  nb::class_<RowPasses>(m, "RowPasses")
      .def(nb::init<int, const std::string&>())
      .def("sketch", &RowPasses::sketch<double>, array(), arg(), arg(), arg(), array(), Unlocked())
      .def("sketch", &RowPasses::sketch<float>, array(), arg(), arg(), arg(), array(), Unlocked())
      .def("gram", &RowPasses::gram<double>, array(), array(), Unlocked())
      .def("gram", &RowPasses::gram<float>, array(), array(), Unlocked())
      .def("normal", &RowPasses::normal<double>, array(), array(), maybe(), array(), array(), Unlocked())
      .def("normal", &RowPasses::normal<float>, array(), array(), maybe(), array(), array(), Unlocked())
      .def("scores", &RowPasses::scores<double>, array(), array(), array(), Unlocked())
      .def("scores", &RowPasses::scores<float>, array(), array(), array(), Unlocked())
      .def("cholesky", &RowPasses::cholesky, array(), Unlocked())
      .def("solve", &RowPasses::solve, array(), arg(), array(), Unlocked());
  nb::class_<Tape, Calls>(m, "Tape")
      .def(nb::init<Cpu&>(), nb::keep_alive<1, 2>())
      .def("run", &Tape::run, Unlocked());
}
