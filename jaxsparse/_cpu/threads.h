// Loops that all threads of XLA's pool share.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

constexpr int64_t kWork = 1 << 16;  // with fewer operations one thread is faster

// State shared by the threads of one call. A helper may be scheduled long after the call is over, so
// all threads own the state together.
struct Crew {
  std::mutex mutex;
  std::condition_variable idle;
  int64_t working = 0;
  bool over = false;
};

// Calls f(piece) for all pieces, on all threads of the pool if there is enough work. The caller waits
// only for helpers that have begun: the others may be queued behind callers that are waiting
// themselves, for example where every core is a device of its own.
template <typename F>
void InParallel(ffi::ThreadPool pool, int64_t pieces, int64_t work, F f) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < pieces;) f(i);
  };
  const int64_t helpers = work < kWork ? 0 : std::min<int64_t>(pool.num_threads(), pieces) - 1;
  if (helpers <= 0) return run();
  auto crew = std::make_shared<Crew>();
  for (int64_t t = 0; t < helpers; ++t) {
    pool.Schedule([crew, &run] {
      {
        std::lock_guard<std::mutex> lock(crew->mutex);
        if (crew->over) return;
        ++crew->working;
      }
      run();
      std::lock_guard<std::mutex> lock(crew->mutex);
      if (--crew->working == 0) crew->idle.notify_one();
    });
  }
  run();
  std::unique_lock<std::mutex> lock(crew->mutex);
  crew->over = true;
  crew->idle.wait(lock, [&] { return crew->working == 0; });
}
