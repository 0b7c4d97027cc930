// Random arrays and dropout from a Philox stream (gpugrad/codegen/cuda_random.py).
//
// STORAGE is the type of the results. Launch: any grid of 256 threads; threads loop over groups of four
// words of the stream, which begins at `position`. No two threads share a result.
#include "philox.cuh"

typedef STORAGE T;

#define FOR_GROUPS(group, count)                                                        \
  for (long long group = (long long)blockIdx.x * blockDim.x + threadIdx.x; group < (count); \
       group += (long long)gridDim.x * blockDim.x)

// the largest number below 1: rounding to a narrow type may give 1, which the interval excludes
template <class T> __device__ __forceinline__ float below_one() { return 1.f; }
template <> __device__ __forceinline__ float below_one<__half>() { return 1.f - 0x1p-11f; }
template <> __device__ __forceinline__ float below_one<__nv_bfloat16>() { return 1.f - 0x1p-8f; }

template <class V> struct Uniform {  // float: a word for each of four numbers
  static constexpr int PER_GROUP = 4;
  static __device__ __forceinline__ float of(const Words& w, int k) { return unit(w.at[k]); }
};
template <> struct Uniform<double> {  // two words for each of two numbers
  static constexpr int PER_GROUP = 2;
  static __device__ __forceinline__ double of(const Words& w, int k) {
    return k ? unit(w.at[2], w.at[3]) : unit(w.at[0], w.at[1]);
  }
};
typedef Uniform<Compute<T>> Unit;
const int N = Unit::PER_GROUP;

extern "C" __global__ void __launch_bounds__(256) uniform(
    T* out, long long n, unsigned long long seed, long long position, const long long* base) {
  const Place from = place(seed, position, base);
  FOR_GROUPS(group, (n + N - 1) / N) {
    const Words words = words_from(from.seed, from.position + 4 * group);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const long long i = group * N + k;
      if (i < n) out[i] = narrow<T>(min(Unit::of(words, k), Compute<T>(below_one<T>())));
    }
  }
}

// Angles are given in half turns: no reduction of large angles, whose code would spill registers.
__device__ __forceinline__ void box_muller(float u, float v, float& a, float& b) {
  const float radius = sqrtf(-2.f * log1pf(-u));
  sincospif(2.f * v, &b, &a);
  a *= radius;
  b *= radius;
}
__device__ __forceinline__ void box_muller(double u, double v, double& a, double& b) {
  const double radius = sqrt(-2.0 * log1p(-u));
  sincospi(2.0 * v, &b, &a);
  a *= radius;
  b *= radius;
}

// Standard normal by Box and Muller's transform: number i of the first half and number i of the
// second half of the results come from numbers i of two halves of the stream.
extern "C" __global__ void __launch_bounds__(256) normal(
    T* out, long long n, unsigned long long seed, long long position, const long long* base) {
  const Place from = place(seed, position, base);
  const long long pairs = (n + 1) / 2;
  FOR_GROUPS(group, (pairs + N - 1) / N) {
    const Words radii = words_from(from.seed, from.position + 4 * group);
    const Words angles = words_from(from.seed, from.position + (4 / N) * pairs + 4 * group);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const long long i = group * N + k;
      Compute<T> a, b;
      box_muller(Unit::of(radii, k), Unit::of(angles, k), a, b);
      if (i < pairs) out[i] = narrow<T>(a);
      if (i < pairs && pairs + i < n) out[pairs + i] = narrow<T>(b);
    }
  }
}

// y = x / (1 - p) where a number of the stream is at least p, else 0 * x; the same call with a
// cotangent for x is the gradient
extern "C" __global__ void __launch_bounds__(256) dropout(
    const T* x, T* y, long long n, double p, unsigned long long seed, long long position,
    const long long* base) {
  const Place from = place(seed, position, base);
  const Compute<T> scale = Compute<T>(1.0 / (1.0 - p));
  FOR_GROUPS(group, (n + 3) / 4) {
    const Words words = words_from(from.seed, from.position + 4 * group);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const long long i = group * 4 + k;
      if (i < n) y[i] = narrow<T>(widen(x[i]) * (unit(words.at[k]) >= float(p) ? scale : 0));
    }
  }
}
