#include "features.hpp"

namespace winnow {

std::vector<Level> levels() {
  std::vector<Level> found = {{"generic", &generic::kernels()}};
#if defined(WINNOW_X86)
  // The compiler's run-time support asks the operating system too, which must save the wider registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({"avx2", &avx2::kernels()});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vnni")) {
      found.push_back({"avx512", &avx512::kernels()});
    }
  }
#endif
  return found;
}

}  // namespace winnow
