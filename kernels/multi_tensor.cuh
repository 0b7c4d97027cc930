// Kernels over lists of tensors: where a block's part of them lies, and memory access.
//
// A launch takes the addresses and sizes of up to TENSORS tensors of each of LISTS lists in one
// struct by value (kernel arguments hold 4 KB), so that nothing is copied to the device before it.
// Tensors at the same position of the lists have the same size. Blocks work on CHUNK neighbouring
// elements of one tensor each; which, follows from sizes alone, so that sums over lists have a
// fixed order. Idea of tables by value: NVIDIA's apex, csrc/multi_tensor_apply.cuh.
#include "scalar.cuh"
#include "common.cuh"

#define CHUNK 16384

template <int LISTS, int TENSORS> struct Tensors {
  unsigned long long at[LISTS][TENSORS];  // addresses
  long long size[TENSORS];                // in elements
  int first_chunk[TENSORS + 1];           // chunks of the tensors before
  int count;
};

// A block's part of the tensors at one position of the lists.
struct Chunk {
  int tensor, size;
  long long start;  // in elements
};

template <int LISTS, int TENSORS>
__device__ __forceinline__ Chunk chunk_of(const Tensors<LISTS, TENSORS>& tensors, int block) {
  int low = 0, high = tensors.count;  // first_chunk[low] <= block < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) >> 1;
    if (tensors.first_chunk[middle] <= block) low = middle; else high = middle;
  }
  const long long start = (long long)(block - tensors.first_chunk[low]) * CHUNK;
  const long long rest = tensors.size[low] - start;
  return {low, rest < CHUNK ? (int)rest : CHUNK, start};
}

// The part of a tensor of list LIST that belongs to a chunk.
template <class T, int LISTS, int TENSORS>
__device__ __forceinline__ T* part(const Tensors<LISTS, TENSORS>& tensors, int list, Chunk chunk) {
  return reinterpret_cast<T*>(tensors.at[list][chunk.tensor]) + chunk.start;
}

template <int WIDTH, class T> __device__ __forceinline__ bool is_aligned(const T* p) {
  return reinterpret_cast<unsigned long long>(p) % (sizeof(T) * WIDTH) == 0;
}

// Calls body.pack for packs of WIDTH elements of an aligned chunk, and body.one for the others.
template <int WIDTH, class T, class Body>
__device__ __forceinline__ void for_each_pack(T* p, int size, Body& body) {
  const int packed = is_aligned<WIDTH>(p) ? size / WIDTH * WIDTH : 0;
  for (int i = threadIdx.x * WIDTH; i < packed; i += blockDim.x * WIDTH) body.pack(p + i);
  for (int i = packed + threadIdx.x; i < size; i += blockDim.x) body.one(p[i]);
}
