// What the kernels compute: one recurrent layer in one direction, over all rows and
// steps of a batch, forward or backward. Nothing here knows XLA or Python.
//
// Arrays are row-major. What the caller keeps is batch-major, [b, t, d]; what only the
// backward pass reads again (`c`, `gates`) is time-major, so that a step is contiguous.
// A null pointer is an operand or a result that there is not.
#pragma once

#include <functional>

namespace jaxrnn {

enum class Cell : int { kLstm, kGru, kRnnTanh, kRnnRelu };

struct Call {
  Cell cell;
  bool reverse;
  long rows, steps, inputs, hidden, outputs;  // b t d h p: p is h without projection

  const float *x;             // [b, t, d]
  const float *w_x, *b;       // [d, g], [g]
  const float *w_h, *b_n;     // [p, g], [h] (of the GRU)
  const float *w_p;           // [h, p] (of the LSTM)
  const float *h0, *c0;       // [b, p], [b, h]
  const float *h_first, *c_first;
  const bool *valid, *starts, *first;  // [b, t]

  // Results of the forward pass, operands of the backward pass. The last two are null
  // if there will be no backward pass.
  float *y;                   // [b, t, p], zero where not valid
  float *h_last, *c_last;     // [b, p], [b, h]
  float *c, *gates;           // [t, b, h], [t, b, 4 h]: i f g o, or r z n h_n

  const float *d_y, *d_h_last, *d_c_last;
  float *d_x, *d_w_x, *d_b, *d_w_h, *d_b_n, *d_w_p;
  float *d_h0, *d_c0, *d_h_first, *d_c_first;
};

// Calls a function on another thread, some time or never: a call waits for nothing that
// has not begun.
using Schedule = std::function<void(std::function<void()>)>;

// The number of threads worth having, of `threads`: a number of tasks.
long worthwhile_tasks(const Call &call, long threads);

// With the rows split into tasks. Both return false if there is not enough memory.
bool forward(const Call &call, long tasks, const Schedule &schedule);
bool backward(const Call &call, long tasks, const Schedule &schedule);

// The instruction set in use: "avx512", "avx2", "neon" or "portable".
const char *instruction_set();

}  // namespace jaxrnn
