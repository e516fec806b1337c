// The mask of the k largest scores, exactly and without a sorted copy.
//
// As scores are read, they become unsigned keys of the same order. A sample suggests two keys with the
// cut between them; one pass counts the keys above and collects those between, which tell the cut, and
// another writes the mask. Where the sample is too small, or misleads, histograms find the cut.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "threads.h"

constexpr int kRun = 64;              // keys that are made at a time
constexpr int kDigit = 11;            // bits of a histogram
constexpr int64_t kPiece = 1 << 16;   // one thread takes at least this many scores
constexpr int64_t kMany = 1 << 15;    // with fewer scores, a sample says too little
constexpr int64_t kStride = 64;       // one score in so many is in the sample,
constexpr int64_t kSample = 1 << 14;  // which is never larger than this

// Keys of floats with E bits of exponent: 0 = not eligible, 1 = NaN, zeros are equal.
template <typename Bits, int kExponent>
struct Scores {
  static constexpr int kBits = 8 * sizeof(Bits);
  static constexpr uint32_t kSign = uint32_t(1) << (kBits - 1), kAll = 2 * kSign - 1;
  static constexpr uint32_t kInfinity = ((uint32_t(1) << kExponent) - 1) << (kBits - 1 - kExponent);

  const Bits* bits;
  const uint8_t* where;  // null if all are eligible
  bool grows = false;    // those off `where` are eligible, and those of `where` are marked, too

  static uint32_t Key(uint32_t bits) {
    const uint32_t size = bits & (kSign - 1);
    const uint32_t key = bits & kSign && size ? ~bits & kAll : size | kSign;
    return size > kInfinity ? 1 : key;
  }

  uint32_t At(int64_t i) const { return where && where[i] == grows ? 0 : Key(bits[i]); }

  // Calls f(keys, at, count) for one run after another, with the keys of scores at, at + 1, ...
  template <typename F>
  void EachRun(int64_t first, int64_t last, F f) const {
    uint32_t keys[kRun];
    for (int64_t at = first; at < last; at += kRun) {
      const int count = std::min<int64_t>(kRun, last - at);
      for (int i = 0; i < count; ++i) keys[i] = Key(bits[at + i]);
      if (where)
        for (int i = 0; i < count; ++i) keys[i] &= -uint32_t(where[at + i] ^ uint8_t(grows));
      f(keys, at, count);
    }
  }
};

// The last bin such that it and those after it hold at least k; k becomes the rank within it.
inline int64_t LastReaching(const std::vector<int32_t>& counts, int64_t bins, int64_t& k) {
  int64_t bin = bins - 1;
  for (; bin > 0 && counts[bin] < k; --bin) k -= counts[bin];
  return bin;
}

// Equal pieces of an array, each for one thread.
struct Pieces {
  ffi::ThreadPool& pool;
  int64_t size, count;

  Pieces(ffi::ThreadPool& pool, int64_t size)
      : pool(pool), size(size), count(std::clamp<int64_t>(size / kPiece, 1, pool.num_threads())) {}

  // Calls f(piece, first, last) for all of them.
  template <typename F>
  void Each(F f) const {
    InParallel(pool, count, size,
               [&](int64_t p) { f(p, size * p / count, size * (p + 1) / count); });
  }
};

// The k-th largest key, how many of those equal to it are among the k largest, and how many there
// are, also in each piece if that is known. The bound is 0 if fewer than k scores are eligible.
struct Cut {
  uint32_t bound;
  int64_t rank, ties;
  std::vector<int64_t> equal;
};

inline int64_t CountEqual(const uint32_t* keys, int count, uint32_t bound) {
  int64_t equal = 0;
  for (int i = 0; i < count; ++i) equal += keys[i] == bound;
  return equal;
}

