// SPDX-License-Identifier: GPL-2.0-or-later

#include "thread_pool.h"

#include <ATen/Parallel.h>

namespace hienet {

ThreadsGuard::ThreadsGuard(int threads) : before(at::get_num_threads())
{
  if (threads != before) at::set_num_threads(threads);
}

ThreadsGuard::~ThreadsGuard()
{
  if (at::get_num_threads() != before) at::set_num_threads(before);
}

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)> &work)
{ at::parallel_for(0, n, grain, work); }

}    // namespace hienet
