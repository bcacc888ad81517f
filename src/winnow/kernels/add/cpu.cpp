// One vector onto another.
#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

void add(const float* x, std::int64_t n, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(out + i) + load(x + i));
  for (; i < n; ++i) out[i] += x[i];
}

}  // namespace winnow::WINNOW_LEVEL
