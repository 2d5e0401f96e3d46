// The recurrences in vectors of V floats. recurrence.cpp includes this file once for
// each instruction set, inside a namespace of its own which defines V, MR, and `lesser`
// and `greater` of two vectors, which are the second one where either is NaN. It calls no
// template of the standard library: that would be compiled once for all of them, and run
// where its instructions do not exist.
//
// The products of a step are most of the work, and the weights are the same at every
// step: they are packed once a call, in the order in which they are read. The bias is a
// row of them, so that a row of factors is [h, 1, x]. Rows that are not valid at a step
// are left out of it.

typedef float UnalignedVector __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef float Vector __attribute__((vector_size(4 * V)));
constexpr long NR = 2 * V;     // columns of a tile
constexpr long KC = 256;       // about the depth of a block: its panels stay in L1
constexpr long PAD = 16;       // floats behind a row: powers of two share few cache sets
constexpr long AHEAD = 8;      // rows that are fetched before they are read
constexpr long CHUNK = 128;    // rows of a product for the gradients of weights

inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long padded(long n) { return (n + NR - 1) / NR * NR + PAD; }

inline Vector load(const float *p) { return *(const UnalignedVector *)p; }
inline void store(float *p, Vector x) { *(UnalignedVector *)p = x; }
inline Vector load(const float *p, long n) {
  if (n >= V) return load(p);
  Vector x = {};
  std::memcpy(&x, p, 4 * n);
  return x;
}
inline void store(float *p, Vector x, long n) {
  if (n >= V) return store(p, x);
  std::memcpy(p, &x, 4 * n);
}
// In this form the compiler makes a memory operand of the number.
inline Vector all(float x) { return x - Vector{}; }

// For rows, most of which are short: a call of memcpy would cost as much as its work.
inline void copy(const float *from, long n, float *to) {
  long u = 0;
  for (; u + V <= n; u += V) store(to + u, load(from + u));
  for (; u < n; u++) to[u] = from[u];
}
inline void zero(float *to, long n) {
  long u = 0;
  for (; u + V <= n; u += V) store(to + u, Vector{});
  for (; u < n; u++) to[u] = 0;
}
// Into the cache, what will be read or written at the next step.
inline void fetch(const float *row, long n) {
  for (long u = 0; u < n; u += 16) __builtin_prefetch(row + u, 0, 2);
}

// f(first, number) for all vectors of a row of n. `number` is of a type of its own for
// whole vectors, so that the compiler knows it.
struct Whole {
  constexpr operator long() const { return V; }
};
template <class F> inline void each_vector(long n, F f) {
  long u = 0;
  for (; u + V <= n; u += V) f(u, Whole());
  if (u < n) f(u, n - u);
}

// ------------------------------------------------------------------------- products

// M rows and NR columns of C (+)= A B: a[i * rs + k * ks], b[k * ldb + j].
template <int M>
void tile(long K, const float *a, long rs, long ks, const float *b, long ldb, float *c,
          long ldc, bool add) {
  Vector sum[M][2] = {};
  for (int i = 0; i < M; i++) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + NR - 1, 1);
  }
  // Into the L2 cache, the next panel of what is packed, or rows to come.
  const float *next = b + (ldb == NR ? K : AHEAD) * ldb;
  for (long k = 0; k < K; k++, a += ks, b += ldb, next += ldb) {
    for (long line = 0; line < NR; line += 16) __builtin_prefetch(next + line, 0, 2);
    Vector b0 = load(b), b1 = load(b + V);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      Vector x = all(a[i * rs]);
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    float *to = c + i * ldc;
    store(to, add ? load(to) + sum[i][0] : sum[i][0]);
    store(to + V, add ? load(to + V) + sum[i][1] : sum[i][1]);
  }
}

typedef void Tile(long, const float *, long, long, const float *, long, float *, long,
                  bool);
template <int M> struct Tiles {
  static Tile *of(long rows) { return rows == M ? tile<M> : Tiles<M - 1>::of(rows); }
};
template <> struct Tiles<0> {
  static Tile *of(long) { return nullptr; }
};

// f(first row, rows) for M rows, in tiles of about one size.
template <class F> inline void each_tile(long M, F f) {
  long n = (M + MR - 1) / MR;
  for (long k = 0; k < n; k++) f(M * k / n, M * (k + 1) / n - M * k / n);
}

// A second factor, K by N, as tiles read it: block after block of its depth, in each
// the panels of NR columns. Columns are filled up with zeros.
struct Packed {
  long K = 0, N = 0;
  float *p = nullptr;

