#pragma once
#include "platform.cuh"

// Elementary functions in float32 that give the same bits on every GPU and CPU, NaN payloads aside:
// only IEEE + - * /, comparisons and integer operations. Not to be compiled with fused
// multiply-adds, fast math or subnormals flushed to zero.
//
// Largest error found, in units of the last place of the exact value (subnormal results too):
// exp 0.91, expm1 1.26, log1p 1.52, tanh 1.06; sigmoid 2.49 where exp(-x) is finite.
// Largest difference to torch 2.13 on the CPU, in units of the last place of the smaller value:
// exp, expm1 and tanh 1, log1p 2, sigmoid 4. Infinities and NaN are those of torch.

DEVICE unsigned bits_of(float x) {
#ifdef __CUDACC__
  return (unsigned)__float_as_int(x);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

DEVICE float float_of(unsigned bits) {
#ifdef __CUDACC__
  return __int_as_float((int)bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

constexpr unsigned SIGN_BIT = 0x80000000u;
constexpr unsigned INFINITY_BITS = 0x7f800000u;
constexpr float LOG2_E = 1.44269502f;
constexpr float LN2_HIGH = 0.693145752f;  // 15 bits: an integer up to 511 times it is exact
constexpr float LN2_LOW = 1.42860677e-06f;
// Adding ROUNDER rounds to an integer, which is then in the low bits of the sum.
constexpr float ROUNDER = 12582912.0f;
constexpr unsigned ROUNDER_BITS = 0x4b400000u;

// A ternary on masks: on a real one g++ may specialise what follows and then not vectorise.
DEVICE float choose(bool condition, float yes, float no) {
  const unsigned mask = 0u - (unsigned)condition;
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

// min(sum, ROUNDER + n) on the bits of a sum with ROUNDER, infinity and NaN included.
DEVICE unsigned sum_at_most(float sum, unsigned n) {
  const int bits = (int)bits_of(sum);
  const int limit = (int)(ROUNDER_BITS + n);
  return (unsigned)(bits < limit ? bits : limit);
}

// exp(r) - 1 - r for |r| <= ln(2) / 2: r^2 times a polynomial of degree 4.
DEVICE float exp_tail(float r) {
  const float r2 = r * r;
  const float low = 0.49999994f + 0.166665152f * r;
  const float high = (0.0416680835f + 0.00836934894f * r) + 0.00138403999f * r2;
  return r2 * (low + high * r2);
}

// exp(x - n ln(2)); the low part of n ln(2) enters the leading term after the rest.
DEVICE float exp_reduced(float x, float n) {
  const float high = x - n * LN2_HIGH;
  const float low = n * LN2_LOW;
  return 1.0f + (high + (exp_tail(high - low) - low));
}

// 2^n exp(x - n ln(2)), n the integer nearest to x / ln(2); 2^n in two factors, so that only the
// last product rounds to a subnormal.
DEVICE float exp_of(float x) {
  const float rounder = ROUNDER + 254.0f;
  const unsigned sum = sum_at_most(x * LOG2_E + rounder, 254u + 128u);
  const unsigned half = sum >> 1;
  const float y = exp_reduced(x, float_of(sum) - rounder) * float_of(half << 23);
  return choose(x < -104.0f, 0.0f, y * float_of((sum - half) << 23));
}

// 2^n - 1 + 2^n r + 2^n (exp(r) - 1 - r), n and r as in exp_of; half of it, as 2^128 overflows.
DEVICE float expm1_of(float x) {
  const float rounder = ROUNDER + 126.0f;
  const unsigned sum = sum_at_most(x * LOG2_E + rounder, 126u + 128u);
  const float n = float_of(sum) - rounder;
  const float high = x - n * LN2_HIGH;
  const float low = n * LN2_LOW;
  const float tail = exp_tail(high - low) - low;
  const float scale = float_of(sum << 23);
  const float half = ((scale - 0.5f) + scale * high) + scale * tail;
  const float y = choose(x < -20.0f, -1.0f, half + half);
  return choose((bits_of(x) & ~SIGN_BIT) < 0x33000000u, x, y);
}

// 1 + x = 2^n (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1): n ln(2) + f - f^2 / 2 + f^3 times
// a polynomial of degree 7; what the sum 1 + x rounds off is added to f. For x > -1 or NaN.
DEVICE float log1p_of(float x) {
  const float u = 1.0f + x;
  const float back = u - x;
  const float lost = (1.0f - back) + (x - (u - back));
  const unsigned sqrt_half = 0x3f3504f3u;
  const unsigned shifted = bits_of(u) + (0x3f800000u - sqrt_half);
  const int n = (int)(shifted >> 23) - 127;
  const float m = float_of((shifted & 0x007fffffu) + sqrt_half) - 1.0f;
  const float correction = lost * float_of((unsigned)(127 - (n < 64 ? n : 64)) << 23);
  const float f = m + correction;
  const float f2 = f * f;
  const float f4 = f2 * f2;
  const float q0 = (0.333333641f - 0.250009865f * f) + (0.200001225f - 0.166178867f * f) * f2;
  const float q4 = (0.142109975f - 0.132109269f * f) + (0.127543256f - 0.0752903819f * f) * f2;
  const float k = (float)n;
  const float tail = 0.5f * f2 - ((f2 * f) * (q0 + q4 * f4) + k * LN2_LOW);
  const float y = (k * LN2_HIGH + m) - (tail - correction);
  return choose(x < float_of(INFINITY_BITS), y, x);
}

// |x| < 0.78: x + x^3 times a polynomial of degree 5 in x^2; else 1 - 2 / (exp(2 |x|) + 1).
DEVICE float tanh_of(float x) {
  const float z = x * x;
  const float z2 = z * z;
  const float q0 = -0.333333045f + 0.133324042f * z;
  const float q2 = -0.0538673475f + 0.0213561524f * z;
  const float q4 = -0.00749424938f + 0.00163458264f * z;
  const float near = x + x * (z * (q0 + (q2 + q4 * z2) * z2));
  const float rounder = ROUNDER + 127.0f;
  const float a = float_of(bits_of(x) & ~SIGN_BIT);
  const unsigned sum = sum_at_most(a * (2.0f * LOG2_E) + rounder, 127u + 40u);
  const float e = exp_reduced(a + a, float_of(sum) - rounder) * float_of(sum << 23);
  const float far = 1.0f - 2.0f / (e + 1.0f);
  return float_of(bits_of(choose(a < 0.78f, near, far)) | (bits_of(x) & SIGN_BIT));
}

// As torch computes it, so 0 where exp(-x) overflows.
DEVICE float sigmoid_of(float x) {
  return 1.0f / (1.0f + exp_of(-x));
}
