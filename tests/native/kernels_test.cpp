// The kernels on random shapes and masks against loops in float64: values, and
// gradients against differences of the loops' loss. The sanitizers see every access.
//
//     kernels_test [number of cases] [seed]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../jaxrnn/native/recurrence.h"

using jaxrnn::Call;
using jaxrnn::Cell;
using Doubles = std::map<std::string, std::vector<double>>;

struct Case {
  Cell cell;
  bool reverse, has_bias, has_projection, has_valid, has_starts, has_first;
  long B, T, D, H, P, tasks;

  long gates() const { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }
};

double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }

// One sequence of steps after the other: outputs and last states, by name.
Doubles reference(const Case &c, const Doubles &in, const std::vector<char> &valid,
                  const std::vector<char> &starts, const std::vector<char> &first) {
  Doubles out;
  const long G = c.gates() * c.H;
  out["y"].assign(c.B * c.T * c.P, 0);
  auto get = [&](const char *name, long k) {
    auto found = in.find(name);
    return found == in.end() ? 0.0 : found->second[k];
  };
  for (long r = 0; r < c.B; r++) {
    std::vector<double> h(c.P), cell(c.H);
    auto restart = [&](const char *name_h, const char *name_c) {
      for (long p = 0; p < c.P; p++) h[p] = name_h ? get(name_h, r * c.P + p) : 0;
      for (long u = 0; u < c.H; u++) cell[u] = name_c ? get(name_c, r * c.H + u) : 0;
    };
    restart("h0", "c0");
    for (long s = 0; s < c.T; s++) {
      long t = c.reverse ? c.T - 1 - s : s, at = r * c.T + t;
      if (c.has_starts && starts[at]) {
        bool is_first = c.has_first && first[at];
        restart(is_first ? "h_first" : nullptr, is_first ? "c_first" : nullptr);
      }
      if (c.has_valid && !valid[at]) continue;
      std::vector<double> of_x(G), of_h(G), next(c.H);
      for (long g = 0; g < G; g++) {
        of_x[g] = get("b", g);
        for (long d = 0; d < c.D; d++)
          of_x[g] += get("x", at * c.D + d) * get("w_x", d * G + g);
        of_h[g] = g >= 2 * c.H ? get("b_n", g - 2 * c.H) : 0;
        for (long p = 0; p < c.P; p++) of_h[g] += h[p] * get("w_h", p * G + g);
      }
      for (long u = 0; u < c.H; u++) {
        auto sum = [&](long k) { return of_x[k * c.H + u] + of_h[k * c.H + u]; };
        if (c.cell == Cell::kLstm) {
          cell[u] = sigmoid(sum(1)) * cell[u] + sigmoid(sum(0)) * std::tanh(sum(2));
          next[u] = sigmoid(sum(3)) * std::tanh(cell[u]);
        } else if (c.cell == Cell::kGru) {
          double z = sigmoid(sum(1));
          double n = std::tanh(of_x[2 * c.H + u] + sigmoid(sum(0)) * of_h[2 * c.H + u]);
          next[u] = (1 - z) * n + z * h[u];
        } else {
          next[u] = c.cell == Cell::kRnnTanh ? std::tanh(sum(0)) : std::max(sum(0), 0.);
        }
      }
      for (long p = 0; p < c.P; p++) {
        h[p] = c.has_projection ? 0 : next[p];
        for (long u = 0; c.has_projection && u < c.H; u++)
          h[p] += next[u] * get("w_p", u * c.P + p);
        out["y"][at * c.P + p] = h[p];
      }
    }
    out["h_last"].insert(out["h_last"].end(), h.begin(), h.end());
    if (c.cell == Cell::kLstm)
      out["c_last"].insert(out["c_last"].end(), cell.begin(), cell.end());
  }
  return out;
}

double loss_of(const Doubles &out, const Doubles &cotangents) {
  double loss = 0;
  for (const auto &[name, values] : out)
    for (std::size_t k = 0; k < values.size(); k++)
      loss += values[k] * cotangents.at("d_" + name)[k];
  return loss;
}

int failures = 0;
void check(const std::string &what, double found, double wanted, double tolerance) {
  if (std::abs(found - wanted) <= tolerance) return;  // false for NaN
  failures++;
  std::printf("%s: %.9g, expected %.9g\n", what.c_str(), found, wanted);
}

