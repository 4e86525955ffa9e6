// A sequence of steps of group neurons, scan(group_step, ...) or scan(signed_group_step, ...) of
// neurons/group.py, and the gradient of the first.
#pragma once
#include "functions.cuh"
#include "surrogates.cuh"
#include "values.cuh"

struct Group {
  Space space;
  Operand x, v, sent;  // sent: data NULL unless the neurons are signed
  Operand thetas;      // data NULL where all have ``theta``
  void *y;             // [steps, neurons]: n theta, or the count n if ``counts``
  float *h_seq;        // [steps, neurons] for the gradient, or NULL
  float *v_seq;        // [steps, neurons], or NULL
  float *v_last;       // [neurons]
  float *sent_last;    // [neurons], or NULL
  int steps, counts, input_type, output_type, far;
  float theta, members;
};

// h: NULL, or where v + x is kept for the gradient
NOT_INLINE void group_step(const float *x, float theta, float inverse, float members, int lanes,
                           float *v, float *y, float *h_out) {
  if (h_out) {
    FOR_LANES {
      const float h = v[i] + x[i], out = count_of(h, theta, inverse, members) * theta;
      h_out[i] = h;
      y[i] = out;
      v[i] = h - out;
    }
    return;
  }
  FOR_LANES {
    const float h = v[i] + x[i], out = count_of(h, theta, inverse, members) * theta;
    y[i] = out;
    v[i] = h - out;
  }
}

// The same where each neuron has its threshold; a signed one takes back what it has sent. sent: NULL
// where none are signed. counts: whether y is n
NOT_INLINE void group_step_each(const float *x, const float *theta, const float *inverse,
                                float members, bool counts, int lanes, float *v, float *sent,
                                float *y) {
  if (sent) {
    FOR_LANES {
      const float h = v[i] + x[i], most = sent[i];
      const float back = taken_back(h, theta[i], inverse[i], members);
      const float n =
          count_of(h, theta[i], inverse[i], members) - (back < most ? back : most);
      const float out = n * theta[i];
      v[i] = h - out;
      sent[i] = most + n;
      y[i] = choose(counts, n, out);
    }
    return;
  }
  FOR_LANES {
    const float h = v[i] + x[i];
    const float n = count_of(h, theta[i], inverse[i], members), out = n * theta[i];
    v[i] = h - out;
    y[i] = choose(counts, n, out);
  }
}