  long panels() const { return (N + NR - 1) / NR; }
  long blocks() const { return max(1, (K + KC / 2) / KC); }
  long start(long block) const { return K * block / blocks(); }
  long depth(long block) const { return start(block + 1) - start(block); }
  float *at(long block, long panel) const {
    return p + (start(block) * panels() + panel * depth(block)) * NR;
  }

  // Rows `first` to `first + rows`, where element (k, j) is b[k * ks + j * cs]; zeros
  // where b is null. It is part `part` of `parts` of the work.
  void pack(long first, long rows, const float *b, long ks, long cs, long part = 0,
            long parts = 1) const {
    for (long block = 0; block < blocks(); block++) {
      long from = max(first, start(block)), to = min(first + rows, start(block + 1));
      long last = panels() * (part + 1) / parts;
      for (long panel = panels() * part / parts; panel < last; panel++) {
        long n = min(NR, N - panel * NR);
        float *out = at(block, panel) - start(block) * NR;
        if (!b) {
          for (long k = from; k < to; k++) zero(out + k * NR, NR);
          continue;
        }
        const float *in = b + panel * NR * cs - first * ks;
        if (cs == 1) {
          for (long k = from; k < to; k++)
            if (n == NR)
              store(out + k * NR, load(in + k * ks)),
                  store(out + k * NR + V, load(in + k * ks + V));
            else
              zero(out + k * NR, NR), copy(in + k * ks, n, out + k * NR);
          continue;
        }
        for (long low = from; low < to; low += 16)  // a cache line
          for (long j = 0; j < NR; j++)
            for (long k = low; k < min(low + 16, to); k++)
              out[k * NR + j] = j < n ? in[k * ks + j * cs] : 0;
      }
    }
  }
};

// C (+)= A B for the few rows of a step; C has room for whole panels.
inline void product(long M, const float *a, long lda, const Packed &b, float *c,
                    long ldc, bool add = false) {
  for (long block = 0; block < b.blocks(); block++)
    for (long panel = 0; panel < b.panels(); panel++)
      each_tile(M, [&](long i, long rows) {
        Tiles<MR>::of(rows)(b.depth(block), a + i * lda + b.start(block), lda, 1,
                            b.at(block, panel), NR, c + i * ldc + panel * NR, ldc,
                            add || block > 0);
      });
}

// C += A' B for K rows of both, where a row of A has V floats more, and rows of B and C
// have whole panels, of which those behind N mean nothing. `room` is for K * M + V floats.
inline void add_transposed_product(long K, long M, long N, const float *a, long lda,
                                   const float *b, long ldb, float *c, long ldc,
                                   float *room) {
  each_tile(M, [&](long i, long rows) {
    float *to = room + i * K;  // the next row overwrites what a vector has too much
    for (long k = 0; k < K; k++, to += rows)
      for (long u = 0; u < rows; u += V) store(to + u, load(a + k * lda + i + u));
  });
  const long blocks = (K + 2 * KC - 1) / (2 * KC);
  for (long block = 0; block < blocks; block++) {
    const long k = K * block / blocks, depth = K * (block + 1) / blocks - k;
    for (long j = 0; j < N; j += NR)
      each_tile(M, [&](long i, long rows) {
        Tiles<MR>::of(rows)(depth, room + i * K + k * rows, 1, rows, b + k * ldb + j, ldb,
                            c + i * ldc + j, ldc, true);
      });
  }
}

// ---------------------------------------------------------------------------- cells

struct Fraction {
  Vector p, q;
};
constexpr float power(float x, int n) { return n ? x * power(x, n - 1) : 1; }
// tanh(x), or tanh(x / 2) if HALF. A rational minimax approximation, as in Eigen and XLA,
// with the powers of 2 in its coefficients; NaN stays NaN.
template <bool HALF> inline Fraction tanh_fraction(Vector x) {
  constexpr float scale = HALF ? 0.5f : 1.0f, limit = 7.90531110763549805f / scale;
  x = greater(all(-limit), lesser(all(limit), x));
  Vector s = x * x;
  Vector p = all(-2.76076847742355e-16f * power(scale, 13));
  p = p * s + 2.00018790482477e-13f * power(scale, 11);
  p = p * s + -8.60467152213735e-11f * power(scale, 9);
  p = p * s + 5.12229709037114e-08f * power(scale, 7);
  p = p * s + 1.48572235717979e-05f * power(scale, 5);
  p = p * s + 6.37261928875436e-04f * power(scale, 3);
  p = p * s + 4.89352455891786e-03f * scale;
  Vector q = all(1.19825839466702e-06f * power(scale, 6));
  q = q * s + 1.18534705686654e-04f * power(scale, 4);
  q = q * s + 2.26843463243900e-03f * power(scale, 2);
  q = q * s + 4.89352518554385e-03f;
  return {x * p, q};
}
inline Vector tanh(Vector x) {
  Fraction t = tanh_fraction<false>(x);
  return t.p / t.q;
}
// Both by one division, which costs as much as ten products; q is within 0.004 and 2.
inline void divide(const Fraction &a, const Fraction &b, Vector *of_a, Vector *of_b) {
  Vector inverse = 1 / (a.q * b.q);
  *of_a = a.p * b.q * inverse;
  *of_b = b.p * a.q * inverse;
}
inline Fraction sigmoid_fraction(Vector x) {  // (1 + tanh(x / 2)) / 2
  Fraction t = tanh_fraction<true>(x);
  return {t.p + t.q, t.q + t.q};
}

