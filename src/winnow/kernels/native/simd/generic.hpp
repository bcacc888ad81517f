// Any processor: four floats as a compiler vector (SSE2, NEON, or whatever the target has).
#pragma once

#include <cstring>

namespace winnow::WINNOW_LEVEL {

constexpr int kLanes = 4;

using Vector = float __attribute__((vector_size(16)));
using Words = std::uint32_t __attribute__((vector_size(16)));

struct Floats {
  Vector v;
};

inline Floats zero() { return {Vector{0, 0, 0, 0}}; }
inline Floats splat(float a) { return {Vector{a, a, a, a}}; }

inline Floats load(const float* p) {
  Floats a;
  std::memcpy(&a.v, p, sizeof a.v);
  return a;
}
inline Floats load(const bf16* p) {
  const Words w = {static_cast<std::uint32_t>(p[0].bits) << 16, static_cast<std::uint32_t>(p[1].bits) << 16,
                   static_cast<std::uint32_t>(p[2].bits) << 16, static_cast<std::uint32_t>(p[3].bits) << 16};
  return {reinterpret_cast<Vector>(w)};
}
inline Floats load(const int8* p) {
  return {Vector{static_cast<float>(p[0].value), static_cast<float>(p[1].value), static_cast<float>(p[2].value),
                 static_cast<float>(p[3].value)}};
}
inline Floats load(Int4Row p) {
  Floats a;
  for (int i = 0; i < 4; ++i) {
    a.v[i] = static_cast<float>((p.bytes()[i] >> p.shift() & 15) - 8) * p.scale();
  }
  return a;
}
inline Floats load_some(Int4Row p, std::int64_t) { return load(p); }  // rows are whole groups of 32
inline float element(const float* x, std::int64_t i) { return x[i]; }
inline std::int64_t pair_place(std::int64_t i) { return i; }
template <class W>
inline Floats load_some(const W* p, std::int64_t n) {  // n < 4
  W padded[4] = {};
  for (std::int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
inline void store(float* p, Floats a) { std::memcpy(p, &a.v, sizeof a.v); }
inline void store_some(float* p, Floats a, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}

inline Floats operator+(Floats a, Floats b) { return {a.v + b.v}; }
inline Floats operator-(Floats a, Floats b) { return {a.v - b.v}; }
inline Floats operator*(Floats a, Floats b) { return {a.v * b.v}; }
inline Floats operator/(Floats a, Floats b) { return {a.v / b.v}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {a.v * b.v + c.v}; }
inline Floats maximum(Floats a, Floats b) { return {a.v > b.v ? a.v : b.v}; }  // b where either is NaN
inline Floats minimum(Floats a, Floats b) { return {a.v < b.v ? a.v : b.v}; }  // b where either is NaN

// p * 2^n, where n stands in the low bits of `shifted`.
inline Floats scale2(Floats p, Floats shifted) {
  const Words bits = reinterpret_cast<Words>(p.v) + (reinterpret_cast<Words>(shifted.v) << 23);
  return {reinterpret_cast<Vector>(bits)};
}

inline void sum8(const Floats a[8], float out[8]) {
  for (int r = 0; r < 8; ++r) out[r] = (a[r].v[0] + a[r].v[1]) + (a[r].v[2] + a[r].v[3]);
}

// Lane i of a is given lane i ^ kDistance.
template <int kDistance>
inline Floats exchange(Floats a) {
  return {Vector{a.v[kDistance], a.v[1 ^ kDistance], a.v[2 ^ kDistance], a.v[3 ^ kDistance]}};
}

// Lane by lane the sum of one of four vectors.
inline Floats sum_each(const Floats a[4]) {
  float sums[4];
  for (int r = 0; r < 4; ++r) sums[r] = (a[r].v[0] + a[r].v[1]) + (a[r].v[2] + a[r].v[3]);
  return load(sums);
}

template <class W, class X>
constexpr int kStep = 4;

template <class R>
inline Floats step(Floats acc, R w, const float* x) {
  return fma(load(w), load(x), acc);
}
template <class R>
inline Floats step_some(Floats acc, R w, const float* x, std::int64_t n) {
  return fma(load_some(w, n), load_some(x, n), acc);
}
inline void begin(Floats& sum) { sum = zero(); }
inline Floats floats(Floats sum, const float*) { return sum; }
inline float unit(const float*) { return 1.f; }

template <class W>
struct InputFor {
  using type = float;
};
template <class W>
struct SumFor {
  using type = Floats;
};

}  // namespace winnow::WINNOW_LEVEL
