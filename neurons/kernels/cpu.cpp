// The kernels for the CPU. Compiled once for each instruction set, ISA in their names; the library
// for a user's function holds one set. rows.inc is written by build.py: a struct for each function,
// and ROWS(macro), which hands them on.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {
#include "group.cuh"
#include "signgd.cuh"
#include "silence.h"
#include "sum.cuh"
#include "tracking.cuh"
#include "rows.inc"
}  // namespace

#include "cpu.h"

namespace {
// half as many neurons at once where the outputs stay in the cache, so that the states do too
int lanes_of(const SignGD &a) { return a.far ? LANES : LANES / 2; }
int lanes_of(const Group &a) { return a.far ? LANES : LANES / 2; }
int lanes_of(const GroupGradient &a) { return a.far ? LANES : LANES / 2; }
int lanes_of(...) { return LANES / 2; }

template <class Arguments, void (*block)(const Arguments &, index_t, int)>
void range(const void *arguments, index_t first, index_t last) {
  const Arguments &a = *(const Arguments *)arguments;
  const int lanes = lanes_of(a);
  for (index_t n = first; n < last; n += lanes)
    block(a, n, last - n < lanes ? (int)(last - n) : lanes);
}

struct Step {
  int arguments;
  void (*of)(const float *const *, const float *, float, const float *, int, const float *, float *,
             float *);
  void (*silent)(const float *const *, const float *, const Zones &, int, const float *, float *,
                 float *);
  void (*target)(const float *const *, const float *, int, float *);
};

template <class Function, bool tie>
void step_of(const float *const *in, const float *parameters, float eta, const float *sizes,
             int lanes, const float *v, float *after, float *sigma) {
  signgd_step<Function, tie>(in, parameters, eta, sizes, lanes, v, after, sigma);
}

template <class Function>
void silent_of(const float *const *in, const float *parameters, const Zones &zones, int lanes,
               const float *v, float *after, float *sigma) {
  signgd_silent<Function>(in, parameters, zones, lanes, v, after, sigma);
}

template <class Function>
void target_of(const float *const *in, const float *parameters, int lanes, float *target) {
  signgd_target<Function>(in, parameters, lanes, target);
}

void signgd_any(const SignGD &a, const Step &step, index_t n, int lanes) {
  signgd_block(a, step, n, lanes);
}

template <class Function>
void signgd_of(const SignGD &a, index_t n, int lanes) {
  const int arguments = Function::arguments;
  const auto of = a.fires_at_tie ? step_of<Function, true> : step_of<Function, false>;
  signgd_any(a, {arguments, of, silent_of<Function>, target_of<Function>}, n, lanes);
}

void group_any(const Group &a, index_t n, int lanes) { group_block(a, n, lanes); }
void group_gradient_any(const GroupGradient &a, index_t n, int lanes) {
  group_gradient_block(a, n, lanes);
}
void tracking_gradient_any(const TrackingGradient &a, index_t n, int lanes) {
  tracking_gradient_block(a, n, lanes);
}
void sum_any(const Sum &a, index_t n, int lanes) { sum_block(a, n, lanes); }

#define KERNEL(key, Function) {key, range<SignGD, signgd_of<Function>>, sizeof(SignGD)},
const Kernel kernels[] = {
    {"group", range<Group, group_any>, sizeof(Group)},
    {"group_gradient", range<GroupGradient, group_gradient_any>, sizeof(GroupGradient)},
    {"tracking_gradient", range<TrackingGradient, tracking_gradient_any>, sizeof(TrackingGradient)},
    {"sum", range<Sum, sum_any>, sizeof(Sum)},
    ROWS(KERNEL)};
}  // namespace

#define JOIN(a, b) a##b
#define TABLE(isa) JOIN(kernels_, isa)
extern const KernelTable TABLE(ISA);
const KernelTable TABLE(ISA) = {kernels, (int)(sizeof kernels / sizeof kernels[0]), LANES,
                                silent_run, sizeof(SilentStep)};