// What a step of one row reads and writes. Forward: `pre`, the sums of products, and
// the state h and c, to `out`, `c` and, unless null, `gates` and `c_saved`. Backward:
// what was saved and `d_out`, to `d`, the cotangents of the sums, and to `d_h` and
// `d_c`, those of the state before, the products' share aside.
struct Step {
  long H;
  const float *pre;
  const float *h;
  float *c, *out, *gates, *c_saved;
  const float *c_before, *y, *d_out;
  float *d, *d_h, *d_c;
};

// Each cell has WIDTH, how many times H its sums are, and says where in them those are
// that the inputs and the state take part in. GATES is that of its weights.

struct Lstm {
  static constexpr long GATES = 4, WIDTH = 4, OF_STATE = 0;
  static constexpr bool HAS_C = true, HAS_GATES = true;

  static void forward(const Step &s) {
    const long H = s.H;
    each_vector(H, [&](long u, auto n) {
      Vector i, f, g, o;
      divide(sigmoid_fraction(load(s.pre + u, n)),
             tanh_fraction<false>(load(s.pre + 2 * H + u, n)), &i, &g);
      divide(sigmoid_fraction(load(s.pre + H + u, n)),
             sigmoid_fraction(load(s.pre + 3 * H + u, n)), &f, &o);
      Vector c = f * load(s.c + u, n) + i * g;
      store(s.c + u, c, n);
      store(s.out + u, o * tanh(c), n);
      if (!s.gates) return;
      store(s.c_saved + u, c, n);
      store(s.gates + u, i, n), store(s.gates + H + u, f, n);
      store(s.gates + 2 * H + u, g, n), store(s.gates + 3 * H + u, o, n);
    });
  }

  static void backward(const Step &s) {
    const long H = s.H;
    each_vector(H, [&](long u, auto n) {
      Vector i = load(s.gates + u, n), f = load(s.gates + H + u, n);
      Vector g = load(s.gates + 2 * H + u, n), o = load(s.gates + 3 * H + u, n);
      Vector d_h = load(s.d_out + u, n), t = tanh(load(s.c_saved + u, n));
      Vector d_c = load(s.d_c + u, n) + d_h * o * (1 - t * t);
      store(s.d + u, d_c * g * (i - i * i), n);
      store(s.d + H + u, d_c * load(s.c_before + u, n) * (f - f * f), n);
      store(s.d + 2 * H + u, d_c * i * (1 - g * g), n);
      store(s.d + 3 * H + u, d_h * t * (o - o * o), n);
      store(s.d_c + u, d_c * f, n);
      if (s.out) store(s.out + u, o * t, n);
    });
  }
};

// Sums: the inputs' share of n; r, z; the state's share of n.
struct Gru {
  static constexpr long GATES = 3, WIDTH = 4, OF_STATE = 1;
  static constexpr bool HAS_C = false, HAS_GATES = true;

  static void forward(const Step &s) {
    const long H = s.H;
    each_vector(H, [&](long u, auto n) {
      Vector r, z;
      divide(sigmoid_fraction(load(s.pre + H + u, n)),
             sigmoid_fraction(load(s.pre + 2 * H + u, n)), &r, &z);
      Vector h_n = load(s.pre + 3 * H + u, n);
      Vector next = tanh(load(s.pre + u, n) + r * h_n);
      store(s.out + u, next + z * (load(s.h + u, n) - next), n);
      if (!s.gates) return;
      store(s.gates + u, r, n), store(s.gates + H + u, z, n);
      store(s.gates + 2 * H + u, next, n), store(s.gates + 3 * H + u, h_n, n);
    });
  }

