// Stable sort of unsigned keys with their positions: least significant digit first, 8 bits a pass.
//
// A pass is three launches: `count_digits` (a block of 256 threads per tile of 2048 keys), `scan`
// (a block per digit) and `move` (a block per tile); with one tile `move` alone. Every key's new
// place follows from counts, so that the result does not depend on the order in which blocks run.
// Source: Satish, Harris, Garland, "Designing efficient sorting algorithms for manycore GPUs", 2009;
// ranks within a warp by matching digits as in Merrill and Garland's Onesweep, 2022.

#define DIGITS 256
#define THREADS 256
#define WARPS (THREADS / 32)
#define ROUNDS 8                      // keys per thread
#define TILE (THREADS * ROUNDS)

__device__ __forceinline__ int digit_of(unsigned key, long long shift) {
  return (int)(key >> (int)shift) & (DIGITS - 1);
}

// Exclusive sum over the threads of a block of 256; `total` is the sum of all.
__device__ __forceinline__ unsigned exclusive_sum(unsigned v, unsigned* scratch, unsigned* total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  unsigned sum = v;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const unsigned below = __shfl_up_sync(0xffffffffu, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  unsigned before = 0, all = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    if (w < warp) before += scratch[w];
    all += scratch[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - v;
}

// counts[digit, tile] = keys of the tile with this digit
extern "C" __global__ void __launch_bounds__(THREADS)
    count_digits(const unsigned* __restrict__ keys, unsigned* __restrict__ counts,
                 long long count, long long shift) {
  __shared__ unsigned here[DIGITS];
  here[threadIdx.x] = 0;
  __syncthreads();
  const long long first = (long long)blockIdx.x * TILE;
#pragma unroll
  for (int r = 0; r < ROUNDS; ++r) {
    const long long i = first + r * THREADS + threadIdx.x;
    if (i < count) atomicAdd(&here[digit_of(keys[i], shift)], 1u);  // sums of integers: any order
  }
  __syncthreads();
  counts[(long long)threadIdx.x * gridDim.x + blockIdx.x] = here[threadIdx.x];
}

// Of block `digit`: counts[digit, tile] = keys with this digit in the tiles before; totals[digit]
extern "C" __global__ void __launch_bounds__(THREADS)
    scan(unsigned* __restrict__ counts, unsigned* __restrict__ totals, long long tiles) {
  __shared__ unsigned scratch[WARPS];
  unsigned* row = counts + blockIdx.x * tiles;
  unsigned before = 0;
  for (long long first = 0; first < tiles; first += THREADS) {
    const long long i = first + threadIdx.x;
    unsigned all;
    const unsigned v = i < tiles ? row[i] : 0u;
    const unsigned sum = exclusive_sum(v, scratch, &all);
    if (i < tiles) row[i] = before + sum;
    before += all;
  }
  if (!threadIdx.x) totals[blockIdx.x] = before;
}

// Write keys and positions in the order of a digit. In the first pass a key's position is its place
// (`positions` is not read). A warp takes 256 consecutive keys, 32 at a time.
extern "C" __global__ void __launch_bounds__(THREADS)
    move(const unsigned* __restrict__ keys, const int* __restrict__ positions,
         unsigned* __restrict__ sorted_keys, int* __restrict__ sorted_positions,
         const unsigned* __restrict__ counts, const unsigned* __restrict__ totals,
         long long count, long long shift, long long first_pass) {
  __shared__ unsigned seen[WARPS][DIGITS + 1];  // the last column counts places beyond the end
  __shared__ unsigned scratch[WARPS];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, thread = threadIdx.x;
  for (int w = 0; w < WARPS; ++w) seen[w][thread] = 0;
  if (thread < WARPS) seen[thread][DIGITS] = 0;
  __syncthreads();

  const long long first = (long long)blockIdx.x * TILE + warp * (32 * ROUNDS) + lane;
  unsigned key[ROUNDS], rank[ROUNDS];
#pragma unroll
  for (int r = 0; r < ROUNDS; ++r) {
    const long long i = first + r * 32;
    key[r] = i < count ? keys[i] : 0u;
    const int digit = i < count ? digit_of(key[r], shift) : DIGITS;
    const unsigned peers = __match_any_sync(0xffffffffu, digit);
    const unsigned below = __popc(peers & ((1u << lane) - 1u));
    rank[r] = seen[warp][digit] + below;  // keys of this digit that the warp has seen before
    __syncwarp();
    if (!below) seen[warp][digit] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();

  unsigned own = 0;  // of this thread's digit: keys in the warps before, then in the tile
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const unsigned n = seen[w][thread];
    seen[w][thread] = own;
    own += n;
  }
  unsigned all;
  unsigned start = exclusive_sum(gridDim.x == 1 ? own : totals[thread], scratch, &all);
  if (gridDim.x > 1) start += counts[(long long)thread * gridDim.x + blockIdx.x];
#pragma unroll
  for (int w = 0; w < WARPS; ++w) seen[w][thread] += start;
  __syncthreads();

#pragma unroll
  for (int r = 0; r < ROUNDS; ++r) {
    const long long i = first + r * 32;
    if (i < count) {
      const unsigned to = seen[warp][digit_of(key[r], shift)] + rank[r];
      sorted_keys[to] = key[r];
      sorted_positions[to] = first_pass ? (int)i : positions[i];
    }
  }
}
