// The gradient of every weight of a convolution, dead ones too: inner products of all inputs, seen
// through every tap, with all outputs.
//
// Both images are cut into parts of some rows and some examples, which are copied so that all
// channels of a part lie close together: in place they would map to few sets of the cache, and lie on
// a page each.

#pragma once

#include <cstdint>
#include <vector>

#include "images.h"

// A tile of the result is kept in registers: kIns inputs and kOuts outputs.
#ifdef __AVX512F__
constexpr int kIns = 8, kOuts = 3;
#else
constexpr int kIns = 6, kOuts = 2;
#endif
constexpr int kTile = kIns * kOuts;
constexpr int64_t kDepth = 1024;  // floats per output in a part; with 512 it takes longer

// `length` floats of an input and as many of an output that a tap pairs.
struct Run {
  int64_t x, g, length;
};

// Adds the inner products of kIns inputs with kOuts outputs to a tile.
inline void AddTile(const float* x, int64_t x_step, const float* g, int64_t g_step,
                    const std::vector<Run>& runs, float* tile) {
  Vec sums[kIns][kOuts] = {};
  for (const Run& run : runs) {
    const float *from = x + run.x, *to = g + run.g;
    for (int64_t k = 0; k < run.length; k += kLanes) {
      Vec out[kOuts];
#pragma GCC unroll 8
      for (int o = 0; o < kOuts; ++o) out[o] = Load(to + o * g_step + k);
#pragma GCC unroll 8
      for (int i = 0; i < kIns; ++i) {
        Vec in = Load(from + i * x_step + k);
        Keep(in);
#pragma GCC unroll 8
        for (int o = 0; o < kOuts; ++o) sums[i][o] += in * out[o];
      }
    }
  }
  for (int i = 0; i < kIns; ++i)
    for (int o = 0; o < kOuts; ++o) tile[i * kOuts + o] += Sum(sums[i][o]);
}

struct Whole {
  const Geometry& geometry;
  const Image in, out;
  int64_t examples, rows;  // of a part; rows of the output

  Whole(const Geometry& g, const Image& in, const Image& out) : geometry(g), in(in), out(out) {
    examples = std::clamp<int64_t>(kDepth / out.width / kLanes * kLanes, kLanes, UpTo(out.batch, kLanes));
    rows = std::clamp<int64_t>(kDepth / (out.width * examples), 1, out.height);
  }

  // Gradients of weights from a range of inputs to one of outputs, into the matrix (inputs, outputs).
  void Gradient(int64_t i0, int64_t i1, int64_t o0, int64_t o1, const float* x, const float* g,
                float* matrix) const {
    const int64_t tall = UpTo(i1 - i0, kIns), wide = UpTo(o1 - o0, kOuts);
    const int64_t reach = (rows - 1) * geometry.rows.stride + geometry.rows.size;
    // The steps are not powers of two, so that neighbours do not share sets of the cache.
    const int64_t x_step = reach * in.width * examples + kLanes;
    const int64_t g_step = rows * out.width * examples + kLanes;
    std::vector<float> xs(tall * x_step), gs(wide * g_step);
    std::vector<float> tiles(tall * wide * geometry.taps());
    std::vector<std::vector<Run>> runs(geometry.taps());
    for (int64_t y = 0; y < out.height; y += rows) {
      const int64_t count = std::min(rows, out.height - y);
      const int64_t first = y * geometry.rows.stride - geometry.rows.pad;
      for (int64_t k = 0; k < geometry.taps(); ++k) runs[k] = Runs(k, y, count, first);
      for (int64_t b = 0; b < out.batch; b += examples) {
        Copy(in, x, i0, i1, first, reach, b, x_step, xs.data());
        Copy(out, g, o0, o1, y, count, b, g_step, gs.data());
        float* tile = tiles.data();
        for (int64_t i = 0; i < tall; i += kIns)
          for (int64_t o = 0; o < wide; o += kOuts)
            for (const auto& run : runs) {
              AddTile(&xs[i * x_step], x_step, &gs[o * g_step], g_step, run, tile);
              tile += kTile;
            }
      }
    }
    const float* tile = tiles.data();
    for (int64_t i = i0; i < i1; i += kIns)
      for (int64_t o = o0; o < o1; o += kOuts)
        for (int64_t k = 0; k < geometry.taps(); ++k, tile += kTile)
          for (int64_t a = i; a < std::min(i + kIns, i1); ++a)
            std::copy_n(tile + (a - i) * kOuts, std::min<int64_t>(kOuts, o1 - o),
                        matrix + geometry.input(k, a) * out.channels + o);
  }

 private:
  // What a tap pairs in `count` rows of the output; the copy of the input begins at row `first`.
  std::vector<Run> Runs(int64_t tap, int64_t y, int64_t count, int64_t first) const {
    const Window &rows = geometry.rows, &columns = geometry.columns;
    const int64_t down = tap / columns.size, across = tap % columns.size;
    std::vector<Run> found;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = (y + r) * rows.stride + down - rows.pad;
      if (row < 0 || row >= in.height) continue;
      for (int64_t c = 0; c < out.width; ++c) {
        const int64_t column = c * columns.stride + across - columns.pad;
        if (column < 0 || column >= in.width) continue;
        const int64_t from = ((row - first) * in.width + column) * examples;
        const int64_t to = (r * out.width + c) * examples;
        Run* last = found.empty() ? nullptr : &found.back();
        if (last && last->x + last->length == from && last->g + last->length == to)
          last->length += examples;
        else found.push_back({from, to, examples});
      }
    }
    return found;
  }

  // Copies rows of some examples of the channels c0 : c1, with zeros past the end of the batch.
  void Copy(const Image& image, const float* from, int64_t c0, int64_t c1, int64_t first,
            int64_t rows, int64_t b, int64_t step, float* to) const {
    const int64_t some = std::min(examples, image.batch - b);
    const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + rows, image.height);
    for (int64_t c = c0; c < c1; ++c, to += step)
      for (int64_t p = begin * image.width; p < end * image.width; ++p) {
        float* at = to + (p - first * image.width) * examples;
        std::copy_n(from + (c * image.plane() + p) * image.batch + b, some, at);
        std::fill(at + some, at + examples, 0.0f);
      }
  }
};

// The threads share the channels of the image that has more of them.
inline void WholeGradient(ffi::ThreadPool pool, const Geometry& g, const Image& in,
                          const Image& out, const float* x, const float* y, float* matrix) {
  const Whole whole(g, in, out);
  const bool by_inputs = in.channels > out.channels;
  const int64_t most = by_inputs ? in.channels : out.channels, tile = by_inputs ? kIns : kOuts;
  const int64_t each = UpTo((most + pool.num_threads() - 1) / pool.num_threads(), tile);
  const int64_t pieces = (most + each - 1) / each;
  const int64_t work = g.taps() * in.channels * out.channels * out.plane() * out.batch;
  InParallel(pool, pieces, work, [&](int64_t piece) {
    const int64_t from = piece * each, to = std::min(from + each, most);
    if (by_inputs) whole.Gradient(from, to, 0, out.channels, x, y, matrix);
    else whole.Gradient(0, in.channels, from, to, x, y, matrix);
  });
}
