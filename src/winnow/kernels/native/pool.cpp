#include "pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace winnow {
namespace {

std::atomic<int> forks{0};  // how many forks lie between this process and the one that loaded the library

void count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
}

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins a while, then lets others have the processor: the one waited for may need it.
template <class F>
void spin_until(F done) {
  for (int i = 0; !done(); ++i) {
    if (i < 4096) {
      pause();
    } else {
      sched_yield();
    }
  }
}

constexpr auto kIdleSpin = std::chrono::microseconds(60);
constexpr std::uint64_t kOpen = 1ull << 31;  // state: epoch << 32 | open | helpers inside
constexpr std::uint64_t kInside = kOpen - 1;

struct alignas(64) Counter {
  std::atomic<std::int64_t> value{0};
};

}  // namespace

struct Pool::Impl {
  alignas(64) std::atomic<std::uint64_t> state{0};
  Job job = nullptr;
  void* context = nullptr;
  Counter claimed[kPhases];
  Counter done[kPhases];
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> helpers;
  int born_after = forks.load();

  bool sees_news(std::uint64_t last_epoch) const {
    return stopping.load() || state.load() >> 32 != last_epoch;
  }

  void await_news(std::uint64_t last_epoch) {
    const auto deadline = std::chrono::steady_clock::now() + kIdleSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (sees_news(last_epoch)) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(mutex);
    // Both sides use sequentially consistent order: either the caller sees a sleeper or the sleeper sees the news.
    sleepers.fetch_add(1);
    wake.wait(lock, [&] { return sees_news(last_epoch); });
    sleepers.fetch_sub(1);
  }

  bool join(std::uint64_t epoch) {
    std::uint64_t now = state.load();
    while (now >> 32 == epoch && (now & kOpen)) {
      if (state.compare_exchange_weak(now, now + 1)) return true;
    }
    return false;
  }

  void help(Pool& pool) {
    std::uint64_t last_epoch = 0;
    for (;;) {
      await_news(last_epoch);
      if (stopping.load()) return;
      last_epoch = state.load() >> 32;
      if (join(last_epoch)) {
        job(context, pool);
        state.fetch_sub(1);
      }
    }
  }
};

Pool::Pool(int threads) : impl_(new Impl) {
  count_forks();
  impl_->born_after = forks.load();
  for (int i = 1; i < threads; ++i) {
    impl_->helpers.emplace_back([this] { impl_->help(*this); });
  }
}

Pool::~Pool() {
  // In a forked child the helpers do not exist: neither joined nor destroyed.
  if (forks.load() != impl_->born_after) return;
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stopping.store(true);
  }
  impl_->wake.notify_all();
  for (auto& helper : impl_->helpers) helper.join();
  delete impl_;
}

int Pool::threads() const { return static_cast<int>(impl_->helpers.size()) + 1; }

void Pool::run(Job job, void* context, bool alone) {
  Impl& pool = *impl_;
  for (auto& counter : pool.claimed) counter.value.store(0, std::memory_order_relaxed);
  for (auto& counter : pool.done) counter.value.store(0, std::memory_order_relaxed);
  if (alone || pool.helpers.empty() || forks.load(std::memory_order_relaxed) != pool.born_after) {
    job(context, *this);
    return;
  }
  pool.job = job;
  pool.context = context;
  const std::uint64_t epoch = ((pool.state.load() >> 32) + 1) & 0xffffffffull;
  pool.state.store(epoch << 32 | kOpen);
  if (pool.sleepers.load() > 0) {
    { std::lock_guard<std::mutex> lock(pool.mutex); }  // a sleeper between its look and its sleep holds it
    pool.wake.notify_all();
  }
  job(context, *this);
  pool.state.fetch_and(~kOpen);
  spin_until([&] { return (pool.state.load(std::memory_order_acquire) & kInside) == 0; });
}

std::int64_t Pool::claim(int phase) { return impl_->claimed[phase].value.fetch_add(1, std::memory_order_relaxed); }

void Pool::finish(int phase) { impl_->done[phase].value.fetch_add(1, std::memory_order_release); }

void Pool::wait(int phase, std::int64_t blocks) {
  spin_until([&] { return impl_->done[phase].value.load(std::memory_order_acquire) >= blocks; });
}

}  // namespace winnow