template <typename S>
Cut FindByDigits(const Pieces& pieces, const S& scores, int64_t k) {
  // The digits of the k-th largest key, the most significant first.
  Cut cut{0, k, 0, {}};
  for (int high = S::kBits; high > 0; high -= kDigit) {
    const int low = std::max(high - kDigit, 0);
    const uint32_t bins = uint32_t(1) << (high - low), bound = cut.bound;
    std::vector<std::vector<int32_t>> found(pieces.count);
    pieces.Each([&](int64_t p, int64_t first, int64_t last) {
      found[p].assign(bins + kRun, 0);  // the last kRun for ineligible scores
      int32_t* counts = found[p].data();
      scores.EachRun(first, last, [&](const uint32_t* keys, int64_t, int count) {
        if (high == S::kBits) {
          for (int i = 0; i < count; ++i) ++counts[keys[i] ? keys[i] >> low : bins + i];
          return;
        }
        bool any = false;
        for (int i = 0; i < count; ++i) any |= keys[i] >> high == bound;
        if (!any) return;
        for (int i = 0; i < count; ++i)
          if (keys[i] >> high == bound && keys[i]) ++counts[(keys[i] >> low) & (bins - 1)];
      });
    });
    for (int64_t p = 1; p < pieces.count; ++p)
      for (uint32_t b = 0; b < bins; ++b) found[0][b] += found[p][b];
    const int64_t bin = LastReaching(found[0], bins, cut.rank);
    cut.bound = bound << (high - low) | bin;
    cut.ties = found[0][bin];
  }
  return cut;
}

// Two keys, between which the k-th largest lies unless the sample that they come from is unlucky.
template <typename S>
std::pair<uint32_t, uint32_t> Guess(const S& scores, int64_t size, int64_t k) {
  const int64_t count = std::min(size / kStride, kSample);
  std::vector<uint32_t> sample(count);
  uint64_t random = 1;
  for (int64_t i = 0; i < count; ++i) {
    random = random * 6364136223846793005 + 1442695040888963407;
    sample[i] = scores.At(size * i / count + (random >> 33) % (size / count));
  }
  const double share = double(k) / size;
  const double spread = 4 * std::sqrt(count * share * (1 - share)) + 4;
  const auto largest = [&](int64_t rank) {
    std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
    return sample[rank];
  };
  const int64_t low = count * share + spread, high = count * share - spread;
  return {low < count ? largest(low) : 0, high >= 0 ? largest(high) : S::kAll};
}

// What a piece holds on both sides of a guess.
struct Around {
  int64_t above = 0, highest = 0, lowest = 0;  // keys > high, == high, == low
  std::vector<uint32_t> between;
  bool complete = true;  // there was room for all keys between
};

template <typename S>
Around LookAround(const S& scores, int64_t first, int64_t last, uint32_t low, uint32_t high) {
  Around found;
  found.between.resize((last - first) / 8 + kRun);
  uint32_t* next = found.between.data();
  const uint32_t* const full = next + found.between.size() - kRun;
  const uint32_t width = std::max(high - low, 1u) - 1;
  scores.EachRun(first, last, [&](const uint32_t* keys, int64_t, int count) {
    uint32_t above = 0, highest = 0, lowest = 0;
    for (int i = 0; i < count; ++i) {
      above += keys[i] > high;
      highest += keys[i] == high;
      lowest += keys[i] == low;
    }
    found.above += above;
    found.highest += highest;
    found.lowest += lowest;
    found.complete &= next <= full;
    if (!found.complete) return;
    uint8_t between[kRun] = {};
    for (int i = 0; i < count; ++i) between[i] = keys[i] - low - 1 < width;
    for (int i = 0; i < kRun; i += 8) {
      uint64_t marks;
      std::memcpy(&marks, between + i, sizeof(marks));
      for (; marks; marks &= marks - 1) *next++ = keys[i + (__builtin_ctzll(marks) >> 3)];
    }
  });
  found.between.resize(next - found.between.data());
  return found;
}

