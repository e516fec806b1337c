// Products of unstructured sparse kernels with images.
//
// Each living weight takes one broadcast and a few multiply-adds on contiguous floats of the input;
// the output stays in registers until all weights of its channel are done. For the gradient of the
// weights, the output's gradient stays in registers instead.

#pragma once

#include <vector>

#include "images.h"

// The weights of every channel of the output, grouped by taps in the order of a plan.
struct Rows {
  int64_t taps;
  const int32_t* starts;   // tap t of row o: from starts[o * taps + t] to the next start
  const int32_t* columns;  // where a weight reads, in units of `unit` floats
  const int32_t* order;    // which value belongs to each weight; null if they are in order
  const float* values;     // in the order of the weights, after SortValues
  int64_t unit, shift;     // `shift` floats are added everywhere
  std::vector<int32_t> kept_starts, kept_columns, kept_order;
  std::vector<float> kept_values;

  Rows(const Passes& p, const int32_t* starts, const int32_t* columns, const int32_t* order,
       const float* values)
      : taps(p.plan.rank.size()), starts(starts), columns(columns), order(order), values(values),
        unit(p.part.plane() * p.part.batch), shift(p.plan.shift[0] * p.part.batch) {}
  Rows(const Rows&) = delete;

  int64_t count(int64_t rows) const { return starts[rows * taps]; }

  // Sorts the values once; otherwise every tile would look them up.
  void SortValues(ffi::ThreadPool pool, int64_t count) {
    if (!order || !values) return;
    constexpr int64_t kPiece = 1 << 14;
    kept_values.resize(count);
    InParallel(pool, (count + kPiece - 1) / kPiece, count * 4, [&](int64_t i) {
      for (int64_t k = i * kPiece; k < std::min(count, (i + 1) * kPiece); ++k)
        kept_values[k] = values[order[k]];
    });
    values = kept_values.data();
  }

  void Keep(int64_t rows, int64_t count, int64_t batch) {
    kept_starts.resize(rows * taps + 1);
    kept_columns.resize(count);
    kept_order.resize(count);
    starts = kept_starts.data(), columns = kept_columns.data(), order = kept_order.data();
    unit = batch, shift = 0;
  }
};

// Takes rows as given, (ends, flat inputs), and sorts each by taps.
inline void SortTaps(ffi::ThreadPool pool, const Passes& p, Rows& w) {
  if (w.taps == 1) return;
  const Geometry& g = p.geometry;
  const Plan& plan = p.plan;
  const Image& in = p.part;
  const int64_t rows = p.out.channels;
  const int32_t *ends = w.starts, *inputs = w.columns;
  const int64_t count = ends[rows];
  std::vector<int32_t> rank(w.taps * in.channels), column(w.taps * in.channels);
  for (int64_t tap = 0; tap < w.taps; ++tap)
    for (int64_t c = 0; c < in.channels; ++c) {
      const int64_t i = g.input(tap, c);
      rank[i] = plan.rank[tap], column[i] = c * in.plane() + plan.shift[tap];
    }
  w.Keep(rows, count, in.batch);
  w.kept_starts[rows * w.taps] = count;
  InParallel(pool, rows, count * 16, [&](int64_t o) {
    int32_t* at = &w.kept_starts[o * w.taps];
    std::vector<int32_t> next(w.taps + 1);
    for (int64_t k = ends[o]; k < ends[o + 1]; ++k) ++next[rank[inputs[k]] + 1];
    next[0] = ends[o];
    for (int64_t t = 0; t < w.taps; ++t) at[t] = next[t], next[t + 1] += next[t];
    for (int64_t k = ends[o]; k < ends[o + 1]; ++k) {
      const int32_t i = inputs[k], to = next[rank[i]]++;
      w.kept_columns[to] = column[i], w.kept_order[to] = k;
    }
  });
}

// For the transpose: joins the rows of all taps of a channel, (ends of flat inputs, outputs), one
// after another.
inline void JoinTaps(ffi::ThreadPool pool, const Passes& p, Rows& w) {
  if (w.taps == 1) return;
  const Geometry& g = p.geometry;
  const Plan& plan = p.plan;
  const Image& in = p.part;
  const int64_t rows = p.out.channels;
  const int32_t *ends = w.starts, *outputs = w.columns, *order = w.order;
  std::vector<int64_t> first(w.taps), shift(w.taps);
  for (int64_t tap = 0; tap < w.taps; ++tap) {
    first[plan.rank[tap]] = g.input(tap, 0);
    shift[plan.rank[tap]] = plan.shift[tap];
  }
  w.Keep(rows, ends[rows * w.taps], in.batch);
  int32_t total = 0;
  for (int64_t c = 0; c < rows; ++c)
    for (int64_t t = 0; t < w.taps; ++t) {
      const int64_t i = first[t] + c * g.unit[2];
      w.kept_starts[c * w.taps + t] = total;
      total += ends[i + 1] - ends[i];
    }
  w.kept_starts[rows * w.taps] = total;
  InParallel(pool, rows, total * int64_t{16}, [&](int64_t c) {
    for (int64_t t = 0; t < w.taps; ++t) {
      int64_t to = w.kept_starts[c * w.taps + t];
      const int64_t i = first[t] + c * g.unit[2];
      for (int64_t k = ends[i]; k < ends[i + 1]; ++k, ++to)
        w.kept_columns[to] = outputs[k] * in.plane() + shift[t], w.kept_order[to] = order[k];
    }
  });
}

