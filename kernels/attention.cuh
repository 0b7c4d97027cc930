// softmax(q k^T * scale + mask) v without the matrix of weights: tiles of it live in registers.
//
// A block of 16 x 16 threads holds a tile of ROWS rows and streams tiles of LENGTH others through
// shared memory. Of the matrix (ROWS, LENGTH) thread (y, x) has the elements (y + 16 i, x + 16 j), so
// that the 16 threads of a row are half a warp and a row's maximum and sum take four shuffles.
// - attention_forward.cu: rows are queries; keys and values stream by under a running maximum.
// - attention_query.cu: rows are queries; the weights are computed again from their logarithmic sum.
// - attention_key.cu: rows are keys; queries stream by.
// Every sum is over tiles in ascending order within one block: no atomics, the same bits every time.
//
// Launch: one block of 256 threads per tile and head, tiles fastest; tiles of shared memory by the
// caller. Arithmetic is in REAL (float; double for double).
// Source: Dao et al., "FlashAttention", 2022, and "FlashAttention-2", 2023; the running softmax:
// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
//
// Compiled with ELEMENT and REAL, HEAD and VALUE (lengths of a key and of a value), ROWS and LENGTH
// (multiples of 16), and MASK: 0 none, 1 booleans (true: visible), 2 numbers to be added.
#include "common.cuh"

typedef ELEMENT Element;
typedef REAL Real;

#define SIDE 16
#define THREADS (SIDE * SIDE)
#define MINE (ROWS / SIDE)      // rows of a thread
#define OTHERS (LENGTH / SIDE)  // columns of a thread
#define PADDED(n) ((n + SIDE - 1) / SIDE)
#define ROW_STEP (ROWS + 1)  // of tiles in shared memory, which hold (column, row): odd, so that
#define STEP (LENGTH + 1)    // neighbouring columns lie in different banks

struct Steps {  // of an array (batch, head, row, column), in elements
  long long batch, head, row, column;
};

struct Attention {  // as ATTENTION of gpugrad/codegen/cuda_attention.py
  long long heads, queries, keys, causal;
  double scale;
  Steps q, k, v, mask, out, g, dq, dk, dv;
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// What a block works on: a tile of rows of one head.
struct Place {
  int y, x;
  long long batch, head, matrix, first;
  __device__ __forceinline__ Place(const Attention& a, long long rows) {
    y = threadIdx.x / SIDE;
    x = threadIdx.x % SIDE;
    const long long tiles = (rows + ROWS - 1) / ROWS;
    matrix = blockIdx.x / tiles;
    first = (blockIdx.x - matrix * tiles) * ROWS;
    batch = matrix / a.heads;
    head = matrix - batch * a.heads;
  }
  template <class T> __device__ __forceinline__ T* in(T* array, const Steps& s) const {
    return array + batch * s.batch + head * s.head;
  }
};

// to[column, row] = from[first + row, column]; rows from `end` on are zeros
template <int WIDTH, int COUNT, int TO_STEP>
__device__ __forceinline__ void load_tile(Real* to, const Element* from, const Steps& s,
                                          long long first, long long end) {
  for (int e = threadIdx.x; e < WIDTH * COUNT; e += THREADS) {
    const int row = e / WIDTH, column = e - row * WIDTH;
    const bool inside = first + row < end;
    to[column * TO_STEP + row] =
        inside ? Real(widen(from[(first + row) * s.row + column * s.column])) : Real(0);
  }
}

// s[i, j] = sum over c of rows[c, y + 16 i] * others[c, x + 16 j]
template <int WIDTH>
__device__ __forceinline__ void product(Real (&s)[MINE][OTHERS], const Real* rows,
                                        const Real* others, const Place& p) {
#pragma unroll
  for (int i = 0; i < MINE; ++i)
#pragma unroll
    for (int j = 0; j < OTHERS; ++j) s[i][j] = Real(0);
#pragma unroll 4
  for (int c = 0; c < WIDTH; ++c) {
    Real a[MINE], b[OTHERS];
#pragma unroll
    for (int i = 0; i < MINE; ++i) a[i] = rows[c * ROW_STEP + p.y + SIDE * i];
#pragma unroll
    for (int j = 0; j < OTHERS; ++j) b[j] = others[c * STEP + p.x + SIDE * j];
#pragma unroll
    for (int i = 0; i < MINE; ++i)
#pragma unroll
      for (int j = 0; j < OTHERS; ++j) s[i][j] += a[i] * b[j];
  }
}

// The accumulators of a thread: rows y + 16 i, columns x + 16 c of a matrix (ROWS, WIDTH).
template <int WIDTH> struct Rows {
  Real at[MINE][PADDED(WIDTH)];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MINE; ++i)
#pragma unroll
      for (int c = 0; c < PADDED(WIDTH); ++c) at[i][c] = Real(0);
  }
  // at[i, c] += sum over n of weights[y + 16 i, n] * others[x + 16 c, n]
  __device__ __forceinline__ void add(const Real* weights, const Real* others, const Place& p) {
#pragma unroll 4
    for (int n = 0; n < LENGTH; ++n) {
      Real w[MINE], o[PADDED(WIDTH)];
#pragma unroll
      for (int i = 0; i < MINE; ++i) w[i] = weights[(p.y + SIDE * i) * STEP + n];
#pragma unroll
      for (int c = 0; c < PADDED(WIDTH); ++c) {
        const int column = p.x + SIDE * c;
        o[c] = WIDTH % SIDE == 0 || column < WIDTH ? others[column * STEP + n] : Real(0);
      }
#pragma unroll
      for (int i = 0; i < MINE; ++i)
#pragma unroll
        for (int c = 0; c < PADDED(WIDTH); ++c) at[i][c] += w[i] * o[c];
    }
  }
  __device__ __forceinline__ void store(Element* to, const Steps& s, Real factor, const Place& p,
                                        long long rows) const {
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const long long row = p.first + p.y + SIDE * i;
      if (row >= rows) continue;
#pragma unroll
      for (int c = 0; c < PADDED(WIDTH); ++c) {
        const int column = p.x + SIDE * c;
        if (WIDTH % SIDE == 0 || column < WIDTH)
          to[row * s.row + column * s.column] = narrow<Element>(at[i][c] * factor);
      }
    }
  }
};

// The score of a query and a key, -inf where the key is hidden.
template <class M>
__device__ __forceinline__ Real score(Real product, const Attention& a, const M* mask,
                                      long long query, long long key) {
  const Real s = product * Real(a.scale);
  if (query >= a.queries || key >= a.keys || (a.causal && key > query)) return -INFINITY;
#if MASK == 1
  return mask[query * a.mask.row + key * a.mask.column] ? s : Real(-INFINITY);
#elif MASK == 2
  return s + Real(widen(mask[query * a.mask.row + key * a.mask.column]));
#else
  return s;
#endif
}

#if MASK == 1
typedef bool Mask;
#else
typedef Element Mask;
#endif

// Of the half warp that has a row.
__device__ __forceinline__ Real row_max(Real v) {
#pragma unroll
  for (int lanes = SIDE / 2; lanes; lanes >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}
__device__ __forceinline__ Real row_sum(Real v) {
#pragma unroll
  for (int lanes = SIDE / 2; lanes; lanes >>= 1) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

// The weight of a query and a key, from the score and the logarithmic sum of the query.
__device__ __forceinline__ Real weight(Real score, Real sum, const Attention& a, long long query,
                                       long long key) {
  return query < a.queries && key < a.keys ? exponential(score - sum) : Real(0);
}
