// Sums of rows that share a key: the gradient of an embedding, scatter_add. Deterministic.
//
// The keys are sorted (radix_sort.cu); `position` says which row of `values` a sorted key is of.
// `sum_chunks` adds up chunks of 32 sorted rows, `join_chunks` what reaches over the end of a chunk:
// rows of a key are added in the order of their positions, 32 by 32, whatever the launch. A thread
// takes LANES neighbouring columns of a chunk; any number of blocks.
//
// Compiled with ELEMENT, the type of elements, SUM, in which they are added up, LANES, and COUNT,
// which holds the number of threads. `out` (rows, columns) holds zeros.
#include "common.cuh"

#define CHUNK 32

typedef ELEMENT Element;
typedef SUM Total;
typedef COUNT Count;

__device__ __forceinline__ int widen(int x) { return x; }
__device__ __forceinline__ long long widen(long long x) { return x; }
template <> struct ComputeOf<int> { typedef int type; };
template <> struct ComputeOf<long long> { typedef long long type; };

struct Sums {
  Total at[LANES];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < LANES; ++k) at[k] = Total(0);
  }
  template <class V> __device__ __forceinline__ void add(const V* from) {
    const Pack<V, LANES> pack = load_pack<LANES>(from);
#pragma unroll
    for (int k = 0; k < LANES; ++k) at[k] += Total(widen(pack.at[k]));
  }
  template <class V> __device__ __forceinline__ void store(V* to) const {
    Pack<V, LANES> pack;
#pragma unroll
    for (int k = 0; k < LANES; ++k) pack.at[k] = narrow<V>(at[k]);
    store_pack(to, pack);
  }
};

// Total chunk's sum of a key that begins in an earlier chunk goes to parts[chunk, 0], of one that goes
// on in the next chunk to parts[chunk, 1], any other to its row of `out`.
extern "C" __global__ void __launch_bounds__(256)
    sum_chunks(const Element* __restrict__ values, const unsigned* __restrict__ key,
               const int* __restrict__ position, Element* __restrict__ out, Total* __restrict__ parts,
               long long count, long long columns, long long rows) {
  const Count packs = (Count)(columns / LANES);
  const Count total = (Count)((count + CHUNK - 1) / CHUNK) * packs;
  for (Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x; i < total;
       i += (Count)gridDim.x * blockDim.x) {
    const long long chunk = i / packs, column = (long long)(i - (Count)chunk * packs) * LANES;
    const long long first = chunk * CHUNK, end = min(first + CHUNK, count);
    unsigned here = key[first];
    bool begun = first > 0 && key[first - 1] == here;
    Sums sums;
    sums.clear();
    for (long long p = first; p < end && here < rows; ++p) {
      sums.add(values + position[p] * columns + column);
      const unsigned next = p + 1 < count ? key[p + 1] : 0xffffffffu;
      if (p + 1 < end && next == here) continue;
      if (begun) {
        sums.store(parts + 2 * chunk * columns + column);
      } else if (next == here) {
        sums.store(parts + (2 * chunk + 1) * columns + column);
      } else {
        sums.store(out + here * columns + column);
      }
      sums.clear();
      here = next;
      begun = false;
    }
  }
}

// The chunk in which a key begins that goes on beyond it adds up the parts of this key.
extern "C" __global__ void __launch_bounds__(256)
    join_chunks(const unsigned* __restrict__ key, Element* __restrict__ out,
                const Total* __restrict__ parts, long long count, long long columns, long long rows) {
  const Count packs = (Count)(columns / LANES);
  const Count total = (Count)((count + CHUNK - 1) / CHUNK) * packs;
  for (Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x; i < total;
       i += (Count)gridDim.x * blockDim.x) {
    const long long chunk = i / packs, column = (long long)(i - (Count)chunk * packs) * LANES;
    const long long first = chunk * CHUNK;
    long long end = first + CHUNK;
    if (end >= count) continue;
    const unsigned here = key[end - 1];
    const bool begun = first > 0 && key[first - 1] == here;
    if (key[end] != here || begun || here >= rows) continue;
    Sums sums;
    sums.clear();
    sums.add(parts + (2 * chunk + 1) * columns + column);
    for (long long next = chunk + 1; end < count && key[end] == here; ++next, end += CHUNK)
      sums.add(parts + 2 * next * columns + column);
    sums.store(out + here * columns + column);
  }
}
