// The cap: the highest of the selected scores, of equal ones the lower index.
#pragma once

#include <cstdint>

namespace winnow {

// Keeps `cap` of the n ascending indices, still ascending, and returns cap; `scores` is used up. 0 < cap < n.
std::int64_t keep_highest(float* scores, std::int32_t* indices, std::int64_t n, std::int64_t cap);

}  // namespace winnow
