// Arrays as Python hands them over, and lists of things to compute.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace winnow {

template <class T, int kAxes>
using Array = nanobind::ndarray<T, nanobind::ndim<kAxes>, nanobind::c_contig, nanobind::device::cpu>;
using In = Array<const float, 1>;
using In2 = Array<const float, 2>;
using Out = Array<float, 1>;
using Out2 = Array<float, 2>;
using Cell = Array<const std::int64_t, 1>;
using OutCells = Array<std::int64_t, 1>;
using OutIndices = Array<std::int32_t, 2>;
using Indices = Array<const std::int32_t, 1>;
using Cells = Array<const std::int64_t, 1>;
using Indices2 = Array<const std::int32_t, 2>;

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

// For each vector of a batch some of the things numbered 0..things-1; checked when the kernel runs. Without a list, all.
struct Listed {
  Lists lists{};
  std::int64_t batch = 0, things = 0;

  Listed(const Indices2& listed, const Cells& counts, std::int64_t vectors, std::int64_t of)
      : lists{listed.data(), counts.data(), length(listed, 1)}, batch(vectors), things(of) {
    expect("the lists", length(listed), batch);
    expect("count", length(counts), batch);
  }
  Listed(const Indices& listed, const Cell& count, std::int64_t of)
      : lists{listed.data(), cell("count", count), length(listed)}, batch(1), things(of) {}
  Listed(const std::optional<Indices>& listed, const std::optional<Cell>& count, std::int64_t of)
      : batch(1), things(of) {
    if (listed.has_value() != count.has_value()) refuse("a list and its count were not given together.");
    if (listed) *this = Listed(*listed, *count, of);
  }

  std::int64_t size() const { return lists.indices ? lists.counts[0] : things; }  // of the first

  void check() const {
    for (std::int64_t b = 0; lists.indices && b < batch; ++b) check(lists.of(b), lists.counts[b]);
  }

 private:
  void check(const std::int32_t* indices, std::int64_t count) const {
    if (count < 0 || count > lists.room) {
      refuse("count is " + std::to_string(count) + ", expected 0.." + std::to_string(lists.room) +
             ", the length of the list.");
    }
    std::uint32_t highest = 0;  // a negative index is a high one
    bool ascends = true;
    for (std::int64_t a = 0; a < count; ++a) {
      const auto index = static_cast<std::uint32_t>(indices[a]);
      highest = index > highest ? index : highest;
      ascends = ascends && (a == 0 || indices[a - 1] < indices[a]);
    }
    if (count && highest >= things) {
      refuse("an index lies outside 0.." + std::to_string(things - 1) + ".");
    }
    if (batch > 1 && !ascends) refuse("a list of a batch does not ascend.");
  }
};

}  // namespace winnow
