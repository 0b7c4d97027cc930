// Philox4x32-10: random bits from a counter, the same as gpugrad.ops.random.philox gives on a CPU.
//
// Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants of
// Random123's philox4x32.
#include "types.cuh"

struct Words {
  unsigned at[4];
};

// the block of four words at positions 4 * block ... 4 * block + 3 of the stream of a seed
__device__ __forceinline__ Words philox(unsigned long long seed, unsigned long long block) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32), c2 = 0, c3 = 0;
  unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// four words from any position on: one block, or the end of one and the beginning of the next
__device__ __forceinline__ Words words_from(unsigned long long seed, unsigned long long position) {
  const int skipped = int(position & 3);
  Words found = philox(seed, position >> 2);
  if (skipped) {
    const Words next = philox(seed, (position >> 2) + 1);
    const unsigned both[8] = {found.at[0], found.at[1], found.at[2], found.at[3],
                              next.at[0],  next.at[1],  next.at[2],  next.at[3]};
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // without an index known at run time, which needs local memory
      found.at[k] = skipped == 1 ? both[k + 1] : skipped == 2 ? both[k + 2] : both[k + 3];
    }
  }
  return found;
}

// uniform in [0, 1): the high 24 bits of a word, or the high 53 of two
__device__ __forceinline__ float unit(unsigned word) { return float(word >> 8) * 0x1p-24f; }
__device__ __forceinline__ unsigned long long joined(unsigned first, unsigned second) {
  return (unsigned long long)first << 32 | second;
}
__device__ __forceinline__ double unit(unsigned first, unsigned second) {
  return double(joined(first, second) >> 11) * 0x1p-53;
}

// A place in a stream, given by its seed and position. Inside a CUDA graph both are only known when
// it is replayed: then base[0] is the seed and base[1] is added to the position.
struct Place {
  unsigned long long seed, position;
};
__device__ __forceinline__ Place place(unsigned long long seed, long long position,
                                       const long long* base) {
  if (base) return {(unsigned long long)base[0], (unsigned long long)(position + base[1])};
  return {seed, (unsigned long long)position};
}