  static void backward(const Step &s) {
    const long H = s.H;
    each_vector(H, [&](long u, auto n) {
      Vector r = load(s.gates + u, n), z = load(s.gates + H + u, n);
      Vector next = load(s.gates + 2 * H + u, n), h_n = load(s.gates + 3 * H + u, n);
      Vector d_h = load(s.d_out + u, n);
      Vector d_n = d_h * (1 - z) * (1 - next * next);
      store(s.d + u, d_n, n);
      store(s.d + H + u, d_n * h_n * (r - r * r), n);
      store(s.d + 2 * H + u, d_h * (load(s.h + u, n) - next) * (z - z * z), n);
      store(s.d + 3 * H + u, d_n * r, n);
      store(s.d_h + u, d_h * z, n);
    });
  }
};

template <bool RELU> struct Rnn {
  static constexpr long GATES = 1, WIDTH = 1, OF_STATE = 0;
  static constexpr bool HAS_C = false, HAS_GATES = false;

  static void forward(const Step &s) {
    each_vector(s.H, [&](long u, auto n) {
      Vector a = load(s.pre + u, n);
      store(s.out + u, RELU ? (a < 0 ? Vector{} : a) : tanh(a), n);
    });
  }

  static void backward(const Step &s) {
    each_vector(s.H, [&](long u, auto n) {
      Vector y = load(s.y + u, n), d_h = load(s.d_out + u, n);
      store(s.d + u, RELU ? (y > 0 ? d_h : Vector{}) : d_h * (1 - y * y), n);
    });
  }
};

// ---------------------------------------------------------------------- memory layout

// Hands out pieces of a block of memory; without one it only adds up their sizes.
struct Pieces {
  float *block;
  long size = 0;
  float *take(long n) {
    float *p = block ? block + size : nullptr;
    size += (n + 15) / 16 * 16;
    return p;
  }
  Packed take_packed(long K, long N) {
    Packed packed{K, N, nullptr};
    packed.p = take(K * packed.panels() * NR);
    return packed;
  }
};

// The weights as the steps read them.
template <class C> struct Weights {
  static constexpr bool IS_GRU = C::OF_STATE > 0;
  Packed sums, n_of_x, n_of_h, projection;      // forward
  Packed to_h, to_x, to_unprojected;            // backward

  Weights(const Call &f, bool backward, Pieces &pieces) {
    const long H = f.hidden, P = f.outputs, D = f.inputs, G = C::GATES * H;
    if (!backward) {
      sums = pieces.take_packed(P + 1 + D, IS_GRU ? 2 * H : G);
      if (IS_GRU) n_of_h = pieces.take_packed(P + 1, H);
      if (IS_GRU) n_of_x = pieces.take_packed(1 + D, H);
      if (f.w_p) projection = pieces.take_packed(H, P);
      return;
    }
    to_h = pieces.take_packed(G, P);
    if (f.d_x) to_x = pieces.take_packed(G, D);
    if (f.w_p) to_unprojected = pieces.take_packed(P, H);
  }

  void pack(const Call &f, bool backward, long part, long parts) const {
    const long H = f.hidden, P = f.outputs, D = f.inputs, G = C::GATES * H;
    if (!backward) {
      sums.pack(0, P, f.w_h, G, 1, part, parts);
      sums.pack(P, 1, f.b, G, 1, part, parts);
      sums.pack(P + 1, D, f.w_x, G, 1, part, parts);
      if (IS_GRU) {
        n_of_h.pack(0, P, f.w_h + 2 * H, G, 1, part, parts);
        n_of_h.pack(P, 1, f.b_n, G, 1, part, parts);
        n_of_x.pack(0, 1, f.b ? f.b + 2 * H : nullptr, G, 1, part, parts);
        n_of_x.pack(1, D, f.w_x + 2 * H, G, 1, part, parts);
      }
      if (f.w_p) projection.pack(0, H, f.w_p, P, 1, part, parts);
      return;
    }
    to_h.pack(0, G, f.w_h, 1, G, part, parts);
    if (f.d_x && IS_GRU) {  // in the order of the sums
      to_x.pack(0, H, f.w_x + 2 * H, 1, G, part, parts);
      to_x.pack(H, 2 * H, f.w_x, 1, G, part, parts);
    } else if (f.d_x) {
      to_x.pack(0, G, f.w_x, 1, G, part, parts);
    }
    if (f.w_p) to_unprojected.pack(0, P, f.w_p, 1, P, part, parts);
  }
};

// What one task works with, for its rows.
struct Rows {
  const Call &f;
  long task, tasks;
  long count;    // rows number task, task + tasks, ...
  bool fetches;  // whether what a step saves is little enough to be fetched ahead

