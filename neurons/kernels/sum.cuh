// The running sum of a sequence, step by step: y(t) = y(t - 1) + x(t).
#pragma once
#include "values.cuh"

struct Sum {
  Space space;
  Operand x, start;
  float *y;  // [steps, neurons]
  int steps, input_type;
};

DEVICE void sum_block(const Sum &a, index_t n, int lanes) {
  ALIGNED float sum[LANES], buffer[LANES];
  const float *from =
      fetch(a.start, a.space, FLOAT32, place_of(a.start, a.space, n), n, 0, lanes, buffer);
  FOR_LANES sum[i] = from[i];
  const index_t place = place_of(a.x, a.space, n);
  UNROLLED for (int t = 0; t < a.steps; ++t) {
    from = fetch(a.x, a.space, INPUT_TYPE, place, n, t, lanes, buffer);
    float *y = a.y + t * a.space.neurons + n;
    FOR_LANES y[i] = sum[i] += from[i];
  }
}
