// Unscaling of gradients and norms of lists of tensors (gpugrad/codegen/cuda_lists.py).
//
// Defines: ELEMENT, a type; CAPACITY, how many tensors a table holds; for norms TERM(v),
// what an element contributes, REDUCE (Sum, Max or Min) and ROOT(v), what the total becomes.
// Launch of `unscale` and `norm_of_chunks`: one block of 256 threads per chunk of 16384 elements;
// of `norm_of_norms`: one block of 1024 threads. Sums have a fixed order: within a thread in steps
// of the block, then over the block, then over chunks.
#include "multi_tensor.cuh"

typedef ELEMENT T;
typedef Compute<T> C;
typedef Tensors<1, CAPACITY> Table;
constexpr int WIDTH = sizeof(T) > 4 ? 2 : 4;

template <class Body> __device__ __forceinline__ void for_each_pack(T* p, int size, Body body) {
  const int packed = is_aligned<WIDTH>(p) ? size / WIDTH * WIDTH : 0;
  for (int i = threadIdx.x * WIDTH; i < packed; i += blockDim.x * WIDTH) body.pack(p + i);
  for (int i = packed + threadIdx.x; i < size; i += blockDim.x) body.one(p[i]);
}

#ifdef TERM
struct Accumulate {
  C total;
  __device__ __forceinline__ void one(T x) {
    const C v = widen(x);
    total = REDUCE::of(total, C(TERM(v)));
  }
  __device__ __forceinline__ void pack(const T* p) {
    const Pack<T, WIDTH> values = load_pack<WIDTH>(p);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) one(values.at[k]);
  }
};

struct AccumulateInto {  // a reference, because for_each_pack takes its body by value
  Accumulate& to;
  __device__ __forceinline__ void one(T x) { to.one(x); }
  __device__ __forceinline__ void pack(const T* p) { to.pack(p); }
};

// norms[first + block]: what a chunk contributes.
extern "C" __global__ void __launch_bounds__(256)
norm_of_chunks(const __grid_constant__ Table tensors, double* norms, long long first) {
  __shared__ C scratch[32];
  const Chunk chunk = chunk_of(tensors, blockIdx.x);
  Accumulate sum = {REDUCE::template identity<C>()};
  for_each_pack(part<T>(tensors, 0, chunk), chunk.size, AccumulateInto{sum});
  const C total = reduce_block<REDUCE>(sum.total, scratch);
  if (!threadIdx.x) norms[first + blockIdx.x] = double(total);
}

// The norm of everything, from what all chunks contribute. `T` is the type of the result.
extern "C" __global__ void __launch_bounds__(1024)
norm_of_norms(const double* norms, long long count, T* out) {
  __shared__ double scratch[32];
  double total = REDUCE::template identity<double>();
  for (long long i = threadIdx.x; i < count; i += blockDim.x) total = REDUCE::of(total, norms[i]);
  total = reduce_block<REDUCE>(total, scratch);
  if (!threadIdx.x) out[0] = narrow<T>(C(ROOT(total)));
}
#else
struct Unscale {
  float inverse;
  bool* finite;
  __device__ __forceinline__ T scaled(T x) {
    const C v = widen(x);
    if (!op_isfinite(v)) *finite = false;
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
  bool finite = true;
  for_each_pack(part<T>(tensors, 0, chunk), chunk.size, Unscale{*inverse, &finite});
  if (__syncthreads_or(!finite) && !threadIdx.x) atomicExch(found, 1.0f);
}
#endif
