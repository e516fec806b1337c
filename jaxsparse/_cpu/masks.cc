// XLA custom calls that make masks, draw scores for them, count them and read their counts.

#include <cstring>
#include <vector>

#include "random.h"
#include "select.h"

namespace {

using Mask = ffi::Buffer<ffi::PRED>;
using Key = ffi::Buffer<ffi::U32, 1>;
using Counts = ffi::Buffer<ffi::S32, 1>;
using Flag = ffi::Buffer<ffi::PRED, 0>;
using Count = ffi::Buffer<ffi::S32, 0>;

// Calls f(scores) with scores of the type that the buffer has.
template <typename F>
ffi::Error OfType(ffi::AnyBuffer buffer, const void* where, F f) {
  const auto with = [&](auto scores) {
    scores.where = static_cast<const uint8_t*>(where);
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
ffi::Error TopKMask(ffi::ThreadPool pool, ffi::AnyBuffer scores, Mask where, Count k,
                    ffi::Result<Mask> mask) {
  const int64_t size = scores.element_count();
  const void* among = where.element_count() == size ? where.untyped_data() : nullptr;
  return OfType(scores, among, [&](auto found) {
    Select(pool, found, size, *k.typed_data(), mask->typed_data());
  });
}

// The mask, in its own memory, with the k largest scores off it.
ffi::Error GrownMask(ffi::ThreadPool pool, ffi::AnyBuffer scores, Mask mask, Count k,
                     ffi::Result<Mask> same) {
  return OfType(scores, same->typed_data(), [&](auto found) {
    found.grows = true;
    Select(pool, found, scores.element_count(), *k.typed_data(), same->typed_data());
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

// Random scores in [0, 1), from the two words of a key.
ffi::Error Uniform(ffi::ThreadPool pool, Key key,
                   ffi::Result<ffi::Buffer<ffi::F32>> scores) {
  Draw(pool, key.typed_data(), scores->element_count(), scores->typed_data());
  return ffi::Error::Success();
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(grown_mask, GrownMask,
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(uniform, Uniform,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Key>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(row, Row,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Count>()
                                  .Ret<ffi::AnyBuffer>());
