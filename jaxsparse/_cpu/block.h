// Products of kernels made of dense blocks, in tiles that stay in registers.
//
// Matrices are (units, batch), the batch contiguous. All three products use one small kernel: a few
// rows of a matrix of scalars, each broadcast, times a panel of vectors.

#pragma once

#include <vector>

#include "vectors.h"

constexpr int kRowsOfTile = 4, kPanel = kWide / kRowsOfTile;  // vectors

// acc[m][v] += sum over k < depth of a[m * row + k * column] * panel[k * step, vector v].
template <int M, int V>
inline void MultiplyTile(const float* a, int64_t row, int64_t column, const float* panel,
                         int64_t step, int64_t depth, Vec (&acc)[M][V]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec from[V];
    for (int v = 0; v < V; ++v) from[v] = Load(panel + k * step + kLanes * v);
    for (int m = 0; m < M; ++m) {
      const float value = a[m * row + k * column];
      for (int v = 0; v < V; ++v) acc[m][v] += value * from[v];
    }
  }
}

// Calls f(first, rows of a tile as a Size) for all rows.
template <typename F>
inline void CutRows(int64_t rows, F f) {
  int64_t at = 0;
  for (; at + kRowsOfTile <= rows; at += kRowsOfTile) f(at, Size<kRowsOfTile>());
  for (; at < rows; ++at) f(at, Size<1>());
}

// Calls f(first, vectors as a Size) for `length` floats; the last vector may overlap the one before.
template <typename F>
inline void CutPanels(int64_t length, F f) {
  int64_t at = 0;
  for (; at + kPanel * kLanes <= length; at += kPanel * kLanes) f(at, Size<kPanel>());
  for (; at + kLanes <= length; at += kLanes) f(at, Size<1>());
  if (at < length) f(length - kLanes, Size<1>());
}

struct Blocks {
  int64_t inputs, outputs;  // of one block, whose values are (inputs, outputs)
  const float* values;
  int64_t size() const { return inputs * outputs; }
};

// Blocks, grouped by the rows or columns of blocks that they belong to.
struct Groups {
  std::vector<int32_t> starts;  // group i is starts[i] : starts[i + 1]
  Groups(int64_t groups, int64_t count, const int32_t* of, const int32_t* order)
      : starts(groups + 1) {
    for (int64_t k = 0; k < count; ++k) ++starts[of[order ? order[k] : k] + 1];
    for (int64_t i = 0; i < groups; ++i) starts[i + 1] += starts[i];
  }
};

// y = the kernel, or its transpose, times x; `from` says which block of x a block reads.
inline void BlockProduct(ffi::ThreadPool pool, const Blocks& w, bool transposed,
                         const Groups& groups, const int32_t* order, const int32_t* from,
                         int64_t batch, const float* x, float* y) {
  const int64_t depth = transposed ? w.outputs : w.inputs;
  const int64_t rows = transposed ? w.inputs : w.outputs;
  const int64_t row = transposed ? w.outputs : 1, column = transposed ? 1 : w.outputs;
  struct Panel {
    int64_t at;
    int vectors;
  };
  std::vector<Panel> panels;
  CutPanels(batch, [&](int64_t at, auto v) { panels.push_back({at, v}); });
  const int64_t columns = panels.size(), count = groups.starts.size() - 1;
  InParallel(pool, columns * count, groups.starts[count] * w.size() * batch, [&](int64_t piece) {
    const Panel panel = panels[piece / count];
    const int64_t group = piece % count, width = panel.vectors * kLanes;
    const int64_t first = groups.starts[group], blocks = groups.starts[group + 1] - first;
    // Rows that are far apart map to few sets of the cache, so they are copied together.
    const bool pack = batch > 256;
    static thread_local std::vector<float> packed;
    if (pack) packed.resize(blocks * depth * width);
    const auto source = [&](int64_t n) {
      const int64_t k = order ? order[first + n] : first + n;
      return x + from[k] * depth * batch + panel.at;
    };
    if (pack)
      for (int64_t n = 0; n < blocks; ++n)
        for (int64_t k = 0; k < depth; ++k)
          std::copy_n(source(n) + k * batch, width, &packed[(n * depth + k) * width]);
    const auto tiles = [&](auto v) {
      CutRows(rows, [&](int64_t m, auto tall) {
        constexpr int M = tall, V = v;
        Vec acc[M][V] = {};
        for (int64_t n = 0; n < blocks; ++n) {
          const float* a = w.values + (order ? order[first + n] : first + n) * w.size() + m * row;
          if (pack) MultiplyTile(a, row, column, &packed[n * depth * width], width, depth, acc);
          else MultiplyTile(a, row, column, source(n), batch, depth, acc);
        }
        for (int i = 0; i < M; ++i)
          for (int j = 0; j < V; ++j)
            Store(y + (group * rows + m + i) * batch + panel.at + kLanes * j, acc[i][j]);
      });
    };
    if (panel.vectors == kPanel) tiles(Size<kPanel>());
    else tiles(Size<1>());
  });
}

// The gradients of all blocks. The output's gradient is transposed, so that vectors run along outputs.
inline void BlockGradient(ffi::ThreadPool pool, const Blocks& w, const Groups& groups,
                          const int32_t* inputs, int64_t batch, const float* x, const float* g,
                          float* d) {
  constexpr int64_t kChunk = 128;  // examples at a time
  const int64_t count = groups.starts.size() - 1;
  const int64_t wide = UpTo(w.outputs, kLanes);
  InParallel(pool, count, groups.starts[count] * w.size() * batch, [&](int64_t group) {
    if (groups.starts[group] == groups.starts[group + 1]) return;
    static thread_local std::vector<float> turned;
    turned.assign(kChunk * wide, 0.0f);
    for (int64_t b = 0; b < batch; b += kChunk) {
      const int64_t depth = std::min(kChunk, batch - b);
      const float* out = g + group * w.outputs * batch + b;
      for (int64_t c = 0; c < w.outputs; c += kLanes)
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t i = c; i < std::min<int64_t>(c + kLanes, w.outputs); ++i)
            turned[k * wide + i] = out[i * batch + k];
      for (int64_t n = groups.starts[group]; n < groups.starts[group + 1]; ++n) {
        const float* in = x + inputs[n] * w.inputs * batch + b;
        CutRows(w.inputs, [&](int64_t m, auto tall) {
          CutPanels(wide, [&](int64_t c, auto v) {
            constexpr int M = tall, V = v;
            Vec acc[M][V] = {};
            MultiplyTile(in + m * batch, batch, 1, &turned[c], wide, depth, acc);
            for (int i = 0; i < M; ++i) {
              float* to = d + n * w.size() + (m + i) * w.outputs + c;
              if (c + V * kLanes <= w.outputs) {
                for (int j = 0; j < V; ++j)
                  Store(to + kLanes * j, b ? Load(to + kLanes * j) + acc[i][j] : acc[i][j]);
              } else {
                float row[V * kLanes];
                for (int j = 0; j < V; ++j) Store(row + kLanes * j, acc[i][j]);
                for (int64_t k = 0; k < w.outputs - c; ++k) to[k] = b ? to[k] + row[k] : row[k];
              }
            }
          });
        });
      }
    }
  });
}

// A batch smaller than a vector, padded to rows of one vector each.
inline std::vector<float> Widened(const float* x, int64_t units, int64_t batch) {
  std::vector<float> wide(units * kLanes);
  for (int64_t i = 0; i < units; ++i) std::copy_n(x + i * batch, batch, &wide[i * kLanes]);
  return wide;
}
