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

// What one thread has of a phase. `claimed` is counted up by whoever takes a block of it, `done` by the thread alone.
struct alignas(64) Share {
  std::atomic<std::int64_t> claimed{0};
  std::atomic<std::int64_t> done{0};
};

thread_local int member_here = 0;

}  // namespace

struct Pool::Impl {
  alignas(64) std::atomic<std::uint64_t> state{0};
  Job job = nullptr;
  void* context = nullptr;
  std::vector<Share> shares;  // [member, phase]
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> helpers;
  int born_after = forks.load();

  std::int64_t claim_of(std::int64_t member, int phase, std::int64_t blocks);
  Share& share(int member, int phase) { return shares[static_cast<std::size_t>(member * kPhases + phase)]; }

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

  void help(Pool& pool, int member) {
    member_here = member;
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
  impl_->shares = std::vector<Share>(static_cast<std::size_t>(threads < 1 ? 1 : threads) * kPhases);
  for (int i = 1; i < threads; ++i) {
    impl_->helpers.emplace_back([this, i] { impl_->help(*this, i); });
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
  for (auto& share : pool.shares) {
    share.claimed.store(0, std::memory_order_relaxed);
    share.done.store(0, std::memory_order_relaxed);
  }
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

std::int64_t Pool::Impl::claim_of(std::int64_t member, int phase, std::int64_t blocks) {
  const std::int64_t threads = static_cast<std::int64_t>(helpers.size()) + 1;
  const std::int64_t begin = member * blocks / threads, end = (member + 1) * blocks / threads;
  std::atomic<std::int64_t>& claimed = share(static_cast<int>(member), phase).claimed;
  if (begin + claimed.load(std::memory_order_relaxed) >= end) return blocks;
  const std::int64_t block = begin + claimed.fetch_add(1, std::memory_order_relaxed);
  return block < end ? block : blocks;
}

std::int64_t Pool::claim_own(int phase, std::int64_t blocks) { return impl_->claim_of(member_here, phase, blocks); }

std::int64_t Pool::claim(int phase, std::int64_t blocks) {
  const std::int64_t n = threads();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t block = impl_->claim_of((member_here + i) % n, phase, blocks);
    if (block < blocks) return block;
  }
  return blocks;
}

int Pool::member() const { return member_here; }

void Pool::finish(int phase) {
  std::atomic<std::int64_t>& done = impl_->share(member_here, phase).done;
  done.store(done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

void Pool::wait(int phase, std::int64_t blocks) {
  const int n = threads();
  spin_until([&] {
    std::int64_t done = 0;
    for (int m = 0; m < n; ++m) done += impl_->share(m, phase).done.load(std::memory_order_acquire);
    return done >= blocks;
  });
}

}  // namespace winnow
