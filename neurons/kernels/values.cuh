// Reading and writing the values of a block of neurons, whatever their type and layout.
#pragma once
#include "math.cuh"

enum { DIMENSIONS = 6 };
enum Type { FLOAT32, FLOAT16, BFLOAT16, INT8 };

// The neurons of one time step, numbered in the order in which the outputs lie in memory.
struct Space {
  index_t neurons;
  index_t shape[DIMENSIONS];  // the last dimension is contiguous in the outputs
  int dimensions;
};

// A tensor that is read: neuron n of step t lies at t * time_stride + (its index) . strides
struct Operand {
  const void *data;
  index_t time_stride;          // 0 where the value is constant in time
  index_t strides[DIMENSIONS];  // 0 where it is broadcast
  int linear;                   // whether the index of neuron n is n
};

// What is the same for all neurons and steps of a call. In a kernel for a GPU these are constants,
// which gpu.py compiles it for; a library for CPUs reads them from the arguments.
#ifndef INPUT_TYPE
#define INPUT_TYPE a.input_type
#define OUTPUT_TYPE a.output_type
#define OUTPUT a.output
#define INTEGRATES(k) (a.x_last[k] != 0)
#define MEMBERS a.signs
#define SPARSE a.sparse
#define SCALED (a.scale.data != 0)
#define COUNTS a.counts
#define BY_CHANNEL (a.thetas.data != 0)
#define TAKES_BACK (a.sent_last != 0)
#define KEEP_H (a.h_seq != 0)
#define KEEP_V (a.v_seq != 0)
#define KEEP_SPIKES (a.spikes != 0)
#define SURROGATE a.surrogate
#define DETACH_RESET a.detach_reset
#define SIGNED_OUTPUT a.signed_output
#else
#define INTEGRATES(k) ((k) < INTEGRATED)
#endif

// IEEE conversions, rounded to nearest even, on GPUs the instruction
DEVICE unsigned short half_of(float value) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned bits = bits_of(value);
  const unsigned sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  // adding 0.5 lines up the bits of what is subnormal in half precision
  const unsigned subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const unsigned normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  unsigned half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds beyond the largest number
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return (unsigned short)(sign | half);
#endif
}

DEVICE float from_half(unsigned short half) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  const unsigned exponent = half & 0x7c00u, magnitude = half & 0x7fffu;
  unsigned bits = (magnitude << 13) + 0x38000000u;
  bits = exponent == 0x7c00u ? bits + 0x38000000u : bits;
  float value = float_of(bits);
  value = exponent ? value : (float)magnitude * 5.9604644775390625e-8f;  // 2^-24
  return half & 0x8000u ? -value : value;
#endif
}

DEVICE unsigned short bfloat_of(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short bfloat;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bfloat) : "f"(value));
  return bfloat;
#else
  const unsigned bits = bits_of(value);
  const unsigned rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return (unsigned short)(value != value ? 0x7fc0u : rounded);
#endif
}

DEVICE float from_bfloat(unsigned short half) {
  return float_of((unsigned)half << 16);
}

DEVICE float read(const void *data, index_t i, int type) {
  if (type == FLOAT16) return from_half(LOAD((const unsigned short *)data + i));
  if (type == BFLOAT16) return from_bfloat(LOAD((const unsigned short *)data + i));
  return LOAD((const float *)data + i);
}

// How far from the processor a sequence lies. FETCHED: the next step's input is fetched while a step
// is computed part by part. STREAMED: besides, outputs go to memory past the caches.
enum Far { NEAR, FETCHED, STREAMED };
enum { PART = 256 };

DEVICE void prefetch(const float *values, int lanes) {
#if LANES > 1
  for (int i = 0; i < lanes; i += 16) __builtin_prefetch(values + i, 0, 2);
#endif
}

