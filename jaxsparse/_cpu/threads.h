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

constexpr int64_t kWork = 1 << 16;  // operations below which one thread is faster

// What the threads of one call share. A helper may be scheduled when the call is long over, so that
// it belongs to all of them.
struct Crew {
  std::mutex mutex;
  std::condition_variable idle;
  int64_t working = 0;
  bool over = false;
};

// Calls f(piece) for all pieces, by all threads of the pool where the work is worth it. The caller
// waits only for helpers that have begun: those that have not may be queued behind callers that
// wait themselves, as where every core is a device of its own.
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
