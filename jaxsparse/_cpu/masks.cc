// XLA custom calls that make masks, count them and read their counts.
//
// The mask of the k largest scores is exact and needs no sorted copy: as scores are read, they become
// unsigned keys of the same order; two passes count the halves of the keys, a third writes the mask.

#include <cstring>
#include <type_traits>
#include <vector>

#include "threads.h"

namespace {

using Mask = ffi::Buffer<ffi::PRED>;
using Counts = ffi::Buffer<ffi::S32, 1>;
using Flag = ffi::Buffer<ffi::PRED, 0>;
using Count = ffi::Buffer<ffi::S32, 0>;

constexpr int64_t kPiece = 1 << 16;  // one thread counts at least this many scores
constexpr int64_t kFew = 1 << 17;    // with fewer scores, histograms of 2^16 bins cost more
constexpr int kRun = 64;

// Keys of floats with E bits of exponent: 0 = not eligible, 1 = NaN, zeros are equal.
template <typename Bits, int kExponent>
struct Scores {
  static constexpr int kBits = 8 * sizeof(Bits);
  static constexpr uint32_t kSign = uint32_t(1) << (kBits - 1), kAll = 2 * kSign - 1;
  static constexpr uint32_t kInfinity = ((uint32_t(1) << kExponent) - 1) << (kBits - 1 - kExponent);

  const Bits* bits;
  const uint8_t* where;  // null if all are eligible

  static uint32_t Key(uint32_t bits) {
    const uint32_t size = bits & (kSign - 1);
    const uint32_t key = bits & kSign && size ? ~bits & kAll : size | kSign;
    return size > kInfinity ? 1 : key;
  }