  Rows(const Call &f, long task, long tasks)
      : f(f), task(task), tasks(tasks), count((f.rows - task + tasks - 1) / tasks),
        fetches(count * f.hidden <= 1 << 13) {}

  long row(long i) const { return task + i * tasks; }
  long step(long s) const { return f.reverse ? f.steps - 1 - s : s; }
  bool valid(long r, long t) const { return !f.valid || f.valid[r * f.steps + t]; }
  bool starts(long r, long t) const { return f.starts && f.starts[r * f.steps + t]; }
  bool first(long r, long t) const { return f.first && f.first[r * f.steps + t]; }
};

// -------------------------------------------------------------------------- forward

template <class C> struct Forward {
  Rows rows;
  long H, P, D, in_width, sums_width;
  float *h, *c, *in, *sums, *out, *projected;
  long *active;  // the rows that are valid at a step

  Forward(const Call &f, long task, long tasks, Pieces &pieces)
      : rows(f, task, tasks), H(f.hidden), P(f.outputs), D(f.inputs),
        in_width(padded(P + 1 + D)), sums_width(padded(C::WIDTH * H) + NR) {
    const long B = (f.rows + tasks - 1) / tasks;
    h = pieces.take(B * P);
    c = pieces.take(C::HAS_C ? B * H : 0);
    in = pieces.take(B * in_width);
    sums = pieces.take(B * sums_width);
    out = pieces.take(f.w_p ? B * padded(H) : 0);
    projected = pieces.take(f.w_p ? B * padded(P) : 0);
    active = (long *)pieces.take(2 * B);
  }

  void run(const Weights<C> &w) {
    const Call &f = rows.f;
    for (long i = 0; i < rows.count; i++) {
      copy(f.h0 + rows.row(i) * P, P, h + i * P);
      if (C::HAS_C) copy(f.c0 + rows.row(i) * H, H, c + i * H);
      in[i * in_width + P] = 1;
    }
    for (long s = 0; s < f.steps; s++) {
      long number = begin(s);
      multiply(w, number);
      finish(w, rows.step(s), number);
    }
    for (long i = 0; i < rows.count; i++) {
      copy(h + i * P, P, f.h_last + rows.row(i) * P);
      if (C::HAS_C) copy(c + i * H, H, f.c_last + rows.row(i) * H);
    }
  }

  // Gathers the factors of the valid rows; their number.
  long begin(long s) {
    const Call &f = rows.f;
    const long t = rows.step(s);
    long number = 0;
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i), at = r * f.steps + t, saved = t * f.rows + r;
      if (rows.starts(r, t)) {
        bool first = rows.first(r, t);
        first ? copy(f.h_first + r * P, P, h + i * P) : zero(h + i * P, P);
        if (C::HAS_C)
          first ? copy(f.c_first + r * H, H, c + i * H) : zero(c + i * H, H);
      }
      if (!rows.valid(r, t)) {
        zero(f.y + at * P, P);
        if (C::HAS_GATES && f.gates) zero(f.gates + saved * 4 * H, 4 * H);
        if (C::HAS_C && f.c) zero(f.c + saved * H, H);
        continue;
      }
      copy(h + i * P, P, in + number * in_width);
      copy(f.x + at * D, D, in + number * in_width + P + 1);
      active[number++] = i;
      if (s + 1 == f.steps || !rows.fetches) continue;
      long next = rows.step(s + 1), next_saved = next * f.rows + r;
      fetch(f.x + (at + next - t) * D, D), fetch(f.y + (at + next - t) * P, P);
      if (C::HAS_GATES && f.gates) fetch(f.gates + next_saved * 4 * H, 4 * H);
      if (C::HAS_C && f.c) fetch(f.c + next_saved * H, H);
    }
    return number;
  }

  void multiply(const Weights<C> &w, long number) {
    if (!Weights<C>::IS_GRU)
      return product(number, in, in_width, w.sums, sums, sums_width);
    // From left to right: whole panels reach into what comes after, or behind the last.
    product(number, in + P, in_width, w.n_of_x, sums, sums_width);
    product(number, in, in_width, w.sums, sums + H, sums_width);
    product(number, in, in_width, w.n_of_h, sums + 3 * H, sums_width);
  }

  void finish(const Weights<C> &w, long t, long number) {
    const Call &f = rows.f;
    for (long k = 0; k < number; k++) {
      long i = active[k], r = rows.row(i), saved = t * f.rows + r;
      Step s = {};
      s.H = H, s.pre = sums + k * sums_width, s.h = in + k * in_width;
      s.c = c + i * H, s.out = f.w_p ? out + k * padded(H) : h + i * P;
      s.gates = f.gates ? f.gates + saved * 4 * H : nullptr;
      s.c_saved = f.c ? f.c + saved * H : nullptr;
      C::forward(s);
    }
    if (f.w_p) product(number, out, padded(H), w.projection, projected, padded(P));
    for (long k = 0; k < number; k++) {
      long i = active[k];
      if (f.w_p) copy(projected + k * padded(P), P, h + i * P);
      copy(h + i * P, P, f.y + (rows.row(i) * f.steps + t) * P);
    }
  }
};

