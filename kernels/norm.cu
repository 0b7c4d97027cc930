// The norm of all elements of a list of tensors, in two steps (gpugrad/codegen/cuda_lists.py).
//
// Defines: ELEMENT, a type; CAPACITY, how many tensors a table holds; TERM(v), what an element
// contributes; REDUCE (Sum, Max or Min); ROOT(v), what the total becomes.
// Launch: `norm_of_chunks` one block of 256 threads per chunk of 16384 elements, `norm_of_norms` one
// block of 1024. Sums have a fixed order: within a thread in steps of the block, then over the
// block, then over chunks.
#include "multi_tensor.cuh"

typedef ELEMENT T;
typedef Compute<T> C;
typedef Tensors<1, CAPACITY> Table;
constexpr int WIDTH = sizeof(T) > 4 ? 2 : 4;

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

// norms[first + block]: what a chunk contributes.
extern "C" __global__ void __launch_bounds__(256)
norm_of_chunks(const __grid_constant__ Table tensors, double* norms, long long first) {
  __shared__ C scratch[32];
  const Chunk chunk = chunk_of(tensors, blockIdx.x);
  Accumulate sum = {REDUCE::template identity<C>()};
  for_each_pack<WIDTH>(part<T>(tensors, 0, chunk), chunk.size, sum);
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
