#include "select.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

namespace winnow {

std::int64_t keep_highest(float* scores, std::int32_t* indices, std::int64_t n, std::int64_t cap) {
  std::vector<float> ordered(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    float& score = scores[indices[i]];
    if (score != score) score = std::numeric_limits<float>::infinity();
    ordered[static_cast<std::size_t>(i)] = score;
  }
  const auto last = ordered.begin() + (cap - 1);
  std::nth_element(ordered.begin(), last, ordered.end(), std::greater<>());
  const float threshold = *last;
  // How many of those that equal the threshold have room: the first ones, since indices ascend.
  std::int64_t room = cap - std::count_if(ordered.begin(), last, [&](float s) { return s > threshold; });
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[indices[i]];
    if (score > threshold || (score == threshold && room-- > 0)) indices[kept++] = indices[i];
  }
  return kept;
}

}  // namespace winnow