// ------------------------------------------------------------------------- backward

// Gradients of the weights from the rows of one task: [h, 1, x] by the cotangents of
// the sums; of a GRU [h, 1] and [1, x] by those that each takes part in.
template <class C> struct Gradients {
  static constexpr bool IS_GRU = Weights<C>::IS_GRU;
  long H, P, D, width;
  float *of_h, *of_x, *of_projection;

  Gradients(const Call &f, Pieces &pieces)
      : H(f.hidden), P(f.outputs), D(f.inputs), width(padded(C::GATES * H)) {
    of_h = pieces.take((P + IS_GRU + 1 + D) * width);
    of_x = of_h ? of_h + (P + IS_GRU) * width : nullptr;
    of_projection = pieces.take(f.w_p ? H * padded(P) : 0);
  }
};

template <class C> struct Backward {
  Rows rows;
  Gradients<C> sum;
  bool wants_weights;
  long H, P, D, in_width, d_width, capacity;
  float *carry_h, *carry_c, *in, *d, *d_out, *d_unprojected, *out, *to_h, *to_x;
  float *room, *zeros;
  long *active;
  int *before;  // [b, t]: the step that left the state that a step read, or one of:
  enum { INITIAL = -1, ZERO = -2, FIRST = -3 };

  Backward(const Call &f, long task, long tasks, Pieces &pieces)
      : rows(f, task, tasks), sum(f, pieces),
        wants_weights(f.d_w_x || f.d_b || f.d_w_h || f.d_b_n || f.d_w_p), H(f.hidden),
        P(f.outputs), D(f.inputs), in_width(padded(P + 1 + D)),
        d_width(padded(C::WIDTH * H)) {
    const long B = (f.rows + tasks - 1) / tasks;
    capacity = CHUNK + B;
    carry_h = pieces.take(B * P);
    carry_c = pieces.take(C::HAS_C ? B * H : 0);
    in = pieces.take(capacity * in_width);
    d = pieces.take(capacity * d_width);
    d_out = pieces.take(capacity * padded(P));
    d_unprojected = pieces.take(f.w_p ? B * padded(H) : 0);
    out = pieces.take(f.w_p ? capacity * padded(H) : 0);
    to_h = pieces.take(B * padded(P));
    to_x = pieces.take(f.d_x ? B * padded(D) : 0);
    room = pieces.take(capacity * max(P + 1 + D, H) + V);
    zeros = pieces.take(max(H, P));
    active = (long *)pieces.take(2 * B);
    before = (int *)pieces.take(f.valid || f.starts ? B * f.steps : 0);
  }

  void run(const Weights<C> &w) {
    const Call &f = rows.f;
    zero(zeros, max(H, P));
    zero(sum.of_h, (P + sum.IS_GRU + 1 + D) * sum.width);
    if (f.w_p) zero(sum.of_projection, H * padded(P));
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i);
      copy(f.d_h_last + r * P, P, carry_h + i * P);
      if (C::HAS_C) copy(f.d_c_last + r * H, H, carry_c + i * H);
      if (f.d_h_first) zero(f.d_h_first + r * P, P);
      if (f.d_c_first) zero(f.d_c_first + r * H, H);
    }
    if (f.valid || f.starts) find_states_before();
    long done = 0;
    for (long s = f.steps - 1; s >= 0; s--) {
      done += step(w, rows.step(s), s, done);
      if (done > capacity - rows.count || s == 0) {
        if (wants_weights && done) add_to_gradients(done);
        done = 0;
      }
    }
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i);
      if (f.d_h0) copy(carry_h + i * P, P, f.d_h0 + r * P);
      if (f.d_c0) copy(carry_c + i * H, H, f.d_c0 + r * H);
    }
  }

  void find_states_before() {
    const Call &f = rows.f;
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i);
      int state = INITIAL;
      for (long s = 0; s < f.steps; s++) {
        long t = rows.step(s);
        if (rows.starts(r, t)) state = rows.first(r, t) ? FIRST : ZERO;
        before[i * f.steps + t] = state;
        if (rows.valid(r, t)) state = (int)t;
      }
    }
  }

  const float *h_before(long i, long t, long s) const {
    const Call &f = rows.f;
    long r = rows.row(i), from = state_before(i, t, s);
    if (from >= 0) return f.y + (r * f.steps + from) * P;
    return from == INITIAL ? f.h0 + r * P : from == FIRST ? f.h_first + r * P : zeros;
  }
  const float *c_before(long i, long t, long s) const {
    const Call &f = rows.f;
    long r = rows.row(i), from = state_before(i, t, s);
    if (from >= 0) return f.c + (from * f.rows + r) * H;
    return from == INITIAL ? f.c0 + r * H : from == FIRST ? f.c_first + r * H : zeros;
  }
  long state_before(long i, long t, long s) const {
    if (rows.f.valid || rows.f.starts) return before[i * rows.f.steps + t];
    return s == 0 ? (long)INITIAL : rows.step(s - 1);
  }

  // One step, number s in reading order; the rows that it added behind `done` others.
  long step(const Weights<C> &w, long t, long s, long done) {
    const Call &f = rows.f;
    long number = 0;
    float *d = this->d + done * d_width, *d_out = this->d_out + done * padded(P);
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i), at = r * f.steps + t;
      if (!rows.valid(r, t)) {
        if (f.d_x) zero(f.d_x + at * D, D);
        continue;
      }
      float *to = d_out + number * padded(P);
      const float *carry = carry_h + i * P, *d_y = f.d_y + at * P;
      each_vector(P, [&](long u, auto n) {
        store(to + u, load(carry + u, n) + load(d_y + u, n), n);
      });
      zero(carry_h + i * P, P);
      float *factors = in + (done + number) * in_width;
      copy(h_before(i, t, s), P, factors), factors[P] = 1;
      copy(f.x + at * D, D, factors + P + 1);
      active[number++] = i;
      if (s == 0 || !rows.fetches) continue;
      long next = rows.step(s - 1), next_saved = next * f.rows + r;
      fetch(f.d_y + (at + next - t) * P, P), fetch(f.x + (at + next - t) * D, D);
      if (C::HAS_GATES) fetch(f.gates + next_saved * 4 * H, 4 * H);
      if (s > 1) fetch(f.y + (r * f.steps + rows.step(s - 2)) * P, P);
      if (C::HAS_C && s > 1) fetch(f.c + (rows.step(s - 2) * f.rows + r) * H, H);
      if (f.d_x) fetch(f.d_x + (at + next - t) * D, D);
    }
    if (f.w_p)
      product(number, d_out, padded(P), w.to_unprojected, d_unprojected, padded(H));
    for (long k = 0; k < number; k++) {
      long i = active[k], r = rows.row(i), saved = t * f.rows + r;
      Step one = {};
      one.H = H, one.h = in + (done + k) * in_width;
      one.y = f.y + (r * f.steps + t) * P;
      one.gates = C::HAS_GATES ? f.gates + saved * 4 * H : nullptr;
      one.c_saved = C::HAS_C ? f.c + saved * H : nullptr;
      one.c_before = C::HAS_C ? c_before(i, t, s) : nullptr;
      one.d_out = f.w_p ? d_unprojected + k * padded(H) : d_out + k * padded(P);
      one.out = f.w_p ? out + (done + k) * padded(H) : nullptr;
      one.d = d + k * d_width, one.d_h = carry_h + i * P, one.d_c = carry_c + i * H;
      C::backward(one);
    }
    product(number, d + C::OF_STATE * H, d_width, w.to_h, to_h, padded(P));
    if (f.d_x) product(number, d, d_width, w.to_x, to_x, padded(D));
    for (long k = 0; k < number; k++) {
      long i = active[k], r = rows.row(i);
      float *carry = carry_h + i * P, *more = to_h + k * padded(P);
      each_vector(P, [&](long u, auto n) {
        store(carry + u, load(carry + u, n) + load(more + u, n), n);
      });
      if (f.d_x) copy(to_x + k * padded(D), D, f.d_x + (r * f.steps + t) * D);
    }
    if (f.starts) restart(t);
    return number;
  }

  // Where a sequence starts, the state before is not that of the step before.
  void restart(long t) {
    const Call &f = rows.f;
    for (long i = 0; i < rows.count; i++) {
      long r = rows.row(i);
      if (!rows.starts(r, t)) continue;
      if (rows.first(r, t)) {
        for (long u = 0; f.d_h_first && u < P; u++)
          f.d_h_first[r * P + u] += carry_h[i * P + u];
        for (long u = 0; f.d_c_first && u < H; u++)
          f.d_c_first[r * H + u] += carry_c[i * H + u];
      }
      zero(carry_h + i * P, P);
      if (C::HAS_C) zero(carry_c + i * H, H);
    }
  }

  void add_to_gradients(long done) {
    const long G = C::GATES * H;
    if (Weights<C>::IS_GRU) {
      add_transposed_product(done, 1 + D, G, in + P, in_width, d, d_width, sum.of_x,
                             sum.width, room);
      add_transposed_product(done, P + 1, G, in, in_width, d + H, d_width, sum.of_h,
                             sum.width, room);
    } else {
      add_transposed_product(done, P + 1 + D, G, in, in_width, d, d_width, sum.of_h,
                             sum.width, room);
    }
    if (rows.f.w_p)
      add_transposed_product(done, H, P, out, padded(H), d_out, padded(P),
                             sum.of_projection, padded(P), room);
  }
};

