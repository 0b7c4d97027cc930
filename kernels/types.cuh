// Types, conversions and what reductions need to know of a sum or a maximum: shared by every kernel.
//
// Storage types are float, double, __half, __nv_bfloat16 and bool; arithmetic is done in
// Compute<T>: double for double, float for everything else.
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

template <class T> struct ComputeOf { typedef float type; };
template <> struct ComputeOf<double> { typedef double type; };
template <class T> using Compute = typename ComputeOf<T>::type;

// ---- conversions: widen(x) to the type of arithmetic, narrow<T>(x) back with rounding to nearest

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ bool widen(bool x) { return x; }

template <class T> struct Narrow {
  static __device__ __forceinline__ T of(Compute<T> x) { return (T)x; }
};
template <> struct Narrow<__half> {
  static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); }
};
template <> struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <> struct Narrow<bool> {
  static __device__ __forceinline__ bool of(bool x) { return x; }
};
template <class T, class U> __device__ __forceinline__ T narrow(U x) { return Narrow<T>::of(x); }

// ---- N neighbouring elements, moved as one access of up to 16 bytes

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& v) {
  *reinterpret_cast<Pack<T, N>*>(to) = v;
}

// ---- operations of reductions

struct Sum {
  template <class T> static __device__ __forceinline__ T of(T a, T b) { return a + b; }
  template <class T> static __device__ __forceinline__ T identity() { return T(0); }
};
struct Max {  // NaN wins, as in NumPy
  template <class T> static __device__ __forceinline__ T of(T a, T b) {
    return a >= b || a != a ? a : b;
  }
  template <class T> static __device__ __forceinline__ T identity() { return T(-INFINITY); }
};
struct Min {
  template <class T> static __device__ __forceinline__ T of(T a, T b) {
    return a <= b || a != a ? a : b;
  }
  template <class T> static __device__ __forceinline__ T identity() { return T(INFINITY); }
};
