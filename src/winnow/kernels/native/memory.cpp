#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace winnow {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kHugePage = 2 << 20;

void* aligned(std::int64_t bytes, std::int64_t alignment) {
  const std::int64_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(static_cast<std::size_t>(alignment), static_cast<std::size_t>(whole));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// Asks for huge pages on the whole pages inside the range, before they are touched. A hint only.
void advise_huge_pages(void* memory, std::int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace

Scratch::~Scratch() {
  for (void* memory : memory_) std::free(memory);
}

void* Scratch::bytes(int slot, std::int64_t count) {
  if (count > size_[slot]) {
    void* larger = aligned(count + kLine, kLine);
    std::free(memory_[slot]);
    memory_[slot] = larger;
    size_[slot] = count;
  }
  return memory_[slot];
}

float* Scratch::floats(int slot, std::int64_t count) { return static_cast<float*>(bytes(slot, count * 4)); }

double read_bandwidth(Context& context, const Kernels& kernels, std::int64_t bytes, double seconds) {
  using clock = std::chrono::steady_clock;
  constexpr std::int64_t block = 1 << 20;
  const std::int64_t blocks = bytes / block;
  const std::unique_ptr<void, void (*)(void*)> memory(aligned(blocks * block, kHugePage), std::free);
  const auto* data = static_cast<const char*>(memory.get());
  advise_huge_pages(memory.get(), blocks * block);
  std::memset(memory.get(), 0, static_cast<std::size_t>(blocks * block));
  volatile float sink = 0.f;
  bool prefetching = false;  // which is quicker depends on the processor: every other pass
  auto pass = [&](Pool& pool) {
    float total = 0.f;
    each_block(pool, 0, blocks, [&](std::int64_t b) { total += kernels.read(data + b * block, block, prefetching); });
    sink = total;
    pool.wait(0, blocks);
  };
  double best = 0.;
  const auto deadline = clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto started = clock::now();
    run_job(context.pool, bytes, pass);
    const std::chrono::duration<double> spent = clock::now() - started;
    const double rate = static_cast<double>(blocks * block) / spent.count();
    best = rate > best ? rate : best;
    prefetching = !prefetching;
  } while (clock::now() < deadline);
  return best;
}

}  // namespace winnow
