// Vectors of floats.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "threads.h"

// Floats per register (compilers split wider vectors through memory), and vectors that a tile keeps in
// registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWide = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8, kWide = 8;
#else
constexpr int kLanes = 4, kWide = 8;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// The sum of the lanes, by halves: one after another, each addition would wait for the last one.
inline float Sum(Vec v) {
  typedef float Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  auto a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  auto a = v;
#endif
#if defined(__AVX__)
  Four b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
#else
  Four b = a;
#endif
  return (b[0] + b[1]) + (b[2] + b[3]);
}

// Keeps a vector in a register; a compiler would rather read it again for every use.
inline void Keep(Vec& v) {
#if defined(__AVX__)
  asm("" : "+x"(v));
#endif
}

// The next multiple of a step.
inline int64_t UpTo(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <int N>
using Size = std::integral_constant<int, N>;

// Cuts a run of floats into tiles and calls f(first, vectors, skip) for each, `vectors` as a Size.
// The rest after the last whole vector is the end of a vector that begins earlier: its first `skip`
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
