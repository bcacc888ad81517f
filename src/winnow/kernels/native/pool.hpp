// The thread pool: the caller works, helpers join when they are there.
//
// A job is a few phases of numbered blocks. Whoever is in the job claims the next block of a phase, works on it and
// reports it done; `wait` returns when all blocks of the phase are done. A helper that wakes late finds less to do, one
// that never wakes is not missed, and since blocks are fixed by the problem, never by the number of threads, the result
// has the same bits.
//
// Idle helpers spin for about 50 microseconds, the time between two calls of a decode step, and then sleep. After a
// fork the child has no helpers and its caller works alone; forking while another thread runs a job is not supported.
#pragma once

#include <cstdint>

namespace winnow {

class Pool {
 public:
  static constexpr int kPhases = 4;
  using Job = void (*)(void* context, Pool& pool);

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const;

  // Runs job(context, *this) on the caller and, unless `alone`, on every helper that joins; returns when all have left.
  // One at a time.
  void run(Job job, void* context, bool alone);

  // For jobs. The next block of the phase; past the last one when there is none left.
  std::int64_t claim(int phase);
  void finish(int phase);
  void wait(int phase, std::int64_t blocks);

 private:
  struct Impl;
  Impl* impl_;
};

constexpr std::int64_t kAloneBytes = 64 << 10;  // read by one thread before a helper has joined

// Runs a callable job(pool) that lives on the caller's stack and reads about `bytes` of memory.
template <class F>
inline void run_job(Pool& pool, std::int64_t bytes, F& job) {
  pool.run([](void* context, Pool& p) { (*static_cast<F*>(context))(p); }, &job, bytes < kAloneBytes);
}

// Works through the blocks of a phase; `work(block)` must not depend on who does it.
template <class F>
inline void each_block(Pool& pool, int phase, std::int64_t blocks, F work) {
  for (std::int64_t b = pool.claim(phase); b < blocks; b = pool.claim(phase)) {
    work(b);
    pool.finish(phase);
  }
}

// The same, claiming one block early: work(block, the one this thread does next, or -1), so that it can be prefetched.
template <class F>
inline void each_block_ahead(Pool& pool, int phase, std::int64_t blocks, F work) {
  std::int64_t next = pool.claim(phase);
  while (next < blocks) {
    const std::int64_t block = next;
    next = pool.claim(phase);
    work(block, next < blocks ? next : -1);
    pool.finish(phase);
  }
}

}  // namespace winnow
