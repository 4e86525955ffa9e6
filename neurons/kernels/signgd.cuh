// A sequence of steps of signGD neurons: scan(signgd_step, ...) of neurons/signgd/step.py, with a dead
// zone that of neurons/signgd/sparse.py. In the spike view it integrates its input first.
#pragma once
#include "functions.cuh"
#include "sparse.cuh"
#include "values.cuh"

enum { ARGUMENTS = 4, PARAMETERS = 8, STEPS = 256 };
// v, -eta s sigma, sigma, whether sigma is 1; of m members -eta s 2^(1 - m) d, the level d = sum of
// 2^(m - k) sigma_k, and its code (d + 2^m - 1) / 2, whose bits are whether the sigma_k are 1
enum Output { DECODED, SIGNED, SIGMA, FIRES };

struct SignGD {
  Space space;
  Operand x[ARGUMENTS];  // inputs of each step, then tensors that are parameters of f
  Operand x_start[ARGUMENTS];
  float *x_last[ARGUMENTS];  // spike view: x integrates the input, from x_start on; else NULL
  Operand v, scale, zones;   // scale: data is NULL where it is in eta, zones where all are zone
  void *y;                   // [steps, neurons]
  float *v_seq;              // [steps, neurons], or NULL
  void *spikes;              // [steps, neurons] bytes, whether it fires or the code, or NULL; with
                             // dead zones ints: the members with 1, and those with -1 << 16
  float *v_last;             // [neurons]
  int steps, fires_at_tie, signs, sparse, output, input_type, output_type, far;
  float zone;
  float parameters[PARAMETERS];
  float eta[STEPS];
};

// One step from v to ``after``, which may be v, and sigma unless NULL. sizes: NULL where all are eta.
template <class Function, bool tie>
DEVICE void signgd_step(const float *const *in, const float *parameters, float eta,
                        const float *sizes, int lanes, const float *v, float *after,
                        float *sigma) {
#define DECIDE                                                   \
  float x[Function::arguments];                                  \
  for (int k = 0; k < Function::arguments; ++k) x[k] = in[k][i]; \
  const float target = Function::of(x, parameters);              \
  const bool fires = tie ? v[i] >= target : v[i] > target
  if (sigma) {
    FOR_LANES {
      DECIDE;
      after[i] = v[i] + (fires ? -sizes[i] : sizes[i]);
      sigma[i] = fires ? 1.0f : -1.0f;
    }
  } else if (sizes) {
    FOR_LANES {
      DECIDE;
      after[i] = v[i] + (fires ? -sizes[i] : sizes[i]);
    }
  } else {
    FOR_LANES {
      DECIDE;
      after[i] = v[i] + (fires ? -eta : eta);
    }
  }
#undef DECIDE
}

// The same with a dead zone
template <class Function>
DEVICE void signgd_silent(const float *const *in, const float *parameters, const Zones &z, int lanes,
                          const float *v, float *after, float *sigma) {
#define DECIDE(size, zone)                                              \
  float x[Function::arguments];                                         \
  for (int k = 0; k < Function::arguments; ++k) x[k] = in[k][i];        \
  const float r = v[i] - Function::of(x, parameters);                   \
  const float bound = (zone) * (size);                                  \
  after[i] = v[i] - fired(r, bound, size)
  if (!z.sizes && !sigma) {
    const float size = z.size, zone = z.zone;
    FOR_LANES {
      DECIDE(size, zone);
    }
  } else if (!z.sizes) {
    const float size = z.size, zone = z.zone;
    FOR_LANES {
      DECIDE(size, zone);
      sigma[i] = fired(r, bound, 1.0f);
    }
  } else if (!sigma) {
    FOR_LANES {
      DECIDE(z.sizes[i], z.zones[i]);
    }
  } else {
    FOR_LANES {
      DECIDE(z.sizes[i], z.zones[i]);
      sigma[i] = fired(r, bound, 1.0f);
    }
  }
#undef DECIDE
}

// f(x), against which all members of a step decide
template <class Function>
DEVICE void signgd_target(const float *const *in, const float *parameters, int lanes,
                          float *target) {
  FOR_LANES {
    float x[Function::arguments];
    for (int k = 0; k < Function::arguments; ++k) x[k] = in[k][i];
    target[i] = Function::of(x, parameters);
  }
}

