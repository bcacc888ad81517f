// The thread pool: the caller works, helpers join when they are there.
//
// A job is a few phases of numbered blocks. Whoever is in the job claims a block of a phase, works on it and reports it
// done; `wait` returns when all blocks of the phase are done. Each thread has a run of blocks of its own, so that it reads
// memory in order and shares no counter, and takes others' blocks when it is done with them: a helper that wakes late finds
// less to do, one that never wakes is not missed. Since blocks are fixed by the problem, never by the number of threads,
// the result has the same bits.
//
// Idle helpers spin for about 60 microseconds, longer than between two calls of a decode step, and then sleep: a prompt's
// products run on other threads, for which they would be in the way. After a fork the child has no helpers and its caller
// works alone; forking while another thread runs a job is not supported.
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

  // For jobs. The next of the phase's blocks 0..blocks-1, others' where this thread has none left, `blocks` when there is
  // none at all.
  std::int64_t claim(int phase, std::int64_t blocks);
  std::int64_t claim_own(int phase, std::int64_t blocks);  // none but its own
  int member() const;  // who asks: 0 is the caller, helpers follow
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
  for (std::int64_t b = pool.claim(phase, blocks); b < blocks; b = pool.claim(phase, blocks)) {
    work(b);
    pool.finish(phase);
  }
}

// The same, claiming the thread's own blocks one early: work(block, the one this thread does next, or -1 where that is not
// known yet), so that it can be prefetched.
template <class F>
inline void each_block_ahead(Pool& pool, int phase, std::int64_t blocks, F work) {
  std::int64_t next = pool.claim(phase, blocks);
  while (next < blocks) {
    const std::int64_t block = next;
    next = pool.claim_own(phase, blocks);
    work(block, next < blocks ? next : -1);
    pool.finish(phase);
    if (next >= blocks) next = pool.claim(phase, blocks);
  }
}

}  // namespace winnow