// Part `part` of `parts` of the sum of the tasks' gradients: those of each are `stride`
// floats behind those of the one before.
template <class C>
void add_up(const Call &f, const Gradients<C> &sum, long stride, long tasks, long part,
            long parts) {
  const long H = f.hidden, P = f.outputs, D = f.inputs, G = C::GATES * H;
  auto add = [&](const float *from, float *to, long n) {
    copy(from, n, to);
    for (long k = 1; k < tasks; k++)
      each_vector(n, [&](long u, auto m) {
        store(to + u, load(to + u, m) + load(from + k * stride + u, m), m);
      });
  };
  auto add_x = [&](const float *from, float *to) {
    if (!sum.IS_GRU) return add(from, to, G);
    add(from + H, to, 2 * H), add(from, to + 2 * H, H);  // n came first
  };
  if (f.d_b && part == 0) add_x(sum.of_x, f.d_b);
  if (f.d_b_n && part == 0) add(sum.of_h + P * sum.width + 2 * H, f.d_b_n, H);
  for (long k = D * part / parts; f.d_w_x && k < D * (part + 1) / parts; k++)
    add_x(sum.of_x + (1 + k) * sum.width, f.d_w_x + k * G);
  for (long k = P * part / parts; f.d_w_h && k < P * (part + 1) / parts; k++)
    add(sum.of_h + k * sum.width, f.d_w_h + k * G, G);
  for (long k = H * part / parts; f.d_w_p && k < H * (part + 1) / parts; k++)
    add(sum.of_projection + k * padded(P), f.d_w_p + k * P, P);
}

