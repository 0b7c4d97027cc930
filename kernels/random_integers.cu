// Uniform random integers in [low, low + range) from 64 bits each (gpugrad/codegen/cuda_random.py).
//
// STORAGE is the integer type. Launch: any grid of 256 threads, which loop over pairs of results.
#include "philox.cuh"

typedef STORAGE T;

extern "C" __global__ void __launch_bounds__(256) integers(
    T* out, long long n, long long low, unsigned long long range, unsigned long long seed,
    long long position, const long long* base) {
  const Place from = place(seed, position, base);
  for (long long group = (long long)blockIdx.x * blockDim.x + threadIdx.x; group < (n + 1) / 2;
       group += (long long)gridDim.x * blockDim.x) {
    const Words w = words_from(from.seed, from.position + 4 * group);
    T* to = out + 2 * group;
    to[0] = T((long long)(joined(w.at[0], w.at[1]) % range) + low);
    if (2 * group + 1 < n) to[1] = T((long long)(joined(w.at[2], w.at[3]) % range) + low);
  }
}