// Values to memory that nobody reads soon: past the caches, where the processor can
NOT_INLINE void stream(float *to, const float *values, int lanes) {
#if LANES == 1
#elif defined(__AVX512F__)
  typedef float vector __attribute__((vector_size(64)));
#define STREAM(p, v) _mm512_stream_ps(p, (__m512)v)
#elif defined(__AVX__)
  typedef float vector __attribute__((vector_size(32)));
#define STREAM(p, v) _mm256_stream_ps(p, (__m256)v)
#elif defined(__SSE2__)
  typedef float vector __attribute__((vector_size(16)));
#define STREAM(p, v) _mm_stream_ps(p, (__m128)v)
#endif
  int i = 0;
#ifdef STREAM
  const int width = sizeof(vector) / 4;
  for (; i < lanes && (unsigned long)(to + i) % sizeof(vector); ++i) to[i] = values[i];
  for (; i + width <= lanes; i += width) {
    vector several;
    __builtin_memcpy(&several, values + i, sizeof several);
    STREAM(to + i, several);
  }
#endif
  for (; i < lanes; ++i) to[i] = values[i];
}

// ``lanes`` values to consecutive places
NOT_INLINE void write(void *data, index_t first, int type, const float *values, int lanes) {
  if (type == FLOAT32) {
    float *to = (float *)data + first;
    FOR_LANES to[i] = values[i];
  } else if (type == FLOAT16) {
    unsigned short *to = (unsigned short *)data + first;
    FOR_LANES to[i] = half_of(values[i]);
  } else if (type == BFLOAT16) {
    unsigned short *to = (unsigned short *)data + first;
    FOR_LANES to[i] = bfloat_of(values[i]);
  } else {
    signed char *to = (signed char *)data + first;
    FOR_LANES to[i] = (signed char)(int)values[i];
  }
}

// Where neuron n lies within a step of the operand
NOT_INLINE index_t place_of(const Operand &o, const Space &space, index_t n) {
  if (o.linear) return n;
  index_t place = 0;
  ROLLED for (int d = space.dimensions - 1; d > 0; --d) {
    const index_t outer = n / space.shape[d];
    place += (n - outer * space.shape[d]) * o.strides[d];
    n = outer;
  }
  return place + n * o.strides[0];
}

// The values of neurons n, n + 1, ... at step t: in ``buffer``, or where they lie if they lie so.
// ``place`` is place_of(o, space, n).
NOT_INLINE const float *fetch(const Operand &o, const Space &space, int type, index_t place, index_t n,
                          int t, int lanes, float *buffer) {
  const index_t step = t * o.time_stride;
#if LANES == 1
  buffer[0] = read(o.data, step + place, type);
  return buffer;
#else
  if (o.linear) {
    if (type == FLOAT32) {
      return (const float *)o.data + step + place;
    }
    const unsigned short *from = (const unsigned short *)o.data + step + place;
    if (type == FLOAT16)
      FOR_LANES buffer[i] = from_half(from[i]);
    else
      FOR_LANES buffer[i] = from_bfloat(from[i]);
    return buffer;
  }
  // row by row along the last dimension
  const int last = space.dimensions - 1;
  const index_t stride = o.strides[last];
  index_t index[DIMENSIONS], rest = n;
  for (int d = last; d > 0; --d) {
    index[d] = rest % space.shape[d];
    rest /= space.shape[d];
  }
  index[0] = rest;
  index_t at = step + place;
  for (int done = 0; done < lanes;) {
    const index_t left = space.shape[last] - index[last];
    const int row = left < lanes - done ? (int)left : lanes - done;
    if (stride == 0) {
      const float value = read(o.data, at, type);
      for (int i = 0; i < row; ++i) buffer[done + i] = value;
    } else if (type == FLOAT32) {
      const float *from = (const float *)o.data + at;
      for (int i = 0; i < row; ++i) buffer[done + i] = from[i * stride];
    } else {
      for (int i = 0; i < row; ++i) buffer[done + i] = read(o.data, at + i * stride, type);
    }
    done += row;
    at += row * stride;
    index[last] += row;
    for (int d = last; d > 0 && index[d] == space.shape[d]; --d) {
      at += o.strides[d - 1] - space.shape[d] * o.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
  return buffer;
#endif
}
