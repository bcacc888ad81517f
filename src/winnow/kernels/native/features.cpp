#include "features.hpp"

#include <unistd.h>

namespace winnow {
namespace {

#if defined(WINNOW_X86)
// Whether a core's first-level cache holds 48 KB.
bool has_wide_first_level() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48 << 10;
#else
  return false;
#endif
}

// Which compilation for AVX-512 the processor is quickest with. Fetching ahead into a first level of 32 KB makes rows of
// weights a third slower (Zen 4); where there are 48 (Zen 5) it is the second level that is slower. Not so on Intel's,
// whose first level waits for sixteen lines at most, and which take two cycles for a product of bfloat16 pairs.
const Kernels& avx512_kernels() {
  if (__builtin_cpu_is("intel")) return avx512_widening::kernels();
  return has_wide_first_level() ? avx512_near::kernels() : avx512::kernels();
}
#endif

}  // namespace

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
      found.push_back({"avx512", &avx512_kernels()});
    }
  }
#endif
  return found;
}

}  // namespace winnow