// One channel of the output, within a tile of P pixels with V vectors each.
template <int P, int V>
inline void ProductTile(const Rows& w, const Tile& t, int64_t o, const float* x, float* y) {
  const int32_t* starts = w.starts + o * w.taps;
  if constexpr (V == 0) {
    if (t.length == 1) {  // one example: vectors run along the weights
      Vec sums = {};
      float rest = 0;
      for (const auto& [a, b] : t.taps) {
        int64_t k = starts[a];
        for (; k + kLanes <= starts[b]; k += kLanes) {
          Vec from;
          for (int i = 0; i < kLanes; ++i) from[i] = x[w.columns[k + i] * w.unit];
          sums += Load(w.values + k) * from;
        }
        for (; k < starts[b]; ++k) rest += w.values[k] * x[w.columns[k] * w.unit];
      }
      *y = Sum(sums) + rest;
      return;
    }
    float sum[kLanes] = {};
    for (const auto& [a, b] : t.taps)
      for (int64_t k = starts[a]; k < starts[b]; ++k) {
        const float* from = x + w.columns[k] * w.unit;
        const float value = w.values[k];
        for (int i = 0; i < t.length; ++i) sum[i] += value * from[i];
      }
    std::copy_n(sum, t.length, y);
  } else {
    const int64_t step = t.in_step;
    Vec sum[P][V] = {};
    for (const auto& [a, b] : t.taps)
      for (int64_t k = starts[a]; k < starts[b]; ++k) {
        const float* from = x + w.columns[k] * w.unit;
        const float value = w.values[k];
        for (int p = 0; p < P; ++p)
          for (int j = 0; j < V; ++j) sum[p][j] += value * Load(from + p * step + kLanes * j);
      }
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < V; ++j) Store(y + p * t.out_step + kLanes * j, sum[p][j]);
  }
}

// Adds to the gradients of the weights of one channel what a tile contributes.
template <int P, int V>
inline void GradientTile(const Rows& w, const Tile& t, int64_t o, const float* x, const float* g,
                         float* d) {
  typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));
  const int32_t* starts = w.starts + o * w.taps;
  const auto each = [&](auto found) {
    for (const auto& [a, b] : t.taps)
      for (int64_t k = starts[a]; k < starts[b]; ++k)
        d[w.order ? w.order[k] : k] += found(x + w.columns[k] * w.unit);
  };
  if constexpr (V == 0) {
    each([&](const float* from) {
      float sum = 0;
      for (int i = 0; i < t.length; ++i) sum += g[i] * from[i];
      return sum;
    });
  } else if (V == 1 && t.skip > 0) {
    Mask counts;
    for (int i = 0; i < kLanes; ++i) counts[i] = i < t.skip ? 0 : -1;
    // Both sides are masked: lanes that do not count may be infinite.
    const auto masked = [&](const float* p) { return (Vec)((Mask)Load(p) & counts); };
    const Vec out = masked(g);
    each([&](const float* from) { return Sum(out * masked(from)); });
  } else {
    const int64_t step = t.in_step;
    Vec out[P][V];
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < V; ++j) out[p][j] = Load(g + p * t.out_step + kLanes * j);
    each([&](const float* from) {
      Vec sum[2] = {};
      for (int p = 0; p < P; ++p)
        for (int j = 0; j < V; ++j)
          sum[j % 2] += out[p][j] * Load(from + p * step + kLanes * j);
      return Sum(sum[0] + sum[1]);
    });
  }
}

inline void CsrProduct(ffi::ThreadPool pool, const Plan& plan, const Rows& w, const Image& out,
                       const float* x, float* y) {
  const int64_t tiles = plan.tiles.size(), rows = out.channels;
  const int64_t step = out.plane() * out.batch;
  // A tile goes through all rows while its input is in the cache; if tiles are few, rows are split.
  const int64_t parts = std::clamp<int64_t>(16 * pool.num_threads() / std::max<int64_t>(tiles, 1),
                                            1, (rows + 15) / 16);
  InParallel(pool, tiles * parts, w.count(rows) * step, [&](int64_t piece) {
    const Tile& t = plan.tiles[piece / parts];
    const int64_t first = piece % parts * rows / parts, last = (piece % parts + 1) * rows / parts;
    WithShape(t, [&](auto p, auto v) {
      for (int64_t o = first; o < last; ++o)
        ProductTile<p, v>(w, t, o, x + t.in + w.shift, y + o * step + t.out);
    });
  });
}

inline void CsrGradient(ffi::ThreadPool pool, const Plan& plan, const Rows& w, const Image& out,
                        const float* x, const float* g, float* d) {
  const int64_t rows = out.channels, step = out.plane() * out.batch;
  // Each row has its own gradients. There are few parts, because each reads the whole input.
  const int64_t parts =
      std::clamp<int64_t>((plan.tiles.size() > 16 ? 2 : 16) * pool.num_threads(), 1, rows);
  InParallel(pool, parts, w.count(rows) * step, [&](int64_t part) {
    const int64_t first = part * rows / parts, last = (part + 1) * rows / parts;
    for (const Tile& t : plan.tiles)
      WithShape(t, [&](auto p, auto v) {
        for (int64_t o = first; o < last; ++o)
          GradientTile<p, v>(w, t, o, x + t.in + w.shift, g + o * step + t.out, d);
      });
  });
}
