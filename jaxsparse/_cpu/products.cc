// Sparse products on a CPU, as XLA custom calls. Compiled on the machine that runs them, so that the
// compiler knows its instructions.

#include "block.h"
#include "csr.h"
#include "images.h"
#include "vectors.h"
#include "whole.h"

namespace {

using Ints = ffi::Buffer<ffi::S32, 1>;
using Floats = ffi::Buffer<ffi::F32, 1>;
using Count = ffi::Buffer<ffi::S32, 0>;
using Matrix = ffi::Buffer<ffi::F32, 2>;
using Cube = ffi::Buffer<ffi::F32, 3>;
using Sizes = ffi::Span<const int64_t>;

inline float* Data(ffi::Result<ffi::AnyBuffer>& b) { return b->typed_data<float>(); }
inline const float* Data(ffi::AnyBuffer& b) { return b.typed_data<float>(); }

// y from x: `ends` and `inputs` by outputs, the inputs numbered over taps and channels.
ffi::Error CsrForward(ffi::ThreadPool pool, Ints ends, Ints inputs, Floats values,
                      ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(x.dimensions()), out = ImageOf(y->dimensions());
  const Passes passes(g, out, in, false, inputs.element_count());
  Rows w(passes, ends.typed_data(), inputs.typed_data(), nullptr, values.typed_data());
  SortTaps(pool, passes, w);
  w.SortValues(pool, w.count(out.channels));
  passes.Each(pool, Data(x), [&](const Plan& plan, const float* x, int64_t first) {
    CsrProduct(pool, plan, w, out, x, Data(y) + first);
  });
  return ffi::Error::Success();
}

// x from y: `ends` and `outputs` by inputs, and which value belongs to each.
ffi::Error CsrTransposed(ffi::ThreadPool pool, Ints ends, Ints outputs, Ints order, Floats values,
                         ffi::AnyBuffer y, ffi::Result<ffi::AnyBuffer> x, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(y.dimensions()), out = ImageOf(x->dimensions());
  const Passes passes(g, out, in, true, outputs.element_count());
  Rows w(passes, ends.typed_data(), outputs.typed_data(), order.typed_data(), values.typed_data());
  JoinTaps(pool, passes, w);
  w.SortValues(pool, w.count(out.channels));
  passes.Each(pool, Data(y), [&](const Plan& plan, const float* y, int64_t first) {
    CsrProduct(pool, plan, w, out, y, Data(x) + first);
  });
  return ffi::Error::Success();
}

// The gradient of the values; 0 after the last living one.
ffi::Error CsrValues(ffi::ThreadPool pool, Ints ends, Ints inputs, ffi::AnyBuffer x,
                     ffi::AnyBuffer y, ffi::Result<Floats> d, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(x.dimensions()), out = ImageOf(y.dimensions());
  const Passes passes(g, out, in, false, inputs.element_count());
  Rows w(passes, ends.typed_data(), inputs.typed_data(), nullptr, nullptr);
  SortTaps(pool, passes, w);
  std::fill_n(d->typed_data(), d->element_count(), 0.0f);
  passes.Each(pool, Data(x), [&](const Plan& plan, const float* x, int64_t first) {
    CsrGradient(pool, plan, w, out, x, Data(y) + first, d->typed_data());
  });
  return ffi::Error::Success();
}

// y from x, or x from y if `transposed`; `order` sorts the blocks by inputs.
ffi::Error BlockProducts(ffi::ThreadPool pool, Ints inputs, Ints outputs, Ints order,
                         Count count, Cube values, Matrix x,
                         ffi::Result<Matrix> y, bool transposed) {
  const Blocks w{values.dimensions()[1], values.dimensions()[2], values.typed_data()};
  const int64_t batch = x.dimensions()[0], units = y->dimensions()[1];
  const int32_t* to = (transposed ? inputs : outputs).typed_data();
  const int32_t* from = (transposed ? outputs : inputs).typed_data();
  const int32_t* turns = transposed ? order.typed_data() : nullptr;
  const int32_t living = *count.typed_data();
  std::vector<int32_t> sorted;
  if (transposed) {  // without the empty blocks
    for (int64_t k = 0; k < inputs.element_count(); ++k)
      if (turns[k] < living) sorted.push_back(turns[k]);
    turns = sorted.data();
  }
  const Groups groups(units / (transposed ? w.inputs : w.outputs), living, to, turns);
  if (batch >= kLanes) {
    BlockProduct(pool, w, transposed, groups, turns, from, batch, x.typed_data(), y->typed_data());
    return ffi::Error::Success();
  }
  const auto in = Widened(x.typed_data(), x.dimensions()[1], batch);
  std::vector<float> out(units * kLanes);
  BlockProduct(pool, w, transposed, groups, turns, from, kLanes, in.data(), out.data());
  for (int64_t i = 0; i < units; ++i)
    std::copy_n(&out[i * kLanes], batch, y->typed_data() + i * batch);
  return ffi::Error::Success();
}

// The gradient of the values; 0 after the last living one.
ffi::Error BlockValues(ffi::ThreadPool pool, Ints inputs, Ints outputs,
                       Count count, Matrix x, Matrix y,
                       ffi::Result<Cube> d) {
  const Blocks w{d->dimensions()[1], d->dimensions()[2], nullptr};
  const int64_t living = *count.typed_data();
  const Groups groups(y.dimensions()[1] / w.outputs, living, outputs.typed_data(), nullptr);
  std::fill(d->typed_data() + living * w.size(), d->typed_data() + d->element_count(), 0.0f);
  BlockGradient(pool, w, groups, inputs.typed_data(), x.dimensions()[0], x.typed_data(),
                y.typed_data(), d->typed_data());
  return ffi::Error::Success();
}

// The gradient of all weights of a convolution, as the matrix of its kernel (inputs, outputs).
ffi::Error WindowValues(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer y,
                        ffi::Result<Matrix> d, Sizes sizes) {
  const Geometry g(sizes);
  WholeGradient(pool, g, ImageOf(x.dimensions()), ImageOf(y.dimensions()), Data(x), Data(y),
                d->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(block_product, BlockProducts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Count>()
                                  .Arg<Cube>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<bool>("transposed"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(block_values, BlockValues,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Count>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Cube>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(csr_forward, CsrForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(csr_transposed, CsrTransposed,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(csr_values, CsrValues,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<Floats>()
                                  .Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(window_values, WindowValues,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<Matrix>()
                                  .Attr<Sizes>("sizes"));
