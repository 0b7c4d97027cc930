// Gradients divided by a loss scale, and whether one of them is infinite or NaN, in one pass
// (gpugrad/codegen/cuda_lists.py).
//
// Defines: ELEMENT, a type; CAPACITY, how many tensors a table holds.
// Launch: one block of 256 threads per chunk of 16384 elements.
#include "multi_tensor.cuh"

typedef ELEMENT T;
typedef Compute<T> C;
typedef Tensors<1, CAPACITY> Table;
constexpr int WIDTH = sizeof(T) > 4 ? 2 : 4;

struct Unscale {
  float inverse;
  bool finite;
  __device__ __forceinline__ T scaled(T x) {
    const C v = widen(x);
    if (!op_isfinite(v)) finite = false;
    return narrow<T>(inverse == 1.0f ? v : op_mul(v, C(inverse)));
  }
  __device__ __forceinline__ void one(T& x) { x = scaled(x); }
  __device__ __forceinline__ void pack(T* p) {
    Pack<T, WIDTH> values = load_pack<WIDTH>(p);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) values.at[k] = scaled(values.at[k]);
    store_pack(p, values);
  }
};

// x *= inverse for every element; found becomes 1 if one of them is infinite or NaN.
extern "C" __global__ void __launch_bounds__(256)
unscale(const __grid_constant__ Table tensors, const float* inverse, float* found) {
  const Chunk chunk = chunk_of(tensors, blockIdx.x);
  Unscale body = {*inverse, true};
  for_each_pack<WIDTH>(part<T>(tensors, 0, chunk), chunk.size, body);
  if (__syncthreads_or(!body.finite) && !threadIdx.x) atomicExch(found, 1.0f);
}