// The signs of m members, of which each halves the step; ``level`` d unless NULL, sizes as above.
template <int m, bool tie>
DEVICE void signgd_signs(const float *target, float eta, const float *sizes, int lanes,
                         const float *v, float *after, float *level) {
#define SIGNS(first)                                                   \
  const float f = target[i], whole = first;                            \
  float u = v[i], d = 0.0f, part = 1.0f;                               \
  for (int k = 0; k < m; ++k) {                                        \
    const bool fires = tie ? u >= f : u > f;                           \
    const float size = whole * part; /* exact, or rounded once */      \
    u = u + (fires ? -size : size);                                    \
    d = 2.0f * d + (fires ? 1.0f : -1.0f);                             \
    part = part * 0.5f;                                                \
  }                                                                    \
  after[i] = u
  if (level) {
    FOR_LANES {
      SIGNS(sizes[i]);
      level[i] = d;
    }
  } else if (sizes) {
    FOR_LANES {
      SIGNS(sizes[i]);
    }
  } else {
    FOR_LANES {
      SIGNS(eta);
    }
  }
#undef SIGNS
}

#if LANES == 1
#define SIGNS_OF(a) signgd_signs<MEMBERS, TIE>
#else
#define SIGNS_OF(a) (a.fires_at_tie ? signs_of<true>(MEMBERS) : signs_of<false>(MEMBERS))
typedef void (*Signs)(const float *, float, const float *, int, const float *, float *, float *);
template <bool tie>
Signs signs_of(int members) {
  static const Signs of[] = {signgd_signs<2, tie>, signgd_signs<3, tie>, signgd_signs<4, tie>,
                             signgd_signs<5, tie>, signgd_signs<6, tie>, signgd_signs<7, tie>,
                             signgd_signs<8, tie>};
  return of[members - 2];
}
#endif

// One step of all members, arguments as those of signgd_step
template <class Step>
DEVICE void signgd_members(const SignGD &a, const Step &step, const float *const *in, float eta,
                           const float *sizes, int lanes, const float *v, float *after,
                           float *sigma) {
  if (MEMBERS == 1) {
    step.of(in, a.parameters, eta, sizes, lanes, v, after, sigma);
  } else {
    ALIGNED float target[PART];
    const float *here[ARGUMENTS];
    for (int done = 0; done < lanes; done += PART) {
      const int some = lanes - done < PART ? lanes - done : (int)PART;
      for (int k = 0; k < step.arguments; ++k) here[k] = in[k] + done;
      step.target(here, a.parameters, some, target);
      SIGNS_OF(a)(target, eta, sizes ? sizes + done : 0, some, v + done, after + done,
                  sigma ? sigma + done : 0);
    }
  }
}

// The same where members may be silent; code: NULL, or where it goes
template <class Step>
DEVICE void signgd_sparse_members(const SignGD &a, const Step &step, const float *const *in,
                                  const Zones &zones, int lanes, const float *v, float *after,
                                  float *sigma, int *code) {
#if LANES > 1
  if (MEMBERS == 1 && zones.regular && !zones.mixed && !code) {
    step.silent(in, a.parameters, zones, lanes, v, after, sigma);
    return;
  }
#endif
  ALIGNED float target[PART], start[PART];
  const float *here[ARGUMENTS];
  for (int done = 0; done < lanes; done += PART) {
    const int some = lanes - done < PART ? lanes - done : (int)PART;
    for (int k = 0; k < step.arguments; ++k) here[k] = in[k] + done;
    step.target(here, a.parameters, some, target);
    const float *from = v + done;
    float *to = after + done, *level = sigma ? sigma + done : 0;
    if (from == to) {
      for (int i = 0; i < some; ++i) start[i] = from[i];
      from = start;
    }
    Zones z = zones;
    if (z.sizes) z.sizes += done, z.zones += done;
#if LANES > 1
    if (z.nearest && z.regular && !code && signgd_nearest(z, MEMBERS, target, some, from, to, level)) continue;
#endif
    int *bits = code ? code + done : 0;
    SPARSE_OF(a, z)(z, target, some, from, to, level, bits);
    if (z.mixed)
      signgd_where_dense(z, MEMBERS, FIRES_AT_TIE, target, some, from, to, level, bits);
  }
}

// Step: ``arguments``, how many the function has, ``of``, its signgd_step, and ``target``
template <class Step>
DEVICE void signgd_block(const SignGD &a, const Step step, index_t n, int lanes) {
  ALIGNED float v[LANES], scales[LANES], zones[LANES], sizes[LANES], sigma[LANES], buffer[LANES];
  ALIGNED float x[ARGUMENTS][LANES];
  const float *in[ARGUMENTS], *scale = 0, *from;
  index_t place[ARGUMENTS];
  const float *before = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, v);
  if (SCALED) {
    const index_t p = place_of(a.scale, a.space, n);
    scale = fetch(a.scale, a.space, FLOAT32, p, n, 0, lanes, scales);
  }
  Zones zone = {0.0f, a.zone, 0, 0, false, false, false};
  if (SPARSE == 2) {
    const index_t p = place_of(a.zones, a.space, n);
    zone.zones = fetch(a.zones, a.space, FLOAT32, p, n, 0, lanes, zones);
  } else if (SPARSE && SCALED) {
    FOR_LANES zones[i] = a.zone;
    zone.zones = zones;
  }
  if (zone.zones) zone.sizes = sizes;
