// The numbers of `jax.random.uniform` with JAX's default generator.
//
// Every number is a function of the key and its index: twenty rounds of Threefry turn both halves of
// the index into two words, whose exclusive or gives the 23 bits of a float in [0, 1).

#pragma once

#include <cstdint>

#include "threads.h"

constexpr int64_t kDrawn = 1 << 13;  // numbers that one thread draws at a time

inline uint32_t Rotated(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

struct Threefry {
  uint32_t key[3];

  Threefry(uint32_t first, uint32_t second) : key{first, second, first ^ second ^ 0x1BD11BDA} {}

  uint32_t operator()(uint32_t high, uint32_t low) const {
    constexpr int kTurns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    uint32_t a = high + key[0], b = low + key[1];
#pragma GCC unroll 5
    for (int group = 0; group < 5; ++group) {
#pragma GCC unroll 4
      for (int turn = 0; turn < 4; ++turn) {
        a += b;
        b = Rotated(b, kTurns[group % 2][turn]) ^ a;
      }
      a += key[(group + 1) % 3];
      b += key[(group + 2) % 3] + group + 1;
    }
    return a ^ b;
  }
};

// Fills an array with floats in [0, 1).
inline void Draw(ffi::ThreadPool pool, const uint32_t* key, int64_t size, float* numbers) {
  const Threefry bits(key[0], key[1]);
  const int64_t pieces = (size + kDrawn - 1) / kDrawn;
  InParallel(pool, pieces, size, [&](int64_t piece) {
    const int64_t first = piece * kDrawn;  // a piece never crosses a multiple of 2^32
    const int32_t count = std::min(kDrawn, size - first);
    const uint32_t high = first >> 32, low = first;
    float* out = numbers + first;
    for (int32_t i = 0; i < count; ++i) out[i] = int32_t(bits(high, low + i) >> 9) * 0x1p-23f;
  });
}
