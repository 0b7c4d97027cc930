// The frame of generated row kernels (gpugrad/codegen/cuda_rows.py): softmax, norms, losses.
//
// A team of TEAM threads (a power of two) works on one row. Up to 32 threads are a part of a warp,
// and a block of 128 threads has several teams; larger teams are the block. A thread takes every
// TEAM-th pack of WIDTH neighbouring columns. Short rows stay in its registers (PACKS packs of each
// array that several passes read), longer ones are read again in each pass.
//
// Launch: a block for each group of `step` rows. Which sums are added in which order depends on the
// shape alone.
#include "team.cuh"
#include "scalar.cuh"
#include "errors.cuh"

// Stores the sums of the rows of a block per column: `sums` are those of a thread's team. `scratch`
// has an element for each of these numbers if the block has several teams.
template <int TEAM, class P, int PACKS, int WIDTH, class C>
__device__ __forceinline__ void store_columns(P* out, C (&sums)[PACKS][WIDTH], int columns,
                                              C* scratch) {
  constexpr int ROWS = Team<TEAM>::ROWS, SPAN = TEAM * PACKS * WIDTH;
  const int lane = Team<TEAM>::lane(), row = Team<TEAM>::row();
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    const int column = (p * TEAM + lane) * WIDTH;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      if constexpr (ROWS > 1)
        scratch[row * SPAN + column + k] = sums[p][k];
      else if (column < columns)
        out[column + k] = narrow<P>(sums[p][k]);
    }
  }
  if constexpr (ROWS > 1) {
    __syncthreads();
    for (int column = threadIdx.x; column < columns; column += Team<TEAM>::BLOCK) {
      C sum = C(0);
      for (int r = 0; r < ROWS; ++r) sum += scratch[r * SPAN + column];
      out[column] = narrow<P>(sum);
    }
    __syncthreads();
  }
}

// Stores the sum of one number per team.
template <int TEAM, class P, class C>
__device__ __forceinline__ void store_total(P* out, C sum, C* scratch) {
  sum = reduce_block<Sum>(Team<TEAM>::lane() == 0 ? sum : C(0), scratch);
  if (threadIdx.x == 0) *out = narrow<P>(sum);
}
