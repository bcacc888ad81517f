// Norms: one row after the other on the calling thread.
#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

// sum over the row of (x - shift)^power, power 1 or 2, in a fixed order
template <int kPower>
static float moment(const float* x, std::int64_t n, float shift) {
  Floats sums[kRows];
  for (auto& sum : sums) sum = zero();
  const Floats by = splat(shift);
  const auto add = [](Floats sum, Floats v) { return kPower == 1 ? sum + v : fma(v, v, sum); };
  std::int64_t i = 0;
  for (; i + kRows * kLanes <= n; i += kRows * kLanes) {
    for (int r = 0; r < kRows; ++r) sums[r] = add(sums[r], load(x + i + r * kLanes) - by);
  }
  for (; i + kLanes <= n; i += kLanes) sums[0] = add(sums[0], load(x + i) - by);
  float totals[kRows];
  sum8(sums, totals);
  float total = ((totals[0] + totals[1]) + (totals[2] + totals[3])) + ((totals[4] + totals[5]) + (totals[6] + totals[7]));
  for (; i < n; ++i) total += kPower == 1 ? x[i] - shift : (x[i] - shift) * (x[i] - shift);
  return total;
}

// out = (x - shift) * scale * weight + bias; without bias where it is null
static void apply(const float* x, std::int64_t n, float shift, float scale, const float* weight, const float* bias,
                  float* out) {
  const Floats by = splat(shift), times = splat(scale);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats v = (load(x + i) - by) * times;
    store(out + i, bias ? fma(v, load(weight + i), load(bias + i)) : v * load(weight + i));
  }
  for (; i < n; ++i) out[i] = (x[i] - shift) * scale * weight[i] + (bias ? bias[i] : 0.f);
}

void layer_norm(const float* x, std::int64_t rows, std::int64_t width, const float* weight, const float* bias,
                float eps, float* out) {
  const auto n = static_cast<float>(width);
  for (std::int64_t r = 0; r < rows; ++r, x += width, out += width) {
    const float mean = moment<1>(x, width, 0.f) / n;
    const float variance = moment<2>(x, width, mean) / n;
    apply(x, width, mean, 1.f / __builtin_sqrtf(variance + eps), weight, bias, out);
  }
}

void rms_norm(const float* x, std::int64_t rows, std::int64_t width, const float* weight, float eps, float* out) {
  const auto n = static_cast<float>(width);
  for (std::int64_t r = 0; r < rows; ++r, x += width, out += width) {
    const float square = moment<2>(x, width, 0.f) / n;
    apply(x, width, 0.f, 1.f / __builtin_sqrtf(square + eps), weight, nullptr, out);
  }
}

}  // namespace winnow::WINNOW_LEVEL
