// Half-rotation, in place.
#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

void rotate(float* x, std::int64_t heads, std::int64_t width, const float* cosines, const float* sines) {
  const std::int64_t half = width / 2;
  for (std::int64_t h = 0; h < heads; ++h) {
    float *first = x + h * width, *second = first + half;
    std::int64_t j = 0;
    for (; j + kLanes <= half; j += kLanes) {
      const Floats a = load(first + j), b = load(second + j), c = load(cosines + j), s = load(sines + j);
      store(first + j, a * c - b * s);
      store(second + j, b * c + a * s);
    }
    for (; j < half; ++j) {
      const float a = first[j], b = second[j];
      first[j] = a * cosines[j] - b * sines[j];
      second[j] = b * cosines[j] + a * sines[j];
    }
  }
}

}  // namespace winnow::WINNOW_LEVEL