// Where each neuron has its threshold, or is signed
NOT_INLINE void group_block_each(const Group &a, index_t n, int lanes) {
  ALIGNED float v[LANES], theta[LANES], inverse[LANES], sent[LANES], y[LANES], buffer[LANES];
  const float *from = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, buffer);
  FOR_LANES v[i] = from[i];
  const index_t place = place_of(a.x, a.space, n);
  FOR_LANES theta[i] = a.theta;
  if (BY_CHANNEL) {
    const index_t p = place_of(a.thetas, a.space, n);
    from = fetch(a.thetas, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES theta[i] = from[i];
  }
  FOR_LANES inverse[i] = slightly_less(1.0f / theta[i]);
  if (TAKES_BACK) {
    const index_t p = place_of(a.sent, a.space, n);
    from = fetch(a.sent, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES sent[i] = from[i];
  }
  UNROLLED for (int t = 0; t < a.steps; ++t) {
    const float *x = fetch(a.x, a.space, INPUT_TYPE, place, n, t, lanes, buffer);
    const index_t first = t * a.space.neurons + n;
    const bool direct = LANES > 1 && OUTPUT_TYPE == FLOAT32 && a.far < STREAMED;
    const int part = LANES > 1 && a.far ? (int)PART : lanes;
    for (int done = 0; done < lanes; done += part) {
      const int some = lanes - done < part ? lanes - done : part;
      if (LANES > 1 && a.far && a.x.linear && INPUT_TYPE == FLOAT32)
        prefetch(x + done + a.x.time_stride, some);
      float *to = (float *)a.y + first + done, *out = direct ? to : y;
      group_step_each(x + done, theta + done, inverse + done, a.members, COUNTS, some, v + done,
                      TAKES_BACK ? sent + done : 0, out);
      if (direct) continue;
      if (LANES > 1 && OUTPUT_TYPE == FLOAT32)
        stream(to, y, some);
      else
        write(a.y, first + done, OUTPUT_TYPE, y, some);
    }
    if (KEEP_V) FOR_LANES a.v_seq[first + i] = v[i];
  }
  FOR_LANES a.v_last[n + i] = v[i];
  if (TAKES_BACK) FOR_LANES a.sent_last[n + i] = sent[i];
}

DEVICE void group_block_alike(const Group &a, index_t n, int lanes) {
  ALIGNED float v[LANES], y[LANES], buffer[LANES];
#if LANES > 1
  ALIGNED float kept[PART];
#else
  float *kept = 0;
#endif
  const float *from = fetch(a.v, a.space, FLOAT32, place_of(a.v, a.space, n), n, 0, lanes, buffer);
  FOR_LANES v[i] = from[i];
  const index_t place = place_of(a.x, a.space, n);
  const float theta = a.theta, inverse = slightly_less(1.0f / theta), members = a.members;
  const bool plain =
      LANES > 1 && OUTPUT_TYPE == FLOAT32 && !COUNTS && !KEEP_V;
  UNROLLED for (int t = 0; t < a.steps; ++t) {
    const float *x = fetch(a.x, a.space, INPUT_TYPE, place, n, t, lanes, buffer);
    const index_t first = t * a.space.neurons + n;
    if (plain) {
      const int part = a.far ? (int)PART : lanes;
      for (int done = 0; done < lanes; done += part) {
        const int some = lanes - done < part ? lanes - done : part;
        if (a.far && a.x.linear) prefetch(x + done + a.x.time_stride, some);
        float *to = (float *)a.y + first + done, *out = a.far >= STREAMED ? y : to;
        float *h_to = KEEP_H ? a.h_seq + first + done : 0;
        float *h = KEEP_H && a.far >= STREAMED ? kept : h_to;
        group_step(x + done, theta, inverse, members, some, v + done, out, h);
        if (a.far >= STREAMED) stream(to, y, some);
        if (a.far >= STREAMED && KEEP_H) stream(h_to, kept, some);
      }
      continue;
    }
    if (KEEP_H) FOR_LANES a.h_seq[first + i] = v[i] + x[i];
    FOR_LANES {
      const float h = v[i] + x[i];
      const float count = count_of(h, theta, inverse, members), out = count * theta;
      v[i] = h - out;
      y[i] = COUNTS ? count : out;
    }
    if (KEEP_V) FOR_LANES a.v_seq[first + i] = v[i];
    write(a.y, first, OUTPUT_TYPE, y, lanes);
  }
  FOR_LANES a.v_last[n + i] = v[i];
}

DEVICE void group_block(const Group &a, index_t n, int lanes) {
  if (BY_CHANNEL || TAKES_BACK)
    group_block_each(a, n, lanes);
  else
    group_block_alike(a, n, lanes);
}

struct GroupGradient {
  Space space;
  Operand h, y;        // h_seq, and the gradient of the output of each step
  Operand v_last;      // the gradient of the last v; data NULL for none
  void *x;             // [steps, neurons] the gradient of the input
  float *v;            // [neurons] the gradient of the first v
  int steps, surrogate, detach_reset, input_type, output_type, far;
  float theta, members, alpha;
};

// dn/dh is the sum of the surrogate over the members; v = h - n theta, y = n theta. The gradient of
// the input is that of v, which a step takes from after it to before it.
DEVICE void group_gradient_step(const GroupGradient &a, const float *h, const float *y, int lanes,
                                float *v, float *slope) {
  FOR_LANES slope[i] = 0.0f;
  for (float k = 1.0f; k <= a.members; k += 1.0f)
    add_surrogate(SURROGATE, a.alpha, h, k * a.theta, lanes, slope);
  const float reset = DETACH_RESET ? 0.0f : 1.0f;
  FOR_LANES v[i] = v[i] + (y[i] - reset * v[i]) * (slope[i] * a.theta);
}

DEVICE void group_gradient_block(const GroupGradient &a, index_t n, int lanes) {
  ALIGNED float v[LANES], slope[LANES], buffer[LANES], other[LANES];
  const index_t h_place = place_of(a.h, a.space, n), y_place = place_of(a.y, a.space, n);
  FOR_LANES v[i] = 0.0f;
  if (a.v_last.data) {
    const index_t p = place_of(a.v_last, a.space, n);
    const float *from = fetch(a.v_last, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES v[i] = from[i];
  }
  UNROLLED for (int t = a.steps - 1; t >= 0; --t) {
    const float *h = fetch(a.h, a.space, FLOAT32, h_place, n, t, lanes, buffer);
    const float *y = fetch(a.y, a.space, INPUT_TYPE, y_place, n, t, lanes, other);
    const index_t first = t * a.space.neurons + n;
    const int part = LANES > 1 ? (int)PART : lanes;
    for (int done = 0; done < lanes; done += part) {
      const int some = lanes - done < part ? lanes - done : part;
      if (LANES > 1 && a.far && a.h.linear) prefetch(h + done - a.h.time_stride, some);
      if (LANES > 1 && a.far && a.y.linear) prefetch(y + done - a.y.time_stride, some);
      group_gradient_step(a, h + done, y + done, some, v + done, slope);
      if (LANES > 1 && OUTPUT_TYPE == FLOAT32 && a.far >= STREAMED)
        stream((float *)a.x + first + done, v + done, some);
      else
        write(a.x, first + done, OUTPUT_TYPE, v + done, some);
    }
  }
  FOR_LANES a.v[n + i] = v[i];
}