void run_case(const Case &c, std::mt19937 &random) {
  std::normal_distribution<double> normal;
  auto floats = [&](long n, double scale) {  // in float64, but float32 numbers
    std::vector<double> a(n);
    for (double &v : a) v = static_cast<float>(scale * normal(random));
    return a;
  };
  auto coins = [&](double share) {
    std::vector<char> a(c.B * c.T);
    for (char &v : a) v = std::uniform_real_distribution<>()(random) < share;
    return a;
  };
  const long G = c.gates() * c.H;
  const bool is_lstm = c.cell == Cell::kLstm;
  Doubles in{{"x", floats(c.B * c.T * c.D, 1)},
             {"w_x", floats(c.D * G, 1 / std::sqrt(c.D))},
             {"w_h", floats(c.P * G, 1 / std::sqrt(c.P))},
             {"h0", floats(c.B * c.P, 1)}};
  if (is_lstm) in["c0"] = floats(c.B * c.H, 1);
  if (c.has_bias) in["b"] = floats(G, 0.5);
  if (c.has_bias && c.cell == Cell::kGru) in["b_n"] = floats(c.H, 0.5);
  if (c.has_projection) in["w_p"] = floats(c.H * c.P, 1 / std::sqrt(c.H));
  if (c.has_first) in["h_first"] = floats(c.B * c.P, 1);
  if (c.has_first && is_lstm) in["c_first"] = floats(c.B * c.H, 1);
  std::vector<char> valid = coins(0.7), starts = coins(0.3), first = coins(0.5);
  Doubles wanted = reference(c, in, valid, starts, first), cotangents;
  for (const auto &[name, values] : wanted)
    cotangents["d_" + name] = floats(static_cast<long>(values.size()), 1);

  // In arrays of their exact sizes, so that the sanitizer sees the ends.
  std::map<std::string, std::vector<float>> arrays;
  auto make = [&](const std::string &name, const std::vector<double> &values) {
    arrays[name].assign(values.begin(), values.end());
    return arrays[name].data();
  };
  auto fresh = [&](const std::string &name, long n) {
    arrays[name].assign(n, NAN);
    return arrays[name].data();
  };
  auto given = [&](const char *name) -> const float * {
    return in.count(name) ? make(name, in[name]) : nullptr;
  };
  Call f = {};
  f.cell = c.cell, f.reverse = c.reverse;
  f.rows = c.B, f.steps = c.T, f.inputs = c.D, f.hidden = c.H, f.outputs = c.P;
  f.x = given("x"), f.w_x = given("w_x"), f.b = given("b"), f.w_h = given("w_h");
  f.b_n = given("b_n"), f.w_p = given("w_p"), f.h0 = given("h0"), f.c0 = given("c0");
  f.h_first = given("h_first"), f.c_first = given("c_first");
  if (c.has_valid) f.valid = reinterpret_cast<const bool *>(valid.data());
  if (c.has_starts) f.starts = reinterpret_cast<const bool *>(starts.data());
  if (c.has_first) f.first = reinterpret_cast<const bool *>(first.data());
  f.y = fresh("y", c.B * c.T * c.P), f.h_last = fresh("h_last", c.B * c.P);
  if (is_lstm) f.c_last = fresh("c_last", c.B * c.H);
  std::vector<std::thread> threads;
  auto run = [&](std::function<void()> f) { threads.emplace_back(std::move(f)); };

  char title[200];
  std::snprintf(title, sizeof title,
                "cell %d reverse %d bias %d valid %d starts %d first %d, %ld x %ld, "
                "%ld to %ld to %ld, %ld tasks: ",
                static_cast<int>(c.cell), c.reverse, c.has_bias, c.has_valid,
                c.has_starts, c.has_first, c.B, c.T, c.D, c.H, c.P, c.tasks);
  auto check_values = [&] {
    for (const auto &[name, values] : wanted)
      for (std::size_t k = 0; k < values.size(); k++)
        // A relu lets values grow; sums are of up to a few hundred terms.
        check(title + name, arrays[name][k], values[k],
              2e-5 * (1 + std::abs(values[k])));
  };
  if (!jaxrnn::forward(f, c.tasks, run)) std::abort();
  check_values();
  if (is_lstm) f.c = fresh("c", c.T * c.B * c.H);
  if (c.cell <= Cell::kGru) f.gates = fresh("gates", c.T * c.B * 4 * c.H);
  fresh("y", c.B * c.T * c.P);
  f.y = arrays["y"].data();
  if (!jaxrnn::forward(f, c.tasks, run)) std::abort();
  check_values();

  f.d_y = make("d_y", cotangents["d_y"]);
  f.d_h_last = make("d_h_last", cotangents["d_h_last"]);
  if (is_lstm) f.d_c_last = make("d_c_last", cotangents["d_c_last"]);
  auto wants = [&](const char *name) -> float * {
    if (!in.count(name)) return nullptr;
    return fresh(std::string("d_") + name, static_cast<long>(in[name].size()));
  };
  f.d_x = wants("x"), f.d_w_x = wants("w_x"), f.d_b = wants("b");
  f.d_w_h = wants("w_h"), f.d_b_n = wants("b_n"), f.d_w_p = wants("w_p");
  f.d_h0 = wants("h0"), f.d_c0 = wants("c0");
  f.d_h_first = wants("h_first"), f.d_c_first = wants("c_first");
  if (!jaxrnn::backward(f, c.tasks, run)) std::abort();
  for (const auto &[name, values] : in) {
    std::vector<double> direction = floats(static_cast<long>(values.size()), 1);
    double along = 0, size = 0;
    for (std::size_t k = 0; k < values.size(); k++) {
      along += direction[k] * arrays["d_" + name][k];
      size += std::abs(direction[k] * arrays["d_" + name][k]);
    }
    // Not across the corner of a relu: a small step, of which float64 has enough.
    const double step = 1e-6;
    Doubles up = in, down = in;
    for (std::size_t k = 0; k < values.size(); k++) {
      up[name][k] += step * direction[k];
      down[name][k] -= step * direction[k];
    }
    double difference = (loss_of(reference(c, up, valid, starts, first), cotangents) -
                         loss_of(reference(c, down, valid, starts, first), cotangents)) /
                        (2 * step);
    check(title + ("d_" + name), along, difference, 1e-4 * (1 + size));
  }
  // Without the inputs' gradient, and without the weights': the others stay the same.
  std::map<std::string, std::vector<float>> before = arrays;
  f.d_x = nullptr;
  if (!jaxrnn::backward(f, c.tasks, run)) std::abort();
  f.d_x = arrays["d_x"].data();
  f.d_w_x = f.d_b = f.d_w_h = f.d_b_n = f.d_w_p = nullptr;
  fresh("d_x", c.B * c.T * c.D);
  f.d_x = arrays["d_x"].data();
  if (!jaxrnn::backward(f, c.tasks, run)) std::abort();
  for (const auto &[name, values] : in)
    if (arrays["d_" + name] != before["d_" + name]) failures++, std::puts(title);
  for (std::thread &thread : threads) thread.join();
}

