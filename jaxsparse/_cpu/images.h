// Where a convolution reads and writes: images (channels, height, width, batch), batch contiguous.
//
// A product of matrices is a convolution of images of one pixel. The pixels of the output are cut
// into tiles within which the same taps of the window lie inside the image, so no border is padded
// and no product with padding is computed.

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

struct Image {
  int64_t batch, height, width, channels;
  int64_t plane() const { return height * width; }  // pixels of a channel
  int64_t size() const { return channels * plane() * batch; }
};

// The logical shape is (batch, [[height,] width,] channels), whatever the order in memory.
inline Image ImageOf(ffi::AnyBuffer::Dimensions dims) {
  const size_t rank = dims.size();
  return {dims[0], rank > 3 ? dims[1] : 1, rank > 2 ? dims[rank - 2] : 1, dims[rank - 1]};
}

struct Window {  // along one axis
  int64_t size, stride, pad;
};

struct Geometry {
  Window rows, columns;
  // An input of the kernel's matrix is row * unit[0] + column * unit[1] + channel * unit[2].
  int64_t unit[3];

  explicit Geometry(ffi::Span<const int64_t> n)
      : rows{n[0], n[1], n[2]}, columns{n[3], n[4], n[5]}, unit{n[6], n[7], n[8]} {}
  int64_t taps() const { return rows.size * columns.size; }
  int64_t input(int64_t tap, int64_t channel) const {
    return tap / columns.size * unit[0] + tap % columns.size * unit[1] + channel * unit[2];
  }
};

// Every `step`-th pixel of the output along one axis, and where its taps read. Pixel m of these is
// pixel `first + m * step` of the output, and its tap i reads `m * in_step + shift[i]`.
struct Phase {
  int64_t first, step, count, in_step;
  std::vector<int64_t> taps, shift;
  std::pair<int, int> valid(int64_t m, int64_t in) const {  // the taps inside the image
    int a = 0, b = taps.size();
    auto inside = [&](int i) {
      const int64_t at = m * in_step + shift[i];
      return at >= 0 && at < in;
    };
    while (a < b && !inside(a)) ++a;
    while (a < b && !inside(b - 1)) --b;
    return {a, b};
  }
};

// The phases of y[m] = sum_k x[m * stride + k - pad], or of its transpose.
inline std::vector<Phase> Phases(const Window& w, int64_t out, bool transposed) {
  std::vector<Phase> found;
  if (!transposed) {
    Phase p{0, 1, out, w.stride, {}, {}};
    for (int64_t k = 0; k < w.size; ++k) p.taps.push_back(k), p.shift.push_back(k - w.pad);
    return {p};
  }
  for (int64_t r = 0; r < w.stride && r < out; ++r) {
    Phase p{r, w.stride, (out - r + w.stride - 1) / w.stride, 1, {}, {}};
    for (int64_t k = (r + w.pad) % w.stride; k < w.size; k += w.stride)
      p.taps.push_back(k), p.shift.push_back((r + w.pad - k) / w.stride);
    found.push_back(p);
  }
  return found;
}

// A tile of the output, at the same place in every channel; several runs of taps contribute.
struct Tile {
  int64_t out, in;            // offsets in a channel, in floats; `in` is where a shift of 0 reads
  int64_t out_step, in_step;  // floats from one pixel to the next
  int pixels, vectors, skip, length;  // vectors 0 means less than a vector: `length` floats
  std::vector<std::pair<int, int>> taps;  // from : to, in the order of the plan
};

// Calls f(pixels, vectors of each), as compile-time constants.
template <typename F>
inline void WithShape(const Tile& t, F f) {
  if constexpr (kWide >= 16) {
    if (t.pixels == 4) return f(Size<4>(), Size<4>());
    if (t.pixels == 2) return f(Size<2>(), Size<4>());
  }
  switch (t.vectors) {
    case 0: return f(Size<1>(), Size<0>());
    case 1: return f(Size<1>(), Size<1>());
    case 2: return f(Size<1>(), Size<2>());
    case 4: return f(Size<1>(), Size<4>());
    case 8: return f(Size<1>(), Size<std::min(8, kWide)>());
    default: return f(Size<1>(), Size<kWide>());
  }
}

constexpr int64_t kSlice = 4 * kLanes;  // examples in tiles of several pixels
constexpr int64_t kCache = 1 << 20;     // bytes of a matrix that a pass reads again and again

struct Plan {
  std::vector<int> rank;       // for each tap, row by row: its position in the order of the plan
  std::vector<int64_t> shift;  // for each tap, row by row: its offset in pixels from the tile's `in`
  std::vector<Tile> tiles;

