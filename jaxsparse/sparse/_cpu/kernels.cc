// Sparse products on a CPU, as XLA custom calls. Compiled on the machine that runs them, so that the
// compiler knows its instructions.

#include "csr.h"
#include "images.h"
#include "vectors.h"

namespace {

using Ints = ffi::Buffer<ffi::S32, 1>;
using Floats = ffi::Buffer<ffi::F32, 1>;
using Sizes = ffi::Span<const int64_t>;

inline float* Data(ffi::Result<ffi::AnyBuffer>& b) { return b->typed_data<float>(); }
inline const float* Data(ffi::AnyBuffer& b) { return b.typed_data<float>(); }

// y of x: `ends` and `inputs` by outputs, the inputs numbered over taps and channels.
ffi::Error CsrForward(ffi::ThreadPool pool, Ints ends, Ints inputs, Floats values,
                      ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(x.dimensions()), out = ImageOf(y->dimensions());
  const Plan plan(g, out, in, false);
  Rows w(plan, in, ends.typed_data(), inputs.typed_data(), nullptr, values.typed_data());
  SortTaps(pool, g, plan, in, out.channels, w);
  CsrProduct(pool, plan, w, in, out, Data(x), Data(y));
  return ffi::Error::Success();
}

// x of y: `ends` and `outputs` by inputs, and which value belongs to each.
ffi::Error CsrTransposed(ffi::ThreadPool pool, Ints ends, Ints outputs, Ints order, Floats values,
                         ffi::AnyBuffer y, ffi::Result<ffi::AnyBuffer> x, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(y.dimensions()), out = ImageOf(x->dimensions());
  const Plan plan(g, out, in, true);
  Rows w(plan, in, ends.typed_data(), outputs.typed_data(), order.typed_data(),
         values.typed_data());
  JoinTaps(pool, g, plan, in, out.channels, w);
  CsrProduct(pool, plan, w, in, out, Data(y), Data(x));
  return ffi::Error::Success();
}

// Of the values; of those behind the last living one 0.
ffi::Error CsrValues(ffi::ThreadPool pool, Ints ends, Ints inputs, ffi::AnyBuffer x,
                     ffi::AnyBuffer y, ffi::Result<Floats> d, Sizes sizes) {
  const Geometry g(sizes);
  const Image in = ImageOf(x.dimensions()), out = ImageOf(y.dimensions());
  const Plan plan(g, out, in, false);
  Rows w(plan, in, ends.typed_data(), inputs.typed_data(), nullptr, nullptr);
  SortTaps(pool, g, plan, in, out.channels, w);
  std::fill_n(d->typed_data(), d->element_count(), 0.0f);
  CsrGradient(pool, plan, w, in, out, Data(x), Data(y), d->typed_data());
  return ffi::Error::Success();
}

}  // namespace

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
