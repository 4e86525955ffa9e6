// The library's face: which kernels there are, and running one on several threads. SETS(macro) in
// sets.inc hands on the instruction sets that were compiled, the best first, and SOURCES, a digest.
#include "cpu.h"
#include "sets.inc"

#include <thread>
#include <vector>

// torch's own threads where it runs on GNU's OpenMP: a second pool would compete with them
#ifdef __linux__  // where the linker takes what nobody may have
extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern "C" int omp_get_thread_num() __attribute__((weak));
extern "C" int omp_get_num_threads() __attribute__((weak));
#endif

#define DECLARE(isa, supported) extern const KernelTable kernels_##isa;
SETS(DECLARE)

namespace {
const KernelTable *best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#define CHOOSE(isa, supported) \
  if (supported) return &kernels_##isa;
  SETS(CHOOSE)
  return nullptr;
}

const KernelTable &table() {
  static const KernelTable *chosen = best();
  return *chosen;
}

struct Work {
  const Kernel *kernel;
  const void *arguments;
  long long neurons, blocks;
};

void share(const Work &work, long long part, long long parts) {
  const long long lanes = table().lanes;
  const long long first = work.blocks * part / parts * lanes;
  const long long last = work.blocks * (part + 1) / parts * lanes;
  work.kernel->range(work.arguments, first, last < work.neurons ? last : work.neurons);
}

#ifdef __linux__
void share_of_thread(void *work) {
  share(*(const Work *)work, omp_get_thread_num(), omp_get_num_threads());
}

bool run_on_torchs_threads(const Work &work, int threads) {
  if (!GOMP_parallel || !omp_get_thread_num || !omp_get_num_threads) return false;
  GOMP_parallel(share_of_thread, (void *)&work, (unsigned)threads, 0);
  return true;
}
#else
bool run_on_torchs_threads(const Work &, int) { return false; }
#endif
}  // namespace

#define FACE extern "C" __attribute__((visibility("default")))

FACE int kernel_count() { return table().count; }
FACE const char *kernel_sources() { return SOURCES; }
FACE const char *kernel_name(int i) { return table().kernels[i].name; }
FACE unsigned long kernel_size(int i) { return table().kernels[i].size; }
FACE void *kernel_range(int i) { return (void *)table().kernels[i].range; }
FACE unsigned long silence_size() { return table().silent_step; }
FACE long long silence_run(void *steps, long long first, long long count, int settle) {
  return table().silence(steps, first, count, settle);
}

FACE void kernel_run(int i, const void *arguments, long long neurons, int threads) {
  const long long lanes = table().lanes;
  const Work work = {&table().kernels[i], arguments, neurons, (neurons + lanes - 1) / lanes};
  if (threads > work.blocks) threads = (int)work.blocks;
  if (threads <= 1) {
    share(work, 0, 1);
  } else if (!run_on_torchs_threads(work, threads)) {
    std::vector<std::thread> others;
    for (int part = 1; part < threads; ++part) others.emplace_back(share, work, part, threads);
    share(work, 0, threads);
    for (auto &thread : others) thread.join();
  }
}
