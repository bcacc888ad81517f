// Which levels are compiled in and run on this processor.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace winnow {

struct Level {
  const char* name;
  const Kernels* kernels;
};

// From the least to the best.
std::vector<Level> levels();

}  // namespace winnow
