// Memory: scratch space, huge pages, and how quickly it can be read.
#pragma once

#include "kernels.hpp"

namespace winnow {

// Asks for huge pages on the whole pages inside the range; to be called before they are touched. A hint only.
void advise_huge_pages(void* memory, std::int64_t bytes);

// The best rate, in bytes per second, at which all threads together read `bytes` of fresh memory.
double read_bandwidth(Context& context, const Kernels& kernels, std::int64_t bytes, double seconds);

}  // namespace winnow