// Finds the cut in one pass; returns false if it does not lie where a sample suggests.
template <typename S>
bool FindBySample(const Pieces& pieces, const S& scores, int64_t k, Cut& cut) {
  const auto guess = Guess(scores, pieces.size, k);
  const uint32_t low = guess.first, high = guess.second;
  std::vector<Around> found(pieces.count);
  pieces.Each([&](int64_t p, int64_t first, int64_t last) {
    found[p] = LookAround(scores, first, last, low, high);
  });
  std::vector<uint32_t> between;
  cut.rank = k;
  for (const Around& piece : found) {
    if (!piece.complete) return false;
    cut.rank -= piece.above;
    between.insert(between.end(), piece.between.begin(), piece.between.end());
  }
  if (cut.rank <= 0) return false;
  // Settles at a key if the k-th largest is one of those equal to it.
  const auto settle = [&](uint32_t key, auto equal) {
    cut = {key, cut.rank, 0, {}};
    for (const Around& piece : found) {
      cut.equal.push_back(equal(piece));
      cut.ties += cut.equal.back();
    }
    return cut.rank <= cut.ties;
  };
  if (settle(high, [](const Around& piece) { return piece.highest; })) return true;
  cut.rank -= cut.ties;
  const int64_t inside = between.size();
  if (cut.rank <= inside) {
    const auto keys = between.begin(), kth = keys + cut.rank - 1;
    std::nth_element(keys, kth, between.end(), std::greater<>());
    const uint32_t key = *kth;
    cut.rank -= std::count_if(keys, kth, [&](uint32_t x) { return x > key; });
    return settle(key, [&](const Around& piece) {
      return std::count(piece.between.begin(), piece.between.end(), key);
    });
  }
  cut.rank -= inside;
  return low < high && settle(low, [](const Around& piece) { return piece.lowest; });
}

template <typename S>
Cut FindCut(const Pieces& pieces, const S& scores, int64_t k) {
  Cut cut;
  if (pieces.size >= kMany && FindBySample(pieces, scores, k, cut)) return cut;
  return FindByDigits(pieces, scores, k);
}

template <typename S>
std::vector<int64_t> EqualInPieces(const Pieces& pieces, const S& scores, uint32_t bound) {
  std::vector<int64_t> equal(pieces.count, 0);
  pieces.Each([&](int64_t p, int64_t first, int64_t last) {
    scores.EachRun(first, last, [&](const uint32_t* keys, int64_t, int count) {
      equal[p] += CountEqual(keys, count, bound);
    });
  });
  return equal;
}

template <typename S>
void Select(ffi::ThreadPool pool, const S& scores, int64_t size, int64_t k, bool* mask) {
  if (k <= 0) {
    if (!scores.grows) std::fill_n(mask, size, false);
    return;
  }
  const Pieces pieces(pool, size);
  Cut cut = FindCut(pieces, scores, std::min(k, size));
  const bool few = cut.bound == 0;  // fewer are eligible than requested
  const uint32_t bound = few ? 1 : cut.bound;
  const int64_t ties = cut.ties, rank = few ? ties : cut.rank;

  // Of equal scores the first ones count: every piece must know how many precede it.
  std::vector<int64_t> before(pieces.count + 1, 0);
  if (rank < ties) {
    if (cut.equal.empty()) cut.equal = EqualInPieces(pieces, scores, bound);
    std::partial_sum(cut.equal.begin(), cut.equal.end(), before.begin() + 1);
  }
  pieces.Each([&](int64_t p, int64_t first, int64_t last) {
    int64_t more = rank == ties ? size : rank - before[p];
    scores.EachRun(first, last, [&](const uint32_t* keys, int64_t at, int count) {
      const int64_t equal = rank < ties ? CountEqual(keys, count, bound) : 0;
      bool chosen[kRun];
      if (0 < more && more < equal) {
        for (int i = 0; i < count; ++i)
          chosen[i] = keys[i] > bound || (keys[i] == bound && more-- > 0);
      } else {
        const uint32_t least = more > 0 ? bound : bound + 1;
        for (int i = 0; i < count; ++i) chosen[i] = keys[i] >= least;
        if (more > 0) more -= equal;
      }
      if (scores.grows)
        for (int i = 0; i < count; ++i) chosen[i] |= mask[at + i];
      std::copy_n(chosen, count, mask + at);
    });
  });
}
