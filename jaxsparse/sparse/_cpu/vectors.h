// Vectors of floats, and loops that all threads of XLA's pool share.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

constexpr int kLanes = 16;
#ifdef __AVX512F__
constexpr int kWide = 16;  // vectors that a tile keeps in registers
#else
constexpr int kWide = 4;
#endif
constexpr int64_t kWork = 1 << 16;  // multiply-adds below which one thread is faster

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// The sum of the lanes, by halves: one after the other they would wait for each other.
inline float Sum(Vec v) {
  auto a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  auto b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[1]) + (b[2] + b[3]);
}

template <int N>
using Size = std::integral_constant<int, N>;

// Cuts a run of floats into tiles and calls f(first, vectors, skip) for each, `vectors` as a Size.
// What is left behind the last whole vector is the end of one that begins before: its first `skip`
// lanes are done already. A run shorter than a vector is one tile of 0 vectors.
template <typename F>
inline void CutRun(int64_t length, F f) {
  int64_t at = 0;
  for (; at + kWide * kLanes <= length; at += kWide * kLanes) f(at, Size<kWide>(), 0);
  if constexpr (kWide > 8)
    for (; at + 8 * kLanes <= length; at += 8 * kLanes) f(at, Size<8>(), 0);
  if constexpr (kWide > 4)
    for (; at + 4 * kLanes <= length; at += 4 * kLanes) f(at, Size<4>(), 0);
  for (; at + 2 * kLanes <= length; at += 2 * kLanes) f(at, Size<2>(), 0);
  for (; at + kLanes <= length; at += kLanes) f(at, Size<1>(), 0);
  if (at == length) return;
  if (length < kLanes) f(at, Size<0>(), 0);
  else f(length - kLanes, Size<1>(), static_cast<int>(kLanes - (length - at)));
}

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
