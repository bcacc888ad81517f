#include "due.hpp"

#include <algorithm>
#include <vector>

namespace winnow {

std::int64_t due_heads(const LazyKv& lazy, std::int64_t position, const std::int32_t* selected, std::int64_t count,
                       std::int32_t* due) {
  const std::int64_t heads = lazy.kv.kv_heads, per_step = (heads + lazy.window - 1) / lazy.window;
  std::vector<bool> is_due(static_cast<std::size_t>(heads));
  std::int64_t size = 0;
  for (std::int64_t a = 0; a < count; ++a) {
    if (is_due[static_cast<std::size_t>(selected[a])]) continue;
    is_due[static_cast<std::size_t>(selected[a])] = true;
    due[size++] = selected[a];
  }
  std::int64_t end = size;
  for (std::int64_t h = 0; h < heads; ++h) {
    if (!is_due[static_cast<std::size_t>(h)]) due[end++] = static_cast<std::int32_t>(h);
  }
  std::stable_sort(due + size, due + end,
                   [&](std::int32_t a, std::int32_t b) { return lazy.filled[a] < lazy.filled[b]; });
  std::int64_t needed = 0;
  for (std::int64_t r = 0; r < end - size; ++r) {
    const std::int64_t left = lazy.window - lazy.missing(due[size + r], position);
    needed = std::max(needed, r + 1 - per_step * left);
  }
  return size + needed;
}

}  // namespace winnow
