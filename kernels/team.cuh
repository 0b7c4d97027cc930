// Teams of threads: TEAM threads (a power of two) that work on one row and reduce over it. Up to 32
// are a part of a warp, and a block of 128 threads has several; larger teams are the block.
#include "common.cuh"

template <class C> __device__ __forceinline__ C swap_lanes(C value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

template <int TEAM> struct Team {
  static constexpr int BLOCK = TEAM <= 32 ? 128 : TEAM;
  static constexpr int ROWS = BLOCK / TEAM;  // rows of a block at a time
  // For __launch_bounds__: 512 threads of a multiprocessor leave each 128 registers. Left to itself
  // ptxas 13 spills some kernels at 64 or 80.
  static constexpr int BLOCKS = 512 / BLOCK;
  static __device__ __forceinline__ int lane() { return int(threadIdx.x) % TEAM; }
  static __device__ __forceinline__ int row() { return int(threadIdx.x) / TEAM; }
};

template <class Op, class... Others, class C>
__device__ __forceinline__ void exchange(C* values, int lanes) {
  values[0] = Op::of(values[0], swap_lanes(values[0], lanes));
  if constexpr (sizeof...(Others) > 0) exchange<Others...>(values + 1, lanes);
}

// Several values at once, each with its own operation (Sum, Max), over the threads of a team that
// is a part of a warp; all of them get the results. All threads of the block call this.
template <int TEAM, class... Ops, class C>
__device__ __forceinline__ void reduce_team(C (&values)[sizeof...(Ops)]) {
#pragma unroll
  for (int lanes = TEAM / 2; lanes; lanes /= 2) exchange<Ops...>(values, lanes);
}

// The same over a block. Two halves of `scratch`, each of SLOTS numbers per warp, take turns: who
// writes one again has passed the barrier before which all had read it.
template <int TEAM, class... Ops, int SLOTS, class C>
__device__ __forceinline__ void reduce_team(C (&values)[sizeof...(Ops)],
                                            C (&scratch)[2][SLOTS][TEAM / 32], int& turn) {
  constexpr int COUNT = sizeof...(Ops), WARPS = TEAM / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto& part = scratch[turn];
  turn ^= 1;
  reduce_team<32, Ops...>(values);
  if (lane == 0)
#pragma unroll
    for (int k = 0; k < COUNT; ++k) part[k][warp] = values[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < COUNT; ++k) values[k] = part[k][lane % WARPS];
  reduce_team<WARPS, Ops...>(values);
}