#if LANES > 1
  Range range_of_scales = {1.0f, 1.0f}, range_of_zones = {a.zone, a.zone};
  if (SPARSE && SCALED) range_of_scales = range_of(scale, lanes);
  if (SPARSE == 2) range_of_zones = range_of(zone.zones, lanes);
  // NaN: one is negative, as a learned one may come to be, or NaN
  zone.mixed = SPARSE == 2 && !(range_of_zones.least > 0.0f && range_of_zones.most >= 0.0f);
  zone.nearest = !zone.mixed && nearest_holds(MEMBERS, range_of_zones.most);
#else
  zone.mixed = SPARSE == 2 && !(zone.zones[0] > 0.0f);
#endif
  for (int k = 0; k < step.arguments; ++k) {
    place[k] = place_of(a.x[k], a.space, n);
    if (INTEGRATES(k)) {
      const index_t p = place_of(a.x_start[k], a.space, n);
      from = fetch(a.x_start[k], a.space, FLOAT32, p, n, 0, lanes, buffer);
      FOR_LANES x[k][i] = from[i];
    }
  }

  // what networks run: the output is the state, read again from there unless it leaves the cache
  const bool plain =
      LANES > 1 && OUTPUT == DECODED && OUTPUT_TYPE == FLOAT32 && !KEEP_SPIKES && !KEEP_V;
  const float last = 1.0f / (float)(1 << (MEMBERS - 1));  // the last member's part of a step
  UNROLLED for (int t = 0; t < a.steps; ++t) {
    for (int k = 0; k < step.arguments; ++k) {
      if (INTEGRATES(k)) {
        from = fetch(a.x[k], a.space, INPUT_TYPE, place[k], n, t, lanes, buffer);
        FOR_LANES x[k][i] += from[i];
        in[k] = x[k];
      } else if (LANES == 1 || t == 0 || a.x[k].time_stride) {
        // what does not change with time stays where it was found in the first step
        in[k] = fetch(a.x[k], a.space, INPUT_TYPE, place[k], n, t, lanes, x[k]);
      }
    }
    const float eta = a.eta[t];
    const index_t first = t * a.space.neurons + n;
    if (SCALED) FOR_LANES sizes[i] = eta * scale[i];
    if (!SCALED && (SPARSE == 2 || !plain)) FOR_LANES sizes[i] = eta;
    zone.size = eta;
#if LANES > 1
    zone.regular = are_regular(range_of_scales, eta, MEMBERS);
#endif
    if (plain) {
      float *y = (float *)a.y + first, *after = a.far >= STREAMED ? v : y;
      const int part = a.far ? (int)PART : lanes;
      for (int done = 0; done < lanes; done += part) {
        const int some = lanes - done < part ? lanes - done : part;
        const float *here[ARGUMENTS];
        for (int k = 0; k < step.arguments; ++k) {
          here[k] = in[k] + done;
          if (a.far && a.x[k].linear) prefetch(here[k] + a.x[k].time_stride, some);
        }
        const float *size = SCALED ? sizes + done : 0;
        Zones some_zones = zone;
        if (zone.zones) some_zones.sizes += done, some_zones.zones += done;
        if (SPARSE)
          signgd_sparse_members(a, step, here, some_zones, some, before + done, after + done, 0, 0);
        else
          signgd_members(a, step, here, eta, size, some, before + done, after + done, 0);
        if (a.far >= STREAMED) stream(y + done, v + done, some);
      }
      before = after;
      continue;
    }
    if (SPARSE)
      signgd_sparse_members(a, step, in, zone, lanes, before, v, sigma,
                            KEEP_SPIKES ? (int *)a.spikes + first : 0);
    else
      signgd_members(a, step, in, eta, sizes, lanes, before, v, sigma);
    before = v;
    const float top = (float)((1 << MEMBERS) - 1);  // of the codes and, for one member, of sigma
    if (KEEP_SPIKES && !SPARSE) {
      unsigned char *spikes = (unsigned char *)a.spikes + first;
      FOR_LANES spikes[i] = (unsigned char)(int)((sigma[i] + top) * 0.5f);
    }
    if (KEEP_V) FOR_LANES a.v_seq[first + i] = v[i];
    if (OUTPUT == SIGNED)
      FOR_LANES sigma[i] = -(sigma[i] * (sizes[i] * last));
    else if (OUTPUT == FIRES)
      FOR_LANES sigma[i] = (sigma[i] + top) * 0.5f;
    write(a.y, first, OUTPUT_TYPE, OUTPUT == DECODED ? v : sigma, lanes);
  }

  FOR_LANES a.v_last[n + i] = before[i];
  for (int k = 0; k < step.arguments; ++k)
    if (INTEGRATES(k)) FOR_LANES a.x_last[k][n + i] = x[k][i];
}
