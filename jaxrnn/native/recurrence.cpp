// The kernels in each instruction set, which of them runs, and their memory.
#include "recurrence.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace jaxrnn {
namespace {

// What a call does one after the other, each with all its tasks: pack the weights, run
// the rows, and add up the gradients of weights that the tasks have.
enum class Phase { kPack, kRows, kAdd };

struct Kernel {
  long (*size)(const Call &, bool backward, long tasks);  // of its memory, in floats
  void (*run)(const Call &, bool backward, Phase, long task, long tasks, float *memory);
};

namespace portable {
constexpr long V = 4;
#ifdef __aarch64__
constexpr int MR = 12;  // of 32 registers: NEON is always there
#else
constexpr int MR = 6;
#endif
template <class T> inline T lesser(T a, T b) { return a < b ? a : b; }
template <class T> inline T greater(T a, T b) { return a > b ? a : b; }
#include "kernels.h"
}  // namespace portable

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
constexpr long V = 8;
constexpr int MR = 6;
// Of the general form above compilers make two instructions.
inline __m256 lesser(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
inline __m256 greater(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
#include "kernels.h"
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,fma,prefer-vector-width=512")
#endif
namespace avx512 {
constexpr long V = 16;
constexpr int MR = 12;
// In all lanes; of the forms without a mask GCC 12 warns.
inline __m512 lesser(__m512 a, __m512 b) { return _mm512_maskz_min_ps(0xffff, a, b); }
inline __m512 greater(__m512 a, __m512 b) { return _mm512_maskz_max_ps(0xffff, a, b); }
#include "kernels.h"
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__

struct InstructionSet {
  const char *name;
  Kernel (*kernel_of)(Cell);
};

// The best one there is, or a lesser one if JAXRNN_ISA names it.
InstructionSet choose() {
#ifdef __x86_64__
  const char *wanted = std::getenv("JAXRNN_ISA");
  auto is = [&](const char *name) { return wanted && std::strcmp(wanted, name) == 0; };
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  if (has_avx512 && !is("avx2") && !is("portable")) return {"avx512", avx512::kernel_of};
  if (has_avx2 && !is("portable")) return {"avx2", avx2::kernel_of};
  return {"portable", portable::kernel_of};
#elif defined(__aarch64__)
  return {"neon", portable::kernel_of};
#else
  return {"portable", portable::kernel_of};
#endif
}
const InstructionSet kInstructionSet = choose();

// A block of memory for the time of a call, null if there is not enough. Blocks are
// kept for calls to come: fresh pages cost more than what is computed on them. In huge
// pages the products are a tenth faster.
class Memory {
 public:
  explicit Memory(long floats) : bytes_(4 * static_cast<std::size_t>(floats)) {
    std::lock_guard<std::mutex> lock(kept_mutex());
    std::vector<Block> &kept = kept_blocks();
    for (std::size_t k = 0; k < kept.size(); k++)
      if (kept[k].bytes >= bytes_) {
        block_ = kept[k].start, bytes_ = kept[k].bytes;
        kept.erase(kept.begin() + static_cast<long>(k));
        return;
      }
    if (!kept.empty()) {  // one that is too small makes room
      std::free(kept.back().start);
      kept.pop_back();
    }
    const std::size_t page = std::size_t{1} << 21;
    bytes_ = (bytes_ / page + 1) * page;
    block_ = static_cast<float *>(std::aligned_alloc(page, bytes_));
#ifdef __linux__
    if (block_) madvise(block_, bytes_, MADV_HUGEPAGE);
#endif
  }
  ~Memory() {
    if (!block_) return;
    std::lock_guard<std::mutex> lock(kept_mutex());
    try {
      kept_blocks().push_back({block_, bytes_});
    } catch (const std::bad_alloc &) {
      std::free(block_);
    }
  }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  float *block() const { return block_; }

 private:
  struct Block {
    float *start;
    std::size_t bytes;
  };
  // Never destroyed: a thread may still compute when the process ends.
  static std::mutex &kept_mutex() {
    static std::mutex *mutex = new std::mutex;
    return *mutex;
  }
  static std::vector<Block> &kept_blocks() {
    static std::vector<Block> *blocks = new std::vector<Block>;
    return *blocks;
  }

  float *block_ = nullptr;
  std::size_t bytes_;
};

// What the threads of a call share, and may look at when it has ended. All of them go
// through the phases and take tasks until there are none; the first one does not wait
// for others to wake up, and nobody goes to sleep between two phases.
struct Progress {
  std::atomic<long> taken[3] = {}, ended[3] = {};
};

void take_part(Progress &progress, long phases, long tasks,
               const std::function<void(Phase, long)> &work) {
  for (long phase = 0; phase < phases; phase++) {
    for (long k; (k = progress.taken[phase]++) < tasks; progress.ended[phase]++)
      work(static_cast<Phase>(phase), k);
    for (long turns = 0; progress.ended[phase] < tasks; turns++)
      if (turns > 1000) std::this_thread::yield();
  }
}

bool run_call(const Call &call, bool backward, long tasks,
              const Schedule &schedule) try {
  const Kernel kernel = kInstructionSet.kernel_of(call.cell);
  Memory memory(kernel.size(call, backward, tasks));
  if (!memory.block()) return false;
  const std::function<void(Phase, long)> work = [&](Phase phase, long task) {
    kernel.run(call, backward, phase, task, tasks, memory.block());
  };
  const long phases = backward ? 3 : 2;
  auto progress = std::make_shared<Progress>();
  for (long k = 1; k < tasks; k++) try {
      // One that begins late finds no task, and never looks at `work`.
      schedule([progress, phases, tasks, &work] {
        take_part(*progress, phases, tasks, work);
      });
    } catch (const std::bad_alloc &) {
      break;  // Those that there are do it all.
    }
  take_part(*progress, phases, tasks, work);
  return true;
} catch (const std::bad_alloc &) {
  return false;
}

}  // namespace

long worthwhile_tasks(const Call &call, long threads) {
  // A task has at least eight rows, for whole tiles, and a tenth of a millisecond or
  // so of work: starting one costs a tenth of that.
  const double work = 4.0 * static_cast<double>(call.rows) *
                      static_cast<double>(call.steps) *
                      static_cast<double>(call.hidden) *
                      static_cast<double>(call.inputs + call.outputs);
  long tasks = static_cast<long>(work / 4e6);
  if (tasks > call.rows / 8) tasks = call.rows / 8;
  if (tasks > threads) tasks = threads;
  return tasks < 1 ? 1 : tasks;
}

bool forward(const Call &call, long tasks, const Schedule &schedule) {
  return run_call(call, false, tasks, schedule);
}
bool backward(const Call &call, long tasks, const Schedule &schedule) {
  return run_call(call, true, tasks, schedule);
}
const char *instruction_set() { return kInstructionSet.name; }

}  // namespace jaxrnn
