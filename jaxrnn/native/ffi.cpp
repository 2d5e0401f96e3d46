// The kernels as targets of XLA's foreign function interface.
#include <utility>

#include "recurrence.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace jaxrnn {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Bools = ffi::Buffer<ffi::PRED>;
using Result = ffi::Result<Floats>;

// An operand or result that there is not comes as an empty array.
const float *in(const Floats &a) { return a.element_count() ? a.typed_data() : nullptr; }
const bool *in(const Bools &a) { return a.element_count() ? a.typed_data() : nullptr; }
float *out(Result &a) { return a->element_count() ? a->typed_data() : nullptr; }

ffi::Error run_on(ffi::ThreadPool &pool, const Call &call, int64_t threads,
                  bool (*pass)(const Call &, long, const Schedule &)) {
  long tasks = worthwhile_tasks(call, threads > 1 ? threads : 1);
  auto schedule = [&](std::function<void()> f) { pool.Schedule(std::move(f)); };
  if (pass(call, tasks, schedule)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    "jaxrnn: not enough memory for a recurrent layer");
}

Call describe(int64_t cell, bool reverse, const Floats &x, const Floats &w_x,
              const Floats &b, const Floats &w_h, const Floats &b_n, const Floats &w_p,
              const Floats &h0, const Floats &c0, const Floats &h_first,
              const Floats &c_first, const Bools &valid, const Bools &starts,
              const Bools &first, int64_t gates) {
  auto size = x.dimensions();
  Call call = {};
  call.cell = static_cast<Cell>(cell), call.reverse = reverse;
  call.rows = size[0], call.steps = size[1], call.inputs = size[2];
  call.hidden = w_x.dimensions()[1] / gates, call.outputs = w_h.dimensions()[0];
  call.x = in(x), call.w_x = in(w_x), call.b = in(b), call.w_h = in(w_h);
  call.b_n = in(b_n), call.w_p = in(w_p), call.h0 = in(h0), call.c0 = in(c0);
  call.h_first = in(h_first), call.c_first = in(c_first);
  call.valid = in(valid), call.starts = in(starts), call.first = in(first);
  return call;
}
int64_t gates_of(int64_t cell) {
  const Cell kind = static_cast<Cell>(cell);
  return kind == Cell::kLstm ? 4 : kind == Cell::kGru ? 3 : 1;
}

ffi::Error forward_call(ffi::ThreadPool pool, Floats x, Floats w_x, Floats b,
                        Floats w_h, Floats b_n, Floats w_p, Floats h0, Floats c0,
                        Floats h_first, Floats c_first, Bools valid, Bools starts,
                        Bools first, Result y, Result h_last, Result c_last, Result c,
                        Result gates, int64_t cell, bool reverse, int64_t threads) {
  Call call = describe(cell, reverse, x, w_x, b, w_h, b_n, w_p, h0, c0, h_first,
                       c_first, valid, starts, first, gates_of(cell));
  call.y = out(y), call.h_last = out(h_last), call.c_last = out(c_last);
  call.c = out(c), call.gates = out(gates);
  return run_on(pool, call, threads, forward);
}

ffi::Error backward_call(ffi::ThreadPool pool, Floats x, Floats w_x, Floats b,
                         Floats w_h, Floats b_n, Floats w_p, Floats h0, Floats c0,
                         Floats h_first, Floats c_first, Bools valid, Bools starts,
                         Bools first, Floats y, Floats c, Floats gates, Floats d_y,
                         Floats d_h_last, Floats d_c_last, Result d_x, Result d_w_x,
                         Result d_b, Result d_w_h, Result d_b_n, Result d_w_p,
                         Result d_h0, Result d_c0, Result d_h_first, Result d_c_first,
                         int64_t cell, bool reverse, int64_t threads) {
  Call call = describe(cell, reverse, x, w_x, b, w_h, b_n, w_p, h0, c0, h_first,
                       c_first, valid, starts, first, gates_of(cell));
  // The backward pass only reads these.
  call.y = const_cast<float *>(in(y)), call.c = const_cast<float *>(in(c));
  call.gates = const_cast<float *>(in(gates));
  call.d_y = in(d_y), call.d_h_last = in(d_h_last), call.d_c_last = in(d_c_last);
  call.d_x = out(d_x), call.d_w_x = out(d_w_x), call.d_b = out(d_b);
  call.d_w_h = out(d_w_h), call.d_b_n = out(d_b_n), call.d_w_p = out(d_w_p);
  call.d_h0 = out(d_h0), call.d_c0 = out(d_c0);
  call.d_h_first = out(d_h_first), call.d_c_first = out(d_c_first);
  return run_on(pool, call, threads, backward);
}

}  // namespace

// The operands of both, in the order of `describe`.
static auto bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
      .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
      .Arg<Bools>().Arg<Bools>().Arg<Bools>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxrnn_forward, forward_call,
    bind()
        .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
        .Attr<int64_t>("cell").Attr<bool>("reverse").Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxrnn_backward, backward_call,
    bind()
        .Arg<Floats>().Arg<Floats>().Arg<Floats>()
        .Arg<Floats>().Arg<Floats>().Arg<Floats>()
        .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
        .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
        .Attr<int64_t>("cell").Attr<bool>("reverse").Attr<int64_t>("threads"));

extern "C" const char *jaxrnn_instruction_set() { return instruction_set(); }

}  // namespace jaxrnn
