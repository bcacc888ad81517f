// Memory: scratch space, and how quickly memory can be read.
#pragma once

#include "kernels.hpp"

namespace winnow {

// The best rate, in bytes per second, at which all threads together read `bytes` of fresh memory.
double read_bandwidth(Context& context, const Kernels& kernels, std::int64_t bytes, double seconds);

}  // namespace winnow
