// The few weights that stand in front of coded rows. Rows of other types have none.
#pragma once

#include "level.hpp"

namespace winnow::WINNOW_LEVEL {

inline Floats load_some(CodedRow row, std::int64_t n) {
  float a[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) a[i] = widened(row[i]);
  return load(a);
}
inline Floats load(CodedRow row) { return load_some(row, kLanes); }

template <class R, class X>
inline Floats patched(Floats sum, R, const X*) {
  return sum;
}

// The sum of a row's products, once its patches stand in for what is in their places.
template <class X>
inline Floats patched(Floats sum, CodedRow row, const X* x) {
  if (row.patches() == 0) return sum;
  float lanes[kLanes] = {};
  for (std::int64_t p = 0; p < row.patches(); ++p) {
    const std::int64_t column = row.column(p);
    lanes[0] += (widened(row.value(p)) - widened(row[column])) * element(x, column);
  }
  return sum + load(lanes);
}

// What the patches of some rows change in a weighted sum of them: each sum that holds one is made anew, in the order of
// the rows, as if all weights stood in their places. That order is part of the result.
template <class W>
struct Patches {
  template <class R>
  Patches(const R*, int, const float*) {}
  template <class R>
  void add(const R*, const float*, int, float*) const {}
};

template <>
class Patches<coded> {
 public:
  // y, in pair order, is what the rows are to be added to.
  Patches(const CodedRow rows[], int count, const float* y) {
    for (int r = 0; r < count; ++r) {
      for (std::int64_t p = 0; p < rows[r].patches(); ++p) {
        columns_[size_] = static_cast<std::int32_t>(rows[r].column(p));
        before_[size_] = y[pair_place(columns_[size_])];
        ++size_;
      }
    }
  }

  void add(const CodedRow rows[], const float a[], int count, float* y) const {
    for (int i = 0; i < size_; ++i) {
      Floats sum = splat(before_[i]);
      for (int r = 0; r < count; ++r) sum = fma(splat(a[r]), splat(weight(rows[r], columns_[i])), sum);
      float lanes[kLanes];
      store(lanes, sum);
      y[pair_place(columns_[i])] = lanes[0];
    }
  }

 private:
  static float weight(CodedRow row, std::int32_t column) {
    for (std::int64_t p = 0; p < row.patches(); ++p) {
      if (row.column(p) == column) return widened(row.value(p));
    }
    return widened(row[column]);
  }

  int size_ = 0;
  std::int32_t columns_[8 * kMostPatches];
  float before_[8 * kMostPatches];
};

}  // namespace winnow::WINNOW_LEVEL
