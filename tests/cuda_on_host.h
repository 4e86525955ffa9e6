// What CUDA C has and C++ has not, so that a source of gpu.py compiles for a CPU and its threads run
// one after the other. Half types take the integer path, since __CUDA_ARCH__ is not defined.
#define __CUDACC__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define sqrtf __builtin_sqrtf
#define fabsf __builtin_fabsf
#define floorf __builtin_floorf

struct ThreadIndex {
  unsigned x;
};
static ThreadIndex threadIdx, blockIdx, blockDim;

template <class T>
static inline T __ldg(const T *pointer) {
  return *pointer;
}

static inline int __float_as_int(float value) {
  int bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static inline float __int_as_float(int bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

template <class Arguments>
static void launch_on_host(void (*kernel)(Arguments), unsigned blocks, unsigned threads,
                           const void *arguments) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
      kernel(*(const Arguments *)arguments);
}
