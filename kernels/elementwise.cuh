// The frame of generated elementwise kernels (gpugrad/codegen/cuda.py).
//
// Launch: any number of blocks; threads loop over packs of LANES neighbouring elements of the inner
// dimension. Generated code works out where a pack lies in every array, loads it through Values,
// computes one element after the other and stores a Pack for each output.
#include "scalar.cuh"

template <class Index> __device__ __forceinline__ Index first_index() {
  return Index(blockIdx.x) * Index(blockDim.x) + Index(threadIdx.x);
}
template <class Index> __device__ __forceinline__ Index index_step() {
  return Index(gridDim.x) * Index(blockDim.x);
}

// LANES values in the type of arithmetic. Lanes beyond `count` hold 0 and are never stored.
template <int LANES, class V> struct Values {
  V at[LANES];
  // neighbours in memory; a whole pack lies at a multiple of its size
  template <class T> __device__ __forceinline__ void load_pack(const T* from, int count) {
    if (LANES > 1 && count == LANES) {
      const Pack<T, LANES> pack = ::load_pack<LANES>(from);
#pragma unroll
      for (int k = 0; k < LANES; ++k) at[k] = widen(pack.at[k]);
    } else {
      load(from, 1, count);
    }
  }
  template <class T, class Step>
  __device__ __forceinline__ void load(const T* from, Step step, int count) {
#pragma unroll
    for (int k = 0; k < LANES; ++k) at[k] = k < count ? V(widen(from[k * step])) : V(0);
  }
};

template <class T, int LANES>
__device__ __forceinline__ void store(T* to, const Pack<T, LANES>& values, int count) {
  if (LANES > 1 && count == LANES) {
    store_pack(to, values);
  } else {
#pragma unroll
    for (int k = 0; k < LANES; ++k)
      if (k < count) to[k] = values.at[k];
  }
}