  // The plan for the first `examples` of both images.
  Plan(const Geometry& g, const Image& out, const Image& in, bool transposed, int64_t examples)
      : rank(g.taps(), -1), shift(g.taps()) {
    const auto rows = Phases(g.rows, out.height, transposed);
    const auto columns = Phases(g.columns, out.width, transposed);
    std::vector<Tile> runs;
    int base = 0;
    for (const Phase& r : rows)
      for (const Phase& c : columns) {
        const int wide = c.taps.size();
        for (size_t i = 0; i < r.taps.size(); ++i)
          for (int j = 0; j < wide; ++j) {
            const int64_t tap = r.taps[i] * g.columns.size + c.taps[j];
            rank[tap] = base + i * wide + j;
            shift[tap] = r.shift[i] * in.width + c.shift[j];
          }
        for (int64_t m = 0; m < r.count; ++m)
          for (int64_t n = 0; n < c.count; ++n) {
            const auto [a, b] = r.valid(m, in.height);
            const auto [d, e] = c.valid(n, in.width);
            Tile t{((r.first + m * r.step) * out.width + c.first + n * c.step) * out.batch,
                   (m * r.in_step * in.width + n * c.in_step) * in.batch,
                   c.step * out.batch, c.in_step * in.batch, 1, 0, 0, 0, {}};
            if (d == 0 && e == wide) {
              if (a < b) t.taps.push_back({base + a * wide, base + b * wide});
            } else if (d < e) {
              for (int i = a; i < b; ++i)
                t.taps.push_back({base + i * wide + d, base + i * wide + e});
            }
            Join(std::move(t), runs);
          }
        base += r.taps.size() * wide;
      }
    for (int& r : rank)
      if (r < 0) r = base++;  // no pixel of the output has this tap
    for (const Tile& run : runs) Cut(run, examples, out.batch, in.batch);
  }

 private:
  // Adjacent pixels that read adjacent pixels through the same taps form one run.
  static void Join(Tile t, std::vector<Tile>& runs) {
    if (!runs.empty()) {
      Tile& last = runs.back();
      if (last.out + last.pixels * last.out_step == t.out &&
          last.in + last.pixels * last.in_step == t.in && last.out_step == t.out_step &&
          last.in_step == t.in_step && last.taps == t.taps) {
        ++last.pixels;
        return;
      }
    }
    runs.push_back(std::move(t));
  }

  // Cuts this many examples of all pixels of a run into tiles.
  void Cut(const Tile& run, int64_t examples, int64_t apart, int64_t in_apart) {
    const auto add = [&](int64_t pixel, int64_t at, int pixels, int vectors, int skip, int length) {
      Tile t = run;
      t.out += pixel * t.out_step + at, t.in += pixel * t.in_step + at;
      t.pixels = pixels, t.vectors = vectors, t.skip = skip, t.length = length;
      tiles.push_back(std::move(t));
    };
    const bool contiguous = run.out_step == examples && run.in_step == examples &&
                            apart == examples && in_apart == examples;
    const int64_t length = contiguous ? run.pixels * examples : examples;
    int64_t pixel = 0;
    if (kWide >= 16 && !contiguous && examples == kSlice)
      for (int pixels = 4; pixels > 1; pixels /= 2)
        for (; pixel + pixels <= run.pixels; pixel += pixels) add(pixel, 0, pixels, 4, 0, 0);
    for (; pixel < (contiguous ? 1 : run.pixels); ++pixel)
      CutRun(length, [&](int64_t at, auto vectors, int skip) {
        add(pixel, at, 1, vectors, skip, length - at);
      });
  }
};

// A product in passes, each over some of the examples. A pass of a matrix has so few examples that its
// part stays in the cache, and the part is copied: in place, its rows would map to few sets of the
// cache and lie on a page each. For images the copy takes as long as it saves.
struct Passes {
  const Geometry& geometry;
  const Image in, out;
  const bool transposed;
  Image part;  // of the input, as a pass sees it
  Plan plan;   // of a whole pass

  // This many weights read the part; if they are few, a copy is not worthwhile.
  Passes(const Geometry& g, const Image& out, const Image& in, bool transposed, int64_t weights)
      : geometry(g), in(in), out(out), transposed(transposed), part(Part(in, weights)),
        plan(g, out, part, transposed, part.batch) {}

  // Calls f(plan, images of the pass, first example) for each.
  template <typename F>
  void Each(ffi::ThreadPool pool, const float* x, F f) const {
    for (int64_t first = 0; first < in.batch; first += part.batch) {
      const int64_t count = std::min(part.batch, in.batch - first);
      const float* from = Copy(pool, x, first, count);
      if (count == part.batch) f(plan, from, first);
      else f(Plan(geometry, out, part, transposed, count), from, first);
    }
  }

 private:
  static Image Part(Image in, int64_t weights) {
    if (in.plane() > 1 || weights < 4 * in.channels) return in;
    constexpr int64_t kMost = kWide * kLanes, kLeast = std::min<int64_t>(8 * kLanes, kMost);
    const int64_t fits = kCache / (in.channels * int64_t{sizeof(float)});
    in.batch = std::min(in.batch, std::clamp(fits / kLanes * kLanes, kLeast, kMost));
    return in;
  }

  const float* Copy(ffi::ThreadPool pool, const float* x, int64_t first, int64_t count) const {
    if (part.batch == in.batch) return x;
    thread_local std::vector<float> kept;
    kept.resize(part.size());
    const int64_t rows = in.channels, pieces = 8 * pool.num_threads();
    float* to = kept.data();
    InParallel(pool, pieces, rows * count, [&](int64_t piece) {
      for (int64_t i = piece * rows / pieces; i < (piece + 1) * rows / pieces; ++i)
        std::copy_n(x + i * in.batch + first, count, to + i * part.batch);
    });
    return to;
  }
};
