// What differs between the compilers that read these sources: NVRTC for a GPU, a C++ compiler for
// a CPU. A worker handles a block of LANES neurons: one on a GPU, where a worker is a thread, and
// as many as stay in the first cache on a CPU, where the loops over lanes are vectorised.
#pragma once

typedef long long index_t;  // tensors may have more than 2^31 elements

#ifdef __CUDACC__
#pragma nv_diag_suppress 177  // a kernel uses few of the functions
#define DEVICE static __device__ __forceinline__
#define NOT_INLINE DEVICE  // where it would only make the code larger
#define LANES 1
#define FOR_LANES for (int i = 0; i < lanes; ++i)
#define LOAD(pointer) __ldg(pointer)  // lets the loads of later steps pass the stores of earlier ones
#define ALIGNED
#define UNROLLED _Pragma("unroll 4")  // so that there are such loads
#define ROLLED _Pragma("unroll 1")    // what is rarely used stays small
#else
#define DEVICE static inline __attribute__((always_inline))
#define NOT_INLINE static __attribute__((noinline))
#define LANES 4096
#define FOR_LANES _Pragma("GCC ivdep") for (int i = 0; i < lanes; ++i)
#define LOAD(pointer) (*(pointer))
#define ALIGNED alignas(64)
#define UNROLLED
#define ROLLED
#define sqrtf __builtin_sqrtf
#define fabsf __builtin_fabsf
#define floorf __builtin_floorf
#endif
