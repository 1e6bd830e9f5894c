// SPDX-License-Identifier: GPL-2.0-or-later
// The threads of a rank: torch's own pool, for loops that know nothing of torch. Knows nothing of LAMMPS.

#ifndef HIENET_THREAD_POOL_H
#define HIENET_THREAD_POOL_H

#include <cstdint>
#include <functional>

namespace hienet {

/// While it lives, torch and `parallel_for` compute with `threads` threads in this process.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads);
  ~ThreadsGuard();
  ThreadsGuard(const ThreadsGuard &) = delete;
  ThreadsGuard &operator=(const ThreadsGuard &) = delete;

 private:
  int before;
};

/// `work(begin, end)` on pieces of `0 .. n-1`, side by side; each piece but the last has at least `grain` items.
///
/// On one thread, and where there is too little for two, it is one call by the caller itself.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)> &work);

}    // namespace hienet

#endif
