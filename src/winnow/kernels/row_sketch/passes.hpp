// The passes over rows as Python calls them. Lengths are checked here; no call reads or writes outside an array.
#pragma once

#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "../native/arrays.hpp"
#include "../native/features.hpp"
#include "rows.hpp"

namespace winnow {

class RowPasses {
 public:
  template <class T>
  using Rows = Array<const T, 2>;

  RowPasses(int threads, const std::string& isa) : kernels_(find(isa)), pool_(threads) {}

  template <class T>
  void sketch(Rows<T> a, std::int64_t first, std::uint64_t seed, std::int64_t nonzeros, Array<double, 3> out) {
    const std::int64_t height = length(out, 1);
    if (first < 0) refuse("first is " + std::to_string(first) + ", expected 0 or more.");
    if (nonzeros < 1 || height < nonzeros || height % nonzeros) {
      refuse("nonzeros is " + std::to_string(nonzeros) + ", expected a divisor of the sketch's " +
             std::to_string(height) + " rows.");
    }
    expect("tiles of out", length(out), (length(a, 1) + kTile - 1) / kTile);
    expect("a tile of out", length(out, 2), kTile);
    std::lock_guard<std::mutex> lock(one_call_);
    kernels_.sketch(context_, block(a), first, seed, nonzeros, height, out.data());
  }

  template <class T>
  void gram(Rows<T> a, Array<double, 2> out) {
    expect("rows of out", length(out), length(a, 1));
    expect("columns of out", length(out, 1), length(a, 1));
    std::lock_guard<std::mutex> lock(one_call_);
    kernels_.gram(context_, block(a), out.data());
  }

  template <class T>
  void normal(Rows<T> a, Array<const double, 2> x, std::optional<Array<const double, 2>> b, Array<double, 2> out,
              Array<double, 1> squares) {
    expect("columns of x", length(x, 1), length(a, 1));
    expect("rows of out", length(out), length(x));
    expect("columns of out", length(out, 1), length(a, 1));
    expect("squares", length(squares), length(x));
    if (b) {
      expect("rows of b", length(*b), length(x));
      expect("columns of b", length(*b, 1), length(a));
    }
    std::lock_guard<std::mutex> lock(one_call_);
    kernels_.normal(context_, block(a), length(x), x.data(), b ? b->data() : nullptr, length(a), out.data(),
                    squares.data());
  }

  template <class T>
  void scores(Rows<T> a, Array<const double, 2> x, Array<double, 1> out) {
    expect("columns of x", length(x, 1), length(a, 1));
    expect("out", length(out), length(a));
    std::lock_guard<std::mutex> lock(one_call_);
    kernels_.scores(context_, block(a), length(x), x.data(), out.data());
  }

  std::int64_t cholesky(Array<double, 2> g) {
    expect("columns of g", length(g, 1), length(g));
    return kernels_.cholesky(g.data(), length(g));
  }

  void solve(Array<const double, 2> r, bool transposed, Array<double, 2> x) {
    expect("columns of r", length(r, 1), length(r));
    expect("columns of x", length(x, 1), length(r));
    kernels_.solve(r.data(), length(r), transposed, length(x), x.data());
  }

 private:
  template <class T>
  static RowBlock block(const Rows<T>& a) {
    return {reinterpret_cast<const char*>(a.data()), length(a), length(a, 1), sizeof(T) == 8};
  }

  static const RowKernels& find(const std::string& isa) {
    for (const Level& level : levels()) {
      if (isa == level.name) return *level.kernels->rows;
    }
    throw std::invalid_argument("this machine and build have no instruction set " + isa + ".");
  }

  const RowKernels& kernels_;
  Pool pool_;
  Scratch scratch_;
  Context context_{pool_, scratch_};
  std::mutex one_call_;  // the pool and the scratch memory serve one call at a time
};

}  // namespace winnow