// ----------------------------------------------------------------------------- calls

// A block of memory holds the weights, then what each task works with.
template <class C> long size_of_weights(const Call &f, bool backward) {
  Pieces pieces{nullptr};
  Weights<C>(f, backward, pieces);
  return pieces.size;
}
template <class C> long size_of_task(const Call &f, bool backward, long tasks) {
  Pieces pieces{nullptr};
  backward ? (void)Backward<C>(f, 0, tasks, pieces)
           : (void)Forward<C>(f, 0, tasks, pieces);
  return pieces.size;
}

template <class C> struct Calls {
  static long size(const Call &f, bool backward, long tasks) {
    return size_of_weights<C>(f, backward) +
           tasks * size_of_task<C>(f, backward, tasks);
  }

  // Task `task` of a phase, which begins when the one before has ended.
  static void run(const Call &f, bool backward, Phase phase, long task, long tasks,
                  float *block) {
    Pieces pieces{block};
    Weights<C> weights(f, backward, pieces);
    if (phase == Phase::kPack) return weights.pack(f, backward, task, tasks);
    const long stride = size_of_task<C>(f, backward, tasks);
    if (phase == Phase::kRows) pieces.size += task * stride;
    if (!backward) return Forward<C>(f, task, tasks, pieces).run(weights);
    Backward<C> rows(f, task, tasks, pieces);
    if (phase == Phase::kRows) return rows.run(weights);
    add_up(f, rows.sum, stride, tasks, task, tasks);
  }
};

inline Kernel kernel_of(Cell cell) {
  switch (cell) {
    case Cell::kLstm: return {Calls<Lstm>::size, Calls<Lstm>::run};
    case Cell::kGru: return {Calls<Gru>::size, Calls<Gru>::run};
    case Cell::kRnnTanh: return {Calls<Rnn<false>>::size, Calls<Rnn<false>>::run};
    default: return {Calls<Rnn<true>>::size, Calls<Rnn<true>>::run};
  }
}