  // Calls f(keys, at, count) for one run after another, with the keys of scores at, at + 1, ...
  template <typename F>
  void EachRun(int64_t first, int64_t last, F f) const {
    uint32_t keys[kRun];
    for (int64_t at = first; at < last; at += kRun) {
      const int count = std::min<int64_t>(kRun, last - at);
      for (int i = 0; i < count; ++i) keys[i] = Key(bits[at + i]);
      if (where)
        for (int i = 0; i < count; ++i) keys[i] &= -uint32_t(where[at + i]);
      f(keys, at, count);
    }
  }
};

// The last bin such that it and those after it hold at least k; k becomes the rank within it.
int64_t LastReaching(const std::vector<int32_t>& counts, int64_t bins, int64_t& k) {
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
// are. The bound is 0 if fewer than k scores are eligible.
struct Cut {
  uint32_t bound;
  int64_t rank, ties;
};

int64_t CountEqual(const uint32_t* keys, int count, uint32_t bound) {
  int64_t equal = 0;
  for (int i = 0; i < count; ++i) equal += keys[i] == bound;
  return equal;
}

template <typename S>
Cut FindCut(const Pieces& pieces, const S& scores, int64_t k) {
  // The digits of the k-th largest key, the most significant first.
  const int digit = pieces.size < kFew ? 11 : 16;
  Cut cut{0, k, 0};
  for (int high = S::kBits; high > 0; high -= digit) {
    const int low = std::max(high - digit, 0);
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

template <typename S>
void Select(ffi::ThreadPool pool, const S& scores, int64_t size, int64_t k, bool* mask) {
  const Pieces pieces(pool, size);
  const Cut cut = FindCut(pieces, scores, k);
  const bool few = cut.bound == 0;  // fewer are eligible than requested
  const uint32_t bound = few ? 1 : cut.bound;
  const int64_t ties = cut.ties, rank = few ? ties : cut.rank;

  // Of equal scores the first ones count: every piece must know how many precede it.
  std::vector<int64_t> before(pieces.count + 1, 0);
  if (rank < ties) {
    pieces.Each([&](int64_t p, int64_t first, int64_t last) {
      int64_t equal = 0;
      scores.EachRun(first, last, [&](const uint32_t* keys, int64_t, int count) {
        equal += CountEqual(keys, count, bound);
      });
      before[p + 1] = equal;
    });
    for (int64_t p = 0; p < pieces.count; ++p) before[p + 1] += before[p];
  }
  pieces.Each([&](int64_t p, int64_t first, int64_t last) {
    int64_t more = rank == ties ? size : rank - before[p];
    scores.EachRun(first, last, [&](const uint32_t* keys, int64_t at, int count) {
      const int64_t equal = CountEqual(keys, count, bound);
      if (0 < more && more < equal) {
        for (int i = 0; i < count; ++i)
          mask[at + i] = keys[i] > bound || (keys[i] == bound && more-- > 0);
        return;
      }
      const uint32_t least = more > 0 ? bound : bound + 1;
      for (int i = 0; i < count; ++i) mask[at + i] = keys[i] >= least;
      if (more > 0) more -= equal;
    });
  });
}

// Calls f(scores) with scores of the type that the buffer has.
template <typename F>
ffi::Error OfType(ffi::AnyBuffer buffer, const uint8_t* where, F f) {
  const auto with = [&](auto scores) {
    scores.where = where;
    f(scores);
    return ffi::Error::Success();
  };
  const void* data = buffer.untyped_data();
  switch (buffer.element_type()) {
    case ffi::F32: return with(Scores<uint32_t, 8>{static_cast<const uint32_t*>(data)});
    case ffi::BF16: return with(Scores<uint16_t, 8>{static_cast<const uint16_t*>(data)});
    case ffi::F16: return with(Scores<uint16_t, 5>{static_cast<const uint16_t*>(data)});
    default: return ffi::Error::InvalidArgument("no kernel for this type");
  }
}

// `where` is empty if all scores are eligible.
ffi::Error TopKMask(ffi::ThreadPool pool, ffi::AnyBuffer scores, Mask where,
                    Count k, ffi::Result<Mask> mask) {
  const int64_t size = scores.element_count(), count = *k.typed_data();
  const auto* among = static_cast<const uint8_t*>(where.untyped_data());
  bool* out = mask->typed_data();
  if (count <= 0) {
    std::fill_n(out, size, false);
    return ffi::Error::Success();
  }
  return OfType(scores, where.element_count() == size ? among : nullptr, [&](const auto& found) {
    Select(pool, found, size, std::min(count, size), out);
  });
}

// The k-th largest key, an unsigned integer as wide as a score; 1 <= k <= size.
ffi::Error KthKey(ffi::ThreadPool pool, ffi::AnyBuffer scores, Count k,
                  ffi::Result<ffi::AnyBuffer> key) {
  return OfType(scores, nullptr, [&](const auto& found) {
    const Pieces pieces(pool, scores.element_count());
    auto bits = *found.bits;
    bits = FindCut(pieces, found, *k.typed_data()).bound;
    std::memcpy(key->untyped_data(), &bits, sizeof(bits));
  });
}

// A row of an array.
ffi::Error Row(ffi::AnyBuffer rows, Count index, ffi::Result<ffi::AnyBuffer> row) {
  const size_t bytes = row->size_bytes();
  const auto* first = static_cast<const char*>(rows.untyped_data());
  std::memcpy(row->untyped_data(), first + *index.typed_data() * bytes, bytes);
  return ffi::Error::Success();
}

// Calls f(array, first, last) for pieces of all arrays, and returns the sum for each array.
template <typename Size, typename F>
std::vector<int64_t> Sums(ffi::ThreadPool pool, int64_t arrays, Size size, F f) {
  struct Piece { int64_t array, first, last, sum; };
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (int64_t a = 0; a < arrays; ++a) {
    for (int64_t at = 0; at < size(a); at += kPiece)
      pieces.push_back({a, at, std::min(at + kPiece, size(a)), 0});
    total += size(a);
  }
  InParallel(pool, pieces.size(), total, [&](int64_t i) {
    Piece& p = pieces[i];
    p.sum = f(p.array, p.first, p.last);
  });
  std::vector<int64_t> sums(arrays, 0);
  for (const Piece& p : pieces) sums[p.array] += p.sum;
  return sums;
}

// How many bits of each mask are set; with twice as many masks, how many are set in each mask of the
// first half but not in its partner of the second half.
ffi::Error Living(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<Counts> found) {
  const int64_t masks = found->element_count();
  std::vector<const uint8_t*> data;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < args.size(); ++i) {
    auto mask = args.get<ffi::AnyBuffer>(i);
    if (mask.has_error()) return mask.error();
    data.push_back(static_cast<const uint8_t*>(mask->untyped_data()));
    sizes.push_back(mask->element_count());
  }
  const bool pairs = data.size() > size_t(masks);
  const auto sums = Sums(
      pool, masks, [&](int64_t a) { return sizes[a]; },
      [&](int64_t a, int64_t first, int64_t last) {
        const uint8_t *mask = data[a], *off = pairs ? data[a + masks] : nullptr;
        const auto ones = [&](auto read) {  // a boolean is a byte with one bit
          int32_t sum = 0;
          int64_t i = first;
          for (; i + 8 <= last; i += 8) sum += __builtin_popcountll(read(i, uint64_t{}));
          for (; i < last; ++i) sum += __builtin_popcount(read(i, uint8_t{}));
          return sum;
        };
        const auto load = [](const uint8_t* from, auto word) {
          std::memcpy(&word, from, sizeof(word));
          return word;
        };
        if (!pairs) return ones([&](int64_t i, auto word) { return load(mask + i, word); });
        return ones([&](int64_t i, auto word) {
          const auto others = load(off + i, word);
          return decltype(word)(load(mask + i, word) & ~others);
        });
      });
  std::copy(sums.begin(), sums.end(), found->typed_data());
  return ffi::Error::Success();
}

// Whether all numbers of all arrays are finite.
bool Finite(ffi::ThreadPool pool, const std::vector<const float*>& data,
            const std::vector<int64_t>& sizes) {
  const auto sums = Sums(
      pool, data.size(), [&](int64_t a) { return sizes[a]; },
      [&](int64_t a, int64_t first, int64_t last) {
        const uint32_t* bits = reinterpret_cast<const uint32_t*>(data[a]);
        int32_t sum = 0;
        for (int64_t i = first; i < last; ++i) sum += (bits[i] & 0x7f800000) == 0x7f800000;
        return sum;
      });
  return std::all_of(sums.begin(), sums.end(), [](int64_t n) { return n == 0; });
}

ffi::Error AllFinite(ffi::ThreadPool pool, ffi::RemainingArgs args,
                     ffi::Result<Flag> found) {
  std::vector<const float*> data;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < args.size(); ++i) {
    auto array = args.get<ffi::Buffer<ffi::F32>>(i);
    if (array.has_error()) return array.error();
    data.push_back(array->typed_data());
    sizes.push_back(array->element_count());
  }
  *found->typed_data() = Finite(pool, data, sizes);
  return ffi::Error::Success();
}

// The same array, in its own memory, and whether all its numbers are finite.
ffi::Error Checked(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> array,
                   ffi::Result<ffi::Buffer<ffi::F32>> same, ffi::Result<Flag> found) {
  *found->typed_data() = Finite(pool, {array.typed_data()}, {int64_t(array.element_count())});
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(living, Living,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Counts>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(all_finite, AllFinite,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Flag>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(checked, Checked,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<Flag>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(top_k_mask, TopKMask,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Mask>()
                                  .Arg<Count>()
                                  .Ret<Mask>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kth_key, KthKey,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Count>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(row, Row,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Count>()
                                  .Ret<ffi::AnyBuffer>());
