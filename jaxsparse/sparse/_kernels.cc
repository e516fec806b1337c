// Products of unstructured sparse matrices with dense ones on a CPU, as XLA custom calls.
//
// The batch is the contiguous axis: one living weight is one broadcast and a few multiply-adds on
// rows of the input, and the row of the output stays in registers until it is whole. Compiled on
// the machine that runs it, so that the compiler knows its instructions.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kLanes = 16;
constexpr int kWide = 8;         // vectors in a full tile of the batch
constexpr int64_t kRows = 16;    // rows that a thread takes at once
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

struct Rows {  // compressed rows; `order` says which value an entry has, null where they are in turn
  const int32_t* ends;
  const int32_t* columns;
  const int32_t* order;
  const float* values;
  float value(int64_t k) const { return values[order ? order[k] : k]; }
};

// Y[o, b : b + N * kLanes] = sum over the row of value * X[column, same].
template <int N>
inline void ProductTile(const Rows& w, int64_t o, const float* x, float* y, int64_t batch) {
  Vec sum[N] = {};
  for (int64_t k = w.ends[o]; k < w.ends[o + 1]; ++k) {
    const float* row = x + w.columns[k] * batch;
    const float value = w.value(k);
    for (int j = 0; j < N; ++j) sum[j] += value * Load(row + kLanes * j);
  }
  for (int j = 0; j < N; ++j) Store(y + o * batch + kLanes * j, sum[j]);
}

// D[k] (+)= <X[column, b : b + N * kLanes], G[o, same]>, the first `skip` lanes left out.
template <int N>
inline void GradientTile(const Rows& w, int64_t o, const float* x, const float* g, float* d,
                         int64_t batch, int skip, bool add) {
  Vec out[N];
  for (int j = 0; j < N; ++j) out[j] = Load(g + o * batch + kLanes * j);
  for (int i = 0; i < skip; ++i) out[0][i] = 0;
  for (int64_t k = w.ends[o]; k < w.ends[o + 1]; ++k) {
    const float* row = x + w.columns[k] * batch;
    Vec in = Load(row);
    for (int i = 0; i < skip; ++i) in[i] = 0;  // what is not counted may be infinite
    Vec sum = out[0] * in, other = {};
    for (int j = 1; j < N; j += 2) sum += out[j] * Load(row + kLanes * j);
    for (int j = 2; j < N; j += 2) other += out[j] * Load(row + kLanes * j);
    sum += other;
    d[k] = add ? d[k] + Sum(sum) : Sum(sum);
  }
}

// Calls f(first, N, skip) for the tiles of the batch; f is generic in N as an integral constant.
template <typename F>
inline void Tiles(int64_t batch, F f) {
  int64_t b = 0;
  for (; b + kWide * kLanes <= batch; b += kWide * kLanes) f(b, std::integral_constant<int, kWide>(), 0);
  for (; b + 2 * kLanes <= batch; b += 2 * kLanes) f(b, std::integral_constant<int, 2>(), 0);
  for (; b + kLanes <= batch; b += kLanes) f(b, std::integral_constant<int, 1>(), 0);
  // What is left is the end of a vector that lies in the batch, lanes that are done included.
  if (b < batch) f(batch - kLanes, std::integral_constant<int, 1>(), static_cast<int>(kLanes - (batch - b)));
}

// Calls f(first row, last row) for all rows, by all threads of the pool where it is worth it.
template <typename F>
void InParallel(ffi::ThreadPool pool, int64_t rows, int64_t work, F f) {
  const int64_t pieces = (rows + kRows - 1) / kRows;
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < pieces;) f(i * kRows, std::min(rows, (i + 1) * kRows));
  };
  const int64_t helpers = work < kWork ? 0 : std::min<int64_t>(pool.num_threads(), pieces) - 1;
  std::mutex mutex;
  std::condition_variable all;
  int64_t left = std::max<int64_t>(helpers, 0);
  for (int64_t t = 0; t < helpers; ++t) {
    pool.Schedule([&] {
      run();
      std::lock_guard<std::mutex> lock(mutex);
      if (--left == 0) all.notify_one();
    });
  }
  run();
  std::unique_lock<std::mutex> lock(mutex);
  all.wait(lock, [&] { return left == 0; });
}

using Ints = ffi::Buffer<ffi::S32, 1>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using Matrix = ffi::Buffer<ffi::F32, 2>;

ffi::Error Product(ffi::ThreadPool pool, Ints ends, Ints columns, Ints order, Vector values,
                   Matrix x, ffi::ResultBuffer<ffi::F32, 2> y) {
  const int64_t rows = y->dimensions()[0], batch = y->dimensions()[1];
  const Rows w{ends.typed_data(), columns.typed_data(),
               order.element_count() ? order.typed_data() : nullptr, values.typed_data()};
  const float* in = x.typed_data();
  float* out = y->typed_data();
  InParallel(pool, rows, w.ends[rows] * batch, [&](int64_t first, int64_t last) {
    if (batch < kLanes) {
      for (int64_t o = first; o < last; ++o) {
        std::fill_n(out + o * batch, batch, 0.0f);
        for (int64_t k = w.ends[o]; k < w.ends[o + 1]; ++k)
          for (int64_t b = 0; b < batch; ++b)
            out[o * batch + b] += w.value(k) * in[w.columns[k] * batch + b];
      }
      return;
    }
    Tiles(batch, [&](int64_t b, auto n, int) {
      for (int64_t o = first; o < last; ++o) ProductTile<n>(w, o, in + b, out + b, batch);
    });
  });
  return ffi::Error::Success();
}

ffi::Error Gradient(ffi::ThreadPool pool, Ints ends, Ints columns, Matrix x, Matrix g,
                    ffi::ResultBuffer<ffi::F32, 1> d) {
  const int64_t rows = g.dimensions()[0], batch = g.dimensions()[1];
  const Rows w{ends.typed_data(), columns.typed_data(), nullptr, nullptr};
  const float *in = x.typed_data(), *out = g.typed_data();
  float* found = d->typed_data();
  InParallel(pool, rows, w.ends[rows] * batch, [&](int64_t first, int64_t last) {
    if (batch < kLanes) {
      for (int64_t o = first; o < last; ++o)
        for (int64_t k = w.ends[o]; k < w.ends[o + 1]; ++k) {
          float total = 0;
          for (int64_t b = 0; b < batch; ++b) total += out[o * batch + b] * in[w.columns[k] * batch + b];
          found[k] = total;
        }
      return;
    }
    bool add = false;
    Tiles(batch, [&](int64_t b, auto n, int skip) {
      for (int64_t o = first; o < last; ++o)
        GradientTile<n>(w, o, in + b, out + b, found, batch, skip, add);
      add = true;
    });
  });
  return ffi::Error::Success();
}

auto BindProduct() {
  return ffi::Ffi::Bind()
                         .Ctx<ffi::ThreadPool>()
                         .Arg<Ints>()
                         .Arg<Ints>()
                         .Arg<Ints>()
                         .Arg<Vector>()
                         .Arg<Matrix>()
                         .Ret<Matrix>();
}

auto BindGradient() {
  return ffi::Ffi::Bind()
                          .Ctx<ffi::ThreadPool>()
                          .Arg<Ints>()
                          .Arg<Ints>()
                          .Arg<Matrix>()
                          .Arg<Matrix>()
                          .Ret<Vector>();
}


}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(csr_product, Product, BindProduct());
XLA_FFI_DEFINE_HANDLER_SYMBOL(csr_gradient, Gradient, BindGradient());