// No abort where there is no memory.
void check_failed_allocation() {
  Call f = {};
  f.rows = f.steps = 1, f.inputs = f.hidden = f.outputs = 1L << 22;
  auto never = [](std::function<void()>) {};
  if (jaxrnn::forward(f, 1, never) || jaxrnn::backward(f, 1, never))
    failures++, std::puts("an allocation of terabytes succeeded");
}

int main(int argc, char **argv) {
  int number = argc > 1 ? std::atoi(argv[1]) : 100;
  std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
  auto upto = [&](long n) { return 1 + static_cast<long>(random() % n); };
  for (int k = 0; k < number && failures < 20; k++) {
    Case c = {};
    c.cell = static_cast<Cell>(k % 4);
    c.reverse = random() % 2, c.has_bias = random() % 4 != 0;
    c.has_valid = random() % 2, c.has_starts = random() % 2;
    c.has_first = c.has_starts && random() % 2;
    c.B = upto(random() % 4 ? 20 : 40), c.T = upto(12), c.D = upto(40), c.H = upto(70);
    if (k % 7 == 0) c.T = 0;
    if (k % 11 == 0) c.B = 300, c.H = upto(9), c.T = upto(3);   // more than a chunk
    if (k % 13 == 0) c.H = 140, c.D = 300, c.B = upto(3), c.T = upto(3);  // blocks
    c.P = c.H;
    if (c.cell == Cell::kLstm && c.H > 1 && random() % 2)
      c.has_projection = true, c.P = upto(c.H - 1);
    c.tasks = upto(3);
    run_case(c, random);
  }
  check_failed_allocation();
  std::printf("%d cases in %s, %d failures\n", number, jaxrnn::instruction_set(),
              failures);
  return failures != 0;
}
