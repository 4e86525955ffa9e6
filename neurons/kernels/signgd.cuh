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
  int steps, fires_at_tie, output, input_type, output_type, past_cache;
  float parameters[PARAMETERS];
  float eta[STEPS];
};

// One step from v to ``after``, which may be v, and sigma unless NULL. sizes: NULL where all are eta.
template <class Function, bool tie>
DEVICE void signgd_step(const float *const *in, const float *parameters, float eta,
                        const float *sizes, int lanes, const float *v, float *after,
                        float *sigma) {
#define FIRES                                                    \
  float x[Function::arguments];                                  \
  for (int k = 0; k < Function::arguments; ++k) x[k] = in[k][i]; \
  const float target = Function::of(x, parameters);              \
  const bool fires = tie ? v[i] >= target : v[i] > target
  if (sigma) {
    FOR_LANES {
      FIRES;
      after[i] = v[i] + (fires ? -sizes[i] : sizes[i]);
      sigma[i] = fires ? 1.0f : -1.0f;
    }
  } else if (sizes) {
    FOR_LANES {
      FIRES;
      after[i] = v[i] + (fires ? -sizes[i] : sizes[i]);
    }
  } else {
    FOR_LANES {
      FIRES;
      after[i] = v[i] + (fires ? -eta : eta);
    }
  }
#undef FIRES
}

// Step: ``arguments``, how many the function has, and ``of``, its signgd_step
template <class Step>
DEVICE void signgd_block(const SignGD &a, const Step step, index_t n, int lanes) {
  float v[LANES], scale[LANES], sizes[LANES], sigma[LANES], x[ARGUMENTS][LANES], buffer[LANES];
  const float *in[ARGUMENTS];
  index_t place[ARGUMENTS];
  const float *from = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, buffer);
  FOR_LANES v[i] = from[i];
  if (a.scale.data) {
    const index_t p = place_of(a.scale, a.space, n);
    from = fetch(a.scale, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES scale[i] = from[i];
  }
  for (int k = 0; k < step.arguments; ++k) {
    place[k] = place_of(a.x[k], a.space, n);
    if (a.x_last[k]) {
      const index_t p = place_of(a.x_start[k], a.space, n);
      from = fetch(a.x_start[k], a.space, FLOAT32, p, n, 0, lanes, buffer);
      FOR_LANES x[k][i] = from[i];
    }
  }

  // what networks run: the output is the state, read again from there unless it leaves the cache
  const bool plain =
      LANES > 1 && a.output == DECODED && OUTPUT_TYPE == FLOAT32 && !a.spikes && !a.v_seq;
  const float *before = v;
  for (int t = 0; t < a.steps; ++t) {
    for (int k = 0; k < step.arguments; ++k) {
      if (a.x_last[k]) {
        from = fetch(a.x[k], a.space, INPUT_TYPE, place[k], n, t, lanes, buffer);
        FOR_LANES x[k][i] += from[i];
        in[k] = x[k];
      } else if (t == 0 || a.x[k].time_stride) {
        // what does not change with time stays where it was found in the first step
        in[k] = fetch(a.x[k], a.space, INPUT_TYPE, place[k], n, t, lanes, x[k]);
      }
    }
    const float eta = a.eta[t];
    const index_t first = t * a.space.neurons + n;
    if (a.scale.data) FOR_LANES sizes[i] = eta * scale[i];
    if (plain && a.past_cache) {
      for (int done = 0; done < lanes; done += PART) {
        const int some = lanes - done < PART ? lanes - done : PART;
        const float *part[ARGUMENTS];
        for (int k = 0; k < step.arguments; ++k) {
          part[k] = in[k] + done;
          if (a.x[k].linear) prefetch(part[k] + a.x[k].time_stride, some);
        }
        const float *size = a.scale.data ? sizes + done : 0;
        step.of(part, a.parameters, eta, size, some, v + done, v + done, 0);
        stream((float *)a.y + first + done, v + done, some);
      }
      continue;
    }
    if (plain) {
      float *y = (float *)a.y + first;
      step.of(in, a.parameters, eta, a.scale.data ? sizes : 0, lanes, before, y, 0);
      before = y;
      continue;
    }
    if (!a.scale.data) FOR_LANES sizes[i] = eta;
    step.of(in, a.parameters, eta, sizes, lanes, v, v, sigma);
    if (a.spikes) FOR_LANES a.spikes[first + i] = sigma[i] > 0.0f;
    if (a.v_seq) FOR_LANES a.v_seq[first + i] = v[i];
    if (a.output == SIGNED)
      FOR_LANES sigma[i] = -(sigma[i] * sizes[i]);
    else if (a.output == FIRES)
      FOR_LANES sigma[i] = sigma[i] > 0.0f ? 1.0f : 0.0f;
    write(a.y, first, OUTPUT_TYPE, a.output == DECODED ? v : sigma, lanes);
  }

  FOR_LANES a.v_last[n + i] = before[i];
  for (int k = 0; k < step.arguments; ++k)
    if (a.x_last[k]) FOR_LANES a.x_last[k][n + i] = x[k][i];
}
