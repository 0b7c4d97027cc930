// Places: where the elements that a kernel counts through lie in an array addressed by index arrays.
//
// x[i, :, j] and gather(x, axis, i) are the same to a kernel: the result is counted through in its
// own shape; the place of an element in x is a sum of a step for each of its coordinates and of a
// step for the value of each index array there.
#include "common.cuh"
#include "errors.cuh"

typedef INDEX Index;
typedef COUNT Count;

#define MOST_DIMS 8
#define MOST_INDICES 4

struct Places {  // as PLACES of gpugrad/codegen/cuda_index.py
  long long dims;
  long long size[MOST_DIMS];   // the shape that is counted through
  long long step[MOST_DIMS];   // in the addressed array, in elements
  long long other[MOST_DIMS];  // in an array that is read or written at the same time
  long long index_step[MOST_INDICES][MOST_DIMS];
  long long bound[MOST_INDICES];  // the size of the axis that an index array addresses
  long long scale[MOST_INDICES];  // the step of this axis
};

// No place: an index was out of range. (Places may be negative: so are the steps of flipped views.)
#define NOWHERE (-0x7fffffffffffffffLL - 1)

// The place of an element, or NOWHERE if an index is out of range, which is reported. `strict` forbids
// negative indices; otherwise they count from the end. `Count` holds the number of elements.
template <int K, class Count, class I> struct Finder {
  const I* index[MOST_INDICES];
  ErrorRecord* record;
  long long site;
  bool strict;

  __device__ __forceinline__ long long place(const Places& p, Count element,
                                             long long* other = nullptr) const {
    long long at = 0, beside = 0, where[K] = {};
    for (int d = (int)p.dims - 1; d >= 0; --d) {
      const Count size = (Count)p.size[d], rest = element / size;
      const long long i = (long long)(element - rest * size);
      element = rest;
      at += i * p.step[d];
      beside += i * p.other[d];
#pragma unroll
      for (int k = 0; k < K; ++k) where[k] += i * p.index_step[k][d];
    }
    if (other) *other = beside;
    bool found = true;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const long long given = (long long)index[k][where[k]], size = p.bound[k];
      const long long i = given < 0 && !strict ? given + size : given;
      if ((unsigned long long)i >= (unsigned long long)size) {
        report_error(record, site, given, size);
        found = false;
      }
      at += i * p.scale[k];
    }
    return found ? at : NOWHERE;
  }
};

#define FOR_EACH(element, count)                                         \
  for (Count element = (Count)blockIdx.x * blockDim.x + threadIdx.x;     \
       element < (Count)(count); element += (Count)gridDim.x * blockDim.x)

// The parameters of every kernel that addresses by indices, and its Finder.
#define INDEX_PARAMETERS                                                                \
  const Index *index0, const Index *index1, const Index *index2, const Index *index3, \
      ErrorRecord *record, long long site, long long strict
#define FINDER                                                                           \
  const Finder<INDICES, Count, Index> finder = {                                         \
      {index0, index1, index2, index3}, record, site, strict != 0}
