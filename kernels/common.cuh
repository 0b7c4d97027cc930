// Reductions of a warp and of a block. Every thread takes part and gets the result.
#include "types.cuh"

template <class Op, class T> __device__ __forceinline__ T reduce_warp(T v) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}

// `scratch` holds 32 elements of shared memory and may be used again right after the call. The
// number of threads is a multiple of 32.
template <class Op, class T> __device__ __forceinline__ T reduce_block(T v, T* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = reduce_warp<Op>(v);
  if (warps == 1) return v;
  if (!lane) scratch[warp] = v;
  __syncthreads();
  v = lane < warps ? scratch[lane] : Op::template identity<T>();
  v = reduce_warp<Op>(v);
  __syncthreads();
  return v;
}
