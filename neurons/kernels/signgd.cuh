// A sequence of steps of signGD neurons: scan(signgd_step, ...) of neurons/signgd/step.py, with a dead
// zone that of neurons/signgd/sparse.py. In the spike view it integrates its input first.
#pragma once
#include "functions.cuh"
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

// The step of m members of which each may be silent, as sparse_step rounds it. ``level`` and ``code``
// unless NULL.
template <int m>
DEVICE void signgd_sparse(const float *target, const float *sizes, const float *zones, int lanes,
                          const float *v, float *after, float *level, int *code) {
#define TERNARY(and_also)                                                             \
  const float size = sizes[i], bound = zones[i] * size, u = v[i];                     \
  float r = u - target[i], d = 0.0f, part = 1.0f;                                     \
  for (int k = 0; k < m; ++k) {                                                       \
    const float c = size * part, h = bound * part; /* exact, or rounded once */       \
    const unsigned fires = 0u - (unsigned)(fabsf(r) > h), sign = bits_of(r) & SIGN_BIT; \
    r = r - float_of((bits_of(c) | sign) & fires);                                    \
    d = 2.0f * d + float_of((bits_of(1.0f) | sign) & fires);                          \
    part = part * 0.5f;                                                               \
    and_also;                                                                         \
  }                                                                                   \
  after[i] = u - (size * (2.0f * part)) * d
  if (code) {
    FOR_LANES {
      unsigned fired = 0;
      TERNARY(fired = 2u * fired + (fires & (sign ? 0x10000u : 1u)));
      level[i] = d;
      code[i] = (int)fired;
    }
  } else if (level) {
    FOR_LANES {
      TERNARY();
      level[i] = d;
    }
  } else {
    FOR_LANES {
      TERNARY();
    }
  }
#undef TERNARY
}

// Of the lanes whose zone is 0, which fire at every step, in place of what signgd_sparse made there
NOT_INLINE void signgd_where_dense(int m, bool tie, const float *target, const float *sizes,
                                   const float *zones, int lanes, const float *v, float *after,
                                   float *level, int *code) {
  for (int i = 0; i < lanes; ++i) {
    if (zones[i] > 0.0f) continue;
    float u = v[i], part = 1.0f;
    int d = 0, fired = 0;
    for (int k = 0; k < m; ++k) {
      const bool fires = tie ? u >= target[i] : u > target[i];
      const float size = sizes[i] * part;
      u = u + (fires ? -size : size);
      d = 2 * d + (fires ? 1 : -1);
      fired = 2 * fired + (fires ? 1 : 0x10000);
      part = part * 0.5f;
    }
    after[i] = u;
    if (level) level[i] = (float)d;
    if (code) code[i] = fired;
  }
}

#if LANES == 1
#define SIGNS_OF(a) signgd_signs<MEMBERS, TIE>
#define SPARSE_OF(a) signgd_sparse<MEMBERS>
#define FIRES_AT_TIE TIE
#else
#define SIGNS_OF(a) (a.fires_at_tie ? signs_of<true>(MEMBERS) : signs_of<false>(MEMBERS))
#define SPARSE_OF(a) sparse_of(MEMBERS)
#define FIRES_AT_TIE a.fires_at_tie
typedef void (*Signs)(const float *, float, const float *, int, const float *, float *, float *);
typedef void (*Sparse)(const float *, const float *, const float *, int, const float *, float *,
                       float *, int *);

Sparse sparse_of(int members) {
  static const Sparse of[] = {signgd_sparse<1>,  signgd_sparse<2>,  signgd_sparse<3>,
                              signgd_sparse<4>,  signgd_sparse<5>,  signgd_sparse<6>,
                              signgd_sparse<7>,  signgd_sparse<8>,  signgd_sparse<9>,
                              signgd_sparse<10>, signgd_sparse<11>, signgd_sparse<12>};
  return of[members - 1];
}

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

// The same where members may be silent; all arguments but sigma and code are given
template <class Step>
DEVICE void signgd_sparse_members(const SignGD &a, const Step &step, const float *const *in,
                                  const float *sizes, const float *zones, bool mixed, int lanes,
                                  const float *v, float *after, float *sigma, int *code) {
  ALIGNED float target[PART];
  ALIGNED float start[PART];
  const float *here[ARGUMENTS];
  for (int done = 0; done < lanes; done += PART) {
    const int some = lanes - done < PART ? lanes - done : (int)PART;
    for (int k = 0; k < step.arguments; ++k) here[k] = in[k] + done;
    step.target(here, a.parameters, some, target);
    float *level = sigma ? sigma + done : 0;
    int *fired = code ? code + done : 0;
    const float *from = v + done;
    if (mixed) {
      for (int i = 0; i < some; ++i) start[i] = from[i];
      from = start;
    }
    SPARSE_OF(a)(target, sizes + done, zones + done, some, from, after + done, level, fired);
    if (mixed)
      signgd_where_dense(MEMBERS, FIRES_AT_TIE, target, sizes + done, zones + done, some, from,
                         after + done, level, fired);
  }
}

// Step: ``arguments``, how many the function has, ``of``, its signgd_step, and ``target``
template <class Step>
DEVICE void signgd_block(const SignGD &a, const Step step, index_t n, int lanes) {
  ALIGNED float v[LANES], scale[LANES], sizes[LANES], sigma[LANES], buffer[LANES];
  ALIGNED float x[ARGUMENTS][LANES], zones[LANES];
  const float *in[ARGUMENTS];
  index_t place[ARGUMENTS];
  const float *from = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, buffer);
  FOR_LANES v[i] = from[i];
  if (SCALED) {
    const index_t p = place_of(a.scale, a.space, n);
    from = fetch(a.scale, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES scale[i] = from[i];
  }
  bool mixed = false;  // whether some have no dead zone
  if (SPARSE == 1) FOR_LANES zones[i] = a.zone;
  if (SPARSE == 2) {
    const index_t p = place_of(a.zones, a.space, n);
    from = fetch(a.zones, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES zones[i] = from[i];
    for (int i = 0; i < lanes; ++i) mixed |= zones[i] == 0.0f;
  }
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
  const float *before = v;
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
    if (SCALED)
      FOR_LANES sizes[i] = eta * scale[i];
    else if (SPARSE)
      FOR_LANES sizes[i] = eta;
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
        if (SPARSE)
          signgd_sparse_members(a, step, here, sizes + done, zones + done, mixed, some,
                                before + done, after + done, 0, 0);
        else
          signgd_members(a, step, here, eta, size, some, before + done, after + done, 0);
        if (a.far >= STREAMED) stream(y + done, v + done, some);
      }
      before = after;
      continue;
    }
    if (!SCALED) FOR_LANES sizes[i] = eta;
    if (SPARSE)
      signgd_sparse_members(a, step, in, sizes, zones, mixed, lanes, v, v, sigma,
                            KEEP_SPIKES ? (int *)a.spikes + first : 0);
    else
      signgd_members(a, step, in, eta, sizes, lanes, v, v, sigma);
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
