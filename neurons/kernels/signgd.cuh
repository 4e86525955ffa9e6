// A sequence of steps of signGD neurons: scan(signgd_step, ...) of neurons/signgd.py, which in the
// spike view integrates its input first.
#pragma once
#include "functions.cuh"
#include "values.cuh"

enum { ARGUMENTS = 4, PARAMETERS = 8, STEPS = 256 };
enum Output { DECODED, SIGNED, SIGMA, FIRES };  // v, -eta s sigma, sigma, whether sigma is 1

struct SignGD {
  Space space;
  Operand x[ARGUMENTS];  // inputs of each step, then tensors that are parameters of f
  Operand x_start[ARGUMENTS];
  float *x_last[ARGUMENTS];  // spike view: x integrates the input, from x_start on; else NULL
  Operand v, scale;          // scale: data is NULL where it is in eta
  void *y;                   // [steps, neurons]
  float *v_seq;              // [steps, neurons], or NULL
  signed char *spikes;       // [steps, neurons] 1 where it fires, or NULL
  float *v_last;             // [neurons]
  int steps, fires_at_tie, output, input_type, output_type, far;
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

// Step: ``arguments``, how many the function has, and ``of``, its signgd_step
template <class Step>
DEVICE void signgd_block(const SignGD &a, const Step step, index_t n, int lanes) {
  ALIGNED float v[LANES], scale[LANES], sizes[LANES], sigma[LANES], buffer[LANES];
  ALIGNED float x[ARGUMENTS][LANES];
  const float *in[ARGUMENTS];
  index_t place[ARGUMENTS];
  const float *from = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, buffer);
  FOR_LANES v[i] = from[i];
  if (SCALED) {
    const index_t p = place_of(a.scale, a.space, n);
    from = fetch(a.scale, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES scale[i] = from[i];
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
    if (SCALED) FOR_LANES sizes[i] = eta * scale[i];
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
        step.of(here, a.parameters, eta, size, some, before + done, after + done, 0);
        if (a.far >= STREAMED) stream(y + done, v + done, some);
      }
      before = after;
      continue;
    }
    if (!SCALED) FOR_LANES sizes[i] = eta;
    step.of(in, a.parameters, eta, sizes, lanes, v, v, sigma);
    if (KEEP_SPIKES) FOR_LANES a.spikes[first + i] = sigma[i] > 0.0f;
    if (KEEP_V) FOR_LANES a.v_seq[first + i] = v[i];
    if (OUTPUT == SIGNED)
      FOR_LANES sigma[i] = -(sigma[i] * sizes[i]);
    else if (OUTPUT == FIRES)
      FOR_LANES sigma[i] = sigma[i] > 0.0f ? 1.0f : 0.0f;
    write(a.y, first, OUTPUT_TYPE, OUTPUT == DECODED ? v : sigma, lanes);
  }

  FOR_LANES a.v_last[n + i] = before[i];
  for (int k = 0; k < step.arguments; ++k)
    if (INTEGRATES(k)) FOR_LANES a.x_last[k][n + i] = x[k][i];
}
