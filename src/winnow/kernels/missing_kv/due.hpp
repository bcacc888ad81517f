// Whose turn it is to be computed.
#pragma once

#include "../native/kernels.hpp"

namespace winnow {

// Writes each of the `count` selected heads once, then the fewest of the others that must not wait, longest first;
// returns how many there are. `due` has room for all heads. No head lacks more than the window.
std::int64_t due_heads(const LazyKv& lazy, std::int64_t position, const std::int32_t* selected, std::int64_t count,
                       std::int32_t* due);

}  // namespace winnow
