// Functions that the C expressions of the table of nonlinearities are made of, as torch computes
// them: operation by operation where each is rounded exactly, within 4 ulp where math.cuh is needed.
#pragma once
#include "math.cuh"

DEVICE float at_least(float x, float lowest) { return x < lowest ? lowest : x; }

DEVICE float at_most(float x, float highest) { return x > highest ? highest : x; }

// NaN where one of them is
DEVICE float maximum(float x, float y) { return x > y || x != x ? x : y; }

DEVICE float minimum(float x, float y) { return x < y || x != x ? x : y; }

DEVICE float relu6(float x) { return at_most(at_least(x, 0.0f), 6.0f); }

DEVICE float elu(float x, float alpha, float scale, float input_scale) {
  const float below = expm1_of(x * input_scale) * (alpha * scale);
  return x <= 0.0f ? below : x * scale;
}

// exp for x <= 0 with results down to 2^-125 only: half the operations of exp_of
DEVICE float exp_below(float x) {
  const float rounder = ROUNDER + 127.0f;
  const float a = at_least(x, -86.0f), shifted = a * LOG2_E + rounder;
  const float n = shifted - rounder, r = (a - n * LN2_HIGH) - n * LN2_LOW;
  return (1.0f + (r + exp_tail(r))) * float_of(bits_of(shifted) << 23);
}

// 1 - t P(t) exp(-x^2) with t = 1 / (1 + 0.4 |x|): the error is absolute, about 2^-23
DEVICE float erf_near(float x) {
  const float size = fabsf(x), t = 1.0f / (1.0f + 0.4f * size);
  float p = -0.20025974721179357f;
  p = p * t + 0.7091493828763147f;
  p = p * t - 0.3709112742959133f;
  p = p * t + 0.46827685935625357f;
  p = p * t + 0.16182248587240344f;
  p = p * t + 0.23192226574637836f;
  const float erf = 1.0f - p * t * exp_below(-(size * size));
  return float_of(bits_of(erf) | (bits_of(x) & SIGN_BIT));
}

// 1 + erf cancels below 0, so the unit of the error of gelu is an ulp of x / 2
DEVICE float gelu_none(float x) {
  return x * 0.5f * (1.0f + erf_near(x * 0.70710678118654752f));
}

DEVICE float gelu_tanh(float x) {
  const float inner = 0.79788456080286536f * (x + 0.044715f * (x * x * x));
  return 0.5f * x * (1.0f + tanh_of(inner));
}

// tanh(log1p(e)) = n / (n + 2) with n = e (e + 2); it is 1 from 20 on
DEVICE float mish(float x) {
  const float e = exp_of(at_most(x, 20.0f));
  const float n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}

DEVICE float softplus(float x, float beta, float threshold) {
  const float scaled = x * beta;
  return scaled > threshold ? x : log1p_of(exp_of(scaled)) / beta;
}

// #{k <= levels : h >= k theta} with k theta rounded as the thresholds are, all of them for NaN, as
// torch.bucketize counts. ``slightly_less`` is 1 / theta rounded down by a few ulp (levels < 2^16):
// the first guess is the count or one less.
DEVICE float count_of(float h, float theta, float slightly_less, float levels) {
  const float guess = floorf(h * slightly_less);
  const float top = levels - 1.0f, none = levels - levels;  // a constant 0 would hide the maximum
  const float below = guess < top ? guess : top, n = below > none ? below : none;
  const float next = n + 1.0f;
  return h < next * theta ? n : next;
}

// #{k < levels : -h > k theta}, none of them for NaN: the spikes that a signed neuron would take back.
// The first guess is the count, or one or two less.
DEVICE float taken_back(float h, float theta, float slightly_less, float levels) {
  const float below = 0.0f - h, guess = floorf(below * slightly_less), top = levels - 1.0f;
  const float whole = guess > 0.0f ? guess : 0.0f, k = whole < top ? whole : top;
  const float one = below > k * theta ? 1.0f : 0.0f;
  const float two = below > (k + 1.0f) * theta ? 1.0f : 0.0f, n = k + one + two;
  return n < levels ? n : levels;
}

DEVICE float slightly_less(float value) { return value * 0.99999905f; }  // 8 * 2^-23

DEVICE float qcfs(float x, float v_threshold, float levels) {
  const float theta = v_threshold / levels, h = x + 0.5f * theta;
  // for any number of levels that float32 counts: the quotient is at most one off
  float n = at_least(floorf(h / theta) - 1.0f, 0.0f);
  n = n < levels ? n : levels;
  n = n < levels && !(h < (n + 1.0f) * theta) ? n + 1.0f : n;
  n = n < levels && !(h < (n + 1.0f) * theta) ? n + 1.0f : n;
  return n * theta;
}
